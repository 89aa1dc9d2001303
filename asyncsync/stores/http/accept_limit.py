"""How many connections at once a server is given to accept. No await, no clock.

What has connected waits in a queue until the server's program accepts it. Some have room for five there: Python's
HTTPServer, and with it many emulators. Linux does not refuse what does not fit in: the client believes that it is
connected, what it sends is dropped and sent again after ever longer pauses, and a request of a millisecond takes half a
minute. So connections are fresh until their first answer has begun, and of those only so many are under way:

- few until the first answer, which tells more;
- any number at a server that keeps its connections alive, for each has to be accepted only once, until it is seen to
  overflow: then few, and one more for each that was answered;
- at one that ends each connection with its answer (HTTP/1.0) as many as do not only wait for each other.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

FEW_CONNECTIONS = 3
"""Enough to keep a server with one thread busy; those of two clients still fit into a queue of five."""
WINDOW_RESPONSES = 16
"""Least answers after which the limit of a server that ends connections is looked at; at least twice the limit."""
SAME_DELAY_RATIO = 1.15
"""A mean delay up to this multiple of that with few, or of a lesser one, says that the server takes more."""
RISEN_DELAY_RATIO = 1.35
"""One beyond this multiple says that they only wait for each other."""
HOLD_WINDOWS = 32
"""Windows after which more are tried again, when they were of no use: by chance a window may look better than it was,
and at a server with room for five a few of them in a row cost a second."""
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_ACKED = slice(120, 128)
"""``tcpi_bytes_acked`` of ``struct tcp_info`` (linux/tcp.h): bytes that the other system has, and one for the SYN."""


def acknowledged(sock: socket.socket) -> int | None:
    """Bytes that the other system says it has; None where that is not known. Only Linux tells."""
    if _TCP_INFO is None:
        return None
    said = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED.stop)
    there = int.from_bytes(said[_ACKED], sys.byteorder) if len(said) == _ACKED.stop else 0
    return there - 1 if there else None


def dropped(sock: socket.socket) -> bool:
    """Whether the other system has nothing of what was sent. Only Linux says so; it is also what drops."""
    return acknowledged(sock) == 0


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other system does not have yet, as far as ours knows; 0 where it does not tell."""
    try:
        said = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(said, sys.byteorder)


class AcceptLimit:
    """``limit`` is how many fresh connections may be under way now, ``most`` at most."""

    __slots__ = ("_base", "_count", "_hold", "_keeps", "_most", "_opened", "_total", "limit")

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = min(FEW_CONNECTIONS, most)
        self._keeps = False
        self._base = float("inf")
        self._hold = 0
        self._open(float("-inf"))

    def _open(self, now: float) -> None:
        self._opened, self._count, self._total = now, 0, 0.0

    def overflowed(self, now: float) -> None:
        """The server's system dropped what was sent to it."""
        self.limit, self._hold = min(FEW_CONNECTIONS, self._most), HOLD_WINDOWS
        self._open(now)

    def answered(self, began: float, now: float, *, keep: bool, waiting: bool) -> None:
        """The first answer on a connection that was begun at ``began``; ``keep``: it can be used again. ``waiting``:
        there are requests without a connection."""
        if keep:
            self.limit = min(self._most, self.limit + 1) if self._keeps else self._most
            self._keeps = True
        elif not self._keeps and began >= self._opened:  # else it began under another limit
            self._count += 1
            self._total += now - began
            if self._count >= max(WINDOW_RESPONSES, 2 * self.limit):
                self._adapt(self._total / self._count, waiting=waiting)
                self._open(now)

    def _adapt(self, mean: float, *, waiting: bool) -> None:
        few = min(FEW_CONNECTIONS, self._most)
        self._base = mean if self.limit == few else min(self._base, mean)
        self._hold = max(0, self._hold - 1)
        if mean > RISEN_DELAY_RATIO * self._base:
            self.limit, self._hold = max(few, self.limit * 3 // 4), HOLD_WINDOWS
        elif waiting and not self._hold and mean <= SAME_DELAY_RATIO * self._base:
            self.limit = min(self._most, self.limit + max(1, self.limit // 8))
