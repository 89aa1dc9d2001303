"""The public classes of a checkpoint: the argument of report(), and the handle that report() returns; and the failures
that the next report() raises."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync.aio.retry import is_transient
from asyncsync.disk.copying import copy_tree
from asyncsync.disk.files import local_disk
from asyncsync.errors import EngineClosedError, SyncError, SyncFailedError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory with a checkpoint, and whether asyncsync owns it. Use ``take``, ``lend`` or ``snapshot``."""

    path: Path
    owned: bool = False
    """Whether asyncsync may delete the directory once the checkpoint is durable."""

    @classmethod
    def take(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Hand the directory over to asyncsync. An ASYNC report deletes it once the checkpoint is durable."""
        return cls(Path(directory), owned=True)

    @classmethod
    def lend(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Lend the directory. It is never deleted; the same as a plain path."""
        return cls(Path(directory))

    @classmethod
    def snapshot(cls, directory: str | os.PathLike[str], *, link: bool = False) -> Checkpoint:
        """Copy ``directory`` to one beside it that asyncsync owns, so that training may overwrite the original.
        Blocking.

        The copy shares blocks where the file system can (reflink: XFS, Btrfs); otherwise the bytes are copied.
        ``link=True`` makes hard links where source and copy are on one file system. Hard links are safe only if your
        files are replaced (written anew and renamed), never rewritten. Symbolic links are followed; sockets, pipes and
        devices are left out.

        Raises SourceChangedError if a file changed during each of three attempts to copy it, and LocalDiskError if
        the copy cannot be written.
        """
        with local_disk(f"no snapshot of {os.fspath(directory)} was made"):
            return cls(copy_tree(Path(os.path.abspath(directory)), link=link), owned=True)


class CheckpointHandle:
    """A reported checkpoint. Wait for it with ``await handle.durable()``.

    ``name`` is its directory in the trial, ``uri`` its place in the store. Both change if the checkpoint gets another
    name before it is durable.
    """

    __slots__ = ("_done", "_process", "_waiting", "error_raised", "name", "uri")

    def __init__(self, name: str, uri: str) -> None:
        self.name, self.uri = name, uri
        self.error_raised = False
        """Whether a caller has received the failure."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = 0
        self._process = os.getpid()

    @property
    def is_durable(self) -> bool:
        """Whether every byte and the manifest are stored and the trial's record lists the checkpoint."""
        return self._done.done() and self._done.exception() is None

    @property
    def error(self) -> BaseException | None:
        """The error for which it did not become durable; None while it is pending, or if it is durable."""
        return self._done.exception() if self._done.done() else None

    async def durable(self) -> None:
        """Wait until the checkpoint is durable. Raises the error if it failed, and EngineClosedError if the engine
        stopped first or in a forked child, which cannot know."""
        if not self._done.done() and os.getpid() != self._process:
            raise EngineClosedError(
                f"cannot wait for {self.uri}: its engine runs in the process that this one was forked from"
            )
        self._waiting += 1
        try:
            if not self._done.done():
                await asyncio.wait([self._done])
        finally:
            self._waiting -= 1
        if self._done.exception() is not None:
            self.error_raised = True
        self._done.result()

    async def wait_ended(self) -> None:
        """Wait until it is durable or has failed. A failure is still raised elsewhere."""
        if not self._done.done():
            await asyncio.wait([self._done])

    def resolve(self, error: BaseException | None = None) -> None:
        """Set the result: durable, or failed with ``error``. Waiting callers receive the error; otherwise the next
        report or the exit raises it."""
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self.error_raised = self._waiting > 0
            self._done.set_exception(error)
            self._done.exception()  # retrieved, or asyncio would log it; the next report or the exit raises it

    def __repr__(self) -> str:
        state = "durable" if self.is_durable else "failed" if self.error else "pending"
        return f"<checkpoint {self.uri} {state}>"


TOLERATED_FAILURE_SECONDS = 300.0
"""How long (s) background syncs may keep failing with transient errors before the trial's next report() raises."""


@dataclass(frozen=True, slots=True)
class TrialFailure:
    """A failure since the last report. ``handle``: of the checkpoint that failed, None for a background sync."""

    key: str
    error: BaseException
    handle: CheckpointHandle | None = None


@dataclass(slots=True)
class TrialFailures:
    """The failures of one trial since its last report. ``trial``: its key."""

    trial: str
    _failing_since: float | None = None
    """When the current run of failing background syncs began, on the event loop's clock."""
    _found: list[TrialFailure] = field(default_factory=list)

    def note_sync(self, error: BaseException) -> None:
        """A background sync failed and will be retried. The next report raises the error.

        A transient error is raised only after TOLERATED_FAILURE_SECONDS: a short outage of the store must not end a
        training loop.
        """
        now = asyncio.get_running_loop().time()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if not is_transient(error) or now - self._failing_since >= TOLERATED_FAILURE_SECONDS:
            self._forget_syncs()
            self._found.append(TrialFailure(self.trial, error))

    def note_checkpoint(self, name: str, error: BaseException, handle: CheckpointHandle) -> None:
        """A checkpoint failed for good."""
        self._found.append(TrialFailure(f"{self.trial}/{name}", error, handle))

    def sync_succeeded(self) -> None:
        """Failures of earlier syncs are of no interest any more."""
        self._failing_since = None
        self._forget_syncs()

    def _forget_syncs(self) -> None:
        self._found = [failure for failure in self._found if failure.key != self.trial]

    def take(self) -> dict[str, BaseException]:
        """Failures that were not raised yet, by name. They count as raised from now on."""
        found, self._found = self._found, []
        return {item.key: item.error for item in found if item.handle is None or not item.handle.error_raised}

    def raise_all(self) -> None:
        """Raise the failures since the last report."""
        found = self.take()
        if not found:
            return
        error = next(iter(found.values()))
        if len(found) == 1 and isinstance(error, SyncError):
            raise error
        text = "; ".join(f"{name}: {error}" for name, error in found.items())
        raise SyncFailedError(f"{len(found)} failure(s) since the last report of trial {self.trial}: {text}", found)
