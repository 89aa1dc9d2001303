"""How a request to Azure Blob Storage travels: authorized, on our own HTTP client.

Each call makes one attempt, except that a refused token is renewed once and a wrong clock is corrected once. Memory per
request: one piece (1 MiB) and the socket's buffer.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from asyncsync.disk.files import FileRange, Lease
from asyncsync.errors import ConfigError, StoreError, UnavailableError
from asyncsync.stores.azure.auth import SAS_SECONDS, AzureAccess
from asyncsync.stores.azure.errors import failure
from asyncsync.stores.azure.signer import date_of
from asyncsync.stores.base import Sink
from asyncsync.stores.http.client import USER_AGENT, HttpClient
from asyncsync.stores.http.dates import unix_of
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE, BrokenError, UntrustedCertificateError
from asyncsync.stores.http.pool import Host, port_of
from asyncsync.stores.http.response import Response
from asyncsync.stores.options import ConnectionLimits

API_VERSION = "2021-12-02"
"""Version of the REST API: the oldest with CRC64, 5,000 MiB in one Put Blob, and tokens for copy sources."""
MAX_RESPONSE_BYTES = 1 << 24
"""Largest response kept in memory. A block list of 50,000 + 50,000 blocks has 9 MB."""
PATIENT_STALL_TIMEOUT = 90.0
"""Minimum stall timeout (s) while the service works on stored bytes: a copy, or the commit of many blocks."""
PATIENT_CONNECTIONS = 16
CLOCK_TOLERANCE = 300.0
"""Seconds by which a refused request's clock must differ from the service's to be the likely cause (the service accepts
15 minutes)."""
_UNSIGNED_LINES = f"accept: */*\r\naccept-encoding: identity\r\nuser-agent: {USER_AGENT}\r\n"


@dataclass(slots=True)
class AzureRequest:
    """One request. ``headers`` exclude those that depend on time and credentials. An empty key addresses the container;
    ``query`` is encoded."""

    operation: str
    method: str
    key: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileRange | None = None
    lease: Lease | None = None
    patient: bool = False
    """The service may take long to respond: see PATIENT_STALL_TIMEOUT."""


class AzureTransport:
    """Sends the requests of one container. Create it inside a running loop."""

    def __init__(
        self,
        container: str,
        access: AzureAccess,
        context: ssl.SSLContext | None,
        limits: ConnectionLimits,
    ) -> None:
        server = urlsplit(access.account.endpoint)
        self.container = container
        self.https = server.scheme == "https"
        self._access, self._host = access, server.netloc
        self._base = server.path.rstrip("/")
        self._path = f"{self._base}/{quote(container)}"
        host = Host(server.hostname or "", port_of(server), context)
        self._http = HttpClient(host, limits)
        patient = replace(
            limits,
            stall_timeout=max(PATIENT_STALL_TIMEOUT, limits.stall_timeout),
            max_connections=min(PATIENT_CONNECTIONS, limits.max_connections),
        )
        self._patient = HttpClient(host, patient)
        self._date = (-1, "")
        """The current second, and the same as ``x-ms-date``."""
        self._source_sas = (0.0, "")
        """The time from which the SAS for copy sources is renewed, and the SAS."""
        self.skew = 0.0
        """Seconds by which the service's clock is ahead of ours."""

    async def close(self) -> None:
        await self._http.close()
        await self._patient.close()
        await self._access.close()

    def where(self, key: str) -> str:
        return f"az://{self.container}/{key}"

    async def send(self, request: AzureRequest) -> Response:
        """The response if it is a success, with its body of at most 16 MiB; otherwise its error is raised."""
        http = self._patient if request.patient else self._http
        bodiless = request.method == "HEAD"

        async def once(head: bytes) -> Response:
            return await http.send(
                head, request.body, bodiless=bodiless, max_body=MAX_RESPONSE_BYTES, lease=request.lease
            )

        return await self._exchange(request, once)

    async def fetch(self, request: AzureRequest, sink: Sink, expect: Callable[[Response], int | None]) -> Response:
        """The same with the body in ``sink``. ``expect`` returns the expected length; None: unknown."""

        async def once(head: bytes) -> Response:
            return await self._http.fetch(head, expect, sink)

        return await self._exchange(request, once)

    async def _exchange(self, request: AzureRequest, once: Callable[[bytes], Awaitable[Response]]) -> Response:
        corrected: set[str] = set()
        while True:
            bearer = await self._bearer()
            try:
                response = await once(self._head(request, bearer))
            except UntrustedCertificateError as error:
                raise StoreError(f"{self._named(request)}: {error}{UNTRUSTED_ADVICE}") from error
            except BrokenError as error:
                raise UnavailableError(f"{self._named(request)}: {error}") from error
            if response.status < 300:
                return response
            kind = self._correctable(response)
            if not kind or kind in corrected:
                shown = _without(response.content, bearer.removeprefix("Bearer "))
                raise failure(request.operation, self.where(request.key), response.status, response.headers, shown)
            corrected.add(kind)
            if kind == "expired":
                await self._access.renew(bearer)

    def _named(self, request: AzureRequest) -> str:
        return f"{request.operation} {self.where(request.key)}"

    def _correctable(self, response: Response) -> str:
        """The kind of a failure that can be corrected, or empty. A wrong clock is corrected here."""
        if response.status == 401 and self._access.renewable:
            return "expired"
        if response.status != 403 or self._access.signer is None:
            return ""
        server = unix_of(response.headers.get("date", ""))
        if server is None or abs(server - time.time() - self.skew) < CLOCK_TOLERANCE:
            return ""
        self.skew = server - time.time()
        return "skewed"

    async def _bearer(self) -> str:
        fresh, header = self._access.current()
        if not fresh:
            await self._access.renew(header)
            header = self._access.current()[1]
        return header

    # Heads

    def _head(self, request: AzureRequest, bearer: str) -> bytes:
        """The request line and the headers, authorized."""
        path = f"{self._path}/{quote(request.key, safe='/~')}" if request.key else self._path
        headers = {"x-ms-date": self._now(), "x-ms-version": API_VERSION, **request.headers}
        body = request.body
        if body is not None:
            headers["content-length"] = str(len(body) if isinstance(body, bytes) else body.size)
        target = f"{path}?{request.query}" if request.query else path
        self._authorize(headers, request.method, path, request.query, bearer)
        if sas := self._access.account.sas:
            target += f"&{sas}" if request.query else f"?{sas}"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ConfigError("a storage option contains a line break and cannot be sent as a header: remove it")
        return f"{request.method} {target} HTTP/1.1\r\nhost: {self._host}\r\n{_UNSIGNED_LINES}{lines}\r\n".encode()

    def _authorize(self, headers: dict[str, str], method: str, path: str, query: str, bearer: str) -> None:
        if self._access.signer is not None:
            headers["authorization"] = self._access.signer.authorization(method, path, query, headers)
        elif bearer:
            headers["authorization"] = bearer

    def _now(self) -> str:
        now = int(time.time() + self.skew)
        if now != self._date[0]:
            self._date = (now, date_of(now))
        return self._date[1]

    # Requests inside a batch, and sources of copies

    async def part_of_batch(self, method: str, key: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Target and headers of a request that travels inside another one; each is authorized by itself."""
        path = f"{self._path}/{quote(key, safe='/~')}"
        made = {"x-ms-date": self._now(), **headers, "content-length": "0"}
        self._authorize(made, method, path, "", await self._bearer())
        sas = self._access.account.sas
        return (f"{path}?{sas}" if sas else path), made

    async def copy_source(self, key: str) -> dict[str, str]:
        """Headers that name the source of a copy in this container, and authorize the service to read it."""
        address = f"{'https' if self.https else 'http'}://{self._host}{self._path}/{quote(key, safe='/~')}"
        sas = self._access.account.sas or self._read_sas()
        headers = {"x-ms-copy-source": f"{address}?{sas}" if sas else address}
        if bearer := await self._bearer():
            headers["x-ms-copy-source-authorization"] = bearer
        return headers

    def _read_sas(self) -> str:
        if self._access.signer is None:
            return ""
        now = time.time() + self.skew
        if now > self._source_sas[0]:
            expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + SAS_SECONDS))
            made = self._access.signer.read_sas(self.container, expiry, https=self.https)
            self._source_sas = (now + SAS_SECONDS / 2, made)
        return self._source_sas[1]


def _without(content: bytes, secret: str) -> bytes:
    """A response for an error message: without the token, in case the server repeats it."""
    return content.replace(secret.encode(), b"***") if secret else content
