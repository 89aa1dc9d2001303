"""How much of a file may be on its way to Cloud Storage without an answer.

Parts of a file travel side by side, and a crash costs what none of them had acknowledged; a server that keeps nothing
of a request that broke off makes that whole chunks. So all parts of a file together have as much under way as one
chunk of one upload would.

To a service that is far that would leave the way idle while answers travel: there each part has a chunk of its own, and
the service keeps what has come of it (Cloud Storage documentation, "Resumable uploads").
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

CHUNK = 8 << 20
"""Bytes of a file that may be sent again after a break, and most in one request. (Google advises 8 MiB: documentation
as above.)"""
LEAST = 4 << 20
"""Bytes below which a request costs more than it is good for: 1 GiB took 0.67 s in chunks of 4 MiB, two at a time, and
0.74 s in chunks of 512 KiB, sixteen at a time (the sink of benchmarks/, 2 cores)."""
GRAIN = 1 << 18
"""A chunk that is not the last has a multiple of this (documentation as above)."""
FAR = 0.01
"""Seconds of a round trip from which on a service is far. A nearer one takes 800 MB/s of a file with one chunk under
way; behind 30 ms that made 1 GiB take 4.6 s instead of 1.1 s (the same sink)."""


class Window:
    """That of one file. ``trips``: seconds that the latest round trips took; the quickest counts, because a busy server
    answers late."""

    def __init__(self, trips: Collection[float]) -> None:
        self.bodies = 0
        """Parts that are being sent."""
        self._trips = trips
        self._used = 0
        self._freed = asyncio.Event()

    async def take(self, rest: int) -> int:
        """Wait until a part of which ``rest`` bytes are left may send its next chunk; how many bytes that has. They
        are under way until :meth:`give`."""
        while self._used + (size := min(rest, self._share())) > self._limit():
            await self._freed.wait()
        self._used += size
        return size

    def give(self, size: int) -> None:
        """They were answered for, or broke off."""
        self._used -= size
        self._freed.set()
        self._freed.clear()  # who waited looks again; who comes later waits

    def _limit(self) -> int:
        far = min(self._trips, default=0.0) >= FAR
        return CHUNK * self.bodies if far else CHUNK

    def _share(self) -> int:
        return min(CHUNK, max(LEAST, self._limit() // self.bodies // GRAIN * GRAIN))


class Windows:
    """Those of all files that are being sent, by path."""

    def __init__(self, trips: Collection[float]) -> None:
        self._files: dict[str, Window] = {}
        self._trips = trips

    @contextmanager
    def of(self, path: str) -> Iterator[Window]:
        """For one part of the file, as long as that is being sent."""
        window = self._files.setdefault(path, Window(self._trips))
        window.bodies += 1
        try:
            yield window
        finally:
            window.bodies -= 1
            if not window.bodies:
                del self._files[path]
