"""How a request to S3 travels: signed by us, on our own HTTP client.

One such request costs a tenth of the same call through aiobotocore. Each call makes one attempt, except that an expired
token, a wrong clock and a bucket in another region are corrected once. Memory per request: one piece (1 MiB) and the
socket's buffer.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

from asyncsync.disk.files import FileRange, Lease
from asyncsync.errors import AsyncsyncError, ConfigError, StoreError, UnavailableError
from asyncsync.stores.base import Sink
from asyncsync.stores.http.client import USER_AGENT, HttpClient
from asyncsync.stores.http.connection import MAX_COLLECTED_BODY
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE, BrokenError, UntrustedCertificateError
from asyncsync.stores.http.pool import Host
from asyncsync.stores.http.response import Response
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3.endpoint import Endpoint, S3Access
from asyncsync.stores.s3.errors import (
    EXPIRED,
    EXPLAINED_BY_GET,
    MISDIRECTED,
    SKEWED,
    S3Failure,
    parse_failure,
    server_time,
)
from asyncsync.stores.s3.signer import UNSIGNED_PAYLOAD, Signer, timestamp_of

_UNSIGNED_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": USER_AGENT}


@dataclass(slots=True)
class S3Request:
    """One request. ``headers`` exclude those that depend on time and credentials. An empty key addresses the bucket."""

    operation: str
    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes | FileRange | None
    lease: Lease | None = None


class SignedTransport:
    """Sends the requests of one bucket. Create it inside a running loop."""

    def __init__(
        self,
        bucket: str,
        endpoint: Endpoint,
        access: S3Access,
        *,
        ssl_context: ssl.SSLContext | None,
        limits: ConnectionLimits,
        operation_headers: Callable[[str], Mapping[str, str]],
        customer_key: str | None = None,
    ) -> None:
        self.bucket = bucket
        self._access = access
        self._ssl_context = ssl_context
        self._limits = limits
        self._operation_headers = operation_headers
        self._common_headers: dict[str, dict[str, str]] = {}
        """Headers of every request, by operation."""
        self._customer_key = customer_key
        self._signer: Signer | None = None
        self._timestamp = (-1, "")
        """The current second, and the same as ``x-amz-date``."""
        self._replaced: list[HttpClient] = []
        """Clients of earlier endpoints, which requests may still use."""
        self.skew = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self._connect_to(endpoint)

    def _connect_to(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._host, self._path = endpoint.host, endpoint.path  # parsed once, not for each request
        self._signer = None
        tls = self._ssl_context if endpoint.base.startswith("https:") else None
        self._http = HttpClient(Host(endpoint.hostname, endpoint.port, tls), self._limits)

    async def close(self) -> None:
        for http in (*self._replaced, self._http):
            await http.close()

    @property
    def busy(self) -> int:
        """Requests in flight."""
        return sum(http.busy for http in (*self._replaced, self._http))

    def where(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    async def send(self, request: S3Request, max_body: int = MAX_COLLECTED_BODY) -> Response:
        """The response if it is a success, with the first ``max_body`` bytes of its body; otherwise its error is
        raised."""

        def once(http: HttpClient, head: bytes) -> Awaitable[Response]:
            bodiless = request.method == "HEAD"
            return http.send(head, request.body, bodiless=bodiless, max_body=max_body, lease=request.lease)

        return await self._exchange(request, once)

    async def fetch(
        self, request: S3Request, sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Response:
        """The same with the body in ``sink``. ``expect`` takes status and headers, and returns the expected length;
        None: unknown."""

        def once(http: HttpClient, head: bytes) -> Awaitable[Response]:
            return http.fetch(head, lambda response: expect(response.status, response.headers), sink)

        return await self._exchange(request, once)

    async def _exchange(self, request: S3Request, once: Callable[[HttpClient, bytes], Awaitable[Response]]) -> Response:
        corrected: set[str] = set()
        while True:
            head, http = await self._head(request), self._http
            try:
                response = await once(http, head)
            except UntrustedCertificateError as error:
                raise StoreError(f"{self._named(request)}: {error}{UNTRUSTED_ADVICE}") from error
            except BrokenError as error:
                raise UnavailableError(f"{self._named(request)}: {error}") from error
            if response.content:
                response.content = self._without_secrets(response.content)
            if response.status < 300:
                return response
            failure = self._failure(request, response)
            kind = _correctable(failure, self.endpoint.region)
            if not kind and request.method == "HEAD" and response.status in EXPLAINED_BY_GET:
                failure = await self._explain(request, failure)
                kind = _correctable(failure, self.endpoint.region)
            if not kind or kind in corrected:
                raise failure.error()
            corrected.add(kind)
            await self._correct(kind, failure, http)

    def _without_secrets(self, content: bytes) -> bytes:
        """A document that an error may show. Some servers repeat what they received."""
        token = None if self._signer is None else self._signer.token
        for secret in filter(None, (self._customer_key, token)):
            content = content.replace(secret.encode(), b"***")
        return content

    def _named(self, request: S3Request) -> str:
        return f"{request.operation} {self.where(request.key)}"

    def _failure(self, request: S3Request, response: Response) -> S3Failure:
        where = self.where(request.key)
        return parse_failure(request.operation, where, response.status, response.headers, response.content)

    async def _explain(self, request: S3Request, failure: S3Failure) -> S3Failure:
        """Why a HEAD was refused. Its response has no document, so ask again with a GET of one byte."""
        probe = replace(request, method="GET", headers=request.headers | {"range": "bytes=0-0"})
        try:
            response = await self._http.send(await self._head(probe), None)
        except BrokenError:
            return failure
        response.content = self._without_secrets(response.content)
        found = self._failure(request, response)
        return found if response.status >= 300 and found.code else failure

    # Heads and signatures

    async def _head(self, request: S3Request) -> bytes:
        """The request line and the headers, signed."""
        path = self._path + quote(request.key, safe="/~") if request.key else self._path.rstrip("/") or "/"
        headers = await self._headers(request, path)
        if request.body is not None:
            size = len(request.body) if isinstance(request.body, bytes) else request.body.size
            headers["content-length"] = str(size)
        target = f"{path}?{request.query}" if request.query else path
        lines = [f"{request.method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
        text = "\r\n".join([*lines, "\r\n"])
        if text.count("\n") != len(headers) + 2:
            raise ConfigError("a storage option contains a line break and cannot be sent as a header: remove it")
        return text.encode()

    async def _headers(self, request: S3Request, path: str) -> dict[str, str]:
        now = int(time.time() + self.skew)
        if now != self._timestamp[0]:
            self._timestamp = (now, timestamp_of(now))
        timestamp = self._timestamp[1]
        signer = await self._current_signer()
        if signer is None:
            unsigned = self._operation_headers(request.operation)
            return {"host": self._host, **unsigned, **request.headers, **_UNSIGNED_HEADERS}
        common = self._common_headers.get(request.operation) or self._learn_common_headers(request.operation)
        headers = {"host": self._host, "x-amz-date": timestamp, **common, **request.headers}
        if signer.token:
            headers["x-amz-security-token"] = signer.token
        payload = headers["x-amz-content-sha256"]
        signature = signer.authorization(request.method, path, request.query, headers, payload, timestamp)
        headers["authorization"] = signature
        headers.update(_UNSIGNED_HEADERS)
        return headers

    def _learn_common_headers(self, operation: str) -> dict[str, str]:
        common = {"x-amz-content-sha256": UNSIGNED_PAYLOAD, **self._operation_headers(operation)}
        self._common_headers[operation] = common
        return common

    async def _current_signer(self) -> Signer | None:
        found = await self._access.credentials()
        if found is None:
            return None
        access_key, secret_key, token = found
        signer = self._signer
        if signer is None or signer.access_key != access_key or signer.token != token:
            signer = Signer(access_key, secret_key, token, self.endpoint.region, self.endpoint.service)
            self._signer = signer
        return signer

    # Corrections

    async def _correct(self, kind: str, failure: S3Failure, http: HttpClient) -> None:
        """Correct the cause of a failure, so that the same request may succeed."""
        if kind == "expired":
            await self._access.renew()
            self._signer = None
        elif kind == "skewed":
            server = server_time(failure.headers)
            self.skew = 0.0 if server is None else server - time.time()
        else:
            try:
                endpoint = await self._access.relocate(failure.region, failure.location)
            except AsyncsyncError as error:
                raise failure.error() from error
            if self._http is http:  # else another request was redirected first
                self._replaced.append(http)
                self._connect_to(endpoint)


def _correctable(failure: S3Failure, region: str) -> str:
    """The kind of a failure that can be corrected, or empty. Without a document, as after HEAD, the bucket's region in
    a header decides."""
    if failure.code in EXPIRED:
        return "expired"
    if failure.code in SKEWED:
        return "skewed"
    if failure.code in MISDIRECTED or failure.status in (301, 302, 303, 307, 308):
        return "misdirected" if failure.region or failure.location else ""
    elsewhere = failure.status in (400, 403) and not failure.code and failure.region not in ("", region)
    return "misdirected" if elsewhere else ""
