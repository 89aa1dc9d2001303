"""The public classes of a checkpoint: the argument of report(), and the handle that report() returns."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from asyncsync.disk.copying import copy_tree
from asyncsync.errors import EngineClosedError


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

        Raises SourceChangedError if a file changed during each of three attempts to copy it, and OSError if the copy
        cannot be written.
        """
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
