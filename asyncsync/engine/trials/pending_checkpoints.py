"""Private: accepted checkpoints in the journal, where they stay until they are durable.

A process that resumes the experiment on this machine also resumes those whose directory asyncsync owns. The others
resume when the same unchanged directory is reported again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.disk.accepted_files import Accepted, accept
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import RESUMES_BY_ITSELF, CheckpointJob, LeftBehind
from asyncsync.engine.trials.resume import EXPERIMENT_NONCE
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError
from asyncsync.planning.rank_agreement import NONCE
from asyncsync.planning.snapshot import FileStat
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import Session
from asyncsync.sync.tree_manifest import ID

MAX_LISTED_FILES = 1000
"""Up to so many files of a checkpoint are listed in the journal, so that an error can name one that changed."""


def add_to_journal(context: EngineContext, record: TrialRecord, job: CheckpointJob) -> None:
    """Add a checkpoint to the journal. Synchronous; it is on disk once the journal is flushed.

    A single rank cannot resume a checkpoint, so those of several ranks are not added.
    """
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
        RESUMES_BY_ITSELF: job.resumes_by_itself,
        "params": record.params,
        "role": context.role.name,
        "lock": context.lock_name(record.name),
        NONCE: record.nonce,
        EXPERIMENT_NONCE: context.record.nonce,
    }
    context.session.journal.checkpoint_accepted(context.uri, record.name, job.name, json.dumps(payload))


async def find_left_behind(session: Session, role: str) -> list[LeftBehind]:
    """Checkpoints that earlier processes of this machine accepted, oldest first. Those of running processes are left
    out."""
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


def _can_lock(session: Session, lock: str) -> bool:
    try:
        session.locks.take(lock, alone=True)
    except ConcurrentWriterError:
        return False
    return True


def _check_files(payload: Mapping[str, Any]) -> tuple[Accepted | None, AsyncsyncError | None]:
    """The files; and an error if they are not as they were accepted."""
    path, recorded = payload.get("path") or payload["directory"], _recorded_files(payload)
    try:
        found = accept(path)
        if payload.get("digest") in (None, found.digest):
            return found, None
        if recorded is not None:
            recorded.check()
        return recorded, found.changed(["its files"])
    except AsyncsyncError as error:
        return recorded, error


def _recorded_files(payload: Mapping[str, Any]) -> Accepted | None:
    """The files as they were accepted, if the journal lists them."""
    if payload.get("files") is None:
        return None
    files = tuple(FileStat(path, size, mtime, inode, 0) for path, size, mtime, inode in payload["files"])
    root, looked = payload["path"], payload["looked"]
    if payload["single"]:
        root = os.path.dirname(root)
    return Accepted(root, os.path.realpath(root), files, single=payload["single"], looked=looked)


async def find_committed(store: Store, job: CheckpointJob) -> SyncReport | None:
    """The report of a checkpoint that the earlier process committed, else None.

    Raises CheckpointIncompleteError or SourceChangedError if it was not committed and its files have changed.
    """
    manifest = await find_manifest(store, f"{job.trial}/{job.name}/")
    if manifest is not None and manifest.info.get(ID) == job.token:
        return SyncReport(files_skipped=len(manifest.files), bytes_total=manifest.bytes_total)
    job.check_files()
    return None
