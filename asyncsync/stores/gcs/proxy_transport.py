"""Requests through gcloud-aio-storage, for a server that is reached through a proxy, which our own client cannot.

Its session carries the requests of :mod:`asyncsync.stores.gcs.requests`. Its own methods for objects are not used:
they compose and read without generations, and cannot resume an upload. Slower; memory: pieces of 1 MiB of a body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from gcloud.aio.auth import Token
from gcloud.aio.storage import Storage
from yarl import URL

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange
from asyncsync.stores.base import Sink
from asyncsync.stores.gcs.transport import MAX_RESPONSE_BYTES, PATIENT_STALL_TIMEOUT, RESUME_INCOMPLETE, GcsRequest
from asyncsync.stores.http.client import source_too_short
from asyncsync.stores.http.response import BrokenError, Response


class _NoToken(Token):
    """Keeps Storage from looking for credentials: each request brings its own Authorization header."""

    def __init__(self) -> None:
        """There is nothing to set up."""


class ProxyTransport:
    """The same calls as :class:`asyncsync.stores.gcs.transport.DirectTransport`. Made inside a running loop."""

    def __init__(
        self, endpoint: str, context: ssl.SSLContext | None, proxy: str, *, stall_timeout: float,
        connect_timeout: float, max_connections: int,
    ) -> None:  # fmt: skip
        self._endpoint, self._proxy = endpoint, proxy
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=stall_timeout)
        self._patient = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=max(PATIENT_STALL_TIMEOUT, stall_timeout)
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=context or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp repeats a request by itself after a reset; a conditional one would then meet its own first attempt.
        self._session._retry_connection = False  # noqa: SLF001  # there is no public switch
        self._storage = Storage(session=cast("Any", self._session), api_root=endpoint, token=_NoToken())

    async def close(self) -> None:
        await self._session.close()

    async def _open(self, request: GcsRequest, authorization: str | None) -> aiohttp.ClientResponse:
        headers = dict(line.split(": ", 1) for line in request.headers.splitlines())
        headers["user-agent"] = "asyncsync"
        if authorization is not None:
            headers["authorization"] = authorization
        data = _Outgoing(request) if request.size else None
        url = URL(self._endpoint + request.target, encoded=True)
        try:
            response: aiohttp.ClientResponse = await self._storage.session.request(
                request.method, cast("Any", url), headers, False,
                data=data, proxy=self._proxy, allow_redirects=False,
                timeout=self._patient if request.patient else self._timeout,
            )  # fmt: skip
        except (aiohttp.ClientError, OSError) as error:
            if data is not None and data.error is not None:
                raise data.error from error
            raise _broken(error) from error
        if data is not None and not data.gone and (response.status < 300 or response.status == RESUME_INCOMPLETE):
            response.close()
            raise BrokenError(f"the store answered {response.status} before it had the whole request")
        return response

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        response = await self._open(request, authorization)
        try:
            return _answer(response, await _collected(response))
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        finally:
            response.release()  # what nobody reads any more ends its connection

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        response = await self._open(request, authorization)
        try:
            if response.status >= 300:
                return _answer(response, await _collected(response))
            answer = _answer(response, b"")
            await _receive(response, expect(answer), sink)
        except (aiohttp.ClientError, OSError) as error:
            response.close()
            raise _broken(error) from error
        except BaseException:
            response.close()
            raise
        else:
            return answer
        finally:
            response.release()


async def _receive(response: aiohttp.ClientResponse, expected: int | None, sink: Sink) -> None:
    got = 0
    async for piece in response.content.iter_chunked(PIECE):
        got += len(piece)
        await sink(piece)
    if expected not in (None, got):
        raise BrokenError(f"{got} bytes came instead of {expected}")


async def _collected(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_chunked(PIECE):
        content += piece
        if len(content) > MAX_RESPONSE_BYTES:
            raise BrokenError(f"the answer has more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(content)


class _Outgoing(Payload):
    """A body on its way out. Each piece waits until the system has taken all before it, and is sent only under the
    body's lease; so who loses that before the last piece has not sent a request that can be carried out."""

    def __init__(self, request: GcsRequest) -> None:
        super().__init__(request)
        self._request, self._size = request, request.size
        self._transport: asyncio.Transport | None = None
        self._handed = self._left = False
        self.error: Exception | None = None
        """Why no more of it was sent, where that is not the connection's fault."""

    @property
    def autoclose(self) -> bool:
        return True

    @property
    def gone(self) -> bool:
        """All of it has left this process."""
        if self._left or self._transport is None:
            return self._left
        return self._handed and not self._transport.get_write_buffer_size()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("it is sent, and read by nobody else")

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._transport = cast("Any", writer).transport
        if self._transport is not None:
            self._transport.set_write_buffer_limits(1, 0)  # of 0 asyncio's TLS makes a standstill
        at, size = 0, _size_of(self._request.body)
        while not self._handed:
            end = min(at + PIECE, size)
            try:
                piece = await self._leased(at, end)
            except Exception as error:
                self.error = error
                raise
            self._handed = end == size
            await writer.write(piece)
            await writer.drain()
            at = end
        self._left = True

    async def _leased(self, at: int, end: int) -> bytes:
        piece, lease = await _piece(self._request, at, end), self._request.lease
        if lease is not None:
            if at:
                await lease.keep()
            lease.check()
        return piece


def _size_of(body: bytes | FileRange | None) -> int:
    return 0 if body is None else len(body) if isinstance(body, bytes) else body.size


async def _piece(request: GcsRequest, at: int, end: int) -> bytes:
    """The bytes of the body from ``at`` to ``end``, with what goes before it and after it."""
    body = request.body
    if isinstance(body, FileRange):
        if body.pace is not None:
            await body.pace(end - at)
        data = await in_thread(body.read, at, end - at) if end > at else b""
        if len(data) < end - at:
            raise source_too_short(body, at + len(data))
    else:
        data = (body or b"")[at:end]
    return b"".join((b"" if at else request.before, data, request.after if end == _size_of(body) else b""))


def _answer(response: aiohttp.ClientResponse, content: bytes) -> Response:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Response(response.status, headers, keep=False, content=content)


def _broken(error: Exception) -> BrokenError:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return BrokenError(f"the proxy refused: HTTP {error.status}")  # its text may tell the proxy's password
    return BrokenError(f"{type(error).__name__}: {error}")
