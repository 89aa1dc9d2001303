"""A circuit breaker: while a store is unavailable, one request at a time probes it and the others wait."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from asyncsync.errors import StoreError, UnavailableError
from asyncsync.runtime import dice

log = logging.getLogger("asyncsync")

FAILURES_TO_OPEN = 8
"""Consecutive failures, of any requests, after which the store counts as unavailable."""
FIRST_PROBE_PAUSE = 1.0
LONGEST_PROBE_PAUSE = 15.0
"""Seconds between two probes; they double from the first to the longest."""
RETURN_SPREAD = 2.0
"""When the store is back, waiting retries start spread over so many seconds."""


class StillUnavailableError(UnavailableError):
    """The store did not come back in time; an immediate retry is pointless."""


class Breaker:
    """Closed while the store responds. While it is open, ``enter`` waits until the store is back or it is the caller's
    turn to probe. Every ``enter`` is followed by exactly one of ``responded``, ``failed`` and ``abandoned``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.open = False
        self.since = 0.0
        """When it last opened (event loop's clock)."""
        self.last_error: UnavailableError | None = None
        """The last failure to reach the store; kept when it is back."""
        self.opened = asyncio.Event()
        """Set while it is open."""
        self.on_back: dict[Callable[[], None], None] = {}
        """Called when the store is back."""
        self.failing_since: dict[bool, float | None] = {False: None, True: None}
        """Since when all reads (False) or writes (True) fail, throttled ones included; None: the last one succeeded."""
        self.on_failing: dict[Callable[[float, StoreError], None], None] = {}
        """Called for each failed request with the entry of ``failing_since`` and the error."""
        self.longest_pause = LONGEST_PROBE_PAUSE
        """Of this store. Lower for a process whose caller waits for the next request."""
        self._failures = 0
        self._pause = FIRST_PROBE_PAUSE
        self._due = False
        """The pause is over: the next request may probe."""
        self._back_at = float("-inf")
        self._probing = False
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, patience: float) -> bool:
        """Wait until a request may start; returns whether it is the probe.

        StillUnavailableError after ``patience`` seconds.
        """
        if not self.open:
            return False
        try:
            async with asyncio.timeout(patience):
                while self.open and not self._may_probe():
                    await self._wait()
        except TimeoutError:
            text = f"{self.uri} did not come back within {patience:.0f} s; last error: {self.last_error}"
            raise StillUnavailableError(text) from self.last_error
        if self.open:
            self._probing = True
        return self.open

    def responded(self) -> None:
        """The store sent a response, of any kind."""
        self._failures = 0
        if self.open:
            log.warning("%s is back", self.uri)
            self.open, self._probing, self._pause = False, False, FIRST_PROBE_PAUSE
            self.opened.clear()
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
            self._pause = min(self._pause * 2, self.longest_pause)
            self._schedule()
        elif not self.open and self._failures >= FAILURES_TO_OPEN:
            log.warning("%s does not respond, requests wait until it is back: %s", self.uri, error)
            self.open, self.since = True, asyncio.get_running_loop().time()
            self.opened.set()
            self._schedule()

    def refused(self, error: StoreError, *, writes: bool) -> None:
        """A read or a write failed with a transient error."""
        since = self.failing_since[writes]
        if since is None:
            since = self.failing_since[writes] = asyncio.get_running_loop().time()
        for listener in tuple(self.on_failing):
            listener(since, error)

    @property
    def failing(self) -> bool:
        """Whether all reads, or all writes, have failed since the first failure."""
        return self.failing_since[False] is not None or self.failing_since[True] is not None

    def abandoned(self, *, probe: bool) -> None:
        """The request was cancelled, or never reached the store."""
        if probe and self.open:
            self._probing = False
            self._wake()

    async def wait_to_retry(self, seconds: float, since: float) -> None:
        """Sleep up to ``seconds`` before the retry of an attempt that began at ``since`` (event loop's clock).

        If the store has come back since, or comes back meanwhile, sleep only until soon after that.
        """
        back = asyncio.Event()
        if self._back_at > since:
            back.set()
        self.on_back[back.set] = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await back.wait()
                    await asyncio.sleep(dice().uniform(0, RETURN_SPREAD))
        finally:
            del self.on_back[back.set]

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
                self._wake()  # it was our turn to probe: hand it on
            raise

    def _schedule(self) -> None:
        self._probing = self._due = False
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._pause_over)

    def _pause_over(self) -> None:
        self._due = True  # a flag, not the clock: a timer may fire early, by less than the clock resolves
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
