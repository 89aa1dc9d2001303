"""Accepted checkpoints whose directory asyncsync owns: written down until they are durable, and taken up by whoever
resumes the experiment on this machine, without being reported again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncsync.checkpoints import CheckpointHandle, CheckpointJob, checkpoint_name, size_of
from asyncsync.disk.files import in_thread
from asyncsync.errors import CheckpointIncompleteError, ConcurrentWriterError
from asyncsync.injected import token
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.transfer.reader import find_manifest
from asyncsync.transfer.session import Session

if TYPE_CHECKING:
    from asyncsync.engine import SyncEngine
    from asyncsync.trial import Trial

ID = "id"
"""Key in a manifest's info: tells a checkpoint from another one of the same name."""


@dataclass(frozen=True, slots=True)
class Left:
    """An accepted checkpoint of a process that is gone. ``size`` in bytes."""

    trial: str
    name: str
    payload: dict[str, Any]
    size: int


def write_down(engine: SyncEngine, trial: Trial, job: CheckpointJob) -> None:
    """Plain: it is safe once the journal is flushed. A rank cannot go on alone, so nothing is written down for one."""
    if engine.role.world_size > 1:
        return
    job.token = token()
    payload = {
        ID: job.token,
        "directory": job.directory,
        "number": job.number,
        "metrics": job.metrics,
        "metadata": job.metadata,
        "delete_local": job.delete_local,
        "params": trial.record.params,
        "role": engine.role.name,
        "lock": engine.lock_name(trial.name),
    }
    engine.session.journal.checkpoint_accepted(engine.uri, trial.name, job.name, json.dumps(payload))


def cross_out(session: Session, job: CheckpointJob) -> None:
    """Durable, or given up."""
    if job.token:
        session.journal.checkpoint_closed(session.uri, job.trial, job.written_as or job.name)


async def left_behind(session: Session, role: str) -> list[Left]:
    """What earlier processes of this machine have accepted, oldest first, unless they are still alive."""
    found, trials = [], dict[str, bool]()
    for item in await session.journal.pending_checkpoints(session.uri):
        payload = json.loads(item.payload)
        if payload["role"] != role:
            continue
        if item.trial not in trials:
            trials[item.trial] = _is_free(session, payload["lock"])
        if trials[item.trial]:
            found.append(Left(item.trial, item.name, payload, await _size(payload["directory"])))
    return found


def take_up(engine: SyncEngine, left: list[Left]) -> Iterator[CheckpointJob]:
    """Plain: the trials go on, and so do their checkpoints, in the order in which they were reported."""
    for item in left:
        if engine.is_damaged(item.trial):
            continue  # it stays written down, for when the trial can be read again
        params = None if engine.knows(item.trial) else item.payload["params"]  # its record had not reached the store
        trial = engine.trials.get(item.trial) or engine.trial(item.trial, params=params)
        number = item.payload["number"]
        trial.record.next_checkpoint = max(trial.record.next_checkpoint, number + 1)
        job = CheckpointJob(
            trial.key, item.payload["directory"], number, CheckpointHandle(item.name, f"{trial.uri}/{item.name}"),
            item.payload["metrics"], item.payload["metadata"], item.payload["delete_local"], item.size,
            asyncio.get_running_loop().time(), token=item.payload[ID], written_as=item.name,
        )  # fmt: skip
        trial.jobs.append(job)
        yield job


def _is_free(session: Session, lock: str) -> bool:
    try:
        session.locks.take(lock, alone=True)
    except ConcurrentWriterError:
        return False
    return True


async def _size(directory: str) -> int:
    try:
        return await size_of(directory)
    except CheckpointIncompleteError:
        return 0  # gone: it may have been durable, see look_back


async def look_back(store: Store, trial: Trial, job: CheckpointJob) -> SyncReport | None:
    """How far the earlier process got with a checkpoint: the report of one that it committed, else None.

    If another process has used its name meanwhile, on another machine, it gets the next free one.
    CheckpointIncompleteError if its directory is gone and it was not committed.
    """
    await trial.prepare()
    manifest = await find_manifest(store, f"{trial.key}/{job.name}/")
    if manifest is not None and manifest.info.get(ID) == job.token:
        return SyncReport(files_skipped=len(manifest.files), bytes_total=manifest.bytes_total)
    if not await in_thread(os.path.isdir, job.directory):
        raise CheckpointIncompleteError(
            f"checkpoint {job.handle.uri} was accepted by an earlier process and is lost: {job.directory} is gone"
        )
    if manifest is not None:
        number = trial.record.next_checkpoint
        trial.record.next_checkpoint = number + 1
        job.number, job.handle.name = number, checkpoint_name(number)
        job.handle.uri = f"{trial.uri}/{job.handle.name}"
    return None


def forget_uploads(engine: SyncEngine, trial: Trial) -> None:
    """Nobody goes on with the uploads of checkpoints that an earlier process had not finished, except the pending."""
    if engine.role.world_size > 1:
        return  # other ranks on this machine may be at it
    pending = tuple(f"{trial.key}/{job.name}/" for job in trial.jobs)
    engine.session.uploads.abandon_below(f"{trial.key}/checkpoint_", keep=pending)
