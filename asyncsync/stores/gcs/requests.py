"""Requests to the Cloud Storage JSON API, with a token of gcloud-aio-auth, on our own HTTP client.

Each call makes one attempt, except that a refused token is renewed once. Memory: one piece (1 MiB) and the socket's
buffer a request.

What is sent to Cloud Storage: an object's metadata and its media in one multipart/related body, and batches.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import quote, urlencode, urlsplit

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, lease_of
from asyncsync.errors import NoSuchBucketError, NotFoundError, StoreError, UnavailableError
from asyncsync.stores.base import Body, Sink
from asyncsync.stores.gcs.auth import Access
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.responses import document_of, number_of, refuse
from asyncsync.stores.gcs.transport import INCOMPLETE, Plane, Request
from asyncsync.stores.http.client import too_short
from asyncsync.stores.http.response import UNTRUSTED, Answer, BrokenError, UntrustedError

_BOUNDARY = secrets.token_hex(16)
"""One for all: 128 random bits are in nobody's data."""
_BEFORE = f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode()
_BETWEEN = (
    f"\r\n--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n".encode()
)
AFTER = f"\r\n--{_BOUNDARY}--\r\n".encode()

CALLS = 100
"""Most calls in a batch (Cloud Storage documentation, "Batch requests")."""
RELATED_TYPE = f"multipart/related; boundary={_BOUNDARY}"
BATCH_TYPE = f"multipart/mixed; boundary={_BOUNDARY}"
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})(?!\d)", re.MULTILINE)
_WHOSE = re.compile(rb"^Content-ID:\s*<?response-<?(\d{1,9})>?", re.MULTILINE | re.IGNORECASE)


def before_media(document: bytes) -> bytes:
    """What goes before the media of a multipart upload (RFC 2387); ``AFTER`` follows them."""
    return b"".join((_BEFORE, document, _BETWEEN))


def batch(paths: Sequence[str]) -> bytes:
    """A batch that deletes what is at ``paths`` (encoded, with query)."""
    parts = (
        f"--{_BOUNDARY}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
        f"Content-ID: <{number}>\r\n\r\nDELETE {path} HTTP/1.1\r\n\r\n\r\n"
        for number, path in enumerate(paths)
    )
    return ("".join(parts) + f"--{_BOUNDARY}--\r\n").encode()


def batch_answers(said: bytes) -> list[tuple[int, int, bytes]] | None:
    """Of each answer in a batch: to which call, its status, its body. None: this is no batch, or not all of one.

    Answers come in any order, and name their call by its Content-ID; where they do not, theirs is taken for that of the
    calls."""
    mark, *_ = said.lstrip().partition(b"\r\n")
    if not mark.startswith(b"--") or not said.rstrip().endswith(mark + b"--"):
        return None
    answers: list[tuple[int, int, bytes]] = []
    for place, part in enumerate(said.strip().split(mark)[1:-1]):
        status = _STATUS.search(part)
        if status is None:
            return None
        whose = _WHOSE.search(part, 0, status.start())
        body = part[status.end() :].partition(b"\r\n\r\n")[2]
        answers.append((int(whose[1]) if whose else place, int(status[1]), body.strip()))
    return answers


_PLAIN = "accept-encoding: identity\r\n"
_RELATED = f"{_PLAIN}content-type: {RELATED_TYPE}\r\n"
LATEST = 64
"""Round trips that are remembered."""


