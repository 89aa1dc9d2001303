"""A circuit breaker: when a store is gone, one request at a time asks whether it is back; the others wait."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from asyncsync.errors import StoreError, UnavailableError
from asyncsync.runtime import dice

log = logging.getLogger("asyncsync")

THRESHOLD = 8
"""Failures in a row, of any requests, after which the store counts as gone."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0
"""Seconds between two probes: doubled from the first to the longest."""
SPREAD = 2.0
"""Seconds over which those who waited out a failure come when the store is back: not all at once."""


class GoneError(UnavailableError):
    """The store did not come back in time; there is no point in trying again at once."""


class Breaker:
    """Closed while the store answers. Open: ``enter`` waits until the store is back or it is the caller's turn to
    probe. Every ``enter`` is followed by exactly one of ``answered``, ``failed`` and ``abandoned``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.open = False
        self.since = 0.0
        """When it opened last, on the loop's clock."""
        self.last_error: UnavailableError | None = None
        """The last failure to reach the store; kept after it is back."""
        self.gone = asyncio.Event()
        """Set while it is open."""
        self.on_back: set[Callable[[], None]] = set()
        """Called when the store is back."""
        self.failing_since: dict[bool, float | None] = {False: None, True: None}
        """Since when all requests that read (False) or write (True) fail, refusals to slow down included."""
        self.on_failing: set[Callable[[float, StoreError], None]] = set()
        """Called whenever a request fails, with the time since when all of its kind do, and why."""
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._due = False
        """The pause is over: a probe may go."""
        self._back_at = float("-inf")
        self._probing = False
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, patience: float) -> bool:
        """Wait until a request may go; True: it is the probe. GoneError after ``patience`` seconds."""
        if not self.open:
            return False
        try:
            async with asyncio.timeout(patience):
                while self.open and not self._may_probe():
                    await self._wait()
        except TimeoutError:
            text = f"{self.uri} has been unavailable for too long; last error: {self.last_error}"
            raise GoneError(text) from self.last_error
        if self.open:
            self._probing = True
        return self.open

    def answered(self) -> None:
        """The store gave an answer, of whatever kind."""
        self._failures = 0
        if self.open:
            log.warning("%s is back", self.uri)
            self.open, self._probing, self._pause = False, False, FIRST_PAUSE
            self.gone.clear()
            self._back_at = asyncio.get_running_loop().time()
            self._cancel_timer()
            while self._waiters:
                self._wake()
            for listener in tuple(self.on_back):
                listener()

    def failed(self, error: UnavailableError, *, probe: bool) -> None:
        """The store could not be reached."""
        self.last_error = error
        self._failures += 1
        if self.open and probe:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._schedule()
        elif not self.open and self._failures >= THRESHOLD:
            log.warning("%s does not answer, requests wait until it is back: %s", self.uri, error)
            self.open, self.since = True, asyncio.get_running_loop().time()
            self.gone.set()
            self._schedule()

    def refused(self, error: StoreError, *, writes: bool) -> None:
        """A request that reads or writes has failed for a reason that may pass."""
        since = self.failing_since[writes]
        if since is None:
            since = self.failing_since[writes] = asyncio.get_running_loop().time()
        for listener in tuple(self.on_failing):
            listener(since, error)

    @property
    def failing(self) -> bool:
        """Whether nothing that reads, or nothing that writes, has worked since one that failed."""
        return self.failing_since[False] is not None or self.failing_since[True] is not None

    def abandoned(self, *, probe: bool) -> None:
        """The request was cancelled, or did not get as far as the store."""
        if probe and self.open:
            self._probing = False
            self._wake()

    async def rest(self, seconds: float, since: float) -> None:
        """Sleep before something is tried again that was begun at ``since`` (the event loop's clock). If the store has
        come back since then, or does so meanwhile, only until soon after that."""
        back = asyncio.Event()
        if self._back_at > since:
            back.set()
        self.on_back.add(back.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await back.wait()
                    await asyncio.sleep(dice().uniform(0, SPREAD))
        finally:
            self.on_back.discard(back.set)

    def close(self) -> None:
        """Drop the timer."""
        self._cancel_timer()

    def _may_probe(self) -> bool:
        return self._due and not self._probing

    async def _wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        try:
            await future
        except BaseException:
            self._waiters.pop(future, None)
            if not future.cancelled() and self.open:
                self._wake()  # we were to probe: somebody else must
            raise

    def _schedule(self) -> None:
        self._probing = self._due = False
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._pause_over)

    def _pause_over(self) -> None:
        self._due = True  # and not the clock: timers may be early, by less than it resolves
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            future, _ = self._waiters.popitem(last=False)
            if not future.done():
                future.set_result(None)
                return

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
