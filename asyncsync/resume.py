"""Taking an experiment up again: its records, the files that reports append to, its next checkpoint numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asyncsync.disk.files import in_thread
from asyncsync.errors import CheckpointIncompleteError, NotFoundError
from asyncsync.injected import wall_time
from asyncsync.planning.manifest import MANIFEST, META_DIR, Manifest
from asyncsync.records import TRIAL_RECORD, CheckpointRecord, TrialRecord
from asyncsync.stores.base import Store
from asyncsync.stores.together import for_each
from asyncsync.transfer.download import download_tree

READERS = 64


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


async def read_trials(store: Store) -> dict[str, tuple[TrialRecord, str]]:
    """Every trial's record and its version, read in parallel."""
    names = await sub_prefixes(store)
    found: dict[str, tuple[TrialRecord, str]] = {}

    async def read(name: str) -> None:
        try:
            data, info = await store.get(f"{name}/{TRIAL_RECORD}")
        except NotFoundError:
            return
        found[name] = (TrialRecord.from_bytes(data), info.version)

    await for_each(names, read, min(READERS, len(names)))
    return found


async def restore_files(store: Store, prefix: str, root: Path, *, only_missing: bool = True) -> None:
    """Bring back what this machine lacks of a tree: appending to a file that is not here would overwrite the stored
    one with its tail. What is here is newer and stays."""
    try:
        data, _ = await store.get(prefix + MANIFEST)
    except NotFoundError:
        return
    manifest = Manifest.from_bytes(data)
    if only_missing:
        here = await in_thread(_here, str(root), list(manifest.files))
        manifest = Manifest({path: entry for path, entry in manifest.files.items() if path not in here})
    if manifest.files:
        await download_tree(store, prefix, manifest, root, concurrency=8)


def _here(root: str, paths: list[str]) -> set[str]:
    return {path for path in paths if os.path.lexists(f"{root}/{path}")}


async def adopt_checkpoints(store: Store, record: TrialRecord) -> None:
    """Number on above whatever is there, and take in what was committed but not registered when the writer died, if all
    of it is there: what is taken in may retire another one.

    A directory without a manifest keeps its number for ever, so two checkpoints never mix. What is older than the
    newest one in the record was retired, and so was what the record gives up: it does not come back.
    """
    newest = max((item.number for item in record.checkpoints), default=-1)
    known = {item.name for item in record.checkpoints} | set(record.given_up)
    for name in await sub_prefixes(store, f"{record.name}/"):
        number = _number(name)
        if number is not None:
            record.next_checkpoint = max(record.next_checkpoint, number + 1)
        if name in known or (number is not None and number <= newest):
            continue
        found = await _committed(store, f"{record.name}/{name}/")
        if found is None or found.info.get("checkpoint") != name:
            continue
        item = _record(name, int(found.info.get("number", -1)), found)
        record.next_checkpoint = max(record.next_checkpoint, item.number + 1)
        if item.number > newest and not await not_whole(store, f"{record.name}/{name}/", found):
            record.checkpoints.append(item)
    record.checkpoints.sort(key=lambda item: item.number)


def _number(name: str) -> int | None:
    number = name.removeprefix("checkpoint_")
    return int(number) if name != number and number.isdecimal() and number.isascii() else None


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


async def _committed(store: Store, prefix: str) -> Manifest | None:
    try:
        data, _ = await store.get(prefix + MANIFEST)
    except NotFoundError:
        return None
    try:
        return Manifest.from_bytes(data)
    except ValueError as error:
        raise CheckpointIncompleteError(f"{store.uri}/{prefix}{MANIFEST}: {error}") from error


def _record(name: str, number: int, manifest: Manifest) -> CheckpointRecord:
    info: dict[str, Any] = manifest.info
    return CheckpointRecord(
        name=name,
        number=number,
        metrics=dict(info.get("metrics", {})),
        metadata=dict(info.get("metadata", {})),
        files=len(manifest.files),
        bytes=manifest.bytes_total,
        time=float(info.get("time", wall_time())),
        step=info.get("step"),
    )
