"""The connections to one host: opened, kept alive, and given to one exchange at a time."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from urllib.parse import SplitResult

import aiohappyeyeballs

from asyncsync.aio.descriptors import out_of_descriptors
from asyncsync.errors import ThrottledError
from asyncsync.stores.http.accept_limit import AcceptLimit
from asyncsync.stores.http.byte_stream import ByteStream
from asyncsync.stores.http.connection import Connection
from asyncsync.stores.http.errors import BrokenError, NotReceivedError, UntrustedCertificateError
from asyncsync.stores.http.response import Response
from asyncsync.stores.http.tls import secure
from asyncsync.stores.options import ConnectionLimits

DEFAULT_PORTS = {"http": 80, "https": 443}
KEEPALIVE_SECONDS = 12.0
"""How long an idle connection is reused. S3 closes idle connections after about 20 s, and a request on a closed
connection fails."""
DNS_SECONDS = 60.0
"""How long the addresses of a host are used. S3 returns several, and different ones each time, to spread the load."""
SYN_SECONDS = 0.9
"""If connecting takes longer, the first SYN was lost; the kernel repeats it after a second (RFC 6298)."""
ACCEPT_CHECK_SECONDS = 0.1
"""After this time plus two round trips, the server's kernel must have acknowledged part of a first request."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where to connect. ``tls``: None for plain HTTP."""

    name: str
    port: int
    tls: ssl.SSLContext | None


def port_of(url: SplitResult) -> int:
    """The port of an http or https URL."""
    return url.port or DEFAULT_PORTS[url.scheme]


@dataclass(slots=True, eq=False)
class PooledConnection:
    """A connection and the pool's record of it."""

    connection: Connection
    began: float
    """When connecting started, on the loop's clock."""
    fresh: bool = True
    """Its first response has not begun."""
    idle_since: float = 0.0
    acceptance_timer: asyncio.TimerHandle | None = None


