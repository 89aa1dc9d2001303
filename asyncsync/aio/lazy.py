"""Private: a lock and a notification that cost almost nothing while nobody uses them; idle trials have several."""

from __future__ import annotations

import asyncio
from types import TracebackType


class LazyLock:
    """``async with lock:`` like an :class:`asyncio.Lock`, which exists only while a task holds it or waits for it."""

    __slots__ = ("_lock", "_users")

    def __init__(self) -> None:
        self._lock: asyncio.Lock | None = None
        self._users = 0

    async def __aenter__(self) -> None:
        self._lock = lock = self._lock or asyncio.Lock()
        self._users += 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._lock = None


class Notification:
    """Wakes all tasks that wait for the next :meth:`notify`."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def notify(self) -> None:
        """Wake the waiting tasks."""
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait for the next :meth:`notify`."""
        self._event = event = self._event or asyncio.Event()
        event.clear()
        await event.wait()
