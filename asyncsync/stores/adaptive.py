"""How many requests at once are useful: found while running. Pure arithmetic, no await, no clock.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with the delay of requests as a second brake as in
TCP Vegas (Brakmo and Peterson, 1995): more requests than the path can carry only wait inside it.
"""

from __future__ import annotations

START = 64
FLOOR = 8
"""Slots below which only the store's own throttling goes."""
MIN_WINDOW = 0.05
"""Seconds; a window is one round trip, but never less than this."""
MIN_SAMPLES = 8
REQUEST_COST = 64 << 10
"""Bytes that a request is worth beside its body, so that small and large ones add up to one throughput."""
LARGE = 1 << 20
RISEN = 2.0
"""Delay beyond this multiple of the baseline counts as clearly rising."""
DRIFT = 1.002
"""Growth of the baseline per window, so that one lucky window does not rule for ever."""
GROWN = 1.1
"""Throughput that grew by less than this factor after doubling ends the doubling."""


class _Delay:
    """Delay of one class of requests: this window's mean and the least mean seen."""

    __slots__ = ("base", "count", "fell_from", "total")

    def __init__(self) -> None:
        self.base = 0.0
        self.count = 0
        self.total = 0.0
        self.fell_from = 0.0

    def risen(self) -> bool:
        """Close the window; whether its delay lies clearly above the baseline."""
        if self.count < MIN_SAMPLES:
            return False
        mean = self.total / self.count
        self.count, self.total = 0, 0.0
        if self.fell_from and mean >= 0.97 * self.fell_from:
            # Fewer requests at once did not help: it is the store, not our queue. This is the new normal.
            self.base = mean
        self.base = min(self.base * DRIFT, mean) if self.base else mean
        self.fell_from = mean if mean > RISEN * self.base else 0.0
        return self.fell_from > 0


class Adaptive:
    """The number of slots. ``limit`` is what holds now, between 1 and ``ceiling``."""

    __slots__ = (
        "_cut", "_delays", "_doubling", "_rate", "_round_trip", "_samples", "_window", "_work", "ceiling", "limit",
        "saturated",
    )  # fmt: skip

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = min(START, ceiling)
        self.saturated = False
        """Whether somebody had to wait in this window: only then does it say anything about the limit."""
        self._delays = (_Delay(), _Delay())
        self._doubling = True
        self._rate = 0.0
        self._round_trip = 0.0
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
        took = now - started
        self._round_trip += (took - self._round_trip) / 8 if self._round_trip else took
        self._work += size + REQUEST_COST
        self._samples += 1
        delay = self._delays[size > LARGE]
        delay.count += 1
        delay.total += took
        elapsed = now - self._window
        if self._samples >= MIN_SAMPLES and elapsed >= MIN_WINDOW and elapsed >= self._round_trip:
            self._close(now, self._work / elapsed)

    def _close(self, now: float, rate: float) -> None:
        risen = [delay.risen() for delay in self._delays]
        if self.saturated:
            self._adapt(rate, risen=any(risen))
            self._rate = rate
        self._open(now)

    def _adapt(self, rate: float, *, risen: bool) -> None:
        grown = rate >= GROWN * self._rate
        if risen and not grown:
            self._doubling = False
            self.limit = min(self.limit, max(FLOOR, self.limit * 7 // 8))
        elif self._doubling and grown:
            self.limit = min(self.ceiling, self.limit * 2)
        else:
            self._doubling = False
            self.limit = min(self.ceiling, self.limit + max(1, self.limit // 16))

    def _open(self, now: float) -> None:
        self._window, self._work, self._samples = now, 0, 0
        self.saturated = False
