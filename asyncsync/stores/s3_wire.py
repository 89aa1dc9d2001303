"""The S3 data plane: PutObject, UploadPart and GetObject as signed aiohttp requests.

One such request costs about a sixth of the same call through aiobotocore. Endpoint, addressing and credentials come
from :mod:`asyncsync.stores.s3_client`; each call makes one attempt, except that an expired token, a wrong clock and a
bucket in another region are put right once. Memory: one piece (1 MiB) and the socket's buffer per request.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from asyncsync.disk.files import PIECE, FileRange, in_thread
from asyncsync.errors import AsyncsyncError, StoreError, UnavailableError
from asyncsync.stores.base import Body, Sink
from asyncsync.stores.s3_errors import (
    EXPIRED,
    MISDIRECTED,
    SKEWED,
    Failure,
    parse_failure,
    server_time,
    translate,
)
from asyncsync.stores.s3_sign import UNSIGNED_PAYLOAD, Signer, timestamp_of
from asyncsync.stores.s3_stream import SMALL, StreamedBody, Watchdog, too_short

KEEPALIVE_SECONDS = 12.0
"""S3 closes idle connections after about 20 s; a connection that it has closed would fail the next request."""
READ_BUFFER = 1 << 18
"""Bytes that aiohttp buffers of an answer before it stops reading from the socket (twice this at most)."""
_ERROR_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where one bucket is: ``base`` is what the URL of a key starts with, ending in ``/``."""

    base: str
    region: str
    service: str = "s3"
    proxy: str | None = None

    @property
    def host(self) -> str:
        """As the Host header spells it: aiohttp leaves a default port away."""
        return str(URL(self.base, encoded=True).host_port_subcomponent)

    @property
    def path(self) -> str:
        return "/" + self.base.partition("://")[2].partition("/")[2]


class Access(Protocol):
    """What the wire asks of the control plane."""

    async def credentials(self) -> tuple[str, str, str | None] | None:
        """Access key, secret key and token, refreshed when due; None: requests go out unsigned."""

    async def renew(self) -> None:
        """The store calls the credentials expired: get new ones."""

    async def relocate(self, region: str, location: str) -> Target:
        """The bucket is in ``region``, or for now at ``location``."""


@dataclass(slots=True)
class _Call:
    """One request; ``headers`` without those that depend on time and credentials."""

    operation: str
    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes | FileRange | None


