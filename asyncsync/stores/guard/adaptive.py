"""How many requests at once are useful: found while running. Pure arithmetic, no await, no clock.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with the delay of requests as a second brake as in
TCP Vegas (Brakmo and Peterson, 1995): more requests than the path can carry only wait inside it.
"""

from __future__ import annotations

START, BULK_START = 64, 4
FLOOR = 8
"""Slots below which only the store's own throttling goes."""
MIN_WINDOW = 0.05
"""Least seconds of a window. It ends when MIN_SAMPLES requests that were sent in it are answered."""
MIN_SAMPLES = 8
REQUEST_COST = 64 << 10
"""Bytes that a request is worth beside its body, so that small and large ones add up to one throughput."""
LARGE = 1 << 20
RISEN = 2.0
"""Delay beyond this multiple of the baseline counts as clearly rising."""
DRIFT = 1.002
"""Growth of the baseline per window, so that one lucky window does not rule for ever."""
MISSED = 0.95
"""Throughput below this multiple after taking an eighth of the slots away says that they were useful."""
GROWN = 1.1
"""Throughput that grew by less than this factor after doubling ends the doubling."""
HOLD = 16
"""Windows after which the number of large bodies is doubled again to see whether that has become of use."""


class _Delay:
    """Delay of one class of requests: this window's mean, and the least mean seen."""

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
        """At the end of a window: whether its delay lies clearly above the baseline. ``new_normal``: it is one."""
        if self.count < MIN_SAMPLES:
            return False
        mean = self.total / self.count
        self.base = min(self.base * DRIFT, mean) if self.base and not new_normal else mean
        return mean > RISEN * self.base


class Adaptive:
    """The number of slots. ``limit`` is what holds now, between 1 and ``ceiling``."""

    __slots__ = (
        "_cut", "_delays", "_doubling", "_fell", "_rate", "_samples", "_window", "_work", "ceiling", "limit",
        "saturated",
    )  # fmt: skip

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = min(START, ceiling)
        self.saturated = False
        """Whether somebody had to wait in this window: only then does it say anything about the limit."""
        self._delays = (_Delay(), _Delay())
        self._doubling = True
        self._fell = False
        self._rate = 0.0
        self._window: float | None = None
        self._work = 0
        self._samples = 0
        self._cut = float("-inf")

    def throttled(self, now: float, started: float) -> None:
        """The store asked for less. Requests sent before the last cut could not know of it and do not count."""
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
        self._work += size + REQUEST_COST
        if started < self._window:
            return  # sent under another limit: its delay would be blamed on this one
        self._samples += 1
        self._delays[size > LARGE].add(now - started)
        elapsed = now - self._window
        if self._samples >= MIN_SAMPLES and elapsed >= MIN_WINDOW:
            self._close(now, self._work / elapsed)

    def _close(self, now: float, rate: float) -> None:
        # Fewer slots cost throughput, so they were useful: the store itself has become slower.
        missed = self._fell and self.saturated and rate < MISSED * self._rate
        risen = [delay.risen(new_normal=missed) for delay in self._delays]
        self._fell = False
        if self.saturated:
            self._adapt(rate, risen=any(risen))
            self._rate = rate
        self._open(now)

    def _adapt(self, rate: float, *, risen: bool) -> None:
        grown = rate >= GROWN * self._rate
        if risen and not grown:
            self._doubling, self._fell = False, True
            self.limit = min(self.limit, max(FLOOR, self.limit * 7 // 8))
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
    """The number of large bodies at once: doubled as long as that moves more bytes a second, else taken back.

    A few large bodies fill the path, and more of them only compete for the store's memory: SeaweedFS on 2 cores took
    1 GiB in 9.8 s four parts at a time, in 12.8 s sixteen at a time.
    """

    __slots__ = ("_before", "_cut", "_hold", "_rate", "_samples", "_window", "_work", "ceiling", "limit", "saturated")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = min(BULK_START, ceiling)
        self.saturated = False
        """Whether somebody had to wait in this window: only then does it say anything about the limit."""
        self._before = 0
        """What to go back to if more turn out to be of no use; 0: more are not being tried."""
        self._hold = 0
        self._rate = 0.0
        self._window: float | None = None
        self._work = self._samples = 0
        self._cut = float("-inf")

    def throttled(self, now: float, started: float) -> None:
        """The store asked for less. Requests sent before the last cut could not know of it and do not count."""
        if started >= self._cut:
            self.limit = max(1, self.limit // 2)
            self._before, self._hold, self._cut = 0, HOLD, now
            self._open(now)

    def done(self, now: float, started: float, size: int) -> None:
        """A request took ``now - started`` seconds and moved ``size`` bytes."""
        if self._window is None:
            self._window = started
        self._work += size
        if started < self._window:
            return  # sent under another limit
        self._samples += 1
        elapsed = now - self._window
        if self._samples >= max(MIN_SAMPLES, self.limit) and elapsed >= MIN_WINDOW:
            if self.saturated:
                self._step(self._work / elapsed)
            self._open(now)

    def _step(self, rate: float) -> None:
        if self._before and rate < GROWN * self._rate:
            self.limit, self._before, self._hold = self._before, 0, HOLD
            return
        self._rate, self._before = rate, 0
        self._hold = max(0, self._hold - 1)
        if not self._hold and self.limit < self.ceiling:
            self._before, self.limit = self.limit, min(self.ceiling, self.limit * 2)

    def _open(self, now: float) -> None:
        self._window, self._work, self._samples = now, 0, 0
        self.saturated = False
