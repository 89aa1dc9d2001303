"""Private: one accepted checkpoint on its way to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import Accepted
from asyncsync.engine.trials.checkpoint import CheckpointHandle
from asyncsync.errors import AsyncsyncError
from asyncsync.report import SyncReport
from asyncsync.runtime import wall_time
from asyncsync.sync.records.model import CheckpointRecord
from asyncsync.sync.session import Session
from asyncsync.sync.tree import Tree
from asyncsync.sync.tree_manifest import ID

MAX_STALLED_ATTEMPTS = 4
"""Attempts in a row that may end by their time-out with bytes on their way and none acknowledged: the first sends as
always, the others one file at a time in small parts."""


@dataclass(slots=True)
class CheckpointJob:
    """One accepted checkpoint on its way."""

    trial: str
    source: Accepted | None
    """Its files, as they were when it was accepted; None if they are gone and were not written down."""
    number: int
    handle: CheckpointHandle
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    mode: UploadMode
    delete_local: bool
    accepted: float
    """On the event loop's clock."""
    token: str
    """Tells it from any other checkpoint, of the same name too."""
    step: int | None = None
    """Of the training, as it was reported; ranks are matched by it."""
    given_up: str = ""
    """Why this rank gives it up, as in "rank 3 gave up step 7: ...": there is nothing to send."""
    user_named: bool = False
    """Whether the user chose its name."""
    resumes_by_itself: bool = False
    """Whether the next process goes on with it by itself, see :mod:`asyncsync.engine.trials.pending`."""
    may_be_stored: bool = False
    """Whether something of it may be in the store since an earlier process."""
    previous_failure: str = ""
    """Why the number before was given up by all ranks, if this went on under the next."""
    inherited: bool = False
    """Whether an earlier process accepted it: what was reported since is newer, whatever becomes of its number."""
    registered: bool = False
    """Whether the record, as it is here, names it: nothing else of that name is another's then."""
    journal_name: str = ""
    """Its name in the journal, if it is written down."""
    source_error: AsyncsyncError | None = None
    """Why its files cannot be sent any more, if an earlier process accepted it."""
    tree: Tree | None = None
    stalled_attempts: int = 0
    """Attempts in a row in which bytes moved and none were acknowledged."""

    @property
    def name(self) -> str:
        """Such as ``checkpoint_000003``."""
        return self.handle.name

    @property
    def size(self) -> int:
        """Bytes at risk until it is durable."""
        return self.source.size if self.source is not None else 0

    def has_files(self, files: Accepted) -> bool:
        """Whether its files are just these, in the same state."""
        return self.source is not None and (self.source.path, self.source.digest) == (files.path, files.digest)

    def note_timeout(self) -> bool:
        """Whether the attempt that was just ended by its time-out is to be gone on with: bytes moved. Some must get to
        the end, too: after an attempt in which none did less is sent at once; STUCK of them in a row are a failure."""
        if self.tree is None or not self.tree.moves:
            return False
        if self.tree.moved:
            self.stalled_attempts = 0
            return True
        self.stalled_attempts += 1
        self.tree.send_less_at_once()
        return self.stalled_attempts < MAX_STALLED_ATTEMPTS

    def check_files(self) -> None:
        """CheckpointIncompleteError or SourceChangedError if its files are not those that were accepted."""
        if self.source_error is not None:
            text = f"checkpoint {self.handle.uri} was accepted by an earlier process and is lost: {self.source_error}"
            raise type(self.source_error)(text) from self.source_error

    def remove_from_journal(self, session: Session) -> None:
        """It is durable, or given up: no later process resumes it."""
        if self.journal_name:
            session.journal.checkpoint_closed(session.uri, self.trial, self.journal_name)

    def progress(self) -> str:
        """How much of it was sent, for people."""
        return self.tree.progress() if self.tree is not None else f"{self.handle.uri}: nothing was sent yet"

    def rename(self, number: int, uri: str) -> None:
        """It gets another name, because this one is another checkpoint's: that of ``number``, with a mark if this is
        its number already. ``uri`` is the trial's."""
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
    """Why its files are not those that were accepted."""

    @property
    def resumes_by_itself(self) -> bool:
        """Whether it is resumed without being reported again."""
        return bool(self.payload.get("goes_on", True))

    def job(self, uri: str, mode: UploadMode) -> CheckpointJob:
        """The job that resumes it; ``uri`` is the trial's."""
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


def checkpoint_name(number: int) -> str:
    """``checkpoint_000000`` and up."""
    return f"checkpoint_{number:06d}"


def record_of(job: CheckpointJob, report: SyncReport) -> CheckpointRecord:
    """What the trial's record says of a committed checkpoint."""
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
