"""The operations on a storage, as functions: an agent receives them by name. The first argument is the storage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncsync.errors import NotFoundError
from asyncsync.integrations.ray.agent.registered import NAME, names_in
from asyncsync.report import SyncReport
from asyncsync.runtime import Presence

if TYPE_CHECKING:
    from asyncsync import Storage, StoredEntry  # a worker process that has an agent imports neither


async def stat(storage: Storage, key: str) -> StoredEntry | None:
    """The file or directory, or None."""
    return await storage.stat(key)


async def is_file(storage: Storage, key: str) -> bool:
    """Whether there is a file."""
    return await storage.is_file(key)


async def entries(storage: Storage, key: str, recursive: bool) -> list[StoredEntry] | None:
    """The files and directories below ``key``, or None."""
    return await storage.entries(key, recursive=recursive)


async def read(storage: Storage, key: str, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file."""
    return await storage.read(key, start, length)


async def write(storage: Storage, key: str, data: bytes) -> None:
    """Write a small file."""
    await storage.write(key, data)


async def write_file(storage: Storage, local: str, key: str) -> None:
    """Write a file of this machine."""
    await storage.write_file(local, key)


async def copy_file(storage: Storage, source: str, target: str) -> None:
    """Copy a small file."""
    await storage.write(target, await storage.read(source))


async def delete_file(storage: Storage, key: str) -> None:
    """Delete a file. NotFoundError if there is none."""
    if not await storage.is_file(key):
        raise NotFoundError(f"there is no file {key!r} in {storage.uri}")
    await storage.delete(key)


async def delete_directory(storage: Storage, key: str) -> None:
    """Delete a directory."""
    await storage.delete_directory(key)


async def push(storage: Storage, local: str, key: str, exclude: Sequence[str]) -> SyncReport:
    """Sync a directory."""
    report = await storage.push(local, key, exclude=exclude)
    await storage.clean_up()
    return report


async def pull(storage: Storage, key: str, local: str, is_file: bool | None) -> None:
    """Download a directory or a file. ``is_file``: None if that is not known."""
    if await storage.is_file(key) if is_file is None else is_file:
        await storage.pull_file(key, local)
    else:
        await storage.pull(key, local)


async def push_checkpoint(
    storage: Storage, local: str, key: str, writer: tuple[str, str, int], alone: bool, snapshot: str, caller: str
) -> SyncReport:
    """Upload what one process, the ``caller``, has of a checkpoint. ``snapshot``: the file in which Ray Train registers
    checkpoints; one that it names is not replaced. Empty: any is. Nothing is once the caller has ended."""
    from asyncsync import Writer

    async def may_replace() -> bool:
        if Presence.has_ended(caller):  # another process has taken its place, perhaps on another node
            return False
        if not snapshot or not await storage.is_file(snapshot):
            return True
        name = key[snapshot.rfind("/") + 1 :]
        return name not in names_in(json.loads(await storage.read(snapshot)))

    report = await storage.push_checkpoint(local, key, Writer(*writer), alone=alone, may_replace=may_replace)
    await storage.clean_up()
    return report


async def commit(storage: Storage, key: str, attempt: str, processes: Mapping[int, str]) -> bool:
    """Commit a checkpoint of several ranks, unless it is complete already; returns whether it was not."""
    if await storage.stat(key) is not None:
        return False
    await storage.commit_checkpoint(key, attempt, processes)
    return True


async def save_run(storage: Storage, key: str, document: Any) -> None:
    """Write the records of a run of Ray Train, an experiment that is its own and only trial. ``document``: that in
    which Ray registers checkpoints."""
    from asyncsync import CheckpointSummary, TrialSummary

    results = document.get("checkpoint_results", [])
    numbers = document.get("checkpoint_report_indices", range(len(results)))
    checkpoints = [
        CheckpointSummary(result[NAME], number, result.get("metrics") or {})
        for result, number in zip(results, numbers, strict=False)
    ]
    latest, name = document.get("latest_checkpoint_result") or {}, key.rpartition("/")[2]
    reports = document.get("current_report_index", 0)
    trial = TrialSummary(name, metrics=latest.get("metrics") or {}, reports=reports, checkpoints=checkpoints)
    await storage.save_trial(key, trial, name)
    await storage.save_experiment(key, name, "running", {name: "running"})
    await storage.clean_up()
