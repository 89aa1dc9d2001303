"""HTTP/1.1 for bulk: the connections to one host, kept alive, with bodies streamed from files and into buffers.

A request through aiohttp's session costs 0.22 ms of CPU, most of it spent on objects that only a general client needs;
one of these costs 0.06 ms (16 KiB bodies, CPython 3.11). What it does not do: proxies, redirects, compression, cookies.
Nothing is ever sent twice: a connection that breaks is an error for the caller to judge.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohappyeyeballs

from asyncsync.disk.files import PIECE, FileRange, in_thread
from asyncsync.errors import SourceChangedError
from asyncsync.stores.http1_connection import COLLECTED, SMALL, Answer, BrokenError, Connection
from asyncsync.stores.watchdog import Watchdog

KEEPALIVE_SECONDS = 12.0
"""S3 closes idle connections after about 20 s; a connection that it has closed would fail the next request."""
DNS_SECONDS = 60.0
"""How long the addresses of a host are used. S3 gives several, and others each time: that spreads the load."""
GULP = 1 << 22
"""Bytes of a file that a worker thread offers to a socket at once; it takes what it has room for."""
NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""What a file system says whose files the kernel cannot send by itself."""
STEP = 1 << 18
"""Bytes given to the socket at once: what it does not take is copied, and waits in memory."""

