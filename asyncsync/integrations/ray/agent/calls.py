"""The requests of a worker to the agent of its node."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from asyncsync import AsyncsyncError


class NotServedError(AsyncsyncError):
    """The agent cannot do this call: it does not see the directory or the process. The worker does it itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """A local directory or file, so that another process can tell whether it sees the same one."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Place | None:
        """None if it is missing."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(path, found.st_dev, found.st_ino)

    def is_here(self) -> bool:
        """Whether this process sees it, too, and may read it."""
        return Place.of(self.path) == self and os.access(self.path, os.R_OK)


@dataclass(frozen=True, slots=True)
class Call:
    """``work(storage, *arguments)``, asked for by a process."""

    work: Callable[..., Awaitable[Any]]
    """A function of a module, see ``operations.py``."""
    arguments: tuple[Any, ...]
    caller: str
    """The process that waits for it, as :class:`asyncsync.runtime.Presence` names it."""
    place: Place | None = None
    """The directory or file of this machine that it reads or writes."""
    target: str = ""
    """The checkpoint that it uploads."""
    writer: tuple[str, str, int] = ("", "", 0)
    """Attempt, process and rank that upload it."""
    outlives: bool = False
    """Whether it continues when its caller is killed."""

    def replaces(self, other: Call) -> bool:
        """Whether it takes the place of ``other``: another attempt of the same checkpoint, or an earlier process of the
        same rank, such as one of a replica group that Ray has replaced."""
        (attempt, process, rank), (old_attempt, old_process, old_rank) = self.writer, other.writer
        if not self.target or other.target != self.target:
            return False
        return attempt != old_attempt or (rank == old_rank and process != old_process)
