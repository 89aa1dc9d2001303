"""Requests to the Cloud Storage JSON API: thin aiohttp requests with a token of gcloud-aio-auth.

gcloud-aio-storage builds uploads in memory, reads without a generation, and lets its URLs be quoted anew, which
changes what the names of objects must have encoded. Each call makes one attempt, except that a refused token is
renewed once. Memory: one piece (1 MiB) and the socket's buffer a request.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from asyncsync.disk.files import PIECE, FileRange, in_thread
from asyncsync.errors import StoreError, UnavailableError
from asyncsync.stores.base import Body, Sink
from asyncsync.stores.gcs_auth import Access
from asyncsync.stores.gcs_bodies import Related, related
from asyncsync.stores.gcs_errors import failure, translate
from asyncsync.stores.gcs_options import GcsOptions
from asyncsync.stores.http1 import Host, Http1, too_short
from asyncsync.stores.http1_connection import BrokenError
from asyncsync.stores.s3_stream import StreamedBody
from asyncsync.stores.watchdog import Watchdog

KEEPALIVE_SECONDS = 60.0
"""Idle connections are kept this long; Google's front ends keep them for minutes."""
READ_BUFFER = 1 << 18
"""Bytes that aiohttp buffers of an answer before it stops reading from the socket (twice this at most)."""
SERVER_SECONDS = 90.0
"""Silence allowed while the service works on stored bytes: compose and one step of a rewrite."""
_ERROR_BYTES = 1 << 16
_UPLOAD_HEADERS = (
    f"content-type: {Related.CONTENT_TYPE}\r\naccept: */*\r\naccept-encoding: identity\r\nuser-agent: asyncsync\r\n"
)


