"""Private: resuming an experiment: its records, the files that reports append to, and the next checkpoint numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
from msgspec import structs
from xxhash import xxh3_128

from asyncsync.aio.threads import in_thread
from asyncsync.config import RunConfig
from asyncsync.disk.accepted_files import some
from asyncsync.disk.results import as_json
from asyncsync.engine.trials.context import Role
from asyncsync.errors import CheckpointIncompleteError, DamagedError, IntegrityError, NotFoundError, SyncFailedError
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.rank_agreement import NONCE
from asyncsync.planning.retention import by_age
from asyncsync.runtime import Presence, token, wall_time
from asyncsync.stores.base import Piece, Store
from asyncsync.stores.read import list_all, list_directories, versions_below
from asyncsync.sync.download.tree_download import download_tree
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord

TAKEOVER_ATTEMPTS = 8
"""Attempts to replace a record whose last writer may still write it: until its lease expires it may at each sync."""
EXPERIMENT_NONCE = "experiment"
"""Key in a journal row and in the info of a checkpoint's manifest: the nonce of the experiment's record."""
NUMBERED = re.compile(r"checkpoint_([0-9]{1,18})")
"""Directories of checkpoints. Numbers have 63 bits, so more digits cannot be one of ours."""
RESTORE_ATTEMPTS = 3
"""Attempts to restore files that differ from their manifest: their writer may still be running."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The process that wrote a record before this one."""

    runner: str = ""
    running: bool = False
    """Whether it has not marked its record as ended."""

    def may_still_write(self) -> bool:
        """Whether its requests may be in flight until its lease expires."""
        return self.running and not Presence.has_ended(self.runner)


def new_record(run: RunConfig, role: Role, runner: str, name: str, params: Mapping[str, Any] | None) -> TrialRecord:
    """The record of a new trial."""
    now, params = wall_time(), as_json(params) if params else {}
    return TrialRecord(
        name,
        str(run.name),
        params=params,
        world_size=role.world_size,
        started=now,
        updated=now,
        nonce=token(),
        runner=runner,
    )


def take_over_record(record: TrialRecord, role: Role, runner: str, params: Mapping[str, Any] | None) -> Predecessor:
    """Make the stored record ours. Returns its previous writer, which loses it when ours is written."""
    before = Predecessor(record.runner, record.status == "running")
    record.epoch += 1
    record.nonce, record.runner = record.nonce or token(), runner
    record.world_size = role.world_size
    record.status, record.error, record.updated = "running", None, wall_time()
    if params is not None:
        record.params = as_json(params)
    return before


def merge_late_record(ours: TrialRecord, late: TrialRecord) -> TrialRecord:
    """Merge ``ours``, which was never stored, into the record that a replaced process stored after we read it. The
    checkpoints that it lists are not given up, even if they failed here."""
    given_up = [*late.given_up, *(name for name in ours.given_up if not _lists(late, name))]
    return replace(
        ours,
        epoch=late.epoch + 1,
        nonce=late.nonce or ours.nonce,
        checkpoints=late.checkpoints,
        given_up=given_up,
        metrics=late.metrics if late.reports > ours.reports else ours.metrics,
        reports=max(late.reports, ours.reports),
        next_checkpoint=max(late.next_checkpoint, ours.next_checkpoint),
        extra=late.extra,
    )


async def restore_files(store: Store, prefix: str, root: Path, warn: Callable[[str], None]) -> None:
    """Download the files of a tree that this machine lacks. Local files are newer and stay.

    Appending to a missing file would overwrite the stored one with only its tail. Raises DamagedError if the manifest
    cannot be read. ``warn`` is called with files that differ from the manifest: a process that died or was replaced
    during a sync uploaded them without a new manifest, so they are the newest version; or they are missing.
    """
    manifest = await find_manifest(store, prefix)
    if manifest is None:
        return
    here = await in_thread(_existing_paths, str(root), list(manifest.files))
    manifest = Manifest({path: entry for path, entry in manifest.files.items() if path not in here})
    for left in reversed(range(RESTORE_ATTEMPTS)):
        if not manifest.files:
            return
        try:
            await download_tree(store, prefix, manifest, root, concurrency=8)
        except (CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError):
            stored = await _stored_manifest(store, prefix, manifest, warn)
            if stored is manifest or not left:
                raise
            manifest = stored
        else:
            return


async def _stored_manifest(store: Store, prefix: str, manifest: Manifest, warn: Callable[[str], None]) -> Manifest:
    """The manifest as it would be written now; the same object if it is right."""
    stored = await versions_below(store, prefix)
    missing = sorted(manifest.files.keys() - stored.keys())
    changed = sorted(path for path, entry in manifest.files.items() if stored.get(path, entry.version) != entry.version)
    if not missing and not changed:
        return manifest
    if changed:
        warn(f"{len(changed)} file(s) are newer than the manifest and are restored as they are: {some(changed)}")
    if missing:
        warn(f"{len(missing)} file(s) in the manifest are missing in the store: {some(missing)}")
    unchanged = {path: entry for path, entry in manifest.files.items() if path in stored}
    found = {path: await _stored_entry(store, prefix, manifest.files[path]) for path in changed}
    return Manifest({**unchanged, **found}, manifest.info)


