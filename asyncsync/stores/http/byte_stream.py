"""One connection as bytes: written with back pressure, read into the caller's memory or a small input buffer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import cast

from asyncsync.disk.files import FileRange
from asyncsync.errors import LeaseExpiredError
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.sendfile import FileSocket
from asyncsync.stores.http.tcp_info import acknowledged_bytes, nothing_acknowledged, unacknowledged_bytes
from asyncsync.stores.http.tls import TlsTransport, can_send_files, file_sender

INPUT_BUFFER_SIZE = 1 << 16
"""Bytes received before anybody reads them: a head, together with all of a small response."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing resets the connection, and the kernel drops unsent data."""


class ByteStream(asyncio.BufferedProtocol):
    """The transport side of a connection. A subclass knows where a response starts and ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: set[ByteStream]) -> None:
        self.closed = asyncio.Event()
        self._loop = loop
        self._registry = registry
        self._transport: asyncio.Transport | None = None
        self._raw = bytearray(INPUT_BUFFER_SIZE)
        self._inbox = memoryview(self._raw)
        self._start = self._end = 0
        """Bounds of the received bytes in ``_raw`` that were not read yet."""
        self._target: memoryview | None = None
        """Memory of the caller that is filled directly, and how much of it is filled."""
        self._filled = 0
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._files: FileSocket | TlsTransport | None = None
        self._writing_paused = False
        self._reading_paused = False
        self._ended = False
        """The peer sent its end of stream; any other end may have cut something off."""
        self._lost: BrokenError | None = None
        self._sent = self._received = 0

    # Hooks of the subclass

    @property
    def response_began(self) -> bool:
        """The input buffer holds the start of a final response."""
        raise NotImplementedError

    def _on_input(self) -> None:
        """Bytes are about to be added to the input buffer."""
        raise NotImplementedError

    def _body_goes_on(self) -> bool:
        """More of the body follows after the target was filled."""
        raise NotImplementedError

    def _request_in_flight(self) -> bool:
        """The server may still start to carry out the request."""
        raise NotImplementedError

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        self._registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        if self._files is not None:
            self._files.close()
        self._lost = self._lost or BrokenError(
            "the store closed the connection" if exc is None else f"{type(exc).__name__}: {exc}"
        )
        self.closed.set()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._lost = self._lost or BrokenError("the store closed the connection")
        self._wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is not None:
            return self._target[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == INPUT_BUFFER_SIZE:
            count = self._end - self._start
            self._inbox[:count] = bytes(self._inbox[self._start : self._end])
            self._start, self._end = 0, count
        return self._inbox[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        if self._target is None:
            self._on_input()
            self._end += nbytes
            if self._end - self._start == INPUT_BUFFER_SIZE:
                self._pause_reading()
            self._wake()
            return
        self._filled += nbytes
        if self._filled == len(self._target):
            self._target = None
            if self._body_goes_on():
                self._pause_reading()  # the next bytes have no memory yet
            self._wake()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake_drained()

    # State

    @property
    def write_buffer_empty(self) -> bool:
        """The transport holds nothing that was written: the written memory may be reused."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    @property
    def session(self) -> ssl.SSLSession | None:
        """Over TLS: the session that a later connection to the same host can resume."""
        return self._transport.session if isinstance(self._transport, TlsTransport) else None

    @property
    def nothing_received(self) -> bool:
        """Something was sent, and the peer's kernel acknowledged none of it."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return bool(self._sent and not self._received and sock is not None and nothing_acknowledged(sock))

    def fail(self, error: BrokenError) -> None:
        """End the connection; pending and later calls raise ``error``."""
        self._lost = self._lost or error
        self.abort()
        self._wake()

    def abort(self) -> None:
        """Cut the connection now; the kernel drops data that it has not sent yet."""
        self._lost = self._lost or BrokenError("the connection was cut")
        transport = self._transport
        if transport is None or self.closed.is_set():
            return
        if transport.get_extra_info("socket") is not None and self._request_in_flight():
            # The caller has given up this request; the server must not carry it out later.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    @staticmethod
    def _lost_again(lost: BrokenError) -> BrokenError:
        """A new error for each caller: tracebacks must not pile up on one object."""
        return type(lost)(str(lost))

    def _raise_if_lost(self) -> None:
        """BrokenError, unless a response explains why the connection ended."""
        if self._lost is not None and not self.response_began:
            raise self._lost_again(self._lost) from self._lost

    # Writing

    def _write(self, data: bytes | memoryview) -> None:
        if self._lost is not None:
            raise self._lost_again(self._lost) from self._lost
        assert self._transport is not None
        self._sent += len(data)
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the socket accepts more data or a response begins."""
        if self._writing_paused and self._lost is None and not self.response_began:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        self._raise_if_lost()

    async def flush(self) -> None:
        """Wait until the kernel has taken all written data and accepts more, or a response begins."""
        transport = self._transport
        if not self.write_buffer_empty and transport is not None and not isinstance(transport, TlsTransport):
            transport.set_write_buffer_limits(0)  # resume_writing is called when nothing is left
            try:
                await self._until_write_buffer_empty()
            finally:
                transport.set_write_buffer_limits()
        else:
            await self._until_write_buffer_empty()
        if not self.response_began:
            await self.writable()

    async def _until_write_buffer_empty(self) -> None:
        while not (self.write_buffer_empty or self.response_began):
            await self.drain()

    def _is_unsent(self, end: int | None) -> bool:
        """Whether part of the request has not left us yet. ``end``: where the request ends, in bytes since the
        connection was made, if its body is streamed. The peer acknowledges data together with the first bytes of its
        response: over plain TCP the acknowledged bytes are counted; over TLS only whether any byte is in flight."""
        transport = self._transport
        assert transport is not None
        if transport.get_write_buffer_size():
            return True
        if end is None:
            return False
        sock = transport.get_extra_info("socket")
        if isinstance(transport, TlsTransport):
            return unacknowledged_bytes(sock) > 0
        acknowledged = acknowledged_bytes(sock)
        return acknowledged is not None and acknowledged < end

    # Files

    @property
    def sends_files(self) -> bool:
        """Whether :meth:`send_file` can continue where the last write ended."""
        transport = self._transport
        return transport is not None and can_send_files(transport) and not transport.get_write_buffer_size()

    async def send_file(self, body: FileRange, start: int, maximum: int) -> tuple[int, bool]:
        """Send up to ``maximum`` bytes of a file; the bytes that the socket took, and whether it is full. BrokenError,
        and any error from reading the file."""
        self._raise_if_lost()
        assert self._transport is not None
        self._files = self._files or file_sender(self._loop, self._transport)
        try:
            count, full = await self._files.offer(body, start, maximum)
        except LeaseExpiredError:
            raise  # a ConnectionError too, but not of this connection
        except (ConnectionError, ssl.SSLError) as error:
            self._lost = self._lost or BrokenError(f"{type(error).__name__}: {error}")
            count, full = 0, True
        self._sent += count
        return count, full

    async def writable(self) -> None:
        """Wait until the socket accepts more data or a response begins. BrokenError."""
        if self._lost is None and not self.response_began:
            assert self._transport is not None
            self._files = self._files or file_sender(self._loop, self._transport)
            self._drained = self._loop.create_future()
            try:
                await self._files.wait(self._drained)
            finally:
                self._drained = None
        self._raise_if_lost()

    # Reading

    async def _read_until(self, mark: bytes, what: str) -> bytes:
        """The bytes before ``mark``; the mark itself is skipped. ``what`` names them in an error."""
        while True:
            end = self._raw.find(mark, self._start, self._end)
            if end >= 0:
                found = bytes(self._inbox[self._start : end])
                self._start = end + len(mark)
                return found
            if self._end - self._start == INPUT_BUFFER_SIZE:
                raise BrokenError(f"the {what} is longer than 64 KiB")
            before = self._received
            if self._lost is None:
                await self._wait()
            if self._lost is not None and self._received == before:  # no more bytes can come
                raise self._lost_again(self._lost) from self._lost

    async def _fill(self, target: bytearray | memoryview) -> int:
        """Fill ``target`` with the next bytes; fewer only if the connection ends."""
        view = memoryview(target)
        self._filled = self._take_into(view)
        if self._filled < len(view) and self._lost is None:
            self._target = view
            try:
                await self._wait()
            finally:
                self._target = None
        return self._filled

    async def _read_to_end(self, maximum: int) -> bytes:
        """All bytes until the connection ends, or the first ``maximum`` and a few more."""
        raw = bytearray()
        while self._lost is None and len(raw) < maximum:
            raw += self._take_all()
            if self._lost is None:
                await self._wait()
        return bytes(raw)

    def _take_all(self) -> bytes:
        data = bytes(self._inbox[self._start : self._end])
        self._start = self._end = 0
        return data

    def _take_into(self, view: memoryview) -> int:
        count = min(self._end - self._start, len(view))
        view[:count] = self._inbox[self._start : self._start + count]
        self._start += count
        return count

    async def _wait(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            assert self._transport is not None
            self._transport.resume_reading()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
