"""TLS that encrypts bulk data in worker threads.

asyncio's TLS encrypts on the event loop's thread, so one core does all the work: 2 GiB took 3.4 s; here they take 1.9 s
and two thirds of the CPU time. A worker thread reads a piece of a file, encrypts it and writes it to the socket. Heads,
small bodies and responses are handled on the loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial

from asyncsync.aio.threads import in_sender
from asyncsync.disk.files import FileRange, Lease
from asyncsync.errors import ConfigError
from asyncsync.stores.http.sendfile import FileSocket, set_result

FILE_READ_SIZE = 1 << 18
"""Bytes of a file read in one call; those that do not fit into the socket are read again later."""
RECORDS_PER_TURN = 16
"""TLS records, of at most 16 KiB, decrypted in one turn of the loop."""
_WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def client_context(verify: bool | str, origin: str) -> ssl.SSLContext:
    """How a client verifies certificates. Blocking: reads them.

    ``verify``: True; False to verify nothing; or the path of a CA bundle, a file or a directory. ConfigError, which
    begins with ``origin``, for a bundle that cannot be used.
    """
    bundle = verify if isinstance(verify, str) else None
    directory = bundle is not None and os.path.isdir(bundle)
    try:
        context = ssl.create_default_context(cafile=None if directory else bundle, capath=bundle if directory else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{origin}: the CA bundle {bundle!r} cannot be used: {error}") from error
    if verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def secure(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ssl.SSLContext,
    name: str,
    protocol: asyncio.BufferedProtocol,
    session: ssl.SSLSession | None,
) -> None:
    """Start TLS on a connected socket and take ownership of it. ``session``: the session of an earlier connection to
    the same host, to resume. OSError, such as ssl.SSLCertVerificationError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    secured = context.wrap_socket(
        sock, server_hostname=name, session=session, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        await _handshake(loop, secured)
        TlsTransport(loop, secured, protocol)
    except BaseException:
        secured.close()
        raise


async def _handshake(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    while True:
        try:
            return await in_sender(sock.do_handshake)  # checking the certificate takes up to a millisecond
        except ssl.SSLWantReadError:
            await _ready(sock, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock, loop.add_writer, loop.remove_writer)


async def _ready(sock: ssl.SSLSocket, add: Callable[..., None], remove: Callable[[int], object]) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(sock.fileno(), set_result, ready)
    try:
        await ready
    finally:
        remove(sock.fileno())


class TlsTransport(asyncio.Transport):
    """A connection after its handshake. One thread at a time uses ``sock``: a worker thread during :meth:`offer`, which
    needs an empty write buffer; otherwise the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket, protocol: asyncio.BufferedProtocol
    ) -> None:
        super().__init__({"socket": sock})
        self._loop, self._sock, self._protocol = loop, sock, protocol
        self._descriptor = sock.fileno()
        self._files = FileSocket(loop, self._descriptor, partial(_send_file, sock), sock.close)
        self._unsent = bytearray()
        self._lent = self._paused = self._closing = False
        protocol.connection_made(self)
        self._watch()

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session that a later connection can resume, which saves most of the handshake."""
        return self._sock.session

    def abort(self) -> None:
        """Cut the connection; unsent data is dropped."""
        self._end(None)

    close = abort

    def _end(self, error: OSError | None) -> None:
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._loop.call_soon(self._finish, error)

    def _finish(self, error: OSError | None) -> None:
        self._unsent = bytearray()
        self._files.close()
        self._protocol.connection_lost(error)

    # Reading

    def pause_reading(self) -> None:
        self._paused = True
        self._loop.remove_reader(self._descriptor)

    def resume_reading(self) -> None:
        self._paused = False
        self._watch()

    def _watch(self) -> None:
        """Also read at once: data that OpenSSL has already taken from the socket does not wake the loop."""
        if not (self._lent or self._paused or self._closing):
            self._loop.add_reader(self._descriptor, self._read)
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        for _ in range(RECORDS_PER_TURN):
            if self._lent or self._paused or self._closing:
                return
            try:
                count = self._sock.recv_into(self._protocol.get_buffer(-1))
            except _WOULD_BLOCK:
                return
            except OSError as error:
                self._end(error)
                return
            if not count:
                self._protocol.eof_received()
                self._end(None)
                return
            self._protocol.buffer_updated(count)
        self._loop.call_soon(self._read)

    # Writing

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        sent = 0 if self._unsent else self._push(data)
        if sent < len(data) and not self._closing:
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._descriptor, self._write)
            self._protocol.pause_writing()

    def _write(self) -> None:
        del self._unsent[: self._push(self._unsent)]
        if not (self._unsent or self._closing):
            self._loop.remove_writer(self._descriptor)
            self._protocol.resume_writing()

    def _push(self, data: bytes | bytearray | memoryview) -> int:
        """The bytes that were taken. The rest must be offered again unchanged: OpenSSL may already have encrypted its
        beginning."""
        try:
            with memoryview(data) as view:
                return _send(self._sock, view)[0]
        except OSError as error:
            self._end(error)
            return 0

    # Files

    async def offer(self, body: FileRange, start: int, maximum: int) -> tuple[int, bool]:
        """As :meth:`FileSocket.offer`."""
        self._lent = True
        self._loop.remove_reader(self._descriptor)
        try:
            return await self._files.offer(body, start, maximum)
        finally:
            self._lent = False
            self._read()  # a response that arrived meanwhile may explain an error
            self._watch()

    async def wait(self, ready: asyncio.Future[None]) -> None:
        """As :meth:`FileSocket.wait`."""
        await self._files.wait(ready)


def can_send_files(transport: asyncio.Transport) -> bool:
    """Whether worker threads can send files on this connection."""
    return isinstance(transport, TlsTransport) or hasattr(os, "sendfile")


def file_sender(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> FileSocket | TlsTransport:
    """The sender of files for a connection; the caller closes it."""
    return transport if isinstance(transport, TlsTransport) else FileSocket.plain(loop, transport)


def _send(sock: ssl.SSLSocket, data: memoryview, lease: Lease | None = None) -> tuple[int, bool]:
    """Send ``data``; the bytes that the socket took, and whether it is full. Each call encrypts one record."""
    sent = 0
    try:
        while sent < len(data):
            if lease is not None:
                lease.check()
            sent += sock.send(data[sent:])
    except _WOULD_BLOCK:
        return sent, True
    return sent, False


def _send_file(sock: ssl.SSLSocket, body: FileRange, start: int, maximum: int) -> tuple[int, bool]:
    """Send up to ``maximum`` bytes of ``body`` from ``start``; fewer if the socket is full (True) or the file ends."""
    room = bytearray(min(FILE_READ_SIZE, maximum))
    done = 0
    while done < maximum:
        got = min(body.read_into(start + done, room), maximum - done)
        if not got:
            break
        count, full = _send(sock, memoryview(room)[:got], body.lease)
        done += count
        if full:
            return done, True
    return done, False
