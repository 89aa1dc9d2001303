"""Finds the useful number of requests in flight while running. Pure arithmetic: no await, no clock.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with the delay of requests as a second brake as in
TCP Vegas (Brakmo and Peterson, 1995): requests beyond what the path can carry only queue inside it.
"""

from __future__ import annotations

from asyncsync.stores.guard.wait_queue import SMALL_BODY

INITIAL_SLOTS, INITIAL_BULK_SLOTS = 64, 4
MIN_ADAPTIVE_SLOTS = 8
"""Rising delay never lowers the limit below so many slots; only throttling by the store does."""
MIN_WINDOW_SECONDS = 0.05
"""Shortest window in seconds. It ends once MIN_WINDOW_SAMPLES requests that started in it have their responses."""
MIN_WINDOW_SAMPLES = 8
REQUEST_COST_BYTES = 64 << 10
"""Each request counts as so many bytes beside its body, so that small and large ones add up to one throughput."""
DELAY_RISEN = 2.0
"""Mean delay above this multiple of the baseline counts as rising."""
BASELINE_DRIFT = 1.002
"""Growth of the baseline per window, so that one lucky window does not set it for ever."""
THROUGHPUT_LOST = 0.95
"""Throughput below this multiple after removing an eighth of the slots shows that they were useful."""
THROUGHPUT_GROWN = 1.1
"""Doubling ends when it raises throughput by less than this factor."""
BULK_HOLD_WINDOWS = 16
"""Windows before the number of large bodies is doubled again, to see whether that has become useful."""


class _Delay:
    """Delay of one class of requests: the mean of this window, and the lowest mean so far."""

    __slots__ = ("base", "count", "total")

    def __init__(self) -> None:
        self.base = 0.0
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds

    def clear(self) -> None:
        self.count, self.total = 0, 0.0

    def risen(self, *, new_normal: bool) -> bool:
        """Whether the delay of the ended window is clearly above the baseline; ``new_normal`` makes it the baseline."""
        if self.count < MIN_WINDOW_SAMPLES:
            return False
        mean = self.total / self.count
        self.base = min(self.base * BASELINE_DRIFT, mean) if self.base and not new_normal else mean
        return mean > DELAY_RISEN * self.base


class Adaptive:
    """The number of slots: ``limit`` now, between 1 and ``ceiling``."""

    __slots__ = (
        "_cut",
        "_delays",
        "_doubling",
        "_fell",
        "_rate",
        "_samples",
        "_window",
        "_work",
        "ceiling",
        "limit",
        "saturated",
    )

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = min(INITIAL_SLOTS, ceiling)
        self.saturated = False
        """Whether a request had to wait in this window: only then is the window evidence about the limit."""
        self._delays = (_Delay(), _Delay())
        self._doubling = True
        self._fell = False
        self._rate = 0.0
        self._window: float | None = None
        self._work = 0
        self._samples = 0
        self._cut = float("-inf")

    def throttled(self, now: float, started: float) -> None:
        """The store throttled a request. Requests that started before the last cut do not count again."""
        if started < self._cut:
            return
        self.limit = max(1, self.limit // 2)
        self._doubling = False
        self._cut = now
        self._open(now)

    def done(self, now: float, started: float, size: int) -> None:
        """A request took ``now - started`` seconds and moved ``size`` bytes."""
        if self._window is None:
            self._window = started
        self._work += size + REQUEST_COST_BYTES
        if started < self._window:
            return  # started under another limit: its delay is not evidence about this one
        self._samples += 1
        self._delays[size > SMALL_BODY].add(now - started)
        elapsed = now - self._window
        if self._samples >= MIN_WINDOW_SAMPLES and elapsed >= MIN_WINDOW_SECONDS:
            self._close(now, self._work / elapsed)

    def _close(self, now: float, rate: float) -> None:
        # Fewer slots cost throughput, so the slots were useful: the store itself has become slower.
        missed = self._fell and self.saturated and rate < THROUGHPUT_LOST * self._rate
        risen = [delay.risen(new_normal=missed) for delay in self._delays]
        self._fell = False
        if self.saturated:
            self._adapt(rate, risen=any(risen))
            self._rate = rate
        self._open(now)

    def _adapt(self, rate: float, *, risen: bool) -> None:
        grown = rate >= THROUGHPUT_GROWN * self._rate
        if risen and not grown:
            self._doubling, self._fell = False, True
            self.limit = min(self.limit, max(MIN_ADAPTIVE_SLOTS, self.limit * 7 // 8))
        elif self._doubling and grown:
            self.limit = min(self.ceiling, self.limit * 2)
        else:
            self._doubling = False
            self.limit = min(self.ceiling, self.limit + max(1, self.limit // 16))

    def _open(self, now: float) -> None:
        self._window, self._work, self._samples = now, 0, 0
        self.saturated = False
        for delay in self._delays:
            delay.clear()


class Climb:
    """The number of large bodies in flight: doubled while that raises throughput, else taken back.

    A few large bodies fill the path, and more of them only compete for the store's memory: SeaweedFS on 2 cores took
    1 GiB in 9.8 s four parts at a time, in 12.8 s sixteen at a time.
    """

    __slots__ = ("_before", "_cut", "_hold", "_rate", "_samples", "_window", "_work", "ceiling", "limit", "saturated")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = min(INITIAL_BULK_SLOTS, ceiling)
        self.saturated = False
        """Whether a request had to wait in this window: only then is the window evidence about the limit."""
        self._before = 0
        """Limit to return to if more turn out to be useless; 0: no trial is running."""
        self._hold = 0
        self._rate = 0.0
        self._window: float | None = None
        self._work = self._samples = 0
        self._cut = float("-inf")

    def throttled(self, now: float, started: float) -> None:
        """The store throttled a request. Requests that started before the last cut do not count again."""
        if started >= self._cut:
            self.limit = max(1, self.limit // 2)
            self._before, self._hold, self._cut = 0, BULK_HOLD_WINDOWS, now
            self._open(now)

    def done(self, now: float, started: float, size: int) -> None:
        """A request took ``now - started`` seconds and moved ``size`` bytes."""
        if self._window is None:
            self._window = started
        self._work += size
        if started < self._window:
            return  # started under another limit
        self._samples += 1
        elapsed = now - self._window
        if self._samples >= max(MIN_WINDOW_SAMPLES, self.limit) and elapsed >= MIN_WINDOW_SECONDS:
            if self.saturated:
                self._step(self._work / elapsed)
            self._open(now)

    def _step(self, rate: float) -> None:
        if self._before and rate < THROUGHPUT_GROWN * self._rate:
            self.limit, self._before, self._hold = self._before, 0, BULK_HOLD_WINDOWS
            return
        self._rate, self._before = rate, 0
        self._hold = max(0, self._hold - 1)
        if not self._hold and self.limit < self.ceiling:
            self._before, self.limit = self.limit, min(self.ceiling, self.limit * 2)

    def _open(self, now: float) -> None:
        self._window, self._work, self._samples = now, 0, 0
        self.saturated = False
