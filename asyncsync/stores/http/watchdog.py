"""Ends what stands still: one timer for all requests of a store, so that a request costs no timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Watched(Protocol):
    """A request under way. ``seen`` and ``since`` belong to the watchdog."""

    seen: int
    since: float

    def moved(self) -> int:
        """How far it has come, in bytes that count: it only grows."""

    def least(self) -> int:
        """Of those bytes, how many more are progress."""

    def stall(self) -> None:
        """End the request: its connection is cut, so nothing more of it is sent."""


class Watchdog:
    """Cuts requests that make no progress for ``stall_timeout`` seconds. Its timer runs only while needed."""

    def __init__(self, stall_timeout: float, now: Callable[[], float] | None = None) -> None:
        self.stall_timeout = stall_timeout
        self._loop = asyncio.get_running_loop()
        self._now = now or self._loop.time
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request: Watched) -> None:
        request.since = self._now()
        self._watched.add(request)
        if self._timer is None:
            self._arm()

    def discard(self, request: Watched) -> None:
        self._watched.discard(request)

    def pause(self, request: Watched) -> None:
        """It waits for us, until :meth:`resume`: that is no time of its own, and does not make up for any."""
        request.since -= self._now()
        self._watched.discard(request)

    def resume(self, request: Watched) -> None:
        request.since += self._now()
        self._watched.add(request)
        if self._timer is None:
            self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(min(1.0, self.stall_timeout / 4), self.look)

    def look(self) -> None:
        """Compare what each request has moved with the last look."""
        now = self._now()
        for request in tuple(self._watched):
            moved = request.moved()
            if moved - request.seen >= request.least():
                request.seen, request.since = moved, now
            elif now - request.since >= self.stall_timeout:
                request.stall()
                self._watched.discard(request)
        self._timer = None
        if self._watched:
            self._arm()
