"""The connections to one host: made, kept alive, given to one exchange at a time."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import deque
from dataclasses import dataclass

import aiohappyeyeballs

from asyncsync.stores.http.accept_limit import AcceptLimit
from asyncsync.stores.http.connection import Connection
from asyncsync.stores.http.response import BrokenError, NotReceivedError, Response, UntrustedCertificateError
from asyncsync.stores.http.tls import secure

KEEPALIVE_SECONDS = 12.0
"""S3 closes idle connections after about 20 s; a connection that it has closed would fail the next request."""
DNS_SECONDS = 60.0
"""How long the addresses of a host are used. S3 gives several, and others each time: that spreads the load."""
SYN_SECONDS = 0.9
"""A connection that takes longer was not taken at the first try, which is repeated after a second (RFC 6298)."""
HEARD_SECONDS = 0.1
"""After so long, and twice the way to the server, something of a first request must have arrived at its system."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where to connect. ``tls``: None for plain HTTP."""

    name: str
    port: int
    tls: ssl.SSLContext | None


class ConnectionPool:
    """Made inside a running loop. At most ``max_connections`` are busy, and of those only so many fresh ones as
    :class:`asyncsync.stores.http.accept_limit.AcceptLimit` says. Others wait, in order."""

    def __init__(self, host: Host, *, stall_timeout: float, connect_timeout: float, max_connections: int) -> None:
        self._host = host
        self._stall_timeout, self._connect_timeout = stall_timeout, connect_timeout
        self._loop = asyncio.get_running_loop()
        self._most = max_connections
        self._acceptance = AcceptLimit(max_connections)
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self.busy = 0
        """Connections that carry a request now."""
        self._fresh = 0
        """Those of them that have not been answered yet, or are being made."""
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._addresses: list[aiohappyeyeballs.AddrInfoType] = []
        self._resolved = -DNS_SECONDS
        self._resolving = asyncio.Lock()
        self._session: ssl.SSLSession | None = None
        """What the next handshake can begin with: it saves both sides most of it."""
        self._closed = False

    async def close(self) -> None:
        """Cut all connections and wait until they are gone. None can be made afterwards."""
        self._closed = True
        self._idle.clear()
        there = tuple(self._open)
        for connection in there:  # all, then wait: one after the other takes a turn of the loop each
            connection.abort()
        for connection in there:
            await connection.gone.wait()

    async def take(self) -> Connection:
        """One for an exchange, which ends with :meth:`put_back`. BrokenError."""
        connection = self._enter() if self._room else await self._turn()
        if connection is None:
            connection = await self._connect(min(SYN_SECONDS, self._connect_timeout))
        if connection is None:  # others may go first, and an older connection may have become free
            connection = await self._second_try()
        return connection

    async def _second_try(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._turn() or await self._connect(self._connect_timeout)
        except TimeoutError:
            connection = None
        if connection is None:
            raise self._no_connection()
        return connection

    def _no_connection(self) -> BrokenError:
        return BrokenError(f"no connection within {self._connect_timeout:g} s")

    @property
    def _room(self) -> bool:
        return self.busy < self._most and (bool(self._idle) or self._fresh < self._acceptance.limit)

    def _enter(self) -> Connection | None:
        """Take the room that there is; None: a connection has to be made."""
        self.busy += 1
        connection = self._pop_idle()
        if connection is None:
            self._fresh += 1
        return connection

    async def _turn(self) -> Connection | None:
        """Wait until there is room, and take it."""
        place: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(place)
        self._admit()
        try:
            return await place
        except BaseException:
            if place.done() and not place.cancelled():
                self._give_back(place.result())
            raise

    def _give_back(self, connection: Connection | None) -> None:
        if connection is None:
            self._fresh -= 1
        else:
            self._idle.append(connection)
        self._leave()

    def _leave(self) -> None:
        self.busy -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._room:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(self._enter())

    def _pop_idle(self) -> Connection | None:
        """The one used last: it is the least likely to have been closed by the other side."""
        oldest = self._loop.time() - KEEPALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def put_back(self, connection: Connection, *, reusable: bool) -> None:
        """Its exchange is over."""
        if connection.fresh:
            self._heard(connection)
        if reusable:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()
        self._leave()

    def answered(self, connection: Connection, answer: Response) -> None:
        """The first answer of a fresh connection has begun."""
        self._heard(connection)
        self._session = connection.session or self._session
        now, waiting = self._loop.time(), bool(self._waiting)
        self._acceptance.answered(connection.began, now, keep=answer.keep, waiting=waiting)
        self._admit()

    def _heard(self, connection: Connection) -> None:
        """Whether it was answered or has ended: it is fresh no more."""
        connection.fresh = False
        self._fresh -= 1
        if connection.listening is not None:
            connection.listening.cancel()

    async def _connect(self, patience: float) -> Connection | None:
        """A fresh connection; None: the server's system did not answer within ``patience`` seconds."""
        began = self._loop.time()
        try:
            connection = await self._open_connection(patience)
            if connection is not None and self._closed:  # while it was opened
                connection.abort()
                raise BrokenError("the store was closed")
        except ssl.SSLCertVerificationError as error:
            self._give_back(None)
            raise UntrustedCertificateError(f"the certificate of {self._host.name} is not trusted: {error}") from error
        except OSError as error:
            self._give_back(None)
            raise BrokenError(f"no connection: {type(error).__name__}: {error}") from error
        except BaseException:
            self._give_back(None)
            raise
        if connection is None:
            self._acceptance.overflowed(self._loop.time())
            self._give_back(None)
            return None
        connection.began, seconds = began, self._loop.time() - began
        if self._host.tls is None:  # what has shaken hands was heard
            connection.listening = self._loop.call_later(HEARD_SECONDS + 2 * seconds, self._listen, connection)
        return connection

    def _listen(self, connection: Connection) -> None:
        if connection.unheard:
            self._acceptance.overflowed(self._loop.time())
            connection.lose(NotReceivedError("the server takes no further connections"))

    async def _open_connection(self, patience: float) -> Connection | None:
        connection = Connection(self._loop, self._open, self._stall_timeout)
        try:
            async with asyncio.timeout(self._connect_timeout):
                sock = await self._reach(patience)
                if sock is None:
                    return None
                if self._host.tls is None:
                    await self._loop.create_connection(lambda: connection, sock=sock)
                else:
                    await secure(self._loop, sock, self._host.tls, self._host.name, connection, self._session)
        except TimeoutError as error:
            raise self._no_connection() from error
        return connection

    async def _reach(self, patience: float) -> socket.socket | None:
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
