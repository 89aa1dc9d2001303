"""HTTP/1.1 for bulk: the connections to one host, kept alive, with bodies streamed from files and into buffers.

A request through aiohttp's session costs 0.22 ms of CPU, most of it spent on objects that only a general client needs;
one of these costs 0.06 ms (16 KiB bodies, CPython 3.11). What it does not do: proxies, redirects, compression, cookies.
Nothing is ever sent twice: a connection that breaks is an error for the caller to judge.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, Lease, lease_of
from asyncsync.errors import SourceChangedError
from asyncsync.stores.http.connection import MAX_COLLECTED_BODY, SINGLE_WRITE_BODY, Connection
from asyncsync.stores.http.pool import ConnectionPool, Host
from asyncsync.stores.http.response import BrokenError, NotReceivedError, Response
from asyncsync.stores.http.watchdog import Watchdog

SENDFILE_STEP = 1 << 22
"""Bytes of a file that a worker thread offers to a socket at once; it takes what it has room for."""
_SENDFILE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""What a file system says whose files the kernel cannot send by itself."""
WRITE_STEP = 1 << 18
"""Bytes given to the socket at once: what it does not take is copied, and waits in memory."""

SINGLE_WRITE_LEASED = 1 << 15
"""Bytes of a body under a lease that go out in one write: a socket that holds nothing yet has room for so many."""
HELD_BACK_BYTES = 1 << 12
"""Bytes of a longer one that are held back until the lease has been looked at once more."""

ViewSink = Callable[[memoryview], Awaitable[None]]


