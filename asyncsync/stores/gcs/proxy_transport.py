"""The transport for servers behind a proxy, which our own HTTP client does not support: gcloud-aio-storage.

Only its session is used. Its methods for objects compose and read without generations, and cannot resume an upload.
It is slower than the direct transport. Memory per request: pieces of 1 MiB of a body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
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
from asyncsync.stores.http.body import source_too_short
from asyncsync.stores.http.client import USER_AGENT
from asyncsync.stores.http.connection import COLLECT_STALL_TIMEOUTS
from asyncsync.stores.http.errors import BrokenError, UntrustedCertificateError
from asyncsync.stores.http.response import Response
from asyncsync.stores.http.watchdog import BodyReadLimit
from asyncsync.stores.options import ConnectionLimits


class _NoToken(Token):
    """Stops Storage from searching for credentials: each request has its own Authorization header."""

    def __init__(self) -> None:
        """Skip the search for credentials."""


class ProxyTransport:
    """A transport through ``proxy``. Create it inside a running loop."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None, proxy: str, limits: ConnectionLimits) -> None:
        self._endpoint, self._proxy, self._stall_timeout = endpoint, proxy, limits.stall_timeout
        connect, stall = limits.connect_timeout, limits.stall_timeout
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=stall)
        patient = max(PATIENT_STALL_TIMEOUT, stall)
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=patient)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limits.max_connections, ssl=context or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        # aiohttp resends a request after a reset; a conditional one would then conflict with its own first attempt.
        self._session._retry_connection = False  # noqa: SLF001  # no public option
        self._storage = Storage(session=cast("Any", self._session), api_root=endpoint, token=_NoToken())

    async def close(self) -> None:
        await self._session.close()

    async def _open(self, request: GcsRequest, authorization: str | None) -> aiohttp.ClientResponse:
        headers = dict(line.split(": ", 1) for line in request.headers.splitlines())
        headers["user-agent"] = USER_AGENT
        if authorization is not None:
            headers["authorization"] = authorization
        data = _RequestBody(request, self._limit_of(request)) if request.size else None
        url = URL(self._endpoint + request.target, encoded=True)
        try:
            async with asyncio.timeout(self._limit_of(request)) as limit:
                if data is not None:
                    data.limit = limit
                response: aiohttp.ClientResponse = await self._storage.session.request(
                    request.method,
                    cast("Any", url),
                    headers,
                    False,
                    data=data,
                    proxy=self._proxy,
                    allow_redirects=False,
                    timeout=self._patient if request.patient else self._timeout,
                )
        except (aiohttp.ClientError, OSError) as error:
            if data is not None and data.error is not None:
                raise data.error from error
            raise _broken(error) from error
        if data is not None and not data.complete and (response.status < 300 or response.status == RESUME_INCOMPLETE):
            response.close()
            raise BrokenError(f"HTTP {response.status} came before the whole request had left")
        return response

    def _limit_of(self, request: GcsRequest) -> float:
        """Seconds for the head of a response, from the last piece of the request on. (aiohttp has a limit for each read
        only, so a head could come byte by byte for ever.)"""
        timeout = self._patient if request.patient else self._timeout
        return COLLECT_STALL_TIMEOUTS * (timeout.sock_read or 0) + (timeout.sock_connect or 0)

    async def _collected(self, response: aiohttp.ClientResponse) -> Response:
        async with asyncio.timeout(COLLECT_STALL_TIMEOUTS * self._stall_timeout):
            return _response(response, await _collect(response))

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        response = await self._open(request, authorization)
        try:
            return await self._collected(response)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        finally:
            response.release()  # closes the connection unless the body was read to its end

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        response = await self._open(request, authorization)
        try:
            if response.status >= 300:
                return await self._collected(response)
            head = _response(response, b"")
            await _receive(response, expect(head), sink, self._stall_timeout)
        except (aiohttp.ClientError, OSError) as error:
            response.close()
            raise _broken(error) from error
        except BaseException:
            response.close()
            raise
        else:
            return head
        finally:
            response.release()


async def _receive(response: aiohttp.ClientResponse, expected: int | None, sink: Sink, stall_timeout: float) -> None:
    got, limit = 0, BodyReadLimit(stall_timeout)
    while piece := await limit.read(partial(response.content.read, PIECE)):
        got += len(piece)
        await sink(piece)
    if expected not in (None, got):
        raise BrokenError(f"received {got} bytes instead of {expected}")


async def _collect(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_chunked(PIECE):
        content += piece
        if len(content) > MAX_RESPONSE_BYTES:
            raise BrokenError(f"the response has more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(content)


class _RequestBody(Payload):
    """A request body. Each piece waits until the kernel has taken all before it, and needs the body's lease. So if the
    lease is lost before the last piece, the request stays incomplete."""

    def __init__(self, request: GcsRequest, seconds: float) -> None:
        super().__init__(request)
        self.limit: asyncio.Timeout | None = None
        """Of the request; each piece extends it by ``seconds``."""
        self._seconds = seconds
        self._request, self._size = request, request.size
        self._transport: asyncio.Transport | None = None
        self._all_written = self._left = False
        self.error: Exception | None = None
        """Why sending stopped, if the connection is not the cause."""

    @property
    def autoclose(self) -> bool:
        return True

    @property
    def complete(self) -> bool:
        """The whole body has left this process."""
        if self._left or self._transport is None:
            return self._left
        return self._all_written and not self._transport.get_write_buffer_size()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a request body can only be sent")

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._transport = cast("Any", writer).transport
        if self._transport is not None:
            self._transport.set_write_buffer_limits(1, 0)  # with 0, asyncio's TLS never resumes
        at, size = 0, _size_of(self._request.body)
        while not self._all_written:
            end = min(at + PIECE, size)
            try:
                piece = await self._leased(at, end)
            except Exception as error:
                self.error = error
                raise
            self._all_written = end == size
            self._extend()
            await writer.write(piece)
            await writer.drain()
            at = end
        self._left = True

    def _extend(self) -> None:
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

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
    """The bytes of the body from ``at`` to ``end``; the first and last piece include the prefix and suffix."""
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


def _response(response: aiohttp.ClientResponse, content: bytes) -> Response:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Response(response.status, headers, keep=False, content=content)


def _broken(error: Exception) -> BrokenError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return UntrustedCertificateError(f"{type(error).__name__}: {error}")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return BrokenError(f"the proxy refused: HTTP {error.status}")  # its text may contain the proxy's password
    return BrokenError(f"{type(error).__name__}: {error}")
