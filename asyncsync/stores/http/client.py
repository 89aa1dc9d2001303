"""HTTP/1.1 client for bulk data: keeps the connections to one host alive, streams bodies from files and into buffers.

A request through aiohttp's session costs 0.22 ms of CPU, most of it for objects that only a general client needs; a
request here costs 0.06 ms (16 KiB bodies, CPython 3.11). Not supported: proxies, redirects, compression, cookies.
The client does not retry: a broken connection is an error for the caller to judge.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, Lease, lease_of
from asyncsync.stores.http.body import source_too_short
from asyncsync.stores.http.connection import MAX_COLLECTED_BODY, SINGLE_WRITE_BODY, Connection
from asyncsync.stores.http.errors import BrokenError, NotReceivedError
from asyncsync.stores.http.pool import ConnectionPool, Host, PooledConnection
from asyncsync.stores.http.response import Response
from asyncsync.stores.http.watchdog import Watchdog
from asyncsync.stores.options import ConnectionLimits

USER_AGENT = "asyncsync"
"""How every request names its client."""
SENDFILE_STEP = 1 << 22
"""Bytes of a file that a worker thread offers to a socket in one call; the socket takes what fits."""
WRITE_STEP = 1 << 18
"""Bytes written to the transport in one call. It copies what the socket does not take, and keeps that in memory."""
SINGLE_WRITE_LEASED = 1 << 15
"""Largest body under a lease that is written in one call: an empty socket buffer takes this much at once."""
HELD_BACK_BYTES = 1 << 12
"""End of a longer body under a lease that is held back until the lease was checked once more."""
_SENDFILE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Errors of file systems whose files the kernel cannot send."""

ViewSink = Callable[[memoryview], Awaitable[None]]
"""Takes the pieces of a body in order. The memory of a piece is reused when the call returns."""


