"""The S3 data plane: what a transfer needs, as requests that we sign and send ourselves: PutObject, GetObject,
HeadObject, the multipart upload, copies and deletes.

One such request costs a tenth of the same call through aiobotocore. Endpoint, addressing and credentials come from
:mod:`asyncsync.stores.s3.aiobotocore.client`. Each call makes one attempt, except that an expired token, a wrong clock
and a bucket in another region are corrected once. Memory: one piece (1 MiB) and the socket's buffer per request.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, Lease
from asyncsync.errors import AsyncsyncError, ConfigError, StoreError, UnavailableError
from asyncsync.stores.base import Body, Part, Sink
from asyncsync.stores.http.body import source_too_short
from asyncsync.stores.http.client import HttpClient
from asyncsync.stores.http.connection import MAX_COLLECTED_BODY
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE, BrokenError, UntrustedCertificateError
from asyncsync.stores.http.pool import Host
from asyncsync.stores.http.response import Response
from asyncsync.stores.s3.endpoint import Endpoint, S3Access
from asyncsync.stores.s3.errors import (
    EXPIRED,
    MISDIRECTED,
    SKEWED,
    S3Failure,
    parse_failure,
    server_time,
)
from asyncsync.stores.s3.responses import check_result, names_etag
from asyncsync.stores.s3.signer import UNSIGNED_PAYLOAD, Signer, timestamp_of
from asyncsync.stores.s3.xml import complete_document, delete_document, failed_deletes, text_of

_MAX_DELETE_RESPONSE = 8 << 20
"""Most bytes of an answer that names a thousand keys."""
_EXPLAINED_BY_GET = frozenset({400, 401, 403, 501})
"""What a HEAD is refused with for reasons that only a document tells."""
_UNSIGNED = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "asyncsync"}


@dataclass(slots=True)
class _Call:
    """One request; ``headers`` without those that depend on time and credentials. Without a key: of the bucket."""

    operation: str
    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes | FileRange | None
    lease: Lease | None = None


class S3Requests:
    """Signed requests of one bucket. Made inside a running loop."""

    def __init__(
        self, bucket: str, target: Endpoint, access: S3Access, *, ssl_context: ssl.SSLContext | None,
        stall_timeout: float, connect_timeout: float, max_connections: int, headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._bucket = bucket
        self._access = access
        self._ssl_context = ssl_context
        self._limits: dict[str, Any] = {
            "stall_timeout": stall_timeout,
            "connect_timeout": connect_timeout,
            "max_connections": max_connections,
        }
        self._fixed = {"x-amz-content-sha256": UNSIGNED_PAYLOAD, **headers}
        self._signer: Signer | None = None
        self._stamp = (-1, "")
        self._old: list[HttpClient] = []
        self.skew = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self._aim(target)

    def _aim(self, target: Endpoint) -> None:
        self._target = target
        self._path, self._host = target.path, target.host
        self._signer = None
        tls = self._ssl_context if target.base.startswith("https:") else None
        self._http = HttpClient(Host(target.hostname, target.port, tls), **self._limits)

    async def close(self) -> None:
        for http in (*self._old, self._http):
            await http.close()

    @property
    def busy(self) -> int:
        """Requests under way."""
        return sum(http.busy for http in (*self._old, self._http))

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """Send one body (PutObject, UploadPart); the headers of the answer."""
        lease = None
        if isinstance(body, FileRange) and body.size <= PIECE:
            lease, body = body.lease, await _whole(body)
        call = _Call(operation, "PUT", key, query, headers, body, lease)
        answer = await self._send(call)
        if not names_etag(answer.status, answer.headers):
            self._result(call, answer)
        return answer.headers

    async def head(self, key: str, headers: dict[str, str]) -> Mapping[str, str]:
        """HeadObject; the headers of the answer."""
        return (await self._send(_Call("HeadObject", "HEAD", key, "", headers, None))).headers

    async def create(self, key: str, headers: dict[str, str]) -> tuple[str, Mapping[str, str]]:
        """CreateMultipartUpload; the upload's id and the headers of the answer."""
        call = _Call("CreateMultipartUpload", "POST", key, "uploads=", headers, b"")
        answer = await self._send(call)
        return text_of(self._document(call, answer), "UploadId"), answer.headers

    async def complete(
        self, key: str, upload_id: str, parts: Sequence[Part], headers: dict[str, str], lease: Lease | None = None, *,
        checksums: bool,
    ) -> Mapping[str, str]:  # fmt: skip
        """CompleteMultipartUpload; what the answer says: ETag, and ChecksumCRC32C, ChecksumType, which may be empty."""
        body = complete_document(parts, checksums=checksums)
        headers |= {"content-type": "application/xml", "x-amz-content-sha256": sha256(body).hexdigest()}
        call = _Call("CompleteMultipartUpload", "POST", key, _of_upload(upload_id), headers, body, lease)
        return await self._said(call)

    async def copy(
        self, operation: str, key: str, query: str, source: str, headers: dict[str, str], lease: Lease | None = None
    ) -> Mapping[str, str]:
        """CopyObject, UploadPartCopy from the key ``source``; what the answer says, as for :meth:`complete`."""
        headers["x-amz-copy-source"] = quote(f"{self._bucket}/{source}", safe="/~")
        call = _Call(operation, "PUT", key, query, headers, b"", lease)
        return await self._said(call)

    async def _said(self, call: _Call) -> Mapping[str, str]:
        result = self._document(call, await self._send(call))
        return {name: text_of(result, name) for name in ("ETag", "ChecksumCRC32C", "ChecksumType")}

    async def delete(self, key: str, lease: Lease | None = None) -> None:
        """DeleteObject."""
        call = _Call("DeleteObject", "DELETE", key, "", {}, None, lease)
        self._result(call, await self._send(call))

    async def delete_many(self, keys: Sequence[str], lease: Lease | None = None) -> list[tuple[str, str, str]]:
        """DeleteObjects; key, code and message of those that the store could not delete."""
        body = delete_document(keys)
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = {"content-type": "application/xml", "content-md5": md5}
        headers["x-amz-content-sha256"] = sha256(body).hexdigest()
        call = _Call("DeleteObjects", "POST", "", "delete=", headers, body, lease)
        return failed_deletes(self._document(call, await self._send(call, most=_MAX_DELETE_RESPONSE)))

    async def abort(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload."""
        call = _Call("AbortMultipartUpload", "DELETE", key, _of_upload(upload_id), {}, None)
        self._result(call, await self._send(call))

    def _result(self, call: _Call, answer: Response) -> Element | None:
        """See :func:`check_result`."""
        where = self.where(call.key)
        return check_result(call.operation, where, answer.status, answer.headers, answer.content)

    def _document(self, call: _Call, answer: Response) -> Element:
        result = self._result(call, answer)
        assert result is not None
        return result

    async def _send(self, call: _Call, most: int = MAX_COLLECTED_BODY) -> Response:
        async def once(http: HttpClient, head: bytes) -> Response:
            return await http.send(head, call.body, bodiless=call.method == "HEAD", max_body=most, lease=call.lease)

        return await self._exchange(call, once)

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``. ``expect`` takes status and headers and gives the bytes that must come."""

        async def once(http: HttpClient, head: bytes) -> Response:
            return await http.fetch(head, lambda answer: expect(answer.status, answer.headers), sink)

        return (await self._exchange(_Call("GetObject", "GET", key, "", headers, None), once)).headers

    def where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def _exchange(self, call: _Call, once: Callable[[HttpClient, bytes], Awaitable[Response]]) -> Response:
        """The answer to ``call`` if it is a success, its error otherwise."""
        repaired: set[str] = set()
        while True:
            head, http = await self._head(call), self._http
            try:
                answer = await once(http, head)
            except UntrustedCertificateError as error:
                raise StoreError(f"{call.operation} {self.where(call.key)}: {error}{UNTRUSTED_ADVICE}") from error
            except BrokenError as error:
                raise UnavailableError(f"{call.operation} {self.where(call.key)}: {error}") from error
            if answer.status < 300:
                return answer
            failure = self._failure(call, answer)
            kind = _kind(failure, self._target.region)
            if not kind and call.method == "HEAD" and answer.status in _EXPLAINED_BY_GET:
                failure = await self._reason(call, failure)
                kind = _kind(failure, self._target.region)
            if not kind or kind in repaired:
                raise failure.error()
            repaired.add(kind)
            await self._repair(kind, failure, http)

    def _failure(self, call: _Call, answer: Response) -> S3Failure:
        return parse_failure(call.operation, self.where(call.key), answer.status, answer.headers, answer.content)

    async def _reason(self, call: _Call, refused: S3Failure) -> S3Failure:
        """Why a HEAD was refused: its response has no document, that to a GET of a byte has one."""
        probe = replace(call, method="GET", headers=call.headers | {"range": "bytes=0-0"})
        try:
            answer = await self._http.send(await self._head(probe), None)
        except BrokenError:
            return refused
        found = self._failure(call, answer)
        return found if answer.status >= 300 and found.code else refused

    async def _head(self, call: _Call) -> bytes:
        """The request line and the headers, signed."""
        path = self._path + quote(call.key, safe="/~") if call.key else self._path.rstrip("/") or "/"
        headers = await self._headers(call, path)
        if call.body is not None:
            size = len(call.body) if isinstance(call.body, bytes) else call.body.size
            headers["content-length"] = str(size)
        line = f"{call.method} {path}?{call.query} HTTP/1.1" if call.query else f"{call.method} {path} HTTP/1.1"
        text = "\r\n".join([line, *[f"{name}: {value}" for name, value in headers.items()], "\r\n"])
        if text.count("\n") != len(headers) + 2:
            raise ConfigError("a storage option holds a line break; it cannot be sent as a header")
        return text.encode()

    async def _headers(self, call: _Call, path: str) -> dict[str, str]:
        now = int(time.time() + self.skew)
        if now != self._stamp[0]:
            self._stamp = (now, timestamp_of(now))
        stamp = self._stamp[1]
        signer = await self._current_signer()
        if signer is None:
            return {"host": self._host, **call.headers, **_UNSIGNED}
        headers = {"host": self._host, "x-amz-date": stamp, **self._fixed, **call.headers}
        if signer.token:
            headers["x-amz-security-token"] = signer.token
        payload = headers["x-amz-content-sha256"]
        signature = signer.authorization(call.method, path, call.query, headers, payload, stamp)
        headers["authorization"] = signature
        headers.update(_UNSIGNED)
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

    async def _repair(self, kind: str, failure: S3Failure, http: HttpClient) -> None:
        """Put right what can be put right, so that the same request may succeed."""
        if kind == "expired":
            await self._access.renew()
            self._signer = None
        elif kind == "skewed":
            server = server_time(failure.headers)
            self.skew = 0.0 if server is None else server - time.time()
        else:
            try:
                target = await self._access.relocate(failure.region, failure.location)
            except AsyncsyncError as error:
                raise failure.error() from error
            if self._http is http:  # else somebody else was sent on before us
                self._old.append(http)  # others may be using it still
                self._aim(target)


def _kind(failure: S3Failure, region: str) -> str:
    """What can be put right. Without a document, as after HEAD, the region of the bucket in a header tells."""
    if failure.code in EXPIRED:
        return "expired"
    if failure.code in SKEWED:
        return "skewed"
    if failure.code in MISDIRECTED or failure.status in (301, 302, 303, 307, 308):
        return "misdirected" if failure.region or failure.location else ""
    elsewhere = failure.status in (400, 403) and not failure.code and failure.region not in ("", region)
    return "misdirected" if elsewhere else ""


def _of_upload(upload_id: str) -> str:
    return f"uploadId={quote(upload_id, safe='')}"


async def _whole(body: FileRange) -> bytes:
    data = await in_thread(body.read, 0, body.size) if body.size else b""
    if len(data) < body.size:
        raise source_too_short(body, len(data))
    return data


def supports_bucket(bucket: str) -> bool:
    """Whether our own requests reach this bucket: not for ARNs and directory buckets."""
    return not bucket.startswith("arn:") and not bucket.endswith(("--x-s3", "--xa-s3"))