Take = Callable[[memoryview], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Host:
    """Where to connect. ``tls``: None for plain HTTP."""

    name: str
    port: int
    tls: ssl.SSLContext | None


class Http1:
    """One host's connections. Made inside a running loop; at most ``max_connections`` at once, others wait."""

    def __init__(self, host: Host, *, stall_timeout: float, connect_timeout: float, max_connections: int) -> None:
        self._host = host
        self._stall_timeout = stall_timeout
        self._connect_timeout = connect_timeout
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(stall_timeout)
        self._most = max_connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.busy = 0
        """Connections that carry a request now."""
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._addresses: list[aiohappyeyeballs.AddrInfoType] = []
        self._resolved = -DNS_SECONDS
        self._resolving = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        """Cut all connections and wait until they are gone. Nothing can be sent afterwards."""
        self._closed = True
        self._watchdog.close()
        self._idle.clear()
        for connection in tuple(self._open):
            connection.abort()
            await connection.gone.wait()

    async def send(
        self, head: bytes, body: bytes | FileRange | None, *, bodiless: bool = False, most: int = COLLECTED,
        suffix: bytes = b"",
    ) -> Answer:  # fmt: skip
        """One request; its answer with the first ``most`` bytes of its body (``bodiless``: none, as after HEAD).

        ``suffix`` goes out behind the body. BrokenError; what reading the file raises.
        """
        connection = await self._take()
        try:
            complete = await self._write(connection, head, body)
            if suffix and complete:
                connection.write(suffix)
            answer = await connection.answer(bodiless=bodiless)
            answer.content = await connection.collect(most)
        except BaseException:
            self._drop(connection)
            raise
        self._return(connection, complete)
        return answer

    async def fetch(self, head: bytes, expect: Callable[[Answer], int], take: Take) -> Answer:
        """One request whose answer goes to ``take`` in pieces of at most 1 MiB, whose memory is used again.

        ``expect`` is asked how many bytes must come; an answer of 300 and above is collected as by :meth:`send`.
        """
        connection = await self._take()
        try:
            connection.write(head)
            answer = await connection.answer()
            if answer.status < 300:
                await self._receive(connection, expect(answer), take)
            else:
                answer.content = await connection.collect()
        except BaseException:
            self._drop(connection)
            raise
        self._return(connection, complete=True)
        return answer

    async def _receive(self, connection: Connection, expected: int, take: Take) -> None:
        left = expected
        room = memoryview(bytearray(min(PIECE, left)))  # once: making it anew costs as much as reading into it
        while left:
            piece = room[: min(PIECE, left)]
            got = await connection.read_into(piece)
            left -= got
            if got < len(piece):
                raise BrokenError(f"the body broke off after {expected - left} of {expected} bytes")
            self._watchdog.discard(connection)  # from here on it is the taker who is slow
            await take(piece)
            self._watchdog.add(connection)

    async def _write(self, connection: Connection, head: bytes, body: bytes | FileRange | None) -> bool:
        """False: the store answered before it had everything, so the connection cannot be used again."""
        if body is None:
            connection.write(head)
        elif isinstance(body, bytes) and len(body) <= SMALL:
            connection.write(head + body)
        else:
            connection.write(head)
            if isinstance(body, FileRange) and connection.sends_files:
                return await self._send_file(connection, body)
            return await self._stream(connection, body)
        return True

    async def _send_file(self, connection: Connection, body: FileRange) -> bool:
        """The kernel sends a file by itself: half the processor time, and none of it on the event loop."""
        sent = 0
        while sent < body.size:
            most = min(GULP, body.size - sent)
            if body.pace is not None:
                most = min(most, STEP)
                await self._pace(connection, body.pace, most)
            done = 0
            while done < most:
                if connection.answered:
                    return False
                try:
                    count, full = await connection.send_file(body, sent + done, most - done)
                except OSError as error:
                    if sent + done or error.errno not in NO_SENDFILE:
                        raise
                    return await self._stream(connection, body)
                done += count
                if full:
                    await connection.writable()
                elif not count:
                    raise too_short(body, sent + done)
            sent += most
        return True

    async def _pace(self, connection: Connection, pace: Callable[[int], Awaitable[None]], size: int) -> None:
        self._watchdog.discard(connection)  # it stands still because it may not go faster
        await pace(size)
        self._watchdog.add(connection)

    async def _stream(self, connection: Connection, body: bytes | FileRange) -> bool:
        size, pace = (len(body), None) if isinstance(body, bytes) else (body.size, body.pace)
        sent, room = 0, bytearray()
        while sent < size:
            if isinstance(body, bytes):
                piece = memoryview(body)
            else:
                room = _room(connection, room, min(PIECE, size - sent))
                piece = await _read(body, sent, room)
            for start in range(0, len(piece), STEP):
                step = piece[start : start + STEP]
                if pace is not None:
                    await self._pace(connection, pace, len(step))
                if connection.answered:
                    return False
                connection.write(step)
                sent += len(step)
                await connection.drain()
        return True

    # Connections

    async def _take(self) -> Connection:
        if self.busy >= self._most:
            await self._turn()
        else:
            self.busy += 1
        try:
            connection = self._pop_idle() or await self._connect()
            if self._closed:  # while it was opened
                connection.abort()
                raise BrokenError("the store was closed")
        except BaseException:
            self._leave()
            raise
        self._watchdog.add(connection)
        return connection

    async def _turn(self) -> None:
        """Wait for somebody to leave; the place is handed over."""
        place = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.busy -= 1

    def _pop_idle(self) -> Connection | None:
        """The one used last: it is the least likely to have been closed by the other side."""
        oldest = self._loop.time() - KEEPALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def _return(self, connection: Connection, complete: bool) -> None:
        if not (complete and connection.reusable()):
            self._drop(connection)
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        self._free(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        self._watchdog.discard(connection)
        self._leave()

    async def _connect(self) -> Connection:
        tls = self._host.tls
        try:
            async with asyncio.timeout(self._connect_timeout):
                addresses = await self._resolve()
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=0.25, interleave=1, loop=self._loop
                )
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self._open, self._stall_timeout),
                    sock=sock, ssl=tls, server_hostname=self._host.name if tls is not None else None,
                )  # fmt: skip
        except TimeoutError as error:
            raise BrokenError(f"no connection within {self._connect_timeout:g} s") from error
        except OSError as error:
            raise BrokenError(f"no connection: {type(error).__name__}: {error}") from error
        return connection

    async def _resolve(self) -> list[aiohappyeyeballs.AddrInfoType]:
        async with self._resolving:
            if self._loop.time() - self._resolved >= DNS_SECONDS:
                found = await self._loop.getaddrinfo(self._host.name, self._host.port, type=socket.SOCK_STREAM)
                self._addresses, self._resolved = list(found), self._loop.time()
        random.shuffle(self._addresses)
        return self._addresses


def _room(connection: Connection, last: bytearray, size: int) -> bytearray:
    """Memory for the next piece: that of the last one, unless the transport still holds it. New memory for each costs a
    quarter of all processor time of an upload over TLS."""
    return last if len(last) >= size and connection.settled else bytearray(size)


async def _read(body: FileRange, start: int, room: bytearray) -> memoryview:
    """What comes next."""
    got = await in_thread(body.read_into, start, room)
    if not got:
        raise too_short(body, start)
    return memoryview(room)[:got]


def too_short(source: FileRange, got: int) -> SourceChangedError:
    return SourceChangedError(
        f"{source.path}: {source.size} bytes from {source.offset} were promised, the file ends after {got}"
    )
