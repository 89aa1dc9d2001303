"""Private: a lock and a notification that are in an attribute of their owner only while somebody uses them.

An idle trial would have several."""

from __future__ import annotations

import asyncio
from types import TracebackType


class _CountedLock(asyncio.Lock):
    users = 0
    """Tasks that hold the lock or wait for it."""


class LazyLock:
    """``async with LazyLock(owner, "_saving"):`` like an :class:`asyncio.Lock` in the owner's attribute of this name.

    It is None while no task holds the lock or waits for it."""

    __slots__ = ("_lock", "_name", "_owner")

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name

    async def __aenter__(self) -> None:
        lock: _CountedLock | None = getattr(self._owner, self._name)
        if lock is None:
            lock = _CountedLock()
            setattr(self._owner, self._name, lock)
        self._lock = lock
        lock.users += 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._lock.users -= 1
        if not self._lock.users:
            setattr(self._owner, self._name, None)


class Notification:
    """Wakes all tasks that wait for the next :meth:`notify`. While any do, it is in the owner's attribute of this
    name."""

    __slots__ = ("_name", "_owner")

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name

    def notify(self) -> None:
        """Wake the waiting tasks."""
        event: asyncio.Event | None = getattr(self._owner, self._name)
        if event is not None:
            event.set()
            setattr(self._owner, self._name, None)

    async def wait(self) -> None:
        """Wait for the next :meth:`notify`."""
        event: asyncio.Event | None = getattr(self._owner, self._name)
        if event is None:
            event = asyncio.Event()
            setattr(self._owner, self._name, event)
        await event.wait()
