"""Taking an experiment up again: its records, the files that reports append to, its next checkpoint numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncsync.disk.files import in_thread
from asyncsync.errors import DamagedError
from asyncsync.injected import wall_time
from asyncsync.planning.manifest import META_DIR, Manifest
from asyncsync.records import TRIAL_RECORD, CheckpointRecord, TrialRecord
from asyncsync.stores.base import Store
from asyncsync.stores.together import for_each
from asyncsync.transfer.download import download_tree
from asyncsync.transfer.reader import find_manifest, get_record

READERS = 64
NUMBERED = re.compile(r"checkpoint_([0-9]{1,18})")
"""Directories of checkpoints. More digits are nobody's counting: numbers have 63 bits."""


async def sub_prefixes(store: Store, prefix: str = "") -> list[str]:
    """Names of the directories right below a prefix."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = await store.list(prefix, delimiter="/", token=token)
        names += [item[len(prefix) :].rstrip("/") for item in page.prefixes]
        token = page.token
        if token is None:
            return [name for name in names if name and name != META_DIR]


async def read_trials(store: Store) -> tuple[dict[str, tuple[TrialRecord, str]], dict[str, DamagedError]]:
    """Every trial's record and its version, read in parallel; and why those that cannot be read cannot, by trial."""
    names = await sub_prefixes(store)
    found: dict[str, tuple[TrialRecord, str]] = {}
    damaged: dict[str, DamagedError] = {}

    async def read(name: str) -> None:
        try:
            there = await get_record(store, f"{name}/{TRIAL_RECORD}", TrialRecord)
        except DamagedError as error:
            damaged[name] = error
            return
        if there is not None:
            there[0].name = name  # its directory decides: it may have been copied or renamed
            found[name] = there

    await for_each(names, read, min(READERS, len(names)))
    return found, damaged


async def restore_files(store: Store, prefix: str, root: Path, *, only_missing: bool = True) -> None:
    """Bring back what this machine lacks of a tree: appending to a file that is not here would overwrite the stored
    one with its tail. What is here is newer and stays. DamagedError if the manifest cannot be read."""
    manifest = await find_manifest(store, prefix)
    if manifest is None:
        return
    if only_missing:
        here = await in_thread(_here, str(root), list(manifest.files))
        manifest = Manifest({path: entry for path, entry in manifest.files.items() if path not in here})
    if manifest.files:
        await download_tree(store, prefix, manifest, root, concurrency=8)


def _here(root: str, paths: list[str]) -> set[str]:
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
    for name in await sub_prefixes(store, f"{record.name}/"):
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
            item = _record(name, number, found)
        except (KeyError, ValueError) as error:
            warn(f"{record.name}/{name} is not taken in, its manifest says nothing usable of it: {error}")
            continue
        record.next_checkpoint = max(record.next_checkpoint, item.number + 1)
        if item.number > newest and not await not_whole(store, f"{record.name}/{name}/", found):
            record.checkpoints.append(item)
    record.checkpoints.sort(key=lambda item: item.number)


async def not_whole(store: Store, prefix: str, manifest: Manifest) -> str:
    """The first path that the manifest names and the store lacks, or has in another size; empty: none. One listing."""
    sizes: dict[str, int] = {}
    token: str | None = None
    while True:
        page = await store.list(prefix, token=token)
        sizes.update((item.key[len(prefix) :], item.size) for item in page.objects)
        token = page.token
        if token is None:
            break
    return next((path for path, entry in sorted(manifest.files.items()) if sizes.get(path) != entry.size), "")


def _record(name: str, number: int | None, manifest: Manifest) -> CheckpointRecord:
    """What the manifest says of the checkpoint; KeyError or ValueError if that is none."""
    info = manifest.info
    told: dict[str, Any] = {key: info[key] for key in ("metrics", "metadata", "time", "step") if key in info}
    found: dict[str, Any] = {
        "name": name,
        "number": info["number"] if number is None else number,
        "time": wall_time(),
        **told,
    }
    return CheckpointRecord.of({**found, "files": len(manifest.files), "bytes": manifest.bytes_total})
