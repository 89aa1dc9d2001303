"""``remove``: a tree, a checkpoint, a trial or an experiment, the record that names it first."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import (
    AccessDeniedError,
    ConcurrentWriterError,
    ConfigError,
    NotFoundError,
    UnsupportedError,
)
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, META_DIR
from asyncsync.planning.retention import is_marked
from asyncsync.remote.access import DEFAULT_TRANSFER, open_for_reading
from asyncsync.runtime import Presence, token, wall_time
from asyncsync.stores.base import ObjectInfo, Store, delete_batches
from asyncsync.stores.read import find, list_all, uri_of
from asyncsync.sync.records.manifests import find_record, get_record
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord

log = logging.getLogger("asyncsync")

LISTINGS = 5
"""Times that a prefix is listed again for objects that appeared in between."""
REMOVAL_MARK = f"{META_DIR}/removal"
"""Holds the kind of what is being removed. It is deleted last: after an interruption nothing else tells what the rest
was."""


@dataclass(frozen=True)
class RemoveReport:
    """The data that :func:`remove` removed or, in a dry run, would remove."""

    kind: str
    """``experiment``, ``trial``, ``checkpoint`` or ``tree``."""
    uri: str
    dry_run: bool
    objects: int
    bytes: int
    requests: int = 0
    seconds: float = 0.0


async def remove(
    uri: str | os.PathLike[str],
    *,
    dry_run: bool = True,
    force: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> RemoveReport:
    """Remove the experiment, trial, checkpoint or tree at ``uri``. With ``dry_run`` (the default) nothing is removed.

    Records go first: a checkpoint leaves its trial's record, a trial its experiment's, then open uploads are aborted,
    and manifests and data are deleted. After an interruption the rest is invisible to readers, and the same call
    removes it, because the object ``.asyncsync/removal`` stays to the end. A plain prefix without record or manifest is
    refused: asyncsync did not write it.

    ``force``: also if a process seems to run it, or if it is a checkpoint that is pinned or has tags. A process that
    really runs it will fail with ConcurrentWriterError.

    Raises:
        NotFoundError: asyncsync has stored nothing there.
        ConcurrentWriterError: a process runs it, or its record was written in between.
        ConfigError: the URI or an option is unknown, or the checkpoint is pinned or has tags.
        StoreError: the store refused or failed a request.
    """
    began = time.monotonic()
    address, options = split_sas(os.fspath(uri), storage_options)
    where = address.rstrip("/")
    above, _, name = where.rpartition("/")
    if not above or above.endswith("/"):  # a bucket, or the root
        above, name = where, ""
    async with open_for_reading(above, transfer, options) as store:
        removal = await _Removal.find(store, f"{name}/" if name else "", where)
        if not force:
            await removal.check_idle()
            await removal.check_unmarked()
        if not dry_run:
            await removal.leave_record()
            await abort_uploads(store, removal.prefix)
            if store.traits.local:  # those of a directory are in the directory that the writer had opened
                async with open_for_reading(where, transfer, options) as own:
                    await abort_uploads(own, "")
            await removal.delete()
        size = sum(item.size for item in removal.objects.values())
        seconds = time.monotonic() - began
        return RemoveReport(removal.kind, where, dry_run, len(removal.objects), size, store.requests, seconds)


@dataclass(slots=True)
class _Removal:
    """The removal of one prefix. ``store`` is that of the prefix above it."""

    store: Store
    prefix: str
    uri: str
    kind: str
    objects: dict[str, ObjectInfo]

    @classmethod
    async def find(cls, store: Store, prefix: str, uri: str) -> _Removal:
        objects = await list_all(store, prefix)
        trial = await find_record(store, TRIAL_RECORD, TrialRecord) if prefix else None
        listed = trial is not None and prefix.rstrip("/") in {item.name for item in trial.checkpoints}
        for kind, key in (("experiment", EXPERIMENT_RECORD), ("trial", TRIAL_RECORD), ("tree", MANIFEST)):
            if prefix + key in objects:
                return cls(store, prefix, uri, "checkpoint" if kind == "tree" and trial is not None else kind, objects)
        if listed:
            return cls(store, prefix, uri, "checkpoint", objects)
        driver = await find_record(store, EXPERIMENT_RECORD, ExperimentRecord) if prefix else None
        if driver is not None and prefix.rstrip("/") in driver.trials:
            return cls(store, prefix, uri, "trial", objects)
        if (interrupted := await find(store, prefix + REMOVAL_MARK)) is not None:
            return cls(store, prefix, uri, interrupted.decode(errors="replace")[:20], objects)
        raise NotFoundError(
            f"{uri} holds no experiment, trial, checkpoint or tree of asyncsync, so nothing is removed. Check the URL "
            "with asyncsync ls"
        )

    async def check_idle(self) -> None:
        """ConcurrentWriterError if a process runs it."""
        driver_key = self.prefix + EXPERIMENT_RECORD if self.kind == "experiment" else EXPERIMENT_RECORD
        trial_key = self.prefix + TRIAL_RECORD if self.kind == "trial" else TRIAL_RECORD
        driver = trial = None
        if self.kind in ("experiment", "trial"):
            driver = await find_record(self.store, driver_key, ExperimentRecord)
        if self.kind in ("checkpoint", "trial"):
            trial = await find_record(self.store, trial_key, TrialRecord)
        runs = driver is not None and driver.status == "running" and not driver.is_lost(wall_time())
        if self.kind == "checkpoint" and trial is not None:
            runs = trial.status == "running" and not Presence.has_ended(trial.runner)
        if runs:
            raise ConcurrentWriterError(
                f"{self.uri} belongs to a run that has not ended: stop it first, or use trial.retire in it. If it was "
                "killed on another machine, remove it with --force (force=True)"
            )

    async def check_unmarked(self) -> None:
        """ConfigError if it is a checkpoint that somebody keeps."""
        trial = await find_record(self.store, TRIAL_RECORD, TrialRecord) if self.kind == "checkpoint" else None
        kept = (
            next((item for item in trial.checkpoints if item.name == self.prefix.rstrip("/")), None) if trial else None
        )
        if kept is not None and is_marked(kept):
            how = (
                "is pinned: unpin it first" if kept.pinned else f"has tags ({', '.join(kept.tags)}): remove them first"
            )
            raise ConfigError(f"{self.uri} {how}, or remove it with --force (force=True)")

    async def leave_record(self) -> None:
        """Remove it from the record that names it, before any of its data."""
        name = self.prefix.rstrip("/")
        if self.kind == "checkpoint":
            found = await get_record(self.store, TRIAL_RECORD, TrialRecord)
            if found is not None and name in {item.name for item in found[0].checkpoints}:
                trial, version = found
                trial.checkpoints = [item for item in trial.checkpoints if item.name != name]
                trial.given_up = [*trial.given_up, name]
                await self._write(TRIAL_RECORD, trial.to_bytes(f"{token()}/1"), version)
        elif self.kind == "trial":
            driver = await get_record(self.store, EXPERIMENT_RECORD, ExperimentRecord)
            if driver is not None and driver[0].trials.pop(name, None) is not None:
                await self._write(EXPERIMENT_RECORD, driver[0].to_bytes(f"{token()}/1"), driver[1])

    async def _write(self, key: str, data: bytes, version: str) -> None:
        await self.store.put(key, data, if_version=version)

    async def delete(self) -> None:
        """Records, then manifests, then everything else: each in requests of their own; the mark at the very end."""
        mark = self.prefix + REMOVAL_MARK
        await self.store.put(mark, self.kind.encode())
        keys = self.objects.keys() - {mark}
        for _ in range(LISTINGS):
            for place in sorted({_removal_order(key) for key in keys}):
                await self._delete_keys(sorted(key for key in keys if _removal_order(key) == place))
            keys = (await list_all(self.store, self.prefix)).keys() - {mark}
            if not keys:
                return await self.store.delete([mark])
        raise ConcurrentWriterError(f"{self.uri}: another process writes there while it is removed. Stop it first")

    async def _delete_keys(self, keys: list[str]) -> None:
        for batch in delete_batches(keys):
            await self.store.delete(batch)


async def abort_uploads(store: Store, prefix: str) -> None:
    """Abort all open uploads below ``prefix``: no reader sees them, but their parts take space. A store that refuses to
    list them does not stop a removal."""
    try:
        for upload in await store.list_multiparts(prefix):
            await store.abort_multipart(upload)
    except (AccessDeniedError, UnsupportedError) as error:
        log.warning("open uploads below %s stay, asyncsync prune aborts them: %s", uri_of(store, prefix), error)


def _removal_order(key: str) -> int:
    for place, name in enumerate((EXPERIMENT_RECORD, TRIAL_RECORD, MANIFEST)):
        if key == name or key.endswith(f"/{name}"):
            return place
    return 3
