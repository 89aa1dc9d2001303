"""``prune``: remove old data that certainly no record or manifest owns, and only with ``dry_run=False``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from asyncsync.aio.tasks import for_each_limited
from asyncsync.config import Seconds, TransferConfig
from asyncsync.errors import ConfigError, DamagedError, NotFoundError, SyncFailedError
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.segments import SEGMENTS, segment_key
from asyncsync.remote.access import DEFAULT_TRANSFER, open_for_reading
from asyncsync.remote.prefixes import checkpoint_directory, parent, parents
from asyncsync.remote.store_clock import store_time
from asyncsync.report import PruneReport
from asyncsync.stores.base import ObjectInfo, Store, Upload, delete_batches
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.records.manifests import find_manifest, find_record, segments_named
from asyncsync.sync.records.model import TrialRecord

DAY = 86400.0
CENTURY = 100 * 365.25 * DAY
ABORT_ATTEMPTS = 5
"""A part in flight while its upload is aborted may stay (Amazon S3 API, AbortMultipartUpload): abort again."""
ABORTS_IN_PARALLEL = 16
DIRECTORIES_IN_PARALLEL = 8
LEAST_SEGMENT_AGE = 3600.0
"""Age in seconds below which a segment of a manifest stays: the manifest that names it may be about to be written."""


async def prune(
    uri: str | os.PathLike[str],
    *,
    dry_run: bool = True,
    older_than: Seconds = DAY,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> PruneReport:
    """Remove abandoned data below ``uri`` that has not changed for ``older_than`` (seconds or timedelta).

    Abandoned are:

    - multipart uploads that were never completed;
    - checkpoint directories of a trial or experiment that have no manifest and that no record names;
    - retired checkpoint directories whose process died before it had deleted them: the trial's record does not name
      them and names a newer one;
    - segments of a large manifest that it does not name any more, once they are an hour old.

    The store's clock alone decides about age. Reading it takes a small object that is written and removed, also in a
    dry run (for a directory: a temporary file). An object without a time stays, and one young object or upload protects
    its whole checkpoint directory. A trial whose record was written within ``older_than`` may be about to commit a
    checkpoint after its newest one: such a directory stays whatever its age, and so do uploads of the trial's
    artifacts. Each directory is checked again just before it is deleted.

    Never removed: anything that a manifest or a record names; anything that an unreadable one may name (the report
    lists these); any other object outside checkpoint directories. With ``dry_run`` (the default) nothing is removed,
    and the report lists what would be. Use a longer ``older_than`` if the upload of a single file takes longer than a
    day.

    Raises:
        ConfigError: ``older_than`` is negative, not a number, or more than a century.
        SyncError: the store does not report the time.
        StoreError: the store refused or failed a request.
        SyncFailedError: parts of an upload remain after five aborts: run it again later.
    """
    limit, started = _age(older_than), time.monotonic()
    async with open_for_reading(uri, transfer, storage_options) as store:
        objects = await list_all(store, "")
        open_uploads = await store.list_multiparts("")
        garbage: list[_Directory] = []
        uploads: list[Upload] = []
        unreadable: dict[str, str] = {}
        segments: list[ObjectInfo] = []
        if open_uploads or any(map(_may_be_old, objects)):  # otherwise no age matters
            now = await store_time(store)
            ownership = _Ownership(store, objects, now - limit)
            segments = await ownership.stray_segments(now - max(limit, LEAST_SEGMENT_AGE))
            unreadable = ownership.unreadable
            garbage = await ownership.garbage(open_uploads)
            uploads = [item for item in open_uploads if await ownership.is_abandoned(item, open_uploads)]
            if not dry_run:
                garbage = await _delete_all(store, ownership, garbage)
                await _abort_all(store, uploads)
                await _delete_keys(store, [item.key for item in segments])
        return PruneReport(
            dry_run=dry_run,
            uploads=sorted(upload.key for upload in uploads),
            checkpoints=sorted(item.prefix for item in garbage),
            segments=sorted(item.key for item in segments),
            objects=sum(len(item.keys) for item in garbage) + len(segments),
            bytes=sum(item.size for item in garbage) + sum(item.size for item in segments),
            requests=store.requests,
            seconds=time.monotonic() - started,
            unreadable=unreadable,
        )


def _age(older_than: Seconds) -> float:
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= CENTURY:
        raise ConfigError(f"invalid older_than={older_than!r}: must be 0 seconds to a century (number or timedelta)")
    return float(seconds)


def _is_old(modified: float | None, before: float) -> bool:
    """Whether something is older than ``before``; without a time it counts as young."""
    return modified is not None and modified <= before


@dataclass(slots=True)
class _Directory:
    """A checkpoint directory and its objects."""

    prefix: str
    keys: list[str] = field(default_factory=list)
    size: int = 0
    is_old: bool = True
    committed: bool = False
    """The directory has a manifest."""

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
    """Whether the directory belongs to a trial; a pushed tree may have directories of the same name."""
    trial = parent(prefix)
    return trial + TRIAL_RECORD in objects or (bool(trial) and parent(trial) + EXPERIMENT_RECORD in objects)


def _directories(objects: Mapping[str, ObjectInfo], before: float) -> dict[str, _Directory]:
    found: dict[str, _Directory] = {}
    for key, info in objects.items():
        prefix = checkpoint_directory(key)
        if prefix:
            found.setdefault(prefix, _Directory(prefix)).add(info, before)
    return found


@dataclass(slots=True)
class _Ownership:
    """The names in the manifests and records above a directory, each read once. ``before`` is by the store's clock."""

    store: Store
    objects: dict[str, ObjectInfo]
    before: float
    directories: dict[str, _Directory] = field(init=False)
    paths: dict[str, frozenset[str] | None] = field(default_factory=dict)
    records: dict[str, TrialRecord | None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Record or manifest -> why it cannot be read. Everything that it may name stays."""

    def __post_init__(self) -> None:
        self.directories = _directories(self.objects, self.before)

    async def garbage(self, uploads: Sequence[Upload]) -> list[_Directory]:
        """Checkpoint directories without an owner."""
        busy = {checkpoint_directory(item.key) for item in uploads if not _is_old(item.started, self.before)}
        found = [
            item
            for item in self.directories.values()
            if item.is_old and item.prefix not in busy and _is_of_a_trial(item.prefix, self.objects)
        ]
        return [item for item in found if await self.is_garbage(item)]

    async def stray_segments(self, before: float) -> list[ObjectInfo]:
        """Segments that the manifest of their prefix does not name. Without a manifest they stay: it may follow."""
        old: dict[str, list[ObjectInfo]] = {}
        for key, info in self.objects.items():
            prefix = _segmented(key)
            if prefix is not None and not checkpoint_directory(key) and _is_old(info.modified, before):
                old.setdefault(prefix, []).append(info)
        found: list[ObjectInfo] = []
        for prefix, items in old.items():
            try:
                named = await self._segments_named(prefix)
            except DamagedError as error:
                self.unreadable[prefix + MANIFEST], named = str(error), None
            found += [item for item in items if named is not None and item.key not in named]
        return found

    async def _segments_named(self, prefix: str) -> frozenset[str] | None:
        """The segments that a manifest names; None if there is no manifest. DamagedError, also for one so damaged
        that it does not look as if it named any."""
        named = await segments_named(self.store, prefix)
        if named is None or named:
            return named
        manifest = await find_manifest(self.store, prefix)
        return None if manifest is None else frozenset(prefix + segment_key(item.name) for item in manifest.segments)

    async def is_abandoned(self, upload: Upload, uploads: Sequence[Upload]) -> bool:
        """Whether no process will complete the upload."""
        if not _is_old(upload.started, self.before):
            return False
        prefix = checkpoint_directory(upload.key)
        if not prefix:
            return not any(self._may_be_running(above) for above in parents(upload.key))
        directory = self.directories.get(prefix)
        if directory is not None and not directory.is_old:
            return False
        young = any(
            checkpoint_directory(item.key) == prefix and not _is_old(item.started, self.before) for item in uploads
        )
        return not young and not await self._may_be_committed(_Directory(prefix))

    async def is_garbage(self, directory: _Directory) -> bool:
        """Whether nothing names the directory, and no running trial is about to."""
        trial = parent(directory.prefix)
        if await self._is_unreadable(trial):
            return False
        record = await self._record(trial)
        if record is not None and directory.name in {item.name for item in record.checkpoints}:
            return False
        if directory.committed:
            return record is not None and directory.number < _newest(record)
        return not await self._may_be_committed(directory) and not await self._is_in_a_manifest(directory)

    async def check_again(self, directory: _Directory) -> _Directory | None:
        """The directory as it is now, or None if it is no longer garbage: a process may have resumed, completed or
        adopted it. Its objects are listed last, just before they are deleted."""
        await self._look_for_manifests(directory)
        await self._read_again(parent(directory.prefix))
        if not await self.is_garbage(directory):
            return None
        if not all(_is_old(item.started, self.before) for item in await self.store.list_multiparts(directory.prefix)):
            return None
        now = _directories(await list_all(self.store, directory.prefix), self.before).get(directory.prefix)
        return now if now is not None and now.is_old and now.committed == directory.committed else None

    async def _read_again(self, trial: str) -> None:
        """Read the current record of a trial, then the time when it was written."""
        self.records.pop(trial, None)
        await self._is_unreadable(trial)
        try:
            self.objects[trial + TRIAL_RECORD] = await self.store.head(trial + TRIAL_RECORD)
        except NotFoundError:
            self.objects.pop(trial + TRIAL_RECORD, None)

    async def _look_for_manifests(self, directory: _Directory) -> None:
        """Forget the manifests above a directory that were written since they were read."""
        for prefix in parents(directory.prefix):
            key = prefix + MANIFEST
            try:
                now = await self.store.head(key)
            except NotFoundError:
                self.objects.pop(key, None)
                continue
            before = self.objects.get(key)
            if before is None or before.version != now.version:
                self.objects[key] = now
                self.paths.pop(prefix, None)

    async def _may_be_committed(self, directory: _Directory) -> bool:
        """Whether a running trial may be about to commit it."""
        trial = parent(directory.prefix)
        if await self._is_unreadable(trial):
            return True
        record = await self._record(trial)
        return record is not None and directory.number > _newest(record) and self._may_be_running(trial)

    def _may_be_running(self, trial: str) -> bool:
        """Whether the record of a trial is young, so that its process may be running."""
        info = self.objects.get(trial + TRIAL_RECORD)
        return info is not None and not _is_old(info.modified, self.before)

    async def _is_in_a_manifest(self, directory: _Directory) -> bool:
        for prefix in parents(directory.prefix):
            if prefix + MANIFEST in self.objects:
                paths = await self._manifest(prefix)
                if paths is None or any(key[len(prefix) :] in paths for key in directory.keys):
                    return True
        return False

    async def _is_unreadable(self, trial: str) -> bool:
        """Whether the trial's record cannot be read: it may name everything below its prefix."""
        key = trial + TRIAL_RECORD
        if key not in self.unreadable:
            try:
                await self._record(trial)
            except DamagedError as error:
                self.unreadable[key] = str(error)
        return key in self.unreadable

    async def _record(self, trial: str) -> TrialRecord | None:
        """The trial's record; DamagedError if it cannot be read."""
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


def _may_be_old(key: str) -> bool:
    return bool(checkpoint_directory(key)) or _segmented(key) is not None


def _segmented(key: str) -> str | None:
    """The prefix of the manifest to which a segment belongs; None for any other key."""
    before, found, _ = f"/{key}".rpartition(f"/{SEGMENTS}")
    return f"{before[1:]}/".lstrip("/") if found else None


async def _delete_keys(store: Store, keys: Sequence[str]) -> None:
    for batch in delete_batches(keys):
        await store.delete(batch)


def _newest(record: TrialRecord) -> int:
    return max((item.number for item in record.checkpoints), default=-1)


async def _delete_all(store: Store, ownership: _Ownership, directories: Sequence[_Directory]) -> list[_Directory]:
    """Delete the directories that are still garbage; returns those that were deleted."""
    deleted: list[_Directory] = []

    async def delete(directory: _Directory) -> None:
        now = await ownership.check_again(directory)
        if now is not None and await _delete(store, now):
            deleted.append(now)

    await for_each_limited(directories, delete, DIRECTORIES_IN_PARALLEL)
    return deleted


async def _delete(store: Store, directory: _Directory) -> bool:
    """Delete a directory, its manifest first. Stops if a directory without a manifest gets one. Returns whether
    everything was deleted."""
    manifest = directory.prefix + MANIFEST
    if directory.committed:
        await store.delete([manifest])
    for number, batch in enumerate(delete_batches(directory.keys)):
        if number and not directory.committed and await exists(store, manifest):
            return False
        await store.delete(batch)
    return True


async def _abort(store: Store, upload: Upload) -> bool:
    """Abort an upload; returns whether no part of it remains."""
    for _ in range(ABORT_ATTEMPTS):
        await store.abort_multipart(upload)
        try:
            if not await store.list_parts(upload):
                return True
        except NotFoundError:
            return True
    return False


async def _abort_all(store: Store, uploads: Sequence[Upload]) -> None:
    remaining: list[str] = []

    async def abort(upload: Upload) -> None:
        if not await _abort(store, upload):
            remaining.append(upload.key)

    await for_each_limited(uploads, abort, ABORTS_IN_PARALLEL)
    if remaining:
        raise SyncFailedError(
            f"{store.uri}: parts of {len(remaining)} upload(s) remain after {ABORT_ATTEMPTS} aborts; "
            "run prune again later: " + ", ".join(sorted(remaining)[:5])
        )