async def _stored_entry(store: Store, prefix: str, entry: FileEntry) -> FileEntry:
    """The manifest entry of the object as it is now. Reads all of it, in pieces."""
    digest, size, crc = xxh3_128(), 0, 0

    async def take(piece: Piece) -> None:
        nonlocal size, crc
        digest.update(piece)
        size, crc = size + len(piece), google_crc32c.extend(crc, bytes(piece))

    info = await store.read(prefix + entry.path, take)
    return structs.replace(
        entry,
        size=size,
        crc32c=crc,
        part_size=0,
        parts=(digest.hexdigest(),),
        part_crcs=(crc,),
        version=info.version,
        mtime_ns=int((info.modified or 0) * 1e9),
        inode=0,
        samples="",
    )


def _existing_paths(root: str, paths: list[str]) -> set[str]:
    return {path for path in paths if os.path.lexists(f"{root}/{path}")}


def belongs_to_run(info: Mapping[str, Any], experiment: str, trial: str | None) -> bool:
    """Whether this journal row or manifest was written in this experiment, not in a deleted one of the same name.
    ``experiment`` and ``trial``: nonces of the stored records; None if the store has no record of the trial."""
    known, key = (experiment, EXPERIMENT_NONCE) if trial is None else (trial, NONCE)
    return not info.get(key) or info[key] == known


async def adopt_checkpoints(
    store: Store, record: TrialRecord, ours: Callable[[Mapping[str, Any]], bool], warn: Callable[[str], None]
) -> None:
    """Choose numbers above all stored ones, and adopt checkpoints that were committed but not registered when their
    writer died.

    ``ours``: whether a manifest with this info was written in this experiment. One that a process of a deleted
    experiment left keeps its number and is not adopted.

    Only complete checkpoints are adopted, because an adopted one may retire another. A directory without a manifest
    keeps its number for ever, so two checkpoints never mix. Checkpoints older than the newest in the record were
    retired, and are not adopted; nor are those that the record gives up. One whose manifest cannot be read stays where
    it is, and ``warn`` is called.
    """
    newest = max((item.number for item in record.checkpoints), default=-1)
    for name in await list_directories(store, f"{record.name}/"):
        match = NUMBERED.fullmatch(name)
        number = int(match[1]) if match is not None else None
        if number is not None:
            record.next_checkpoint = max(record.next_checkpoint, number + 1)
        if _lists(record, name) or (number is not None and number <= newest):
            continue
        found = await _find_checkpoint(store, f"{record.name}/{name}", number, warn)
        if found is None:
            continue
        item, manifest = found
        if not ours(manifest.info):
            warn(f"{record.name}/{name} is not adopted: it was written in a deleted experiment of the same name")
            continue
        record.next_checkpoint = max(record.next_checkpoint, item.number + 1)
        if item.number <= newest or await first_difference(store, f"{record.name}/{name}/", manifest):
            continue
        if not _lists(record, name):  # another task may have given it up, or registered it, meanwhile
            record.checkpoints.append(item)
    record.checkpoints.sort(key=by_age)


def skip_used_numbers(record: TrialRecord, rows: list[dict[str, Any]]) -> None:
    """Never use an iteration or a checkpoint number twice. Synchronous.

    An earlier process may have used numbers, and died before the store received them.
    """
    for row in rows:
        iteration, name = row.get("training_iteration"), row.get("checkpoint_dir_name")
        if isinstance(iteration, int):
            record.reports = max(record.reports, iteration)
        match = NUMBERED.fullmatch(name) if isinstance(name, str) else None
        if match is not None:
            record.next_checkpoint = max(record.next_checkpoint, int(match[1]) + 1)


def _lists(record: TrialRecord, name: str) -> bool:
    return name in record.given_up or any(item.name == name for item in record.checkpoints)


async def _find_checkpoint(
    store: Store, path: str, number: int | None, warn: Callable[[str], None]
) -> tuple[CheckpointRecord, Manifest] | None:
    """The checkpoint in the directory ``path``, if its manifest describes one of this name."""
    name = path.rpartition("/")[2]
    try:
        manifest = await find_manifest(store, f"{path}/")
    except DamagedError as error:
        warn(f"{path} is not adopted: {error}")
        return None
    if manifest is None or manifest.info.get("checkpoint", name) != name:
        return None
    try:
        return _record_from_manifest(name, number, manifest), manifest
    except (KeyError, ValueError) as error:
        warn(f"{path} is not adopted, its manifest describes no checkpoint: {error}")
        return None


async def first_difference(store: Store, prefix: str, manifest: Manifest) -> str:
    """The first path in the manifest that the store lacks or has in another version; empty if there is none. One
    listing.

    Comparing sizes is not enough: a manifest that landed late may lie beside files of another process.
    """
    stored = await list_all(store, prefix)

    def differs(entry: FileEntry) -> bool:
        info = stored.get(prefix + entry.path)
        if info is None or info.size != entry.size:
            return True
        return bool(entry.version and info.version) and info.version != entry.version

    return next((path for path, entry in sorted(manifest.files.items()) if differs(entry)), "")


def _record_from_manifest(name: str, number: int | None, manifest: Manifest) -> CheckpointRecord:
    """The record entry that follows from the manifest. Raises KeyError or ValueError if the manifest lacks one."""
    info = manifest.info
    known: dict[str, Any] = {key: info[key] for key in ("metrics", "metadata", "time", "step") if key in info}
    found: dict[str, Any] = {
        "name": name,
        "number": info["number"] if number is None else number,
        "time": wall_time(),
        **known,
    }
    return CheckpointRecord.of({**found, "files": len(manifest.files), "bytes": manifest.bytes_total})