class Wire:
    """Requests of one bucket. Made inside a running loop."""

    def __init__(
        self, bucket: str, options: GcsOptions, *, ssl_context: ssl.SSLContext | None, stall_timeout: float,
        connect_timeout: float, max_connections: int,
    ) -> None:  # fmt: skip
        self.bucket = bucket
        self._access = Access(options, f"gs://{bucket}")
        self._stall_timeout = stall_timeout
        self._watchdog = Watchdog(stall_timeout)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=stall_timeout)
        self._patient = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=max(SERVER_SECONDS, stall_timeout)
        )
        self._session = self._open_session(ssl_context, max_connections)
        self._endpoint = options.endpoint()
        server = URL(self._endpoint)
        self._host = server.host_port_subcomponent
        self._http = Http1(
            Host(server.host or "", server.port or 443, ssl_context), stall_timeout=stall_timeout,
            connect_timeout=connect_timeout, max_connections=max_connections,
        )  # fmt: skip
        payer = options.user_project
        self._always = {} if payer is None else {"userProject": payer}

    def _open_session(self, context: ssl.SSLContext | None, limit: int) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limit, ssl=context or True, ttl_dns_cache=60, keepalive_timeout=KEEPALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
        )
        # aiohttp repeats a request by itself after a reset; a conditional one would then meet its own first attempt.
        session._retry_connection = False  # noqa: SLF001  # there is no public switch
        return session

    async def close(self) -> None:
        self._watchdog.close()
        await self._http.close()
        await self._session.close()
        await self._access.close()

    # What the address of a request is made of

    def params(self, **given: str | None) -> dict[str, str]:
        """Query parameters, those that every request has among them; None leaves one out."""
        return {**self._always, **{name: value for name, value in given.items() if value is not None}}

    def url(self, path: str, params: Mapping[str, str]) -> URL:
        """``path`` begins with a slash and is encoded already."""
        query = f"?{urlencode(params, quote_via=quote)}" if params else ""
        return URL(f"{self._endpoint}{path}{query}", encoded=True)

    def upload_url(self, params: Mapping[str, str]) -> URL:
        return self.url(f"/upload/storage/v1/b/{self.bucket}/o", params)

    def object_path(self, name: str, action: str = "") -> str:
        """A slash in a name is part of the name: ``%2F`` (Cloud Storage documentation, "Encoding URI path parts")."""
        return f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}{action}"

    def where(self, name: str) -> str:
        return f"gs://{self.bucket}/{name}"

    # Requests

    async def upload(self, name: str, url: URL, document: bytes, body: Body) -> bytes:
        """Metadata and media in one request; the answer's JSON."""
        if isinstance(body, FileRange) and body.size <= PIECE:
            body = await _whole(body)
        if isinstance(body, bytes):
            return await self._upload_bytes(name, url, related(document, body))

        def data() -> Related:
            return Related(document, body, self._watchdog)

        return await self._ask("insert", "POST", name, url, data, {"content-type": Related.CONTENT_TYPE})

    async def _upload_bytes(self, name: str, url: URL, data: bytes) -> bytes:
        """What is in memory goes out without aiohttp's session: a third of the CPU time."""
        line = f"POST {url.raw_path_qs} HTTP/1.1\r\nhost: {self._host}\r\n{_UPLOAD_HEADERS}"
        renewed = False
        while True:
            header = await self._authorization()
            signed = "" if header is None else f"authorization: {header}\r\n"
            head = f"{line}{signed}content-length: {len(data)}\r\n\r\n".encode()
            try:
                answer = await self._http.send(head, data)
            except BrokenError as error:
                raise UnavailableError(f"insert {self.where(name)}: {error}") from error
            if answer.status < 300:
                return answer.content
            if answer.status != 401 or renewed or not self._access.renewable:
                said = {"Retry-After": answer.headers.get("retry-after", "")}
                raise failure("insert", self.where(name), answer.status, said, answer.content)
            renewed = True
            await self._access.renew(header)

    async def ask(self, operation: str, method: str, name: str, url: URL) -> bytes:
        """A request without a body; the answer's."""
        return await self._ask(operation, method, name, url, None, {})

    async def post(self, operation: str, name: str, url: URL, body: bytes, content_type: str) -> bytes:
        """A request that makes the service work; the answer's body."""
        headers = {"content-type": content_type}
        return await self._ask(operation, "POST", name, url, lambda: body, headers, timeout=self._patient)

    async def _ask(
        self, operation: str, method: str, name: str, url: URL, data: Callable[[], bytes | StreamedBody] | None,
        headers: dict[str, str], *, timeout: aiohttp.ClientTimeout | None = None,
    ) -> bytes:  # fmt: skip
        response = await self._exchange(operation, method, name, url, data, headers, timeout)
        try:
            answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise translate(operation, self.where(name), error) from error
        finally:
            response.release()
        return answer

    async def read(
        self, name: str, params: Mapping[str, str], headers: dict[str, str], sink: Sink,
        expect: Callable[[int, Mapping[str, str]], int],
    ) -> Mapping[str, str]:  # fmt: skip
        """The media into ``sink``. ``expect`` takes status and headers and gives the bytes that must come."""
        url = self.url(self.object_path(name), {"alt": "media", **params})
        # Who accepts gzip gets the bytes as they are stored; others get what was compressed undone.
        headers = {**headers, "accept-encoding": "gzip"}
        response = await self._exchange("get", "GET", name, url, None, headers, None)
        try:
            await self._drain(response, name, sink, expect(response.status, response.headers))
        except BaseException:
            response.close()
            raise
        response.release()
        return response.headers

    async def _drain(self, response: aiohttp.ClientResponse, name: str, sink: Sink, expected: int) -> None:
        got = 0
        while True:
            try:
                piece = await _piece(response.content)
            except (aiohttp.ClientError, OSError) as error:
                raise UnavailableError(
                    f"get {self.where(name)}: the body broke off after {got} of {expected} bytes: {error!r}"
                ) from error
            if not piece:
                break
            got += len(piece)
            await sink(piece)
        if got != expected:
            raise UnavailableError(f"get {self.where(name)}: {got} bytes came instead of {expected}")

    async def _authorization(self) -> str | None:
        fresh, header = self._access.current()
        if not fresh:
            await self._access.renew(header)
            header = self._access.current()[1]
        return header

    async def _exchange(
        self, operation: str, method: str, name: str, url: URL, data: Callable[[], bytes | StreamedBody] | None,
        headers: dict[str, str], timeout: aiohttp.ClientTimeout | None,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        """The answer if it is a success, its error otherwise. ``data`` is asked anew for a second attempt."""
        renewed = False
        while True:
            header = await self._authorization()
            sent = {"accept-encoding": "identity", "user-agent": "asyncsync", **headers}
            if header is not None:
                sent["authorization"] = header
            body = None if data is None else data()
            response = await self._send(operation, method, name, url, body, sent, timeout or self._timeout)
            if response.status < 300:
                return response
            try:
                error = await self._failure(operation, name, response, streamed=isinstance(body, StreamedBody))
            except (aiohttp.ClientError, OSError) as broken:
                raise translate(operation, self.where(name), broken) from broken
            if response.status != 401 or renewed or not self._access.renewable:
                raise error
            renewed = True
            await self._access.renew(header)

    async def _send(
        self, operation: str, method: str, name: str, url: URL, body: bytes | StreamedBody | None,
        headers: dict[str, str], timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        try:
            return await self._session.request(
                method, url, headers=headers, data=body, allow_redirects=False, timeout=timeout
            )
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(body, StreamedBody):
                if body.error is not None:
                    raise body.error from error
                if body.stalled:
                    raise UnavailableError(
                        f"{operation} {self.where(name)}: no byte moved for {self._stall_timeout:g} s"
                    ) from error
            raise translate(operation, self.where(name), error) from error

    async def _failure(
        self, operation: str, name: str, response: aiohttp.ClientResponse, *, streamed: bool
    ) -> StoreError:
        """Read the error document, at most 64 KiB. The service may have answered in the middle of a streamed body:
        then the connection is closed."""
        pieces: list[bytes] = []
        try:
            while sum(map(len, pieces)) < _ERROR_BYTES and (piece := await response.content.readany()):
                pieces.append(piece)
        finally:
            if streamed or not response.content.at_eof():
                response.close()
            else:
                response.release()
        return failure(operation, self.where(name), response.status, response.headers, b"".join(pieces))


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
