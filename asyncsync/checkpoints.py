"""The life of a checkpoint: accepted, uploaded, committed, registered, and retired one day."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from asyncsync.config import UploadMode
from asyncsync.disk.accepted import Accepted
from asyncsync.disk.copying import copy_tree
from asyncsync.errors import AsyncsyncError, EngineClosedError, SyncFailedError
from asyncsync.injected import dice, wall_time
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.schedule import BACKOFF_FIRST, BACKOFF_MOST
from asyncsync.records import CheckpointRecord
from asyncsync.report import SyncReport
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.fenced import Fence
from asyncsync.transfer.session import Session
from asyncsync.transfer.tree import ID, Tree, TreeOptions

T = TypeVar("T")

LAST_TRIES = 2
"""How often something is tried at the end of a run, each time with all attempts of its requests."""
STUCK = 4
"""Attempts in a row that may end by their time-out with bytes on their way and none acknowledged: the first sends as
always, the others one file at a time in small parts."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that holds a checkpoint, and whose it is."""

    path: Path
    owned: bool = False
    """Whether asyncsync may delete it once it is durable."""

    @classmethod
    def take(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """asyncsync owns the directory from now on; ASYNC deletes it once it is durable."""
        return cls(Path(directory), owned=True)

    @classmethod
    def lend(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """The directory stays the caller's and is never deleted; the same as a plain path."""
        return cls(Path(directory))

    @classmethod
    def snapshot(cls, directory: str | os.PathLike[str], *, link: bool = False) -> Checkpoint:
        """A copy beside ``directory`` that asyncsync owns, so that training may go on overwriting. Blocking.

        Blocks are shared where the file system can (reflink: XFS, Btrfs); else the bytes are copied. ``link=True``
        makes hard links instead, where source and copy are on one file system: only right if your files are replaced
        (written anew and renamed), never rewritten. Links are followed; sockets, pipes and devices are left out.
        SourceChangedError if a file changed each of the three times that it was copied.
        """
        return cls(copy_tree(Path(os.path.abspath(directory)), link=link), owned=True)


class CheckpointHandle:
    """A reported checkpoint: wait for it with ``await handle.durable()``."""

    __slots__ = ("_done", "_process", "_waiting", "name", "told", "uri")

    def __init__(self, name: str, uri: str) -> None:
        self.name, self.uri = name, uri
        self.told = False
        """Whether somebody has been given its failure."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = 0
        self._process = os.getpid()

    @property
    def is_durable(self) -> bool:
        """Whether every byte and the manifest are in the store and the trial's record names it."""
        return self._done.done() and self._done.exception() is None

    @property
    def error(self) -> BaseException | None:
        """Why it did not become durable."""
        return self._done.exception() if self._done.done() else None

    async def durable(self) -> None:
        """Wait until it is durable; raises why it is not. EngineClosedError in a forked child, which cannot know."""
        if not self._done.done() and os.getpid() != self._process:
            raise EngineClosedError(f"{self.uri}: its engine runs in the process which this one was forked from")
        self._waiting += 1
        try:
            if not self._done.done():
                await asyncio.wait([self._done])
        finally:
            self._waiting -= 1
        if self._done.exception() is not None:
            self.told = True
        self._done.result()

    async def ended(self) -> None:
        """Wait for the verdict, whatever it is; its failure stays to be told."""
        if not self._done.done():
            await asyncio.wait([self._done])

    def settle(self, error: BaseException | None = None) -> None:
        """The engine's verdict. Whoever waits is told; the rest is told at the next report or at exit."""
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self.told = self._waiting > 0
            self._done.set_exception(error)
            self._done.exception()  # seen: what nobody waits for is told elsewhere

    def __repr__(self) -> str:
        state = "durable" if self.is_durable else "failed" if self.error else "pending"
        return f"<checkpoint {self.uri} {state}>"


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
    named: bool = False
    """Whether the user chose its name."""
    goes_on: bool = False
    """Whether the next process goes on with it by itself, see :mod:`asyncsync.pending`."""
    begun: bool = False
    """Whether something of it may be in the store since an earlier process."""
    passed: str = ""
    """Why the number before was given up by all ranks, if this went on under the next."""
    inherited: bool = False
    """Whether an earlier process accepted it: what was reported since is newer, whatever becomes of its number."""
    registered: bool = False
    """Whether the record, as it is here, names it: nothing else of that name is another's then."""
    written_as: str = ""
    """Its name in the journal, if it is written down."""
    problem: AsyncsyncError | None = None
    """Why its files cannot be sent any more, if an earlier process accepted it."""
    tree: Tree | None = None
    stuck: int = 0
    """Attempts in a row in which bytes moved and none were acknowledged."""

    @property
    def name(self) -> str:
        """Such as ``checkpoint_000003``."""
        return self.handle.name

    @property
    def size(self) -> int:
        """Bytes at risk until it is durable."""
        return self.source.size if self.source is not None else 0

    def is_of(self, files: Accepted) -> bool:
        """Whether its files are just these, in the same state."""
        return self.source is not None and (self.source.path, self.source.digest) == (files.path, files.digest)

    def moved(self) -> bool:
        """Whether the attempt that was just ended by its time-out is to be gone on with: bytes moved. Some must get to
        the end, too: after an attempt in which none did less is sent at once; STUCK of them in a row are a failure."""
        if self.tree is None or not self.tree.moves:
            return False
        if self.tree.moved:
            self.stuck = 0
            return True
        self.stuck += 1
        self.tree.send_less_at_once()
        return self.stuck < STUCK

    def rename(self, number: int, uri: str) -> None:
        """It gets another name, because this one is another checkpoint's: that of ``number``, with a mark if this is
        its number already. ``uri`` is the trial's."""
        mark = f"-{self.token[:6]}" if number == self.number else ""
        self.number, self.handle.name = number, checkpoint_name(number) + mark
        self.handle.uri = f"{uri}/{self.handle.name}"
        self.tree, self.begun, self.registered = None, False, False


@dataclass(frozen=True, slots=True)
class Again:
    """How something that failed is tried again."""

    after: Callable[[str], bool]
    """Hears of each failure that may pass, and says whether to try again."""
    rest: Callable[[float, float], Awaitable[None]]
    """Waits so many seconds, or less if the reason has gone since the second argument, on the event loop's clock."""


def checkpoint_name(number: int) -> str:
    """``checkpoint_000000`` and up."""
    return f"checkpoint_{number:06d}"


async def upload(
    session: Session,
    prefix: str,
    job: CheckpointJob,
    again: Again,
    fence: Fence | None = None,
    *,
    record: str = MANIFEST,
    more: Mapping[str, Any] | None = None,
) -> SyncReport:
    """Send the files, then the manifest; tried again with backoff for as long as the error is one that may pass.

    The caller bounds it in time. Raises what cannot pass; CollisionError if another checkpoint has the name.
    ``record`` and ``more``: another name for the manifest, and what else it says.
    """
    if job.problem is not None:
        raise job.problem
    assert job.source is not None
    info = {
        ID: job.token,
        "checkpoint": job.name,
        "number": job.number,
        "step": job.step,
        "metrics": job.metrics,
        "metadata": job.metadata,
        "time": wall_time(),
        **(more or {}),
    }
    options = TreeOptions(
        lane=Lane.CHECKPOINT, whole=True, fresh=True, info=info, record=record, fence=fence, accepted=job.source,
        begun=job.begun,
    )  # fmt: skip
    tree = job.tree = job.tree or Tree(session, job.source.root, f"{prefix}{job.name}/", options)
    tree.say(info)  # who goes on with it may have reported it with other metrics
    return await persist(tree.sync_once, again)


async def persist(attempt: Callable[[], Awaitable[T]], again: Again) -> T:
    """Call ``attempt`` until it works or fails for good; full jitter between tries."""
    tries = 0
    while True:
        began = asyncio.get_running_loop().time()
        try:
            return await attempt()
        except AsyncsyncError as error:
            if not may_pass(error) or not again.after(str(error)):
                raise
        tries += 1
        await again.rest(dice().uniform(0, min(BACKOFF_MOST, BACKOFF_FIRST * 2.0**tries)), began)


def may_pass(error: BaseException) -> bool:
    """Whether trying again later makes sense."""
    if isinstance(error, SyncFailedError):
        return bool(error.failures) and all(may_pass(cause) for cause in error.failures.values())
    return bool(getattr(error, "retryable", False))


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
