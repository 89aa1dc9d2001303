"""Cuts requests that stall. One timer serves all requests of a client, so that a request costs no timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from asyncsync.stores.http.errors import BrokenError

_T = TypeVar("_T")

MIN_BODY_PROGRESS = 1 << 10
"""Bytes of a body that must move within each stall timeout."""


class Watched(Protocol):
    """A request in flight."""

    def progress(self) -> int:
        """Bytes moved so far, as far as they count; it only grows."""

    def min_progress(self) -> int:
        """Bytes that must move for the request to count as alive."""

    def stall(self) -> None:
        """End the request: cut its connection, so that no more of it is sent."""


@dataclass(slots=True)
class ProgressMark:
    """The last progress that counted, and when it was seen."""

    time: float
    progress: int = -1


class Watchdog:
    """Cuts requests that make no progress for ``stall_timeout`` seconds. Its timer runs only while needed."""

    def __init__(self, stall_timeout: float, now: Callable[[], float] | None = None) -> None:
        self.stall_timeout = stall_timeout
        self._loop = asyncio.get_running_loop()
        self._now = now or self._loop.time
        self._watched: dict[Watched, ProgressMark] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request: Watched) -> None:
        """Watch a request from now on."""
        self._watch(request, ProgressMark(self._now()))

    def discard(self, request: Watched) -> None:
        """Stop watching a request."""
        self._watched.pop(request, None)

    def pause(self, request: Watched) -> ProgressMark:
        """Stop the clock of a request while it waits for us. Pass the result to :meth:`resume`."""
        mark = self._watched.pop(request, None) or ProgressMark(self._now())
        mark.time -= self._now()
        return mark

    def resume(self, request: Watched, mark: ProgressMark) -> None:
        """Restart the clock of a request where :meth:`pause` stopped it."""
        mark.time += self._now()
        self._watch(request, mark)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, request: Watched, mark: ProgressMark) -> None:
        self._watched[request] = mark
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(min(1.0, self.stall_timeout / 4), self.look)

    def look(self) -> None:
        """Compare the progress of each request with that at the last look."""
        now = self._now()
        for request, mark in tuple(self._watched.items()):
            progress = request.progress()
            if progress - mark.progress >= request.min_progress():
                mark.progress, mark.time = progress, now
            elif now - mark.time >= self.stall_timeout:
                request.stall()
                self._watched.pop(request, None)
        self._timer = None
        if self._watched:
            self._start_timer()


class BodyReadLimit:
    """The minimum rate of one body that another HTTP client reads. Time between the reads does not count."""

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._waited = 0.0
        self._moved = 0

    async def read(self, once: Callable[[], Awaitable[bytes]]) -> bytes:
        """The bytes of one read. BrokenError if too few bytes moved for too long."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._stall_timeout - self._waited) as limit:
                data = await once()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise BrokenError(f"no byte moved for {self._stall_timeout:g} s, or too few") from error
        self._waited += loop.time() - began
        self._moved += len(data)
        if self._moved >= MIN_BODY_PROGRESS:
            self._waited, self._moved = 0.0, 0
        return data
