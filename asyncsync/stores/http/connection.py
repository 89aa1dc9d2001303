"""One HTTP/1.1 connection: a request written as plain bytes, then its response."""

from __future__ import annotations

import asyncio

from asyncsync.stores.http.byte_stream import ByteStream
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.response import Response, chunk_size, length_of, parse_head
from asyncsync.stores.http.watchdog import MIN_BODY_PROGRESS

SINGLE_WRITE_BODY = 1 << 16
"""Largest body in bytes that is written together with its head, without waiting for the peer."""
MAX_COLLECTED_BODY = 1 << 16
"""Default maximum of a body kept in memory, in bytes; an error document has a few hundred."""
COLLECT_STALL_TIMEOUTS = 20
"""Total time for a small response, in stall timeouts."""
MAX_INTERIM_RESPONSES = 32
MAX_TRAILER_LINES = 64
_INTERIM = (b"HTTP/1.1 1", b"HTTP/1.0 1")


class Connection(ByteStream):
    """Carries one exchange at a time. Its owner calls in order: start_request, write and drain, read_head, then
    read_into, read_chunk_into or collect."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: set[ByteStream], stall_timeout: float) -> None:
        super().__init__(loop, registry)
        self._stall_timeout = stall_timeout
        self.early = False
        """The response began before the whole request had left."""
        self._request_end: int | None = None
        """Where a request with a streamed body ends, in bytes since the connection was made."""
        self._response: Response | None = None
        self._left: int | None = 0
        """Bytes of the response's body still to come; None: until the connection ends, or chunked."""
        self._chunk_left = 0
        self._received_before = 0
        """Bytes received before the current request."""
        self._interims = 0
        """Interim responses (1xx) to the current request."""
        self._collecting = False

    # State

    @property
    def usable(self) -> bool:
        """Open, and the server sent nothing unrequested."""
        return self._lost is None and self._start == self._end

    @property
    def response_began(self) -> bool:
        """The input buffer holds the start of a final response."""
        return self._end > self._start and not self._only_interims()

    def reusable(self) -> bool:
        """The response was read to its end, and both sides keep the connection."""
        response = self._response
        return response is not None and response.keep and self._left == 0 and self.usable

    def progress(self) -> int:
        """Bytes moved, for the watchdog. While the head arrives, only its start and each interim response count, not
        its bytes: otherwise one byte now and then would keep the request alive for ever."""
        waiting = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if self._response is None:
            began = self._received > self._received_before
            return self._sent - waiting + self._received_before + self._interims + began
        return self._sent - waiting + self._received

    def min_progress(self) -> int:
        """A body must keep a minimum rate, except one that the server may delay (:meth:`collect`)."""
        return 1 if self._response is None or self._collecting else MIN_BODY_PROGRESS

    def stall(self) -> None:
        self.fail(BrokenError(f"no byte moved for {self._stall_timeout:g} s, or too few"))

    def _on_input(self) -> None:
        if self._response is None and not self.early:
            self.early = self._is_unsent(self._request_end)

    def _body_goes_on(self) -> bool:
        return self._left is None or self._left > self._filled

    def _request_in_flight(self) -> bool:
        return self._response is None or self.early

    # The request

    def start_request(self, data: bytes, more: int = 0) -> None:
        """Write the beginning of a request; ``more``: bytes of it that are written later."""
        if self._end > self._start:
            raise BrokenError("the store sent data without a request")
        self.early, self._request_end = False, None
        self._received_before, self._interims = self._received, 0
        self.write(data)
        if more:
            self._request_end = self._sent + more

    def write(self, data: bytes | memoryview) -> None:
        """Write more of the request. BrokenError."""
        self._write(data)
        self._response = None

    # The head of the response

    async def read_head(self, *, bodiless: bool = False) -> Response:
        """The head of the final response. ``bodiless``: no body follows, whatever the headers say."""
        while True:
            response = parse_head(await self._read_until(b"\r\n\r\n", "head of the response"))
            if response.status >= 200:
                self._response = response
                self._left = 0 if bodiless else length_of(response)
                return response
            self._count_interim()

    def _only_interims(self) -> bool:
        """Whether the input buffer holds only interim responses (1xx). Complete ones are skipped; they do not make the
        final response early."""
        while self._raw.startswith(_INTERIM, self._start, self._end):
            end = self._raw.find(b"\r\n\r\n", self._start, self._end)
            if end < 0:
                return True
            self._start = end + 4
            self._count_interim()
        return self._end == self._start

    def _count_interim(self) -> None:
        self._interims += 1
        if self._interims > MAX_INTERIM_RESPONSES:
            raise BrokenError(f"more than {MAX_INTERIM_RESPONSES} interim responses (HTTP 1xx) came")
        self.early = self._end > self._start and self._is_unsent(self._request_end)

    # The body of the response

    @property
    def chunked(self) -> bool:
        """Whether the body is chunked; :meth:`read_chunk_into` reads it."""
        response = self._response
        return response is not None and response.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def body_left(self) -> int | None:
        """Bytes of the body still to come; None: not known."""
        return self._left

    async def read_into(self, target: bytearray | memoryview) -> int:
        """Fill ``target`` with the next bytes of the body; fewer only if the connection ends."""
        got = await self._fill(target)
        self._left = None if self._left is None else self._left - got
        return got

    async def read_chunk_into(self, target: memoryview) -> int:
        """The next bytes of a chunked body, at most those of one chunk; 0 at its end."""
        if not self._chunk_left:
            self._chunk_left = chunk_size(await self._read_until(b"\r\n", "line before a chunk"))
            if not self._chunk_left:
                await self._skip_trailers()
                self._left = 0
                return 0
        target = target[: self._chunk_left]
        if await self.read_into(target) < len(target):
            raise BrokenError("the response was cut off")
        self._chunk_left -= len(target)
        if not self._chunk_left:
            await self._read_until(b"\r\n", "end of a chunk")
        return len(target)

    async def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILER_LINES):
            if not await self._read_until(b"\r\n", "trailer"):
                return
        raise BrokenError(f"more than {MAX_TRAILER_LINES} trailer lines follow the body")

    async def collect(self, maximum: int = MAX_COLLECTED_BODY) -> bytes:
        """The first ``maximum`` bytes of the body. While S3 copies or completes, it sends a blank now and then, for
        minutes; so the total time is limited to COLLECT_STALL_TIMEOUTS stall timeouts."""
        response = self._response
        assert response is not None
        if self._left == 0:
            return b""
        if self._left is not None and self._left <= self._end - self._start:
            return await self._collect(maximum, response)
        self._collecting = response.status < 300  # an error has no reason to take long
        limit = COLLECT_STALL_TIMEOUTS * self._stall_timeout
        try:
            async with asyncio.timeout(limit):
                return await self._collect(maximum, response)
        except TimeoutError:
            error = BrokenError(f"the response did not end within {limit:g} s")
            self.fail(error)
            raise self._lost_again(self._lost or error) from None
        finally:
            self._collecting = False

    async def _collect(self, maximum: int, response: Response) -> bytes:
        if self.chunked:
            return await self._collect_chunks(maximum)
        if self._left is None:
            return await self._collect_to_end(maximum, response)
        content = bytearray(min(self._left, maximum))
        got = await self.read_into(content)
        if got < len(content) and response.status < 300:
            raise BrokenError("the response was cut off")
        return bytes(content[:got])  # half an error document is better than none

    async def _collect_chunks(self, maximum: int) -> bytes:
        content, room = bytearray(), memoryview(bytearray(MAX_COLLECTED_BODY))
        while len(content) < maximum and (got := await self.read_chunk_into(room)):
            content += room[:got]
        return bytes(content[:maximum])

    async def _collect_to_end(self, maximum: int, response: Response) -> bytes:
        content = await self._read_to_end(maximum)
        if self._lost is not None and not self._ended and response.status < 300:
            raise self._lost_again(self._lost) from self._lost
        return content + self._take_all()
