"""``prune``: what nobody owns any more. Only what is certainly garbage, only what is old, and only when asked twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from asyncsync.config import TransferConfig
from asyncsync.errors import CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError
from asyncsync.injected import wall_time
from asyncsync.planning.manifest import MANIFEST
from asyncsync.records import EXPERIMENT_RECORD, TRIAL_RECORD, TrialRecord
from asyncsync.report import PruneReport
from asyncsync.stores.base import ObjectInfo, Store, Upload
from asyncsync.stores.together import for_each
from asyncsync.transfer.catalog import parse_trial
from asyncsync.transfer.listing import list_all
from asyncsync.transfer.reader import find, find_manifest, reading
from asyncsync.verifying import CHECKPOINT_DIR

DAY = 86400.0
ABORTS = 5
"""A part that was under way while an upload was aborted may stay (Amazon S3 API, AbortMultipartUpload): abort again."""
BATCH = 1000
DEFAULT = TransferConfig()


async def prune(
    uri: str | os.PathLike[str],
    *,
    dry_run: bool = True,
    older_than: float = DAY,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
) -> PruneReport:
    """Remove what was left behind below ``uri`` and has not been touched for ``older_than`` seconds.

    That is: multipart uploads that were never completed; checkpoint directories of a trial or experiment that have no
    manifest and that no record names; and those that were retired, but whose process died before it had deleted them:
    the trial's record does not name them and does name a newer one. Checkpoints are committed in the order of their
    numbers, so a trial whose record changed within ``older_than`` may still be about to commit what comes after its
    newest: that is left alone whatever its age, uploads included.

    Never touched: whatever a manifest or a record names, and everything that is not a checkpoint directory. With
    ``dry_run`` (the default) nothing is removed and the report says what would be. Give a longer ``older_than`` where
    a single file takes longer than a day to upload.

    SyncFailedError if parts of an upload are still there after it was aborted five times: run it again later.
    """
    started = time.monotonic()
    before = wall_time() - older_than
    async with reading(uri, transfer, storage_options) as store:
        objects = await list_all(store, "")
        owned = _Owned(store, objects, before)
        every = await store.list_multiparts("")
        young = {_directory(item.key) for item in every if not _is_old(item.started, before)} - {""}
        uploads = [item for item in every if _is_old(item.started, before) and not await owned.is_coming(item.key)]
        garbage = [item for item in await _find_garbage(objects, owned, before) if item.prefix not in young]
        if not dry_run:
            await for_each(garbage, partial(_delete, store, owned), 8)
            await _abort_all(store, uploads)
        return PruneReport(
            dry_run=dry_run, uploads=sorted(upload.key for upload in uploads),
            checkpoints=sorted(item.prefix for item in garbage), objects=sum(len(item.keys) for item in garbage),
            bytes=sum(item.size for item in garbage), requests=store.requests, seconds=time.monotonic() - started,
        )  # fmt: skip


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


async def _find_garbage(objects: Mapping[str, ObjectInfo], owned: _Owned, before: float) -> list[_Directory]:
    directories: dict[str, _Directory] = {}
    for key, info in objects.items():
        prefix = _directory(key)
        if prefix:
            directories.setdefault(prefix, _Directory(prefix)).add(info, before)
    candidates = [item for item in directories.values() if item.is_old and _is_of_a_trial(item.prefix, objects)]
    return [item for item in candidates if await owned.is_garbage(item)]


def _is_of_a_trial(prefix: str, objects: Mapping[str, ObjectInfo]) -> bool:
    """Directories of that name in a tree that somebody pushed are none of our business."""
    trial = _parent(prefix)
    return trial + TRIAL_RECORD in objects or (bool(trial) and _parent(trial) + EXPERIMENT_RECORD in objects)


def _parent(prefix: str) -> str:
    head, slash, _ = prefix.rstrip("/").rpartition("/")
    return head + slash


@dataclass(slots=True)
class _Owned:
    """What manifests and records above a directory name; each is read once."""

    store: Store
    objects: Mapping[str, ObjectInfo]
    before: float
    paths: dict[str, frozenset[str]] = field(default_factory=dict)
    records: dict[str, TrialRecord | None] = field(default_factory=dict)

    async def is_garbage(self, directory: _Directory) -> bool:
        """Nobody names it, and nobody is about to."""
        trial = _parent(directory.prefix)
        record = await self.record(trial)
        if record is not None and directory.name in {item.name for item in record.checkpoints}:
            return False
        if directory.committed:
            return record is not None and directory.number < _newest(record)
        return not await self.is_coming(directory.prefix) and not await self._is_in_a_manifest(directory)

    async def is_coming(self, key: str) -> bool:
        """Whether a running trial may be about to commit the checkpoint that a key lies in."""
        prefix = _directory(key)
        if not prefix:
            return False
        record = await self.record(_parent(prefix))
        return record is not None and record.updated > self.before and _Directory(prefix).number > _newest(record)

    async def _is_in_a_manifest(self, directory: _Directory) -> bool:
        for prefix in _above(directory.prefix):
            if prefix + MANIFEST in self.objects:
                paths = await self._manifest(prefix)
                if any(key[len(prefix) :] in paths for key in directory.keys):
                    return True
        return False

    async def record(self, trial: str, *, again: bool = False) -> TrialRecord | None:
        """The record of a trial's prefix; CheckpointIncompleteError if it cannot be read."""
        if trial not in self.records or again:
            try:
                data = await find(self.store, trial + TRIAL_RECORD)
                self.records[trial] = None if data is None else parse_trial(self.store, trial, data)
            except (ValueError, IntegrityError) as error:
                raise CheckpointIncompleteError(f"nothing was pruned, a record cannot be read: {error}") from error
        return self.records[trial]

    async def _manifest(self, prefix: str) -> frozenset[str]:
        if prefix not in self.paths:
            try:
                manifest = await find_manifest(self.store, prefix)
            except IntegrityError as error:
                raise CheckpointIncompleteError(f"nothing was pruned, a manifest cannot be read: {error}") from error
            self.paths[prefix] = frozenset(manifest.files if manifest is not None else ())
        return self.paths[prefix]


def _above(prefix: str) -> Iterator[str]:
    while prefix:
        prefix = _parent(prefix)
        yield prefix


def _newest(record: TrialRecord) -> int:
    return max((item.number for item in record.checkpoints), default=-1)


async def _delete(store: Store, owned: _Owned, directory: _Directory) -> None:
    """Look once more: somebody may have completed or adopted it since. A manifest goes before what it names."""
    manifest = directory.prefix + MANIFEST
    if directory.committed:
        await owned.record(_parent(directory.prefix), again=True)
        if not await owned.is_garbage(directory):
            return
        await store.delete([manifest])
    elif await find(store, manifest) is not None:
        return
    for start in range(0, len(directory.keys), BATCH):
        await store.delete(directory.keys[start : start + BATCH])


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


async def _abort_all(store: Store, uploads: list[Upload]) -> None:
    left: list[str] = []

    async def abort(upload: Upload) -> None:
        if not await _abort(store, upload):
            left.append(upload.key)

    await for_each(uploads, abort, 16)
    if left:
        raise SyncFailedError(
            f"{store.uri}: parts of {len(left)} upload(s) are still there after {ABORTS} aborts; prune again later: "
            + ", ".join(sorted(left)[:5])
        )
