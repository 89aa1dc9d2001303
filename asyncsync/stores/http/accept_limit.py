"""How many new connections a server gets to accept at the same time. No await, no clock.

A new connection waits in the kernel's accept queue until the server's program accepts it. Some servers have room for
five there: Python's HTTPServer, and many emulators built on it. Linux does not refuse a connection that does not fit:
the client believes that it is connected, its data is dropped and resent after ever longer pauses, and a request of a
millisecond takes half a minute. So a connection counts as fresh until its first response begins, and the number of
fresh connections in flight is limited:

- to a few until the first response;
- not at all for a server that keeps connections alive, because it accepts each only once, until its queue overflows:
  then to a few, plus one for each first response;
- for a server that closes after each response (HTTP/1.0), to as many as still reduce latency.
"""

from __future__ import annotations

FEW_CONNECTIONS = 3
"""Enough to keep a single-threaded server busy; those of two clients still fit into a queue of five."""
WINDOW_RESPONSES = 16
"""Minimum number of responses before the limit for a closing server is adapted; at least twice the limit."""
SAME_DELAY_RATIO = 1.15
"""While the mean delay stays below this multiple of the best known one, the server can take more connections."""
RISEN_DELAY_RATIO = 1.35
"""A mean delay beyond this multiple means that connections only wait for each other."""
HOLD_WINDOWS = 32
"""Windows to wait after a useless increase before trying again. By chance a window may look better than it was, and
with a server that has room for five a few increases in a row cost a second."""


class AcceptLimit:
    """``limit`` is the number of fresh connections allowed in flight now; it never exceeds ``maximum``."""

    __slots__ = ("_base", "_count", "_hold", "_keeps_alive", "_maximum", "_total", "_window_start", "limit")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.limit = min(FEW_CONNECTIONS, maximum)
        self._keeps_alive = False
        self._base = float("inf")
        self._hold = 0
        self._start_window(float("-inf"))

    def _start_window(self, now: float) -> None:
        self._window_start, self._count, self._total = now, 0, 0.0

    def overflowed(self, now: float) -> None:
        """The server's kernel dropped data that we sent."""
        self.limit, self._hold = min(FEW_CONNECTIONS, self._maximum), HOLD_WINDOWS
        self._start_window(now)

    def first_response(self, began: float, now: float, *, keep: bool, waiting: bool) -> None:
        """The first response on a connection that was started at ``began``. ``keep``: the connection can be reused.
        ``waiting``: there are requests without a connection."""
        if keep:
            self.limit = min(self._maximum, self.limit + 1) if self._keeps_alive else self._maximum
            self._keeps_alive = True
        elif not self._keeps_alive and began >= self._window_start:  # else it began under another limit
            self._count += 1
            self._total += now - began
            if self._count >= max(WINDOW_RESPONSES, 2 * self.limit):
                self._adapt(self._total / self._count, waiting=waiting)
                self._start_window(now)

    def _adapt(self, mean: float, *, waiting: bool) -> None:
        few = min(FEW_CONNECTIONS, self._maximum)
        self._base = mean if self.limit == few else min(self._base, mean)
        self._hold = max(0, self._hold - 1)
        if mean > RISEN_DELAY_RATIO * self._base:
            self.limit, self._hold = max(few, self.limit * 3 // 4), HOLD_WINDOWS
        elif waiting and not self._hold and mean <= SAME_DELAY_RATIO * self._base:
            self.limit = min(self._maximum, self.limit + max(1, self.limit // 8))
