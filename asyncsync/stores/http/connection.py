"""One HTTP/1.1 connection: plain bytes out, answers in, with the body read straight into the caller's memory."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import cast

from asyncsync.disk.files import FileRange
from asyncsync.errors import LeaseExpiredError
from asyncsync.stores.http.accept_limit import acknowledged, dropped, unacknowledged
from asyncsync.stores.http.response import BrokenError, Response, chunk_size, length_of, parse_head
from asyncsync.stores.http.sendfile import FileSocket
from asyncsync.stores.http.tls import TlsTransport, can_send_files, sender_of_files

INPUT_BUFFER_SIZE = 1 << 16
"""Bytes that wait here while nobody reads: a head, and with it the whole of a small answer."""
SINGLE_WRITE_BODY = 1 << 16
"""Bytes of a body that go out in one write with their head, without waiting for the peer."""
MAX_COLLECTED_BODY = 1 << 16
"""Bytes of an answer that are kept in memory unless more are asked for: an error document has a few hundred."""
MIN_BODY_PROGRESS = 1 << 10
"""Bytes of a body that must come within the stall timeout."""
COLLECT_STALL_TIMEOUTS = 20
"""Stall timeouts within which a small response must be over."""
MAX_INTERIM_RESPONSES = 32
MAX_TRAILER_LINES = 64
_INTERIM = (b"HTTP/1.1 1", b"HTTP/1.0 1")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection(asyncio.BufferedProtocol):
    """Carries one exchange at a time; whoever owns it calls in order: write, drain, answer, then read or collect."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: set[Connection], stall_timeout: float) -> None:
        self.gone = asyncio.Event()
        self.began = self.idle_since = 0.0
        self.fresh = True
        self.listening: asyncio.TimerHandle | None = None
        self.seen, self.since = -1, 0.0
        self._loop = loop
        self._registry = registry
        self._stall_timeout = stall_timeout
        self._transport: asyncio.Transport | None = None
        self._raw = bytearray(INPUT_BUFFER_SIZE)
        self._inbox = memoryview(self._raw)
        self._start = self._end = 0
        self._target: memoryview | None = None
        self._filled = 0
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._files: FileSocket | TlsTransport | None = None
        self._choked = False
        self._paused = False
        self._ended = False
        """The store said that it sends no more; what else ends a connection may have cut something off."""
        self._lost: BrokenError | None = None
        self._sent = self._received = 0
        self.early = False
        """The response came before the whole request had left."""
        self._whole: int | None = None
        """Where a request ends whose body is streamed, in bytes since the connection was made."""
        self._current: Response | None = None
        self._left: int | None = 0
        """Bytes of the current answer's body that are still to come; None: until the end, or chunked."""
        self._chunk = 0
        """Those of the current chunk."""
        self._before = 0
        """Bytes that had come before the current request."""
        self._interims = 0
        """Heads that only said that there is more to come."""
        self._collecting = False

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        if self._files is not None:
            self._files.close()
        self._lost = self._lost or BrokenError(
            "the store closed the connection" if exc is None else f"{type(exc).__name__}: {exc}"
        )
        self.gone.set()
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
            if self._current is None and not self.early:
                self.early = self._unsent()
            self._end += nbytes
            if self._end - self._start == INPUT_BUFFER_SIZE:
                self._pause()
            self._wake()
            return
        self._filled += nbytes
        if self._filled == len(self._target):
            self._target = None
            if self._left is None or self._left > self._filled:
                self._pause()  # what comes next has no place yet
            self._wake()

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._wake_drained()

    # State

    @property
    def usable(self) -> bool:
        """Idle, open, and nothing has come that nobody asked for."""
        return self._lost is None and self._start == self._end

    @property
    def answered(self) -> bool:
        """Something of the answer is there, beside what only says that there is more to come."""
        return self._end > self._start and not self._is_interim()

    @property
    def settled(self) -> bool:
        """The transport holds nothing that was written: its memory may be used again."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    @property
    def session(self) -> ssl.SSLSession | None:
        """Over TLS what a further connection to the same place can begin with."""
        return self._transport.session if isinstance(self._transport, TlsTransport) else None

    def reusable(self) -> bool:
        """The answer has been read to its end, and both sides want to go on."""
        answer = self._current
        return answer is not None and answer.keep and self._left == 0 and self.usable

    def moved(self) -> int:
        """Of a head it counts that it has begun, and each one that is over, but no byte: else one byte now and then
        would keep it for ever."""
        waiting = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if self._current is None:
            return self._sent - waiting + self._before + self._interims + (self._received > self._before)
        return self._sent - waiting + self._received

    def least(self) -> int:
        """A body comes at a least rate, unless it is one that a server keeps us waiting with (:meth:`collect`)."""
        return 1 if self._current is None or self._collecting else MIN_BODY_PROGRESS

    def stall(self) -> None:
        self.lose(BrokenError(f"no byte moved for {self._stall_timeout:g} s, or too few"))

    def lose(self, error: BrokenError) -> None:
        """End it; who waits for it gets ``error``."""
        self._lost = self._lost or error
        self.abort()
        self._wake()

    @property
    def unheard(self) -> bool:
        """Whether something was sent, and nothing has arrived."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return bool(self._sent and not self._received and sock is not None and dropped(sock))

    def abort(self) -> None:
        """Cut the connection now; what the kernel has not sent yet is thrown away too."""
        self._lost = self._lost or BrokenError("the connection was cut")
        transport = self._transport
        if transport is None or self.gone.is_set():
            return
        if transport.get_extra_info("socket") is not None and (self._current is None or self.early):
            # A request that nobody waits for any more must not be carried out later.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    # Out

    def request(self, data: bytes, more: int = 0) -> None:
        """Begin a request; ``more``: bytes of it that are written later."""
        if self._end > self._start:
            raise BrokenError("the store sent something that nobody had asked for")
        self.early, self._whole = False, None
        self._before, self._interims = self._received, 0
        self.write(data)
        if more:
            self._whole = self._sent + more

    def write(self, data: bytes | memoryview) -> None:
        if self._lost is not None:
            raise self._broken(self._lost) from self._lost
        assert self._transport is not None
        self._current = None
        self._sent += len(data)
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the socket takes more, or something of the answer is there."""
        if self._choked and self._lost is None and not self.answered:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        self._broken_unless_answered()

    async def flush(self) -> None:
        """Wait until the system has all that was written and takes more, or something of the answer is there."""
        transport = self._transport
        if not self.settled and transport is not None and not isinstance(transport, TlsTransport):
            transport.set_write_buffer_limits(0)  # it says when nothing is left
            try:
                await self._until_settled()
            finally:
                transport.set_write_buffer_limits()
        else:
            await self._until_settled()
        if not self.answered:
            await self.writable()

    async def _until_settled(self) -> None:
        while not (self.settled or self.answered):
            await self.drain()

    def _unsent(self) -> bool:
        """Whether some of the request has not left now, as the first bytes of its response come. What the other system
        sends says with them what it has: over plain TCP the bytes are counted; of what was encrypted it is only known
        whether some is still under way."""
        transport = self._transport
        assert transport is not None
        if transport.get_write_buffer_size():
            return True
        if self._whole is None:
            return False
        sock = transport.get_extra_info("socket")
        if isinstance(transport, TlsTransport):
            return unacknowledged(sock) > 0
        there = acknowledged(sock)
        return there is not None and there < self._whole

    # Files

    @property
    def sends_files(self) -> bool:
        """Whether :meth:`send_file` can go on where :meth:`write` has ended."""
        transport = self._transport
        return transport is not None and can_send_files(transport) and not transport.get_write_buffer_size()

    async def send_file(self, body: FileRange, start: int, most: int) -> tuple[int, bool]:
        """How many bytes the socket took, and whether it is full. BrokenError; what the file raises."""
        self._broken_unless_answered()
        assert self._transport is not None
        self._files = self._files or sender_of_files(self._loop, self._transport)
        try:
            count, full = await self._files.offer(body, start, most)
        except LeaseExpiredError:
            raise  # it is a ConnectionError too
        except (ConnectionError, ssl.SSLError) as error:
            self._lost = self._lost or BrokenError(f"{type(error).__name__}: {error}")
            count, full = 0, True
        self._sent += count
        return count, full

    async def writable(self) -> None:
        """Wait until the socket takes more, or something of the answer is there; BrokenError."""
        if self._lost is None and not self.answered:
            assert self._transport is not None
            self._files = self._files or sender_of_files(self._loop, self._transport)
            self._drained = self._loop.create_future()
            try:
                await self._files.wait(self._drained)
            finally:
                self._drained = None
        self._broken_unless_answered()

    @staticmethod
    def _broken(lost: BrokenError) -> BrokenError:
        return type(lost)(str(lost))

    def _broken_unless_answered(self) -> None:
        if self._lost is not None and not self.answered:
            raise self._broken(self._lost) from self._lost

    # In

    async def answer(self, *, bodiless: bool = False) -> Response:
        """The head of the answer. ``bodiless``: no body follows, whatever the headers say."""
        while True:
            answer = parse_head(await self._until(b"\r\n\r\n"))
            if answer.status >= 200:
                self._current = answer
                self._left = 0 if bodiless else length_of(answer)
                return answer
            self._interim_over()

    def _is_interim(self) -> bool:
        """Whether there is nothing but 1xx, which only say that there is more to come; what is whole of them is left
        behind, and is no early response."""
        while self._raw.startswith(_INTERIM, self._start, self._end):
            end = self._raw.find(b"\r\n\r\n", self._start, self._end)
            if end < 0:
                return True
            self._start = end + 4
            self._interim_over()
        return self._end == self._start

    def _interim_over(self) -> None:
        self._interims += 1
        if self._interims > MAX_INTERIM_RESPONSES:
            raise BrokenError(
                f"more than {MAX_INTERIM_RESPONSES} responses came that only say that there is more to come"
            )
        self.early = self._end > self._start and self._unsent()

    async def _until(self, mark: bytes) -> bytes:
        """What comes before ``mark``, which is left behind too."""
        while True:
            end = self._raw.find(mark, self._start, self._end)
            if end >= 0:
                found = bytes(self._inbox[self._start : end])
                self._start = end + len(mark)
                return found
            if self._end - self._start == INPUT_BUFFER_SIZE:
                raise BrokenError("the head of the answer is longer than 64 KiB")
            await self._arrival()

    async def read_into(self, target: bytearray | memoryview) -> int:
        """Fill ``target`` with what comes next; the bytes read are fewer only where the connection ends."""
        view = memoryview(target)
        self._filled = self._from_inbox(view)
        if self._filled < len(view) and self._lost is None:
            self._target = view
            try:
                await self._wait()
            finally:
                self._target = None
        self._left = None if self._left is None else self._left - self._filled
        return self._filled

    @property
    def chunked(self) -> bool:
        """How the body of the current answer comes: then by :meth:`read_chunk_into`."""
        answer = self._current
        return answer is not None and answer.headers.get("transfer-encoding", "").lower() == "chunked"

    async def read_chunk_into(self, target: memoryview) -> int:
        """The next bytes of a chunked body, as many as there are in a chunk; 0: that was all of it."""
        if not self._chunk:
            self._chunk = chunk_size(await self._until(b"\r\n"))
            if not self._chunk:
                await self._trailers()
                self._left = 0
                return 0
        target = target[: self._chunk]
        if await self.read_into(target) < len(target):
            raise BrokenError("the answer broke off")
        self._chunk -= len(target)
        if not self._chunk:
            await self._until(b"\r\n")
        return len(target)

    async def _trailers(self) -> None:
        for _ in range(MAX_TRAILER_LINES):
            if not await self._until(b"\r\n"):
                return
        raise BrokenError(f"more than {MAX_TRAILER_LINES} lines follow the body")

    async def collect(self, most: int = MAX_COLLECTED_BODY) -> bytes:
        """The body of the current answer, its first ``most`` bytes. S3 sends blanks while it copies or completes, one
        now and then, for minutes; so it is given COLLECT_STALL_TIMEOUTS times the stall timeout in all."""
        answer = self._current
        assert answer is not None
        if self._left == 0:
            return b""
        if self._left is not None and self._left <= self._end - self._start:
            return await self._collect(most, answer)
        self._collecting = answer.status < 300  # an error has no reason to wait
        try:
            async with asyncio.timeout(COLLECT_STALL_TIMEOUTS * self._stall_timeout):
                return await self._collect(most, answer)
        except TimeoutError:
            self.lose(
                BrokenError(f"the response was not over within {COLLECT_STALL_TIMEOUTS * self._stall_timeout:g} s")
            )
            raise self._broken(cast(BrokenError, self._lost)) from None
        finally:
            self._collecting = False

    async def _collect(self, most: int, answer: Response) -> bytes:
        if self.chunked:
            return await self._collect_chunks(most)
        if self._left is None:
            return await self._collect_rest(most, answer)
        content = bytearray(min(self._left, most))
        got = await self.read_into(content)
        if got < len(content) and answer.status < 300:
            raise BrokenError("the answer broke off")
        return bytes(content[:got])  # half an error document is better than none

    async def _collect_chunks(self, most: int) -> bytes:
        content, room = bytearray(), memoryview(bytearray(MAX_COLLECTED_BODY))
        while len(content) < most and (got := await self.read_chunk_into(room)):
            content += room[:got]
        return bytes(content[:most])

    async def _collect_rest(self, most: int, answer: Response) -> bytes:
        raw = bytearray()
        while self._lost is None and len(raw) < most:
            raw += self._take_inbox()
            if self._lost is None:
                await self._wait()
        if self._lost is not None and not self._ended and answer.status < 300:
            raise self._broken(self._lost) from self._lost
        return bytes(raw + self._take_inbox())

    def _take_inbox(self) -> bytes:
        data = bytes(self._inbox[self._start : self._end])
        self._start = self._end = 0
        return data

    def _from_inbox(self, view: memoryview) -> int:
        count = min(self._end - self._start, len(view))
        view[:count] = self._inbox[self._start : self._start + count]
        self._start += count
        return count

    async def _arrival(self) -> None:
        """Wait for more bytes; BrokenError if none can come."""
        if self._lost is None:
            before = self._received
            await self._wait()
            if self._received != before:
                return
        if self._lost is not None:
            raise self._broken(self._lost) from self._lost

    async def _wait(self) -> None:
        if self._paused:
            self._paused = False
            assert self._transport is not None
            self._transport.resume_reading()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
