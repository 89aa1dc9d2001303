"""How much of a file may be on its way to Cloud Storage without an answer.

Parts of a file travel side by side, and a crash costs what none of them had acknowledged. So all of them together
have as much under way as one chunk of one upload would. On a way that is long and wide that would leave it idle while
answers travel: there they have what it carries in a few round trips. Plain arithmetic, but for waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

CHUNK = 8 << 20
"""Bytes of a file that may be sent again after a break, and most in one request. (Google advises 8 MiB: Cloud Storage
documentation, "Resumable uploads".)"""
LEAST = 4 << 20
"""Bytes below which a request costs more than it is good for: 1 GiB took 0.67 s in chunks of 4 MiB, two at a time, and
0.74 s in chunks of 512 KiB, sixteen at a time (the sink of benchmarks/, 2 cores)."""
GRAIN = 1 << 18
"""A chunk that is not the last has a multiple of this (documentation as above)."""
TRIPS = 6
"""Round trips of which a file may have under way what they carry, where that is more than CHUNK. Behind 30 ms 1 GiB
took 1.11 s without any limit, 1.23 s with this one, 1.35 s with four round trips, 4.64 s with CHUNK (the same sink)."""
NEAR = 0.01
"""Seconds of a round trip below which one chunk keeps the way busy: it carries 800 MB/s then."""
LEAST_SECONDS = 0.05
"""How long bytes are counted before the speed is believed; two round trips if that is more."""


class Window:
    """That of one file. Times are in seconds, on any one clock."""

    def __init__(self, trips: Collection[float], now: float) -> None:
        self.bodies = 0
        """Parts that are being sent."""
        self.limit = CHUNK
        """Bytes that may be under way."""
        self._trips, self._since = trips, now
        self._used = self._moved = 0
        self._freed = asyncio.Event()

    async def take(self, rest: int) -> int:
        """Wait until a part of which ``rest`` bytes are left may send its next chunk; how many bytes that has. They
        are under way until :meth:`give`."""
        while self._used + (size := min(rest, self._share())) > self.limit:
            await self._freed.wait()
        self._used += size
        return size

    def give(self, size: int, now: float, *, arrived: bool) -> None:
        """They were answered for, or broke off."""
        self._used -= size
        self._moved += size if arrived else 0
        trip, elapsed = min(self._trips, default=0.0), now - self._since
        if elapsed >= max(LEAST_SECONDS, 2 * trip):
            carried = int(TRIPS * trip * self._moved / elapsed)
            self.limit = CHUNK if trip < NEAR else max(CHUNK, carried)
            self._since, self._moved = now, 0
        self._freed.set()
        self._freed.clear()  # who waited looks again; who comes later waits

    def _share(self) -> int:
        return min(CHUNK, max(LEAST, self.limit // self.bodies // GRAIN * GRAIN))


class Windows:
    """Those of all files that are being sent, by path. ``trips``: seconds that the latest round trips took; the
    quickest counts, for a server that is busy answers late."""

    def __init__(self, trips: Collection[float]) -> None:
        self._files: dict[str, Window] = {}
        self._trips = trips

    @contextmanager
    def of(self, path: str, now: float) -> Iterator[Window]:
        """For one part of the file, as long as that is being sent."""
        window = self._files.setdefault(path, Window(self._trips, now))
        window.bodies += 1
        try:
            yield window
        finally:
            window.bodies -= 1
            if not window.bodies:
                del self._files[path]
