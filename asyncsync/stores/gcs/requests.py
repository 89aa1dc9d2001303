"""Requests to the Cloud Storage JSON API for one bucket.

An object's metadata and its media travel in one multipart/related body; deletions travel in batches. Each call makes
one attempt, except that a refused token is renewed once. Memory per request: one piece (1 MiB) and the socket's buffer.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import quote, urlencode, urlsplit

from asyncsync.disk.files import PIECE, FileRange, lease_of
from asyncsync.errors import NoSuchBucketError, NotFoundError, StoreError, UnavailableError
from asyncsync.stores.base import Body, Sink
from asyncsync.stores.gcs.auth import GcsAccess
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.options import GcsOptions
from asyncsync.stores.gcs.responses import document_of, number_of, refuse_response
from asyncsync.stores.gcs.transport import RESUME_INCOMPLETE, GcsRequest, Transport
from asyncsync.stores.http.body import read_body
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE, BrokenError, UntrustedCertificateError
from asyncsync.stores.http.response import Response
from asyncsync.stores.options import given

REMEMBERED_ROUND_TRIPS = 64
_BOUNDARY = secrets.token_hex(16)
"""One for all bodies: no data contains these 128 random bits."""
BATCH_TYPE = f"multipart/mixed; boundary={_BOUNDARY}"
_BEFORE_DOCUMENT = f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode()
_BEFORE_MEDIA = (
    f"\r\n--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n".encode()
)
_AFTER_MEDIA = f"\r\n--{_BOUNDARY}--\r\n".encode()
_PLAIN_HEADERS = "accept-encoding: identity\r\n"
_RELATED_HEADERS = f"{_PLAIN_HEADERS}content-type: multipart/related; boundary={_BOUNDARY}\r\n"
_BATCH_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})(?!\d)", re.MULTILINE)
_BATCH_ID = re.compile(rb"^Content-ID:\s*<?response-<?(\d{1,9})>?", re.MULTILINE | re.IGNORECASE)


class GcsRequests:
    """Requests of one bucket. ``base`` is the path of the server's address, which ``transport`` puts before every
    target. Create it inside a running loop."""

    def __init__(
        self, bucket: str, access: GcsAccess, transport: Transport, options: GcsOptions, base: str = ""
    ) -> None:
        self.bucket = bucket
        self._base = base
        self._access = access
        self._transport = transport
        self._common_params = given({"userProject": options.user_project})
        self._customer_key = options.encryption_key
        self.key_headers = options.key_headers()
        """Header lines of requests that write an object, or read its bytes or checksum."""
        self.source_key_headers = options.key_headers("x-goog-copy-source-encryption")
        """Those of a copy, for its source."""
        self.round_trips: deque[float] = deque(maxlen=REMEMBERED_ROUND_TRIPS)
        """Durations (s) of the latest requests with small bodies."""

    async def close(self) -> None:
        await self._transport.close()
        await self._access.close()

    # Parts of a request's address

    def params(self, **given: str | None) -> dict[str, str]:
        """Query parameters, including those of every request; None leaves one out."""
        return {**self._common_params, **{name: value for name, value in given.items() if value is not None}}

    def target(self, path: str, params: Mapping[str, str]) -> str:
        """``path`` starts with a slash and is already encoded."""
        return f"{path}?{urlencode(params, quote_via=quote)}" if params else path

    def upload_target(self, params: Mapping[str, str]) -> str:
        return self.target(f"/upload/storage/v1/b/{self.bucket}/o", params)

    def object_path(self, name: str, action: str = "") -> str:
        """A slash in a name is part of the name: ``%2F`` (Cloud Storage documentation, "Encoding URI path parts")."""
        return f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}{action}"

    def where(self, name: str) -> str:
        return f"gs://{self.bucket}/{name}"

    # Requests

    async def upload(self, name: str, target: str, document: bytes, body: Body) -> bytes:
        """Send metadata and media in one request; the JSON of the response."""
        lease = lease_of(body)
        if isinstance(body, FileRange) and body.size <= PIECE:
            body = await read_body(body)
        head = b"".join((_BEFORE_DOCUMENT, document, _BEFORE_MEDIA))  # RFC 2387
        headers = _RELATED_HEADERS + self.key_headers
        if isinstance(body, bytes):
            content = b"".join((head, body, _AFTER_MEDIA))
            request = GcsRequest("POST", target, headers, content, lease=lease)
        else:
            request = GcsRequest("POST", target, headers, body, head, _AFTER_MEDIA, lease=lease)
        return (await self._send("insert", name, request)).content

    async def start_resumable(self, name: str, target: str, document: bytes, size: int) -> str:
        """Open a resumable upload of ``size`` bytes; the target of its further requests."""
        headers = (
            f"{_PLAIN_HEADERS}{self.key_headers}content-type: application/json; charset=UTF-8\r\n"
            f"x-upload-content-length: {size}\r\n"
        )
        response = await self._send_timed("insert", name, GcsRequest("POST", target, headers, document))
        try:
            found = urlsplit(response.headers.get("location", ""))
        except ValueError:  # unbalanced brackets
            found = urlsplit("")
        if not is_session(f"{found.path}?{found.query}"):
            refuse_response(f"insert {self.where(name)}", "its Location names no upload session")
        # The server may know the endpoint's path, or be behind a proxy that strips it.
        path = found.path.removeprefix(self._base) if found.path.startswith(f"{self._base}/") else found.path
        return f"{path}?{found.query}" if found.query else path

    async def continue_resumable(self, name: str, session: str, body: FileRange | None, content_range: str) -> Response:
        """Send one chunk of a resumable upload. Without a body, only ask for its progress. Status 200, 201 or 308."""
        headers = f"{_PLAIN_HEADERS}content-range: {content_range}\r\n"
        request = GcsRequest("PUT", session, headers, body, lease=lease_of(body))
        return await self._send("insert", name, request, also=RESUME_INCOMPLETE)

    async def request(self, operation: str, method: str, name: str, target: str, headers: str = "") -> bytes:
        """Send a request without a body; the body of the response. ``headers``: further header lines."""
        return (await self._send_timed(operation, name, GcsRequest(method, target, _PLAIN_HEADERS + headers))).content

    async def generation(self, name: str) -> str:
        """The generation of the live object; "0" if there is none."""
        target = self.target(self.object_path(name), self.params(fields="generation"))
        try:
            content = await self.request("get", "GET", name, target)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return "0"
        where = f"get {self.where(name)}"
        return str(number_of(where, document_of(where, content), "generation", least=1))

    async def post(
        self, operation: str, name: str, target: str, body: bytes = b"", content_type: str = "", headers: str = ""
    ) -> bytes:
        """Send a request that makes the service work on stored bytes; the body of the response. ``headers``: further
        header lines."""
        headers = _PLAIN_HEADERS + headers + (f"content-type: {content_type}\r\n" if body else "")
        return (await self._send(operation, name, GcsRequest("POST", target, headers, body, patient=True))).content

    async def read(
        self,
        name: str,
        params: Mapping[str, str],
        byte_range: str,
        sink: Sink,
        expect: Callable[[Mapping[str, str]], int | None],
    ) -> Mapping[str, str]:
        """Read the media into ``sink``; the headers of the response. ``byte_range`` is the value of a Range header, or
        empty. ``expect`` takes the headers and returns the expected length; None: unknown."""
        # A client that accepts gzip gets the stored bytes; for others the service decompresses gzip objects.
        headers = f"accept-encoding: gzip\r\n{self.key_headers}"
        headers += f"range: {byte_range}\r\n" if byte_range else ""
        request = GcsRequest("GET", self.target(self.object_path(name), {"alt": "media", **params}), headers)

        async def once(authorization: str | None) -> Response:
            return await self._transport.fetch(request, authorization, lambda head: expect(head.headers), sink)

        return (await self._authorized("get", name, once)).headers

    async def _send_timed(self, operation: str, name: str, request: GcsRequest) -> Response:
        began = asyncio.get_running_loop().time()
        response = await self._send(operation, name, request)
        self.round_trips.append(asyncio.get_running_loop().time() - began)
        return response

    async def _send(self, operation: str, name: str, request: GcsRequest, also: int = 0) -> Response:
        return await self._authorized(operation, name, lambda header: self._transport.send(request, header), also)

    async def _authorized(
        self, operation: str, name: str, once: Callable[[str | None], Awaitable[Response]], also: int = 0
    ) -> Response:
        """The response if it is a success or has the status ``also``; otherwise its error is raised."""
        renewed = False
        while True:
            header = await self._authorization()
            try:
                response = await once(header)
            except UntrustedCertificateError as error:
                raise StoreError(f"{operation} {self.where(name)}: {error}{UNTRUSTED_ADVICE}") from error
            except BrokenError as error:
                raise UnavailableError(f"{operation} {self.where(name)}: {error}") from error
            if response.status < 300 or response.status == also:
                return response
            response.content = self._without_secrets(response.content, header)
            if response.status != 401 or renewed or not self._access.renewable:
                raise failure(operation, self.where(name), response.status, response.headers, response.content)
            renewed = True
            await self._access.renew(header)

    def _without_secrets(self, content: bytes, authorization: str | None) -> bytes:
        """A document that an error shows. Some servers repeat what they received."""
        for secret in filter(None, (self._customer_key, (authorization or "").removeprefix("Bearer "))):
            content = content.replace(secret.encode(), b"***")
        return content

    async def _authorization(self) -> str | None:
        fresh, header = self._access.current()
        if not fresh:
            await self._access.renew(header)
            header = self._access.current()[1]
        return header


def is_session(target: str) -> bool:
    """Whether a text can be the target of a request. It comes from a server or a journal."""
    return re.fullmatch("/[!-~]{1,8192}", target) is not None


def batch_body(paths: Sequence[str]) -> bytes:
    """The body of a batch that deletes ``paths`` (encoded, with query)."""
    parts = (
        f"--{_BOUNDARY}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
        f"Content-ID: <{number}>\r\n\r\nDELETE {path} HTTP/1.1\r\n\r\n\r\n"
        for number, path in enumerate(paths)
    )
    return ("".join(parts) + f"--{_BOUNDARY}--\r\n").encode()


def batch_responses(content: bytes) -> list[tuple[int, int, bytes]] | None:
    """The responses in a batch: number of the call, status, body. None if the batch is malformed or incomplete.

    Responses come in any order and name their call by its Content-ID; without Content-ID the order is that of the
    calls."""
    mark, *_ = content.lstrip().partition(b"\r\n")
    if not mark.startswith(b"--") or not content.rstrip().endswith(mark + b"--"):
        return None
    responses: list[tuple[int, int, bytes]] = []
    for place, part in enumerate(content.strip().split(mark)[1:-1]):
        status = _BATCH_STATUS.search(part)
        if status is None:
            return None
        number = _BATCH_ID.search(part, 0, status.start())
        body = part[status.end() :].partition(b"\r\n\r\n")[2]
        responses.append((int(number[1]) if number else place, int(status[1]), body.strip()))
    return responses
