"""Accepted checkpoints: written down until they are durable. Those whose directory asyncsync owns are taken up by
whoever resumes the experiment on this machine; the others go on when the same unchanged directory is reported again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncsync.aio.threads import in_thread
from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import Accepted, accept
from asyncsync.engine.trials.checkpoint import CheckpointHandle
from asyncsync.engine.trials.job import CheckpointJob
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError
from asyncsync.planning.snapshot import FileStat
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.session import Session
from asyncsync.sync.tree import ID

if TYPE_CHECKING:
    from asyncsync.engine.engine import SyncEngine
    from asyncsync.engine.trial import Trial

LISTED = 1000
"""Files of a checkpoint up to which each is written down, so that one that changed can be named."""


@dataclass(frozen=True, slots=True)
class Left:
    """An accepted checkpoint of a process that is gone."""

    trial: str
    name: str
    payload: Mapping[str, Any]
    source: Accepted | None
    problem: AsyncsyncError | None
    """Why its files are not what was accepted."""

    @property
    def goes_on(self) -> bool:
        """Without being reported again."""
        return bool(self.payload.get("goes_on", True))


def write_down(engine: SyncEngine, trial: Trial, job: CheckpointJob) -> None:
    """Plain: it is safe once the journal is flushed. A rank cannot go on alone, so nothing is written down for one."""
    if engine.role.world_size > 1 or job.source is None:
        return
    source = job.source
    job.written_as = job.name
    payload = {
        ID: job.token,
        "path": source.path,
        "digest": source.digest,
        "single": source.single,
        "looked": source.looked,
        "files": [file[:4] for file in source.files] if len(source.files) <= LISTED else None,
        "number": job.number,
        "step": job.step,
        "named": job.named,
        "metrics": job.metrics,
        "metadata": job.metadata,
        "delete_local": job.delete_local,
        "goes_on": job.goes_on,
        "params": trial.record.params,
        "role": engine.role.name,
        "lock": engine.lock_name(trial.name),
        "nonce": trial.record.nonce,
        "experiment": engine.record.nonce,
    }
    engine.session.journal.checkpoint_accepted(engine.uri, trial.name, job.name, json.dumps(payload))


def cross_out(session: Session, job: CheckpointJob) -> None:
    """Durable, or given up."""
    if job.written_as:
        session.journal.checkpoint_closed(session.uri, job.trial, job.written_as)


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
            found.append(Left(item.trial, item.name, payload, *await in_thread(_look, payload)))
    return found


def take_up(engine: SyncEngine, left: list[Left]) -> Iterator[CheckpointJob]:
    """Plain: the trials go on, and so do their checkpoints, in the order in which they were reported. Those of an
    experiment that is not this one, though it has its name, are forgotten."""
    for item in left:
        if engine.is_damaged(item.trial):
            continue  # it stays written down, for when the trial can be read again
        record = engine.known_record(item.trial)
        if not _is_of_this_run(item.payload, engine.record.nonce, record.nonce if record is not None else None):
            engine.session.journal.checkpoint_closed(engine.uri, item.trial, item.name)
            continue
        if not item.goes_on:
            engine.suspended.setdefault(item.trial, []).append(item)
            continue
        params = None if record is not None else item.payload["params"]  # its record had not reached the store
        trial = engine.trials.get(item.trial) or engine.trial(item.trial, params=params)
        job = job_of(trial, item, UploadMode.ASYNC)
        trial.jobs.append(job)
        yield job


def _is_of_this_run(payload: Mapping[str, Any], experiment: str, trial: str | None) -> bool:
    """Whether it was accepted in this experiment, not in an earlier one of its name. ``trial``: the nonce of the
    trial's record, None if the store has none."""
    known, key = (experiment, "experiment") if trial is None else (trial, "nonce")
    return not payload.get(key) or payload[key] == known


def job_of(trial: Trial, left: Left, mode: UploadMode) -> CheckpointJob:
    """The checkpoint goes on."""
    payload, number = left.payload, left.payload["number"]
    trial.record.next_checkpoint = max(trial.record.next_checkpoint, number + 1)
    return CheckpointJob(
        trial.key, left.source, number, CheckpointHandle(left.name, f"{trial.uri}/{left.name}"), payload["metrics"],
        payload["metadata"], mode, payload["delete_local"], asyncio.get_running_loop().time(), payload[ID],
        step=payload.get("step"), named=payload.get("named", False), goes_on=left.goes_on, begun=True, inherited=True,
        written_as=left.name, problem=left.problem,
    )  # fmt: skip


def _is_free(session: Session, lock: str) -> bool:
    try:
        session.locks.take(lock, alone=True)
    except ConcurrentWriterError:
        return False
    return True


def _look(payload: Mapping[str, Any]) -> tuple[Accepted | None, AsyncsyncError | None]:
    """The files, and if they are not as they were accepted, why."""
    path, before = payload.get("path") or payload["directory"], _listed(payload)
    try:
        found = accept(path)
        if payload.get("digest") in (None, found.digest):
            return found, None
        if before is not None:
            before.check()
        return before, found.changed(["its files"])
    except AsyncsyncError as error:
        return before, error


def _listed(payload: Mapping[str, Any]) -> Accepted | None:
    """The files as they were accepted, if they are written down."""
    if payload.get("files") is None:
        return None
    files = tuple(FileStat(path, size, mtime, inode, 0) for path, size, mtime, inode in payload["files"])
    root, looked = payload["path"], payload["looked"]
    if payload["single"]:
        root = os.path.dirname(root)
    return Accepted(root, os.path.realpath(root), files, single=payload["single"], looked=looked)


async def look_back(store: Store, trial: Trial, job: CheckpointJob) -> SyncReport | None:
    """How far the earlier process got with a checkpoint: the report of one that it committed, else None.

    CheckpointIncompleteError or SourceChangedError if its files are not as they were, and it was not committed.
    """
    await trial.prepare()
    manifest = await find_manifest(store, f"{trial.key}/{job.name}/")
    if manifest is not None and manifest.info.get(ID) == job.token:
        return SyncReport(files_skipped=len(manifest.files), bytes_total=manifest.bytes_total)
    if job.problem is not None:
        raise type(job.problem)(
            f"checkpoint {job.handle.uri} was accepted by an earlier process and is lost: {job.problem}"
        ) from job.problem
    return None


def forget_suspended(engine: SyncEngine) -> None:
    """The run is over, and nobody has reported them again. Plain."""
    for trial, items in engine.suspended.items():
        for item in items:
            engine.session.journal.checkpoint_closed(engine.uri, trial, item.name)
            engine.session.uploads.abandon_below(f"{trial}/{item.name}/")
    engine.suspended.clear()


def forget_uploads(engine: SyncEngine, trial: Trial) -> None:
    """Nobody goes on with the uploads of checkpoints that an earlier process had not finished, except the pending."""
    if engine.role.world_size > 1:
        return  # other ranks on this machine may be at it
    left = [item.name for item in engine.suspended.get(trial.key, ())]
    pending = tuple(f"{trial.key}/{name}/" for name in [*left, *(job.name for job in trial.jobs)])
    engine.session.uploads.abandon_below(f"{trial.key}/checkpoint_", keep=pending)
