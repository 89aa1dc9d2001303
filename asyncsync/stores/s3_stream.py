"""Bodies of requests, sent in pieces and watched.

aiohttp starts its read time-out only when a body is written, so a server that stops reading in mid-body would hang
an upload for ever. One timer for all requests of a store looks at what each body has moved; a request costs no task
and no timer of its own.
"""

from __future__ import annotations

from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter

from asyncsync.disk.files import PIECE, FileRange, in_thread
from asyncsync.stores.http1 import too_short
from asyncsync.stores.watchdog import Watchdog

SMALL = 1 << 16
"""Bytes that go out in one write without waiting for the peer; nothing to watch there."""

STEP = 1 << 18
"""Bytes given to the socket at once: what it does not take is copied, and waits in memory."""


class StreamedBody(payload.Payload):
    """Sends bytes or a range of a file in pieces of at most 1 MiB; memory: one piece, plus what the socket holds.

    ``error`` keeps a failure of the source: aiohttp would only tell of a broken connection.
    """

    _autoclose = True

    def __init__(self, source: bytes | FileRange, watchdog: Watchdog) -> None:
        super().__init__(source, content_type="application/octet-stream")
        self._source = source
        self._size = len(source) if isinstance(source, bytes) else source.size
        self._watchdog = watchdog
        self._writer: AbstractStreamWriter | None = None
        self.error: Exception | None = None
        self.stalled = False
        self.seen = -1
        self.since = 0.0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a streamed body is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, self._size)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._writer = writer
        self._consumed = True
        self._watchdog.add(self)
        try:
            sent = 0
            while sent < (self._size or 0):
                piece = await self._piece(sent)
                sent += len(piece)
                for start in range(0, len(piece), STEP):
                    await writer.write(piece[start : start + STEP])
        finally:
            self._watchdog.discard(self)

    async def _piece(self, start: int) -> memoryview:
        """What comes next. Each piece has its own memory: the transport may still hold the one before."""
        if isinstance(self._source, bytes):
            return memoryview(self._source)  # all of it at once: it is in memory anyway
        try:
            buffer = bytearray(min(PIECE, self._source.size - start))
            got = await in_thread(self._source.read_into, start, buffer)
            if not got:
                raise too_short(self._source, start)
        except Exception as error:
            self.error = error
            raise
        return memoryview(buffer)[:got]

    def moved(self) -> int:
        """Bytes that have left for the kernel."""
        writer = self._writer
        transport = writer.transport if writer is not None else None
        if writer is None or transport is None:
            return -1
        return writer.output_size - transport.get_write_buffer_size()

    def stall(self) -> None:
        """End the request: its connection is cut, so nothing more of it is sent."""
        self.stalled = True
        if self._writer is not None and self._writer.transport is not None:
            self._writer.transport.abort()
