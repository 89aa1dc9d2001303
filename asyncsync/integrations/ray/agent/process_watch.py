"""Notices at once when a process of this machine ends, by a descriptor of it; where there is none, by polling."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from asyncsync.runtime import Presence

INTERVAL = 1.0
"""Seconds between two polls, where the system has no descriptors of processes."""


class ProcessWatch:
    """Calls ``ended`` with the name of each process that ends; see :class:`asyncsync.runtime.Presence` for names.

    Its calls belong to the running event loop. Holds one descriptor for each process that lives.
    """

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._watched: dict[str, Callable[[], object]] = {}
        """Name -> stops watching it. In the order in which they were added."""

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, name: str) -> bool:
        """Watch a process; False if it has ended, or is not known on this machine."""
        if name in self._watched:
            return True
        pid = Presence.pid_of(name)
        if pid is None:
            return False
        try:
            self._watched[name] = self._follow(name, pid)
        except ProcessLookupError:
            return False
        if Presence.has_ended(name):  # the descriptor may be of a later process with the same ID
            self._watched.pop(name)()
            return False
        return True

    def is_later(self, name: str, other: str) -> bool:
        """Whether both processes live, and ``name`` was added after ``other``."""
        order = list(self._watched)
        return name in self._watched and other in self._watched and order.index(name) > order.index(other)

    def close(self) -> None:
        """End all watches."""
        while self._watched:
            self._watched.popitem()[1]()

    def _follow(self, name: str, pid: int) -> Callable[[], object]:
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (AttributeError, OSError):  # no such call here, or it is not allowed
            return self._ask_again(name)
        loop.add_reader(descriptor, self._has_ended, name)

        def stop() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)

        return stop

    def _ask_again(self, name: str) -> Callable[[], object]:
        return asyncio.get_running_loop().call_later(INTERVAL, self._ask, name).cancel

    def _ask(self, name: str) -> None:
        if Presence.has_ended(name):
            self._has_ended(name)
        else:
            self._watched[name] = self._ask_again(name)

    def _has_ended(self, name: str) -> None:
        self._watched.pop(name)()
        self._ended(name)
