"""Requests through gcloud-aio-storage, for a server that is reached through a proxy, which our own client cannot.

Its session carries what :mod:`asyncsync.stores.gcs_wire` says; its methods for objects do not serve: they compose and
read without generations and upload without going on. Slower, and a body is in memory as a whole: ``slots x 8 MiB``.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from gcloud.aio.auth import Token
from gcloud.aio.storage import Storage
from yarl import URL

from asyncsync.disk.files import PIECE, FileRange, in_thread
from asyncsync.stores.base import Sink
from asyncsync.stores.gcs_plane import SERVER_SECONDS, Request
from asyncsync.stores.http1 import too_short
from asyncsync.stores.http1_answer import Answer, BrokenError


class _NoToken(Token):
    """Keeps Storage from looking for credentials: each request brings its own Authorization header."""

    def __init__(self) -> None:
        """There is nothing to set up."""


class SdkPlane:
    """The same calls as :class:`asyncsync.stores.gcs_plane.OwnPlane`. Made inside a running loop."""

    def __init__(
        self, endpoint: str, context: ssl.SSLContext | None, proxy: str, *, stall_timeout: float,
        connect_timeout: float, max_connections: int,
    ) -> None:  # fmt: skip
        self._endpoint, self._proxy = endpoint, proxy
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=stall_timeout)
        self._patient = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=max(SERVER_SECONDS, stall_timeout)
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

    async def _open(self, request: Request, authorization: str | None) -> aiohttp.ClientResponse:
        headers = dict(line.split(": ", 1) for line in request.headers.splitlines())
        headers["user-agent"] = "asyncsync"
        if authorization is not None:
            headers["authorization"] = authorization
        data, url = await _body(request), URL(self._endpoint + request.target, encoded=True)
        try:
            answer: aiohttp.ClientResponse = await self._storage.session.request(
                request.method, cast("Any", url), headers, False,
                data=data, proxy=self._proxy, allow_redirects=False,
                timeout=self._patient if request.patient else self._timeout,
            )  # fmt: skip
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        return answer

    async def send(self, request: Request, authorization: str | None) -> Answer:
        response = await self._open(request, authorization)
        try:
            return _answer(response, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        finally:
            response.release()

    async def fetch(
        self, request: Request, authorization: str | None, expect: Callable[[Answer], int | None], sink: Sink
    ) -> Answer:
        response = await self._open(request, authorization)
        try:
            if response.status >= 300:
                return _answer(response, await response.read())
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


async def _body(request: Request) -> io.BytesIO | None:
    body = request.body
    if isinstance(body, FileRange):
        if body.pace is not None:
            await body.pace(body.size)
        data = await in_thread(body.read, 0, body.size)
        if len(data) < body.size:
            raise too_short(body, len(data))
        body = data
    return None if body is None else io.BytesIO(b"".join((request.before, body, request.after)))


def _answer(response: aiohttp.ClientResponse, content: bytes) -> Answer:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Answer(response.status, headers, keep=False, content=content)


def _broken(error: Exception) -> BrokenError:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return BrokenError(f"the proxy refused: HTTP {error.status}")  # its text may tell the proxy's password
    return BrokenError(f"{type(error).__name__}: {error}")