class Wire:
    """Requests of one bucket. Made inside a running loop; ``payer`` is the project that pays, ``base`` the path of the
    server's address, which ``plane`` puts before every target."""

    def __init__(self, bucket: str, access: Access, plane: Plane, payer: str | None, base: str = "") -> None:
        self.bucket = bucket
        self._base = base
        self._access = access
        self._plane = plane
        self._always = {} if payer is None else {"userProject": payer}
        self.trips: deque[float] = deque(maxlen=LATEST)
        """Seconds that the latest requests took that carried next to nothing."""

    async def close(self) -> None:
        await self._plane.close()
        await self._access.close()

    # What the address of a request is made of

    def params(self, **given: str | None) -> dict[str, str]:
        """Query parameters, those that every request has among them; None leaves one out."""
        return {**self._always, **{name: value for name, value in given.items() if value is not None}}

    def target(self, path: str, params: Mapping[str, str]) -> str:
        """``path`` begins with a slash and is encoded already."""
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
        """Metadata and media in one request; the answer's JSON."""
        lease = lease_of(body)
        if isinstance(body, FileRange) and body.size <= PIECE:
            body = await _whole(body)
        head = before_media(document)
        if isinstance(body, bytes):
            request = Request("POST", target, _RELATED, b"".join((head, body, AFTER)), lease=lease)
        else:
            request = Request("POST", target, _RELATED, body, head, AFTER, lease=lease)
        return (await self._exchange("insert", name, request)).content

    async def start_session(self, name: str, target: str, document: bytes, size: int) -> str:
        """Open a resumable upload of ``size`` bytes; the target of its further requests."""
        headers = f"{_PLAIN}content-type: application/json; charset=UTF-8\r\nx-upload-content-length: {size}\r\n"
        answer = await self._trip("insert", name, Request("POST", target, headers, document))
        try:
            found = urlsplit(answer.headers.get("location", ""))
        except ValueError:  # brackets around what is no address
            found = urlsplit("")
        if not is_session(f"{found.path}?{found.query}"):
            refuse(f"insert {self.where(name)}", "its Location names no upload session")
        # a server may know of the endpoint's path, or stand behind a proxy that strips it
        path = found.path.removeprefix(self._base) if found.path.startswith(f"{self._base}/") else found.path
        return f"{path}?{found.query}" if found.query else path

    async def continue_session(self, name: str, session: str, body: FileRange | None, content_range: str) -> Answer:
        """One chunk of a resumable upload or, without a body, the question how far it is; 200, 201 or 308."""
        headers = f"{_PLAIN}content-range: {content_range}\r\n"
        request = Request("PUT", session, headers, body, lease=lease_of(body))
        return await self._exchange("insert", name, request, also=INCOMPLETE)

    async def ask(self, operation: str, method: str, name: str, target: str) -> bytes:
        """A request without a body; the answer's."""
        return (await self._trip(operation, name, Request(method, target, _PLAIN))).content

    async def generation(self, name: str) -> str:
        """That of the live object; 0: there is none."""
        try:
            found = await self.ask(
                "get", "GET", name, self.target(self.object_path(name), self.params(fields="generation"))
            )
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return "0"
        where = f"get {self.where(name)}"
        return str(number_of(where, document_of(where, found), "generation", least=1))

    async def post(self, operation: str, name: str, target: str, body: bytes = b"", content_type: str = "") -> bytes:
        """A request that makes the service work; the answer's body."""
        headers = f"{_PLAIN}content-type: {content_type}\r\n" if body else _PLAIN
        return (await self._exchange(operation, name, Request("POST", target, headers, body, patient=True))).content

    async def read(
        self, name: str, params: Mapping[str, str], bounds: str, sink: Sink,
        expect: Callable[[Mapping[str, str]], int | None],
    ) -> Mapping[str, str]:  # fmt: skip
        """The media into ``sink``; ``bounds`` is the value of a Range header, or empty. ``expect`` takes the headers
        and gives the bytes that must come, None: unknown."""
        # Who accepts gzip gets the bytes as they are stored; others get what was compressed undone.
        headers = "accept-encoding: gzip\r\n" + (f"range: {bounds}\r\n" if bounds else "")
        request = Request("GET", self.target(self.object_path(name), {"alt": "media", **params}), headers)

        async def once(signed: str | None) -> Answer:
            return await self._plane.fetch(request, signed, lambda answer: expect(answer.headers), sink)

        return (await self._signed("get", name, once)).headers

    async def _trip(self, operation: str, name: str, request: Request) -> Answer:
        began = asyncio.get_running_loop().time()
        answer = await self._exchange(operation, name, request)
        self.trips.append(asyncio.get_running_loop().time() - began)
        return answer

    async def _exchange(self, operation: str, name: str, request: Request, also: int = 0) -> Answer:
        return await self._signed(operation, name, lambda signed: self._plane.send(request, signed), also)

    async def _signed(
        self, operation: str, name: str, once: Callable[[str | None], Awaitable[Answer]], also: int = 0
    ) -> Answer:
        """The answer if it is a success or has the status ``also``, its error otherwise."""
        renewed = False
        while True:
            header = await self._authorization()
            try:
                answer = await once(header)
            except UntrustedError as error:
                raise StoreError(f"{operation} {self.where(name)}: {error}{UNTRUSTED}") from error
            except BrokenError as error:
                raise UnavailableError(f"{operation} {self.where(name)}: {error}") from error
            if answer.status < 300 or answer.status == also:
                return answer
            if answer.status != 401 or renewed or not self._access.renewable:
                raise failure(operation, self.where(name), answer.status, answer.headers, answer.content)
            renewed = True
            await self._access.renew(header)

    async def _authorization(self) -> str | None:
        fresh, header = self._access.current()
        if not fresh:
            await self._access.renew(header)
            header = self._access.current()[1]
        return header


def is_session(target: str) -> bool:
    """Whether it can be the target of a request: some server said so, or a journal."""
    return re.fullmatch("/[!-~]{1,8192}", target) is not None


async def _whole(body: FileRange) -> bytes:
    data = await in_thread(body.read, 0, body.size) if body.size else b""
    if len(data) < body.size:
        raise too_short(body, len(data))
    return data
