"""Private: one accepted checkpoint until it is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import Accepted, some
from asyncsync.engine.trials.checkpoint import CheckpointHandle
from asyncsync.engine.trials.context import EngineContext
from asyncsync.errors import AsyncsyncError
from asyncsync.events import SyncWarning
from asyncsync.report import SyncReport
from asyncsync.runtime import wall_time
from asyncsync.sync.records.model import CheckpointRecord
from asyncsync.sync.session import Session
from asyncsync.sync.tree import Tree
from asyncsync.sync.tree_manifest import ID

RESUMES_BY_ITSELF = "goes_on"
"""Key of ``resumes_by_itself`` in the journal, as earlier versions wrote it."""
MAX_STALLED_ATTEMPTS = 4
"""Consecutive attempts that may time out with bytes in flight and none acknowledged. The first sends as usual, the
others send one file at a time in small parts."""


@dataclass(slots=True)
class CheckpointJob:
    """One accepted checkpoint until it is durable."""

    trial: str
    source: Accepted | None
    """Its files in the state in which they were accepted. None if they are missing and were not listed in the
    journal."""
    number: int
    handle: CheckpointHandle
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    mode: UploadMode
    delete_local: bool
    accepted: float
    """When it was accepted, on the event loop's clock."""
    token: str
    """Unique, also among checkpoints of the same name."""
    step: int | None = None
    """Training step that was reported; parts of ranks are matched by it."""
    given_up: str = ""
    """Why this rank gives it up, as in "rank 3 gave up step 7: ...". Then nothing is uploaded."""
    user_named: bool = False
    """Whether the user chose its name."""
    resumes_by_itself: bool = False
    """Whether the next process resumes it without a report, see :mod:`asyncsync.engine.trials.pending_checkpoints`."""
    may_be_stored: bool = False
    """Whether an earlier process may have stored some of it."""
    previous_failure: str = ""
    """Why all ranks gave up its previous number, if it took the next one."""
    inherited: bool = False
    """Whether an earlier process accepted it. Checkpoints reported since are newer, whatever its number becomes."""
    begun: bool = False
    """Whether this process has begun to make it durable. From then on no newer checkpoint replaces it."""
    registered: bool = False
    """Whether the record in memory lists it. Then no other checkpoint has its name."""
    journal_name: str = ""
    """Its name in the journal; empty if it is not there."""
    source_error: AsyncsyncError | None = None
    """Why its files cannot be uploaded any more, if an earlier process accepted it."""
    tree: Tree | None = None
    stalled_attempts: int = 0
    """Consecutive attempts with bytes in flight and none acknowledged."""

    @property
    def name(self) -> str:
        """The checkpoint's name, such as ``checkpoint_000003``."""
        return self.handle.name

    @property
    def size(self) -> int:
        """Bytes that are at risk until it is durable."""
        return self.source.size if self.source is not None else 0

    def has_files(self, files: Accepted) -> bool:
        """Whether it consists of exactly these files in the same state."""
        return self.source is not None and (self.source.path, self.source.digest) == (files.path, files.digest)

    def note_timeout(self) -> bool:
        """An attempt timed out. Returns whether another attempt should resume it, which is so if bytes were in flight.

        Some bytes must also be acknowledged: after an attempt without any, the next one sends less at the same time.
        MAX_STALLED_ATTEMPTS such attempts in a row are a failure.
        """
        if self.tree is None or not self.tree.moves:
            return False
        if self.tree.moved:
            self.stalled_attempts = 0
            return True
        self.stalled_attempts += 1
        self.tree.send_less_at_once()
        return self.stalled_attempts < MAX_STALLED_ATTEMPTS

    def check_files(self) -> None:
        """Raise CheckpointIncompleteError or SourceChangedError if its files are not those that were accepted."""
        if self.source_error is not None:
            text = (
                f"checkpoint {self.handle.uri}, accepted by an earlier process, is lost because its files changed: "
                f"{self.source_error}"
            )
            raise type(self.source_error)(text) from self.source_error

    def remove_from_journal(self, session: Session) -> None:
        """Remove it from the journal, so that no later process resumes it."""
        if self.journal_name:
            session.journal.checkpoint_closed(session.uri, self.trial, self.journal_name)

    def progress(self) -> str:
        """Progress of the upload, for people."""
        return self.tree.progress() if self.tree is not None else f"{self.handle.uri}: nothing was uploaded yet"

    def rename(self, number: int, uri: str) -> None:
        """Give it the name of ``number``, because another checkpoint has the present name. If ``number`` is already its
        own, the name gets a mark. ``uri``: of the trial."""
        mark = f"-{self.token[:6]}" if number == self.number else ""
        self.number, self.handle.name = number, checkpoint_name(number) + mark
        self.handle.uri = f"{uri}/{self.handle.name}"
        self.tree, self.may_be_stored, self.registered = None, False, False


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A checkpoint that an earlier process accepted and did not finish."""

    trial: str
    name: str
    payload: Mapping[str, Any]
    source: Accepted | None
    source_error: AsyncsyncError | None
    """Why its files are not those that were accepted; None if they are."""

    @property
    def resumes_by_itself(self) -> bool:
        """Whether it resumes without another report."""
        return bool(self.payload.get(RESUMES_BY_ITSELF, True))

    def job(self, uri: str, mode: UploadMode) -> CheckpointJob:
        """The job that resumes it. ``uri``: of the trial."""
        payload, handle = self.payload, CheckpointHandle(self.name, f"{uri}/{self.name}")
        return CheckpointJob(
            self.trial,
            self.source,
            payload["number"],
            handle,
            payload["metrics"],
            payload["metadata"],
            mode,
            payload["delete_local"],
            asyncio.get_running_loop().time(),
            payload[ID],
            step=payload.get("step"),
            user_named=payload.get("named", False),
            resumes_by_itself=self.resumes_by_itself,
            may_be_stored=True,
            inherited=True,
            journal_name=self.name,
            source_error=self.source_error,
        )


async def remove_local(context: EngineContext, job: CheckpointJob) -> None:
    """Delete the local files, if the job asks for that. Files that changed since they were accepted, or that cannot be
    deleted, stay, and a warning names them."""
    if not job.delete_local or job.source is None:
        return
    try:
        stayed = await in_thread(job.source.remove)
    except OSError as error:
        stayed = [f"the files ({error})"]
    if stayed:
        message = (
            f"{job.source.path}: {some(stayed)} added or changed after {job.trial}/{job.name} was accepted; not deleted"
        )
        context.emit(SyncWarning(tree=job.trial, message=message))


def checkpoint_name(number: int) -> str:
    """``checkpoint_000000`` and up."""
    return f"checkpoint_{number:06d}"


def record_of(job: CheckpointJob, report: SyncReport) -> CheckpointRecord:
    """The entry of a committed checkpoint in the trial's record."""
    return CheckpointRecord(
        name=job.name,
        number=job.number,
        metrics=job.metrics,
        metadata=job.metadata,
        files=max(len(job.source.files) if job.source is not None else 0, report.files_skipped),  # of all ranks
        bytes=report.bytes_total,
        time=wall_time(),
        step=job.step,
    )