class Wire:
    """Signed requests of one bucket. Made inside a running loop."""

    def __init__(
        self, bucket: str, target: Target, access: Access, *, ssl_context: ssl.SSLContext | bool,
        stall_timeout: float, connect_timeout: float, max_connections: int, headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._bucket = bucket
        self._access = access
        self._stall_timeout = stall_timeout
        self._watchdog = Watchdog(stall_timeout)
        self._session = self._open_session(ssl_context, connect_timeout, max_connections)
        self._fixed = {"x-amz-content-sha256": UNSIGNED_PAYLOAD, **headers}
        self._unsigned = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "asyncsync"}
        self._signer: Signer | None = None
        self._stamp = (-1, "")
        self.skew = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self._aim(target)

    def _open_session(self, context: ssl.SSLContext | bool, connect: float, limit: int) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limit, ssl=context, ttl_dns_cache=60, keepalive_timeout=KEEPALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=self._stall_timeout),
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
        )
        # aiohttp repeats a PUT by itself after a reset; a conditional write would then meet its own first attempt.
        session._retry_connection = False  # noqa: SLF001  # there is no public switch
        return session

    def _aim(self, target: Target) -> None:
        self._target = target
        self._base, self._path, self._host = target.base, target.path, target.host
        self._signer = None

    async def close(self) -> None:
        self._watchdog.close()
        await self._session.close()

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """Send one body (PutObject, UploadPart); the headers of the answer."""
        if isinstance(body, FileRange) and body.size <= PIECE:
            body = await _whole(body)
        response = await self._exchange(_Call(operation, "PUT", key, query, headers, body))
        try:
            await response.content.read()
        except (aiohttp.ClientError, OSError) as error:
            raise translate(operation, self.where(key), error) from error
        finally:
            response.release()
        return response.headers

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``. ``expect`` takes status and headers and gives the bytes that must come."""
        response = await self._exchange(_Call("GetObject", "GET", key, "", headers, None))
        try:
            await self._drain(response, key, sink, expect(response.status, response.headers))
        except BaseException:
            response.close()
            raise
        response.release()
        return response.headers

    async def _drain(self, response: aiohttp.ClientResponse, key: str, sink: Sink, expected: int) -> None:
        got = 0
        while True:
            try:
                piece = await _piece(response.content)
            except (aiohttp.ClientError, OSError) as error:
                raise UnavailableError(
                    f"GetObject {self.where(key)}: the body broke off after {got} of {expected} bytes: {error!r}"
                ) from error
            if not piece:
                break
            got += len(piece)
            await sink(piece)
        if got != expected:
            raise UnavailableError(f"GetObject {self.where(key)}: {got} bytes came instead of {expected}")

    def where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def _exchange(self, call: _Call) -> aiohttp.ClientResponse:
        """The answer to ``call`` if it is a success, its error otherwise."""
        repaired: set[str] = set()
        while True:
            response = await self._send(call)
            if response.status < 300:
                return response
            try:
                failure = await self._failure(call, response)
            except (aiohttp.ClientError, OSError) as error:
                raise translate(call.operation, self.where(call.key), error) from error
            kind = _kind(failure)
            if not kind or kind in repaired:
                raise failure.error()
            repaired.add(kind)
            await self._repair(kind, failure)

    async def _send(self, call: _Call) -> aiohttp.ClientResponse:
        body = call.body
        data: bytes | StreamedBody | None
        if body is None or (isinstance(body, bytes) and len(body) <= SMALL):
            data = body
        else:
            data = StreamedBody(body, self._watchdog)
        path = quote(call.key, safe="/~")
        url = URL(f"{self._base}{path}{'?' if call.query else ''}{call.query}", encoded=True)
        headers = await self._headers(call, self._path + path)
        try:
            return await self._session.request(
                call.method, url, headers=headers, data=data, allow_redirects=False, proxy=self._target.proxy
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self._cause(call, data, error) from error

    def _cause(self, call: _Call, data: object, error: Exception) -> Exception:
        """What broke the request: the source of the body, the watchdog, or the network."""
        if isinstance(data, StreamedBody):
            if data.error is not None:
                return data.error
            if data.stalled:
                return UnavailableError(
                    f"{call.operation} {self.where(call.key)}: no byte moved for {self._stall_timeout:g} s"
                )
        return translate(call.operation, self.where(call.key), error)

    async def _headers(self, call: _Call, path: str) -> dict[str, str]:
        now = int(time.time() + self.skew)
        if now != self._stamp[0]:
            self._stamp = (now, timestamp_of(now))
        stamp = self._stamp[1]
        signer = await self._current_signer()
        if signer is None:
            return {**call.headers, **self._unsigned}
        headers = {"host": self._host, "x-amz-date": stamp, **self._fixed, **call.headers}
        if signer.token:
            headers["x-amz-security-token"] = signer.token
        signature = signer.authorization(call.method, path, call.query, headers, UNSIGNED_PAYLOAD, stamp)
        headers["authorization"] = signature
        headers.update(self._unsigned)
        return headers

    async def _current_signer(self) -> Signer | None:
        found = await self._access.credentials()
        if found is None:
            return None
        access_key, secret_key, token = found
        signer = self._signer
        if signer is None or signer.access_key != access_key or signer.token != token:
            signer = Signer(access_key, secret_key, token, self._target.region, self._target.service)
            self._signer = signer
        return signer

    async def _failure(self, call: _Call, response: aiohttp.ClientResponse) -> Failure:
        """Read the error document, at most 64 KiB. The connection is closed: the store may have answered in the
        middle of our body."""
        try:
            pieces: list[bytes] = []
            while sum(map(len, pieces)) < _ERROR_BYTES and (piece := await response.content.readany()):
                pieces.append(piece)
        finally:
            keep = response.headers.get("content-length") is not None and not isinstance(call.body, FileRange)
            if keep and response.content.at_eof():
                response.release()
            else:
                response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return parse_failure(call.operation, self.where(call.key), response.status, headers, b"".join(pieces))

    async def _repair(self, kind: str, failure: Failure) -> None:
        """Put right what can be put right, so that the same request may succeed."""
        if kind == "expired":
            await self._access.renew()
            self._signer = None
        elif kind == "skewed":
            server = server_time(failure.headers)
            self.skew = 0.0 if server is None else server - time.time()
        else:
            try:
                self._aim(await self._access.relocate(failure.region, failure.headers.get("location", "")))
            except AsyncsyncError as error:
                raise failure.error() from error


def _kind(failure: Failure) -> str:
    if failure.code in EXPIRED:
        return "expired"
    if failure.code in SKEWED:
        return "skewed"
    if failure.code in MISDIRECTED or failure.status in (301, 307):
        return "misdirected" if failure.region or failure.headers.get("location") else ""
    return ""


async def _piece(content: aiohttp.StreamReader) -> bytes:
    """The next bytes of an answer: about 1 MiB, or what is left."""
    pieces: list[bytes] = []
    size = 0
    while size < PIECE - READ_BUFFER:
        piece = await content.readany()
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _whole(body: FileRange) -> bytes:
    data = await in_thread(body.read, 0, body.size) if body.size else b""
    if len(data) < body.size:
        raise too_short(body, len(data))
    return data


def content_bytes(operation: str, where: str, status: int, headers: Mapping[str, str], ranged: bool) -> tuple[int, int]:
    """How many bytes an answer carries, and how many the object has."""
    text = headers.get("Content-Length", "")
    if not text.isdigit():
        raise StoreError(f"{operation} {where}: the answer has no Content-Length")
    size = int(text)
    total = headers.get("Content-Range", "").rpartition("/")[2]
    if status == 206 and total.isdigit():
        return size, int(total)
    if ranged:
        raise StoreError(f"{operation} {where}: the store ignored the requested range")
    return size, size