class ConnectionPool:
    """At most ``max_connections`` are in use, and of these only as many fresh ones as
    :class:`asyncsync.stores.http.accept_limit.AcceptLimit` allows. Other requests wait in order. Create it inside a
    running loop."""

    def __init__(self, host: Host, limits: ConnectionLimits) -> None:
        self._host, self._limits = host, limits
        self._loop = asyncio.get_running_loop()
        self._accept_limit = AcceptLimit(limits.max_connections)
        self._waiting: deque[asyncio.Future[PooledConnection | None]] = deque()
        self.busy = 0
        """Connections in use."""
        self._fresh = 0
        """Connections in use whose first response has not begun, or that are being opened."""
        self._idle: deque[PooledConnection] = deque()
        self._open: set[ByteStream] = set()
        self._addresses: list[aiohappyeyeballs.AddrInfoType] = []
        self._resolved = -DNS_SECONDS
        self._resolving = asyncio.Lock()
        self._session: ssl.SSLSession | None = None
        """The TLS session that the next handshake resumes, which saves both sides most of its cost."""
        self._closed = False

    async def close(self) -> None:
        """Cut all connections and wait until they are closed. No connection can be opened afterwards."""
        self._closed = True
        self._idle.clear()
        connections = tuple(self._open)
        for connection in connections:  # abort all before waiting: each close takes a turn of the loop
            connection.abort()
        for connection in connections:
            await connection.closed.wait()

    async def take(self) -> PooledConnection:
        """A connection for one exchange; return it with :meth:`put_back`. BrokenError."""
        found = self._enter() if self._room else await self._wait_for_room()
        if found is None:
            found = await self._connect(min(SYN_SECONDS, self._limits.connect_timeout))
        if found is None:  # let others go first; meanwhile an older connection may become idle
            found = await self._connect_again()
        return found

    async def _connect_again(self) -> PooledConnection:
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                found = await self._wait_for_room() or await self._connect(self._limits.connect_timeout)
        except TimeoutError:
            found = None
        if found is None:
            raise self._no_connection()
        return found

    def _no_connection(self) -> BrokenError:
        return BrokenError(f"no connection within {self._limits.connect_timeout:g} s")

    @property
    def _room(self) -> bool:
        return self.busy < self._limits.max_connections and (bool(self._idle) or self._fresh < self._accept_limit.limit)

    def _enter(self) -> PooledConnection | None:
        """Occupy a place; None: a connection must be opened."""
        self.busy += 1
        found = self._pop_idle()
        if found is None:
            self._fresh += 1
        return found

    async def _wait_for_room(self) -> PooledConnection | None:
        """Wait in line for a place; None: a connection must be opened."""
        place: asyncio.Future[PooledConnection | None] = self._loop.create_future()
        self._waiting.append(place)
        self._admit()
        try:
            return await place
        except BaseException:
            if place.done() and not place.cancelled():
                self._give_back(place.result())
            raise

    def _give_back(self, unused: PooledConnection | None) -> None:
        if unused is None:
            self._fresh -= 1
        else:
            self._idle.append(unused)
        self._leave()

    def _leave(self) -> None:
        self.busy -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._room:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(self._enter())

    def _pop_idle(self) -> PooledConnection | None:
        """The most recently used one: the server is least likely to have closed it."""
        oldest = self._loop.time() - KEEPALIVE_SECONDS
        while self._idle:
            pooled = self._idle.pop()
            if pooled.connection.usable and pooled.idle_since > oldest:
                return pooled
            pooled.connection.abort()
        return None

    def put_back(self, pooled: PooledConnection, *, reusable: bool) -> None:
        """Its exchange has ended."""
        if pooled.fresh:
            self._end_fresh(pooled)
        if reusable:
            pooled.idle_since = self._loop.time()
            self._idle.append(pooled)
        else:
            pooled.connection.abort()
        self._leave()

    def response_began(self, pooled: PooledConnection, response: Response) -> None:
        """The head of a response arrived."""
        if not pooled.fresh:
            return
        self._end_fresh(pooled)
        self._session = pooled.connection.session or self._session
        now, waiting = self._loop.time(), bool(self._waiting)
        self._accept_limit.first_response(pooled.began, now, keep=response.keep, waiting=waiting)
        self._admit()

    def _end_fresh(self, pooled: PooledConnection) -> None:
        pooled.fresh = False
        self._fresh -= 1
        if pooled.acceptance_timer is not None:
            pooled.acceptance_timer.cancel()

    async def _connect(self, patience: float) -> PooledConnection | None:
        """Open a connection; None: the server's kernel did not accept it within ``patience`` seconds."""
        began = self._loop.time()
        try:
            connection = await self._open_connection(patience)
            if connection is not None and self._closed:  # closed while it was opened
                connection.abort()
                raise BrokenError("the store was closed")
        except ssl.SSLCertVerificationError as error:
            self._give_back(None)
            raise UntrustedCertificateError(f"the certificate of {self._host.name} is not trusted: {error}") from error
        except OSError as error:
            self._give_back(None)
            text = f"no connection: {type(error).__name__}: {error}"
            if out_of_descriptors(error):
                text += ": fewer requests at a time follow; 'ulimit -n' allows more"
                raise ThrottledError(f"{self._host.name}: {text}") from error
            raise BrokenError(text) from error
        except BaseException:
            self._give_back(None)
            raise
        if connection is None:
            self._accept_limit.overflowed(self._loop.time())
            self._give_back(None)
            return None
        pooled = PooledConnection(connection, began)
        if self._host.tls is None:  # a TLS handshake proves that the server accepted the connection
            delay = ACCEPT_CHECK_SECONDS + 2 * (self._loop.time() - began)
            pooled.acceptance_timer = self._loop.call_later(delay, self._check_accepted, connection)
        return pooled

    def _check_accepted(self, connection: Connection) -> None:
        if connection.nothing_received:
            self._accept_limit.overflowed(self._loop.time())
            connection.fail(NotReceivedError("the server accepts no further connections"))

    async def _open_connection(self, patience: float) -> Connection | None:
        connection = Connection(self._loop, self._open, self._limits.stall_timeout)
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                sock = await self._open_socket(patience)
                if sock is None:
                    return None
                if self._host.tls is None:
                    await self._loop.create_connection(lambda: connection, sock=sock)
                else:
                    await secure(self._loop, sock, self._host.tls, self._host.name, connection, self._session)
        except TimeoutError as error:
            raise self._no_connection() from error
        return connection

    async def _open_socket(self, patience: float) -> socket.socket | None:
        addresses = await self._resolve()
        try:
            async with asyncio.timeout(patience):
                return await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=0.25, interleave=1, loop=self._loop
                )
        except TimeoutError:
            return None

    async def _resolve(self) -> list[aiohappyeyeballs.AddrInfoType]:
        async with self._resolving:
            if self._loop.time() - self._resolved >= DNS_SECONDS:
                found = await self._loop.getaddrinfo(self._host.name, self._host.port, type=socket.SOCK_STREAM)
                self._addresses, self._resolved = list(found), self._loop.time()
        random.shuffle(self._addresses)
        return self._addresses
