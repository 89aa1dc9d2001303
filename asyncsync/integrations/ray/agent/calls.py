"""What a worker asks the agent of its node for."""

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
    """What it reads or writes on this machine."""
    target: str = ""
    """The checkpoint that it uploads."""
    attempt: str = ""
    """Of the checkpoint's writer: calls of other attempts for the same target are ended before it begins."""
    outlives: bool = False
    """Whether it continues when its caller is killed."""
