"""The public handles of a checkpoint: what the user gives to report(), and what report() returns."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from asyncsync.disk.copying import copy_tree
from asyncsync.errors import EngineClosedError


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

    __slots__ = ("_done", "_process", "_waiting", "error_raised", "name", "uri")

    def __init__(self, name: str, uri: str) -> None:
        self.name, self.uri = name, uri
        self.error_raised = False
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
            self.error_raised = True
        self._done.result()

    async def wait_ended(self) -> None:
        """Wait for the verdict, whatever it is; its failure stays to be told."""
        if not self._done.done():
            await asyncio.wait([self._done])

    def resolve(self, error: BaseException | None = None) -> None:
        """The engine's verdict. Whoever waits is told; the rest is told at the next report or at exit."""
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self.error_raised = self._waiting > 0
            self._done.set_exception(error)
            self._done.exception()  # seen: what nobody waits for is told elsewhere

    def __repr__(self) -> str:
        state = "durable" if self.is_durable else "failed" if self.error else "pending"
        return f"<checkpoint {self.uri} {state}>"
