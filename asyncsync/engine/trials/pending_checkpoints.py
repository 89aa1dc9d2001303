"""Accepted checkpoints: written down until they are durable. Those whose directory asyncsync owns are taken up by
whoever resumes the experiment on this machine; the others go on when the same unchanged directory is reported again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.disk.accepted_files import Accepted, accept
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import CheckpointJob, LeftBehind
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError
from asyncsync.planning.snapshot import FileStat
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import Session
from asyncsync.sync.tree_manifest import ID

MAX_LISTED_FILES = 1000
"""Files of a checkpoint up to which each is written down, so that one that changed can be named."""


def add_to_journal(context: EngineContext, record: TrialRecord, job: CheckpointJob) -> None:
    """Plain: it is safe once the journal is flushed. A rank cannot go on alone, so nothing is written down for one."""
    if context.role.world_size > 1 or job.source is None:
        return
    source = job.source
    job.journal_name = job.name
    payload = {
        ID: job.token,
        "path": source.path,
        "digest": source.digest,
        "single": source.single,
        "looked": source.looked,
        "files": [file[:4] for file in source.files] if len(source.files) <= MAX_LISTED_FILES else None,
        "number": job.number,
        "step": job.step,
        "named": job.user_named,
        "metrics": job.metrics,
        "metadata": job.metadata,
        "delete_local": job.delete_local,
        "goes_on": job.resumes_by_itself,
        "params": record.params,
        "role": context.role.name,
        "lock": context.lock_name(record.name),
        "nonce": record.nonce,
        "experiment": context.record.nonce,
    }
    context.session.journal.checkpoint_accepted(context.uri, record.name, job.name, json.dumps(payload))


async def find_left_behind(session: Session, role: str) -> list[LeftBehind]:
    """What earlier processes of this machine have accepted, oldest first, unless they are still alive."""
    found, trials = [], dict[str, bool]()
    for item in await session.journal.pending_checkpoints(session.uri):
        payload = json.loads(item.payload)
        if payload["role"] != role:
            continue
        if item.trial not in trials:
            trials[item.trial] = _can_lock(session, payload["lock"])
        if trials[item.trial]:
            found.append(LeftBehind(item.trial, item.name, payload, *await in_thread(_check_files, payload)))
    return found


def belongs_to_run(payload: Mapping[str, Any], experiment: str, trial: str | None) -> bool:
    """Whether it was accepted in this experiment, not in an earlier one of its name. ``trial``: the nonce of the
    trial's record, None if the store has none."""
    known, key = (experiment, "experiment") if trial is None else (trial, "nonce")
    return not payload.get(key) or payload[key] == known


def _can_lock(session: Session, lock: str) -> bool:
    try:
        session.locks.take(lock, alone=True)
    except ConcurrentWriterError:
        return False
    return True


def _check_files(payload: Mapping[str, Any]) -> tuple[Accepted | None, AsyncsyncError | None]:
    """The files, and if they are not as they were accepted, why."""
    path, before = payload.get("path") or payload["directory"], _recorded_files(payload)
    try:
        found = accept(path)
        if payload.get("digest") in (None, found.digest):
            return found, None
        if before is not None:
            before.check()
        return before, found.changed(["its files"])
    except AsyncsyncError as error:
        return before, error


def _recorded_files(payload: Mapping[str, Any]) -> Accepted | None:
    """The files as they were accepted, if they are written down."""
    if payload.get("files") is None:
        return None
    files = tuple(FileStat(path, size, mtime, inode, 0) for path, size, mtime, inode in payload["files"])
    root, looked = payload["path"], payload["looked"]
    if payload["single"]:
        root = os.path.dirname(root)
    return Accepted(root, os.path.realpath(root), files, single=payload["single"], looked=looked)


async def find_committed(store: Store, job: CheckpointJob) -> SyncReport | None:
    """How far the earlier process got with a checkpoint: the report of one that it committed, else None.

    CheckpointIncompleteError or SourceChangedError if its files are not as they were, and it was not committed.
    """
    manifest = await find_manifest(store, f"{job.trial}/{job.name}/")
    if manifest is not None and manifest.info.get(ID) == job.token:
        return SyncReport(files_skipped=len(manifest.files), bytes_total=manifest.bytes_total)
    job.check_files()
    return None
