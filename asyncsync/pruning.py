"""``prune``: what nobody owns any more. Only what is certainly garbage, only what is old, and only when asked twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from asyncsync.config import TransferConfig
from asyncsync.errors import CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.records import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.report import PruneReport
from asyncsync.stores.base import ObjectInfo, Store, Upload
from asyncsync.transfer.catalog import parse_trial
from asyncsync.transfer.listing import for_each, list_all
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

    That is: multipart uploads that were never completed, and checkpoint directories of a trial or experiment that have
    no manifest and that no record names. Never touched: whatever a manifest or a record names, and everything that is
    not a checkpoint directory. With ``dry_run`` (the default) nothing is removed and the report says what would be.

    SyncFailedError if parts of an upload are still there after it was aborted five times: run it again later.
    """
    started = time.monotonic()
    before = time.time() - older_than
    async with reading(uri, transfer, storage_options) as store:
        uploads = [item for item in await store.list_multiparts("") if _is_old(item.started, before)]
        garbage = await _find_garbage(store, before)
        if not dry_run:
            await for_each(garbage, partial(_delete, store), 8)
            await _abort_all(store, uploads)
        return PruneReport(
            dry_run=dry_run, uploads=sorted(upload.key for upload in uploads),
            checkpoints=sorted(item.prefix for item in garbage), objects=sum(len(item.keys) for item in garbage),
            bytes=sum(item.size for item in garbage), requests=store.requests, seconds=time.monotonic() - started,
        )  # fmt: skip


def _is_old(modified: float | None, before: float) -> bool:
    """What does not tell its age counts as young."""
    return modified is not None and modified <= before


@dataclass(slots=True)
class _Directory:
    """A checkpoint directory and what lies in it."""

    prefix: str
    keys: list[str] = field(default_factory=list)
    size: int = 0
    is_old: bool = True

    def add(self, info: ObjectInfo, before: float) -> None:
        self.keys.append(info.key)
        self.size += info.size
        self.is_old = self.is_old and _is_old(info.modified, before)


async def _find_garbage(store: Store, before: float) -> list[_Directory]:
    objects = await list_all(store, "")
    directories: dict[str, _Directory] = {}
    for key, info in objects.items():
        match = CHECKPOINT_DIR.match(key)
        if match is not None:
            directories.setdefault(match[0], _Directory(match[0])).add(info, before)
    candidates = [
        item
        for item in directories.values()
        if item.is_old and item.prefix + MANIFEST not in objects and _is_of_a_trial(item.prefix, objects)
    ]
    owned = _Owned(store, objects)
    return [item for item in candidates if not await owned.names(item)]


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
    paths: dict[str, frozenset[str]] = field(default_factory=dict)
    checkpoints: dict[str, frozenset[str]] = field(default_factory=dict)

    async def names(self, directory: _Directory) -> bool:
        """Whether the trial's record names the directory, or a manifest above it names something in it."""
        trial = _parent(directory.prefix)
        if directory.prefix[len(trial) :].rstrip("/") in await self._record(trial):
            return True
        for prefix in _above(directory.prefix):
            if prefix + MANIFEST in self.objects:
                paths = await self._manifest(prefix)
                if any(key[len(prefix) :] in paths for key in directory.keys):
                    return True
        return False

    async def _record(self, trial: str) -> frozenset[str]:
        if trial not in self.checkpoints:
            try:
                data = await find(self.store, trial + TRIAL_RECORD)
                record = None if data is None else parse_trial(self.store, trial, data)
            except (ValueError, IntegrityError) as error:
                raise CheckpointIncompleteError(f"nothing was pruned, a record cannot be read: {error}") from error
            self.checkpoints[trial] = frozenset(item.name for item in record.checkpoints) if record else frozenset()
        return self.checkpoints[trial]

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


async def _delete(store: Store, directory: _Directory) -> None:
    """Look once more: somebody may have completed it since."""
    if await find(store, directory.prefix + MANIFEST) is not None:
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