class HttpClient:
    """Exchanges with one host. Made inside a running loop; at most ``max_connections`` at once, and only as many new
    ones as the server accepts (:mod:`asyncsync.stores.http.accept_limit`); others wait."""

    def __init__(self, host: Host, *, stall_timeout: float, connect_timeout: float, max_connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = connect_timeout
        self._watchdog = Watchdog(stall_timeout)
        self._pool = ConnectionPool(
            host, stall_timeout=stall_timeout, connect_timeout=connect_timeout, max_connections=max_connections
        )

    @property
    def busy(self) -> int:
        """Connections that carry a request now."""
        return self._pool.busy

    async def close(self) -> None:
        """Cut all connections and wait until they are gone. Nothing can be sent afterwards."""
        self._watchdog.close()
        await self._pool.close()

    async def send(
        self, head: bytes, body: bytes | FileRange | None, *, bodiless: bool = False, most: int = MAX_COLLECTED_BODY,
        suffix: bytes = b"", lease: Lease | None = None, also: int = 0,
    ) -> Response:  # fmt: skip
        """One request; its answer with the first ``most`` bytes of its body (``bodiless``: none, as after HEAD).

        ``suffix`` goes out behind the body. ``lease``: under which the body is sent, unless it says that itself;
        LeaseExpiredError, and the request has not become whole. BrokenError, also for a success (or the status
        ``also``) before the whole request had left; what reading the file raises.
        """
        if lease is None and type(body) is not bytes:
            lease = lease_of(body)

        async def once(connection: Connection) -> tuple[Response, bool]:
            complete = await self._write(connection, head, body, suffix, lease)
            answer = await self._answer(connection, bodiless=bodiless)
            complete = complete and not connection.early
            if (answer.status < 300 or answer.status == also) and not complete:
                connection.early = True
                raise BrokenError(f"HTTP {answer.status} came before the whole request had left")
            answer.content = await connection.collect(most)
            return answer, complete

        return await self._exchange(once)

    async def fetch(self, head: bytes, expect: Callable[[Response], int | None], take: ViewSink) -> Response:
        """One request whose answer goes to ``take`` in pieces of at most 1 MiB, whose memory is used again.

        ``expect`` is asked how many bytes must come (None: as many as there are in the chunks of the answer); an
        answer of 300 and above is collected as by :meth:`send`.
        """

        async def once(connection: Connection) -> tuple[Response, bool]:
            connection.request(head)
            answer = await self._answer(connection)
            if answer.status >= 300:
                answer.content = await connection.collect()
            elif connection.chunked:
                await self._receive_chunks(connection, expect(answer), take)
            elif (size := expect(answer)) is not None:
                await self._receive(connection, size, take)
            else:
                raise BrokenError("the answer does not say how long it is")
            return answer, True

        return await self._exchange(once)

    async def _exchange(self, once: Callable[[Connection], Awaitable[tuple[Response, bool]]]) -> Response:
        """``once`` gives the answer, and whether its connection can be used again as far as the request goes. It is
        repeated only where not a byte of the request has arrived."""
        give_up = self._loop.time() + self._patience
        while True:
            connection = await self._pool.take()
            reusable = False
            try:
                self._watchdog.add(connection)
                answer, complete = await once(connection)
                reusable = complete and connection.reusable()
            except NotReceivedError:
                if self._loop.time() > give_up:
                    raise
            else:
                return answer
            finally:
                self._watchdog.discard(connection)
                self._pool.put_back(connection, reusable=reusable)

    async def _answer(self, connection: Connection, *, bodiless: bool = False) -> Response:
        answer = await connection.answer(bodiless=bodiless)
        if connection.fresh:
            self._pool.answered(connection, answer)
        return answer

    async def _receive(self, connection: Connection, expected: int, take: ViewSink) -> None:
        left = expected
        room = memoryview(bytearray(min(PIECE, left)))  # once: making it anew costs as much as reading into it
        while left:
            piece = room[: min(PIECE, left)]
            got = await connection.read_into(piece)
            left -= got
            if got < len(piece):
                raise BrokenError(f"the body broke off after {expected - left} of {expected} bytes")
            self._watchdog.pause(connection)  # from here on it is the taker who is slow
            await take(piece)
            self._watchdog.resume(connection)

    async def _receive_chunks(self, connection: Connection, expected: int | None, take: ViewSink) -> None:
        got, room = 0, memoryview(bytearray(PIECE))
        while size := await connection.read_chunk_into(room):
            got += size
            self._watchdog.pause(connection)
            await take(room[:size])
            self._watchdog.resume(connection)
        if expected not in (None, got):
            raise BrokenError(f"the body ended after {got} of {expected} bytes")

    async def _write(
        self, connection: Connection, head: bytes, body: bytes | FileRange | None, suffix: bytes, lease: Lease | None
    ) -> bool:
        """False: the store answered before it had everything, so the connection cannot be used again."""
        if lease is not None:
            lease.check()
        if body is None or (
            isinstance(body, bytes) and len(body) <= (SINGLE_WRITE_BODY if lease is None else SINGLE_WRITE_LEASED)
        ):
            connection.request(head + body + suffix if body else head + suffix)
            return True
        size = len(body) if isinstance(body, bytes) else body.size
        connection.request(head, size + len(suffix))
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
        """The kernel sends a file by itself: half the processor time, and none of it on the event loop."""
        sent, held = 0, _held_back(body.size, lease)
        while sent < body.size:
            most = min(SENDFILE_STEP, (body.size - held if sent < body.size - held else body.size) - sent)
            if body.pace is not None:
                most = min(most, WRITE_STEP)
                await self._pace(connection, body.pace, most)
            done = 0
            while done < most:
                if connection.answered:
                    return False
                if lease is not None:
                    await self._keep(connection, lease)
                try:
                    count, full = await connection.send_file(body, sent + done, most - done)
                except OSError as error:
                    if sent + done or error.errno not in _SENDFILE_UNSUPPORTED:
                        raise
                    return await self._stream(connection, body, lease)
                done += count
                if full:
                    await connection.writable()
                elif not count:
                    raise source_too_short(body, sent + done)
            sent += most
        return True

    async def _pace(self, connection: Connection, pace: Callable[[int], Awaitable[None]], size: int) -> None:
        self._watchdog.discard(connection)  # it stands still because it may not go faster
        await pace(size)
        self._watchdog.add(connection)

    async def _keep(self, connection: Connection, lease: Lease) -> None:
        """Have the lease confirmed in good time. One that has expired is not asked for again here: what is under way
        must not become whole."""
        lease.check()
        self._watchdog.discard(connection)
        await lease.keep()
        self._watchdog.add(connection)

    async def _stream(self, connection: Connection, body: bytes | FileRange, lease: Lease | None) -> bool:
        size = len(body) if isinstance(body, bytes) else body.size
        held = _held_back(size, lease)
        complete = await self._pieces(connection, body, size - held, lease)
        if lease is None or not complete:
            return complete
        tail = body[-held:] if isinstance(body, bytes) else await _exactly(body, size - held, held)
        await connection.flush()
        if connection.answered:
            return False
        lease.check()
        connection.write(tail)
        return True

    async def _pieces(self, connection: Connection, body: bytes | FileRange, size: int, lease: Lease | None) -> bool:
        """The first ``size`` bytes of a body."""
        pace = None if isinstance(body, bytes) else body.pace
        sent, room = 0, bytearray()
        while sent < size:
            if isinstance(body, bytes):
                piece = memoryview(body)[:size]
            else:
                room = _room(connection, room, min(PIECE, size - sent))
                piece = (await _read(body, sent, room))[: size - sent]
            for start in range(0, len(piece), WRITE_STEP):
                step = piece[start : start + WRITE_STEP]
                if pace is not None:
                    await self._pace(connection, pace, len(step))
                if connection.answered:
                    return False
                if lease is not None:
                    await self._keep(connection, lease)
                connection.write(step)
                sent += len(step)
                await connection.drain()
        return True


def _held_back(size: int, lease: Lease | None) -> int:
    """Bytes at the end of a body that go out by themselves, once the system has taken all before them and the lease has
    been looked at: so a request that was begun under it does not become whole without it."""
    return 0 if lease is None else min(HELD_BACK_BYTES, size)


def _room(connection: Connection, last: bytearray, size: int) -> bytearray:
    """Memory for the next piece: that of the last one, unless the transport still holds it. New memory for each costs a
    quarter of all processor time of an upload over TLS."""
    return last if len(last) >= size and connection.settled else bytearray(size)


async def _read(body: FileRange, start: int, room: bytearray) -> memoryview:
    """What comes next."""
    got = await in_thread(body.read_into, start, room)
    if not got:
        raise source_too_short(body, start)
    return memoryview(room)[:got]


async def _exactly(body: FileRange, start: int, size: int) -> bytes:
    data = await in_thread(body.read, start, size)
    if len(data) < size:
        raise source_too_short(body, start + len(data))
    return data


def source_too_short(source: FileRange, got: int) -> SourceChangedError:
    return SourceChangedError(
        f"{source.path}: {source.size} bytes from {source.offset} were promised, the file ends after {got}"
    )