class HttpClient:
    """Exchanges with one host. At most ``limits.max_connections`` are in flight, and only as many on new connections as
    the server accepts (:mod:`asyncsync.stores.http.accept_limit`); others wait. Create it inside a running loop."""

    def __init__(self, host: Host, limits: ConnectionLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_timeout = limits.connect_timeout
        self._watchdog = Watchdog(limits.stall_timeout)
        self._pool = ConnectionPool(host, limits)

    @property
    def busy(self) -> int:
        """Requests in flight."""
        return self._pool.busy

    async def close(self) -> None:
        """Cut all connections and wait until they are closed. Nothing can be sent afterwards."""
        self._watchdog.close()
        await self._pool.close()

    async def send(
        self,
        head: bytes,
        body: bytes | FileRange | None,
        *,
        bodiless: bool = False,
        max_body: int = MAX_COLLECTED_BODY,
        suffix: bytes = b"",
        lease: Lease | None = None,
        also: int = 0,
    ) -> Response:
        """Send one request; its response with the first ``max_body`` bytes of its body (``bodiless``: none, as after
        HEAD).

        ``suffix`` is sent after the body. ``lease``: the lease that the body needs, unless the body carries one; if it
        expires, LeaseExpiredError is raised and the request stays incomplete. BrokenError, also for a success (or the
        status ``also``) that came before the whole request had left. Errors of reading the file are raised as they are.
        """
        if lease is None and type(body) is not bytes:
            lease = lease_of(body)

        async def once(pooled: PooledConnection) -> tuple[Response, bool]:
            connection = pooled.connection
            complete = await self._send_request(connection, head, body, suffix, lease)
            response = await connection.read_head(bodiless=bodiless)
            self._pool.response_began(pooled, response)
            complete = complete and not connection.early
            if (response.status < 300 or response.status == also) and not complete:
                connection.early = True
                raise BrokenError(f"HTTP {response.status} came before the whole request had left")
            response.content = await connection.collect(max_body)
            return response, complete

        return await self._exchange(once)

    async def fetch(self, head: bytes, expect: Callable[[Response], int | None], sink: ViewSink) -> Response:
        """Send one request whose response body goes to ``sink`` in pieces of at most 1 MiB.

        ``expect`` takes the head of a success and returns the expected length (None: unknown, for a chunked body). The
        body of a response with status 300 or above is collected as by :meth:`send`.
        """

        async def once(pooled: PooledConnection) -> tuple[Response, bool]:
            connection = pooled.connection
            connection.start_request(head)
            response = await connection.read_head()
            self._pool.response_began(pooled, response)
            if response.status >= 300:
                response.content = await connection.collect()
            elif connection.chunked:
                await self._receive_chunks(connection, expect(response), sink)
            elif (size := expect(response)) is not None:
                if connection.body_left is not None and connection.body_left > size:
                    raise BrokenError(f"the body has {connection.body_left} bytes instead of {size}")
                await self._receive(connection, size, sink)
            else:
                raise BrokenError("the response does not give its length")
            return response, True

        return await self._exchange(once)

    async def _exchange(self, once: Callable[[PooledConnection], Awaitable[tuple[Response, bool]]]) -> Response:
        """``once`` returns the response, and whether the request allows to reuse the connection. It is called again
        only if the peer's kernel acknowledged no byte of the request."""
        give_up = self._loop.time() + self._connect_timeout
        while True:
            pooled = await self._pool.take()
            reusable = False
            try:
                self._watchdog.add(pooled.connection)
                response, complete = await once(pooled)
                reusable = complete and pooled.connection.reusable()
            except NotReceivedError:
                if self._loop.time() > give_up:
                    raise
            else:
                return response
            finally:
                self._watchdog.discard(pooled.connection)
                self._pool.put_back(pooled, reusable=reusable)

    # Receiving

    async def _receive(self, connection: Connection, expected: int, sink: ViewSink) -> None:
        left = expected
        room = memoryview(bytearray(min(PIECE, left)))  # reused: allocating it costs as much as reading into it
        while left:
            piece = room[: min(PIECE, left)]
            got = await connection.read_into(piece)
            left -= got
            if got < len(piece):
                raise BrokenError(f"the body was cut off after {expected - left} of {expected} bytes")
            await self._hand_over(connection, piece, sink)

    async def _receive_chunks(self, connection: Connection, expected: int | None, sink: ViewSink) -> None:
        got, room = 0, memoryview(bytearray(PIECE))
        while size := await connection.read_chunk_into(room):
            got += size
            await self._hand_over(connection, room[:size], sink)
        if expected not in (None, got):
            raise BrokenError(f"the body ended after {got} of {expected} bytes")

    async def _hand_over(self, connection: Connection, piece: memoryview, sink: ViewSink) -> None:
        """The stall timeout does not run while the sink works."""
        mark = self._watchdog.pause(connection)
        await sink(piece)
        self._watchdog.resume(connection, mark)

    # Sending

    async def _send_request(
        self, connection: Connection, head: bytes, body: bytes | FileRange | None, suffix: bytes, lease: Lease | None
    ) -> bool:
        """False: the store responded before it had the whole request, so the connection cannot be reused."""
        if lease is not None:
            lease.check()
        single_write = SINGLE_WRITE_BODY if lease is None else SINGLE_WRITE_LEASED
        if body is None or (isinstance(body, bytes) and len(body) <= single_write):
            connection.start_request(head + body + suffix if body else head + suffix)
            return True
        size = len(body) if isinstance(body, bytes) else body.size
        connection.start_request(head, size + len(suffix))
        if isinstance(body, FileRange) and connection.sends_files:
            complete = await self._send_file(connection, body, lease)
        else:
            complete = await self._stream(connection, body, lease)
        if suffix and complete:
            if lease is not None:
                lease.check()
            connection.write(suffix)
        return complete

    async def _send_file(self, connection: Connection, body: FileRange, lease: Lease | None) -> bool:
        """The kernel sends the file: half the CPU time of writing it, and none of it on the event loop."""
        sent, held_back = 0, _held_back(body.size, lease)
        while sent < body.size:
            end = body.size - held_back if sent < body.size - held_back else body.size
            step = min(SENDFILE_STEP, end - sent)
            if body.pace is not None:
                step = min(step, WRITE_STEP)
                await self._pace(connection, body.pace, step)
            done = 0
            while done < step:
                if connection.response_began:
                    return False
                if lease is not None:
                    await self._keep(connection, lease)
                try:
                    count, full = await connection.send_file(body, sent + done, step - done)
                except OSError as error:
                    if sent + done or error.errno not in _SENDFILE_UNSUPPORTED:
                        raise
                    return await self._stream(connection, body, lease)
                done += count
                if full:
                    await connection.writable()
                elif not count:
                    raise source_too_short(body, sent + done)
            sent += step
        return True

    async def _pace(self, connection: Connection, pace: Callable[[int], Awaitable[None]], size: int) -> None:
        """Wait for bandwidth. The stall timeout does not run meanwhile."""
        self._watchdog.discard(connection)
        await pace(size)
        self._watchdog.add(connection)

    async def _keep(self, connection: Connection, lease: Lease) -> None:
        """Renew the lease in time. An expired lease is not renewed here: the request in flight must stay incomplete."""
        lease.check()
        self._watchdog.discard(connection)
        await lease.keep()
        self._watchdog.add(connection)

    async def _stream(self, connection: Connection, body: bytes | FileRange, lease: Lease | None) -> bool:
        size = len(body) if isinstance(body, bytes) else body.size
        held_back = _held_back(size, lease)
        complete = await self._stream_pieces(connection, body, size - held_back, lease)
        if lease is None or not complete:
            return complete
        tail = body[-held_back:] if isinstance(body, bytes) else await _read_exactly(body, size - held_back, held_back)
        await connection.flush()
        if connection.response_began:
            return False
        lease.check()
        connection.write(tail)
        return True

    async def _stream_pieces(
        self, connection: Connection, body: bytes | FileRange, size: int, lease: Lease | None
    ) -> bool:
        """Send the first ``size`` bytes of a body."""
        pace = None if isinstance(body, bytes) else body.pace
        sent, room = 0, bytearray()
        while sent < size:
            if isinstance(body, bytes):
                piece = memoryview(body)[:size]
            else:
                room = _room(connection, room, min(PIECE, size - sent))
                piece = (await _read_some(body, sent, room))[: size - sent]
            for start in range(0, len(piece), WRITE_STEP):
                step = piece[start : start + WRITE_STEP]
                if pace is not None:
                    await self._pace(connection, pace, len(step))
                if connection.response_began:
                    return False
                if lease is not None:
                    await self._keep(connection, lease)
                connection.write(step)
                sent += len(step)
                await connection.drain()
        return True


def _held_back(size: int, lease: Lease | None) -> int:
    """Bytes at the end of a body that are sent separately, after the kernel has taken the rest and the lease was
    checked again: so a request that started under a lease stays incomplete without it."""
    return 0 if lease is None else min(HELD_BACK_BYTES, size)


def _room(connection: Connection, last: bytearray, size: int) -> bytearray:
    """Memory for the next piece: that of the last one, unless the transport still holds it. New memory for each piece
    costs a quarter of the CPU time of an upload over TLS."""
    return last if len(last) >= size and connection.write_buffer_empty else bytearray(size)


async def _read_some(body: FileRange, start: int, room: bytearray) -> memoryview:
    got = await in_thread(body.read_into, start, room)
    if not got:
        raise source_too_short(body, start)
    return memoryview(room)[:got]


async def _read_exactly(body: FileRange, start: int, size: int) -> bytes:
    data = await in_thread(body.read, start, size)
    if len(data) < size:
        raise source_too_short(body, start + len(data))
    return data
