"""``prune``: what nobody owns any more. Only what is certainly garbage, only what is old, and only when asked twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from asyncsync.aio.tasks import for_each_limited
from asyncsync.config import Seconds, TransferConfig
from asyncsync.errors import ConfigError, DamagedError, NotFoundError, SyncFailedError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.access import reading
from asyncsync.remote.store_clock import store_time
from asyncsync.remote.verify import CHECKPOINT_DIR
from asyncsync.report import PruneReport
from asyncsync.stores.base import ObjectInfo, Store, Upload
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.records.manifests import find_manifest, find_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, TRIAL_RECORD, TrialRecord

DAY = 86400.0
CENTURY = 100 * 365.25 * DAY
ABORTS = 5
"""A part that was under way while an upload was aborted may stay (Amazon S3 API, AbortMultipartUpload): abort again."""
BATCH = 1000
DEFAULT = TransferConfig()


async def prune(
    uri: str | os.PathLike[str],
    *,
    dry_run: bool = True,
    older_than: Seconds = DAY,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
) -> PruneReport:
    """Remove what was left behind below ``uri`` and has not been touched for ``older_than`` (seconds or timedelta).

    That is: multipart uploads that were never completed; checkpoint directories of a trial or experiment that have no
    manifest and that no record names; and those that were retired, but whose process died before it had deleted them:
    the trial's record does not name them and does name a newer one.

    Age is told by the store's clock alone, that of this machine is not asked. It takes a small object that is written
    and removed, also by a dry run (for a directory a temporary file). What does not say when it was written is left
    alone, and one object or upload that is young protects the whole checkpoint directory that it lies in. A trial whose
    record was written within ``older_than`` may still be about to commit what comes after its newest checkpoint: that
    is left alone whatever its age, and so are uploads of its artifacts. Each directory is looked at again right before
    it is deleted.

    Never touched: whatever a manifest or a record names, or may name that cannot be read (the report says so), and
    everything that is not a checkpoint directory. With
    ``dry_run`` (the default) nothing is removed and the report says what would be. Give a longer ``older_than`` where
    a single file takes longer than a day to upload.

    Raises:
        ConfigError: ``older_than`` is no age: negative, not a number, more than a century.
        SyncError: the store does not tell the time.
        SyncFailedError: parts of an upload are still there after it was aborted five times: run it again later.
    """
    limit, started = _age(older_than), time.monotonic()
    async with reading(uri, transfer, storage_options) as store:
        objects = await list_all(store, "")
        every = await store.list_multiparts("")
        garbage: list[_Directory] = []
        uploads: list[Upload] = []
        unreadable: dict[str, str] = {}
        if every or any(map(_directory, objects)):  # else there is nothing whose age matters
            owned = _Owned(store, objects, await store_time(store) - limit)
            unreadable = owned.unreadable
            garbage = await owned.garbage(every)
            uploads = [item for item in every if await owned.is_abandoned(item, every)]
            if not dry_run:
                garbage = await _delete_all(store, owned, garbage)
                await _abort_all(store, uploads)
        return PruneReport(
            dry_run=dry_run, uploads=sorted(upload.key for upload in uploads),
            checkpoints=sorted(item.prefix for item in garbage), objects=sum(len(item.keys) for item in garbage),
            bytes=sum(item.size for item in garbage), requests=store.requests, seconds=time.monotonic() - started,
            unreadable=unreadable,
        )  # fmt: skip


def _age(older_than: Seconds) -> float:
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= CENTURY:
        raise ConfigError(
            f"older_than={older_than!r} is not usable: it must be 0 seconds to a century (number or timedelta)"
        )
    return float(seconds)


def _is_old(modified: float | None, before: float) -> bool:
    """What does not tell its age counts as young."""
    return modified is not None and modified <= before


def _directory(key: str) -> str:
    """The checkpoint directory that a key lies in, or nothing."""
    match = CHECKPOINT_DIR.match(key)
    return match[0] if match is not None else ""


@dataclass(slots=True)
class _Directory:
    """A checkpoint directory and what lies in it."""

    prefix: str
    keys: list[str] = field(default_factory=list)
    size: int = 0
    is_old: bool = True
    committed: bool = False
    """It has a manifest."""

    @property
    def name(self) -> str:
        return self.prefix.rstrip("/").rpartition("/")[2]

    @property
    def number(self) -> int:
        return int(self.name.rpartition("_")[2])

    def add(self, info: ObjectInfo, before: float) -> None:
        self.keys.append(info.key)
        self.size += info.size
        self.is_old = self.is_old and _is_old(info.modified, before)
        self.committed = self.committed or info.key == self.prefix + MANIFEST


def _is_of_a_trial(prefix: str, objects: Mapping[str, ObjectInfo]) -> bool:
    """Directories of that name in a tree that somebody pushed are none of our business."""
    trial = _parent(prefix)
    return trial + TRIAL_RECORD in objects or (bool(trial) and _parent(trial) + EXPERIMENT_RECORD in objects)


def _parent(prefix: str) -> str:
    head, slash, _ = prefix.rstrip("/").rpartition("/")
    return head + slash


def _directories(objects: Mapping[str, ObjectInfo], before: float) -> dict[str, _Directory]:
    found: dict[str, _Directory] = {}
    for key, info in objects.items():
        prefix = _directory(key)
        if prefix:
            found.setdefault(prefix, _Directory(prefix)).add(info, before)
    return found


@dataclass(slots=True)
class _Owned:
    """What manifests and records above a directory name; each is read once. ``before`` is by the store's clock."""

    store: Store
    objects: dict[str, ObjectInfo]
    before: float
    directories: dict[str, _Directory] = field(init=False)
    paths: dict[str, frozenset[str] | None] = field(default_factory=dict)
    records: dict[str, TrialRecord | None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Record or manifest -> why it cannot be read. What it may name is left alone."""

    def __post_init__(self) -> None:
        self.directories = _directories(self.objects, self.before)

    async def garbage(self, uploads: Sequence[Upload]) -> list[_Directory]:
        """Checkpoint directories that nobody owns."""
        busy = {_directory(item.key) for item in uploads if not _is_old(item.started, self.before)}
        found = [
            item for item in self.directories.values()
            if item.is_old and item.prefix not in busy and _is_of_a_trial(item.prefix, self.objects)
        ]  # fmt: skip
        return [item for item in found if await self.is_garbage(item)]

    async def is_abandoned(self, upload: Upload, uploads: Sequence[Upload]) -> bool:
        """Whether nobody completes it any more."""
        if not _is_old(upload.started, self.before):
            return False
        prefix = _directory(upload.key)
        if not prefix:
            return not any(self._is_live(above) for above in _above(upload.key))
        directory = self.directories.get(prefix)
        if directory is not None and not directory.is_old:
            return False
        young = any(_directory(item.key) == prefix and not _is_old(item.started, self.before) for item in uploads)
        return not young and not await self._is_coming(_Directory(prefix))

    async def is_garbage(self, directory: _Directory) -> bool:
        """Nobody names it, and nobody is about to."""
        trial = _parent(directory.prefix)
        if await self._is_unreadable(trial):
            return False
        record = await self._record(trial)
        if record is not None and directory.name in {item.name for item in record.checkpoints}:
            return False
        if directory.committed:
            return record is not None and directory.number < _newest(record)
        return not await self._is_coming(directory) and not await self._is_in_a_manifest(directory)

    async def look_again(self, directory: _Directory) -> _Directory | None:
        """The directory as it is now, if it still is garbage: somebody may go on with it, or have completed or adopted
        it since. What lies in it is asked last, right before it is deleted."""
        await self._read_again(_parent(directory.prefix))
        if not await self.is_garbage(directory):
            return None
        if not all(_is_old(item.started, self.before) for item in await self.store.list_multiparts(directory.prefix)):
            return None
        now = _directories(await list_all(self.store, directory.prefix), self.before).get(directory.prefix)
        return now if now is not None and now.is_old and now.committed == directory.committed else None

    async def _read_again(self, trial: str) -> None:
        """The record of a trial as it is now, and then when it was written."""
        self.records.pop(trial, None)
        await self._is_unreadable(trial)
        try:
            self.objects[trial + TRIAL_RECORD] = await self.store.head(trial + TRIAL_RECORD)
        except NotFoundError:
            self.objects.pop(trial + TRIAL_RECORD, None)

    async def _is_coming(self, directory: _Directory) -> bool:
        """Whether a running trial may be about to commit it."""
        trial = _parent(directory.prefix)
        if await self._is_unreadable(trial):
            return True
        record = await self._record(trial)
        return record is not None and directory.number > _newest(record) and self._is_live(trial)

    def _is_live(self, trial: str) -> bool:
        """Whether the record of a trial is young: its process may be there."""
        info = self.objects.get(trial + TRIAL_RECORD)
        return info is not None and not _is_old(info.modified, self.before)

    async def _is_in_a_manifest(self, directory: _Directory) -> bool:
        for prefix in _above(directory.prefix):
            if prefix + MANIFEST in self.objects:
                paths = await self._manifest(prefix)
                if paths is None or any(key[len(prefix) :] in paths for key in directory.keys):
                    return True
        return False

    async def _is_unreadable(self, trial: str) -> bool:
        """Whether the record of a trial's prefix cannot be read: what is below it may all be named there."""
        key = trial + TRIAL_RECORD
        if key not in self.unreadable:
            try:
                await self._record(trial)
            except DamagedError as error:
                self.unreadable[key] = str(error)
        return key in self.unreadable

    async def _record(self, trial: str) -> TrialRecord | None:
        """The record of a trial's prefix; DamagedError if it cannot be read."""
        if trial not in self.records:
            self.records[trial] = await find_record(self.store, trial + TRIAL_RECORD, TrialRecord)
        return self.records[trial]

    async def _manifest(self, prefix: str) -> frozenset[str] | None:
        """The paths that a manifest names; None if it cannot be read."""
        if prefix not in self.paths:
            try:
                manifest = await find_manifest(self.store, prefix)
                self.paths[prefix] = frozenset(manifest.files if manifest is not None else ())
            except DamagedError as error:
                self.unreadable[prefix + MANIFEST], self.paths[prefix] = str(error), None
        return self.paths[prefix]


def _above(prefix: str) -> Iterator[str]:
    while prefix:
        prefix = _parent(prefix)
        yield prefix


def _newest(record: TrialRecord) -> int:
    return max((item.number for item in record.checkpoints), default=-1)


async def _delete_all(store: Store, owned: _Owned, directories: Sequence[_Directory]) -> list[_Directory]:
    """Which of them were deleted."""
    deleted: list[_Directory] = []

    async def delete(directory: _Directory) -> None:
        now = await owned.look_again(directory)
        if now is not None and await _delete(store, now):
            deleted.append(now)

    await for_each_limited(directories, delete, 8)
    return deleted


async def _delete(store: Store, directory: _Directory) -> bool:
    """A manifest goes before what it names; where there was none, it is looked for until the end. Whether all went."""
    manifest = directory.prefix + MANIFEST
    if directory.committed:
        await store.delete([manifest])
    for start in range(0, len(directory.keys), BATCH):
        if start and not directory.committed and await exists(store, manifest):
            return False
        await store.delete(directory.keys[start : start + BATCH])
    return True


async def _abort(store: Store, upload: Upload) -> bool:
    """Whether it is gone, parts and all."""
    for _ in range(ABORTS):
        await store.abort_multipart(upload)
        try:
            if not await store.list_parts(upload):
                return True
        except NotFoundError:
            return True
    return False


async def _abort_all(store: Store, uploads: Sequence[Upload]) -> None:
    left: list[str] = []

    async def abort(upload: Upload) -> None:
        if not await _abort(store, upload):
            left.append(upload.key)

    await for_each_limited(uploads, abort, 16)
    if left:
        raise SyncFailedError(
            f"{store.uri}: parts of {len(left)} upload(s) are still there after {ABORTS} aborts; prune again later: "
            + ", ".join(sorted(left)[:5])
        )
