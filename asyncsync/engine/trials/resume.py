"""Taking an experiment up again: its records, the files that reports append to, its next checkpoint numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
from xxhash import xxh3_128

from asyncsync.aio.threads import in_thread
from asyncsync.config import RunConfig
from asyncsync.disk.accepted_files import some
from asyncsync.disk.results import as_json
from asyncsync.engine.trials.context import Role
from asyncsync.errors import CheckpointIncompleteError, DamagedError, IntegrityError, NotFoundError, SyncFailedError
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.retention import by_age
from asyncsync.runtime import Presence, token, wall_time
from asyncsync.stores.base import Piece, Store
from asyncsync.stores.read import list_all, list_directories, versions_below
from asyncsync.sync.download.tree_download import download_tree
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord

NUMBERED = re.compile(r"checkpoint_([0-9]{1,18})")
"""Directories of checkpoints. More digits are nobody's counting: numbers have 63 bits."""
RESTORE_ATTEMPTS = 3
"""How often files are looked at again that are not what their manifest says: their writer may be alive."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """Who wrote a record before us."""

    runner: str = ""
    running: bool = False
    """Whether it has not said that it was done."""

    def may_still_write(self) -> bool:
        """Whether requests of it may be on their way, until its lease has run out."""
        return self.running and not Presence.has_ended(self.runner)


def new_record(run: RunConfig, role: Role, runner: str, name: str, params: Mapping[str, Any] | None) -> TrialRecord:
    """The record of a trial that starts now."""
    now, params = wall_time(), as_json(params or {})
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
    """The record of a trial that goes on: whoever had it, which is returned, loses it when this is written."""
    before = Predecessor(record.runner, record.status == "running")
    record.epoch += 1
    record.nonce, record.runner = record.nonce or token(), runner
    record.world_size = role.world_size
    record.status, record.error, record.updated = "running", None, wall_time()
    if params is not None:
        record.params = as_json(params)
    return before


def merge_late_record(ours: TrialRecord, late: TrialRecord) -> TrialRecord:
    """``ours``, which was never stored, on top of what a replaced process stored after we had read its record."""
    given_up = [*late.given_up, *(name for name in ours.given_up if name not in late.given_up)]
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
    """Bring back what this machine lacks of a tree: appending to a file that is not here would overwrite the stored
    one with its tail. What is here is newer and stays. DamagedError if the manifest cannot be read.

    ``warn`` is told of files that are not what the manifest says: a process that died in a sync, or was replaced in
    one, has sent them and written no manifest after, so they are the newest that there is; or they are gone.
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
            there = await _stored_manifest(store, prefix, manifest, warn)
            if there is manifest or not left:
                raise
            manifest = there
        else:
            return


async def _stored_manifest(store: Store, prefix: str, manifest: Manifest, warn: Callable[[str], None]) -> Manifest:
    """What the manifest would be if it were written now; itself if it is right."""
    there = await versions_below(store, prefix)
    gone = sorted(manifest.files.keys() - there.keys())
    other = sorted(path for path, entry in manifest.files.items() if there.get(path, entry.version) != entry.version)
    if not gone and not other:
        return manifest
    if other:
        warn(f"{len(other)} file(s) are newer than the manifest and are restored as they are: {some(other)}")
    if gone:
        warn(f"{len(gone)} file(s) that the manifest names are gone from the store: {some(gone)}")
    stays = {path: entry for path, entry in manifest.files.items() if path in there}
    found = {path: await _stored_entry(store, prefix, manifest.files[path]) for path in other}
    return Manifest({**stays, **found}, manifest.info)


async def _stored_entry(store: Store, prefix: str, entry: FileEntry) -> FileEntry:
    """What a manifest would say of the object as it is now. Reads it whole, in pieces."""
    digest, size, crc = xxh3_128(), 0, 0

    async def take(piece: Piece) -> None:
        nonlocal size, crc
        digest.update(piece)
        size, crc = size + len(piece), google_crc32c.extend(crc, bytes(piece))

    info = await store.read(prefix + entry.path, take)
    return replace(
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


async def adopt_checkpoints(store: Store, record: TrialRecord, warn: Callable[[str], None]) -> None:
    """Number on above whatever is there, and take in what was committed but not registered when the writer died, if all
    of it is there: what is taken in may retire another one.

    A directory without a manifest keeps its number for ever, so two checkpoints never mix. What is older than the
    newest one in the record was retired, and so was what the record gives up: it does not come back. One whose manifest
    cannot be read stays where it is, and ``warn`` is told.
    """
    newest = max((item.number for item in record.checkpoints), default=-1)
    known = {item.name for item in record.checkpoints} | set(record.given_up)
    for name in await list_directories(store, f"{record.name}/"):
        match = NUMBERED.fullmatch(name)
        number = int(match[1]) if match is not None else None
        if number is not None:
            record.next_checkpoint = max(record.next_checkpoint, number + 1)
        if name in known or (number is not None and number <= newest):
            continue
        try:
            found = await find_manifest(store, f"{record.name}/{name}/")
        except DamagedError as error:
            warn(f"{record.name}/{name} is not taken in: {error}")
            continue
        if found is None or found.info.get("checkpoint", name) != name:
            continue
        try:
            item = _record_from_manifest(name, number, found)
        except (KeyError, ValueError) as error:
            warn(f"{record.name}/{name} is not taken in, its manifest says nothing usable of it: {error}")
            continue
        record.next_checkpoint = max(record.next_checkpoint, item.number + 1)
        if item.number > newest and not await first_difference(store, f"{record.name}/{name}/", found):
            record.checkpoints.append(item)
    record.checkpoints.sort(key=by_age)


async def first_difference(store: Store, prefix: str, manifest: Manifest) -> str:
    """The first path that the manifest names and the store lacks, or has in another version; empty: none. One listing.

    Sizes alone do not do: a manifest that landed late may lie beside files of another process."""
    there = await list_all(store, prefix)

    def differs(entry: FileEntry) -> bool:
        info = there.get(prefix + entry.path)
        if info is None or info.size != entry.size:
            return True
        return bool(entry.version and info.version) and info.version != entry.version

    return next((path for path, entry in sorted(manifest.files.items()) if differs(entry)), "")


def _record_from_manifest(name: str, number: int | None, manifest: Manifest) -> CheckpointRecord:
    """What the manifest says of the checkpoint; KeyError or ValueError if that is none."""
    info = manifest.info
    error_raised: dict[str, Any] = {key: info[key] for key in ("metrics", "metadata", "time", "step") if key in info}
    found: dict[str, Any] = {
        "name": name,
        "number": info["number"] if number is None else number,
        "time": wall_time(),
        **error_raised,
    }
    return CheckpointRecord.of({**found, "files": len(manifest.files), "bytes": manifest.bytes_total})
