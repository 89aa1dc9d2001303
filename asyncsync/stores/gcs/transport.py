"""How a request to Cloud Storage travels: its parts, the transport protocol, and the direct transport.

:mod:`asyncsync.stores.gcs.proxy_transport` is the other transport, for servers behind a proxy.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

from asyncsync.disk.files import FileRange, Lease
from asyncsync.stores.base import Sink
from asyncsync.stores.http.client import USER_AGENT, HttpClient
from asyncsync.stores.http.pool import Host, port_of
from asyncsync.stores.http.response import Response
from asyncsync.stores.options import ConnectionLimits

PATIENT_STALL_TIMEOUT = 90.0
"""Minimum stall timeout (s) while the service works on stored bytes: a compose, or one step of a rewrite."""
PATIENT_CONNECTIONS = 16
MAX_RESPONSE_BYTES = 1 << 24
"""Largest response kept in memory. A page of 1,000 objects with names of 1,024 bytes has 2 MB."""
RESUME_INCOMPLETE = 308
"""Status of a resumable upload that needs more bytes (Cloud Storage documentation, "Resumable uploads")."""


@dataclass(frozen=True, slots=True)
class GcsRequest:
    """One request. ``target`` and ``headers`` (lines with their ends) are rendered, because they cost time for each
    object."""

    method: str
    target: str
    headers: str = ""
    body: bytes | FileRange | None = None
    before: bytes = b""
    """Sent before the body, and counted in its length."""
    after: bytes = b""
    patient: bool = False
    """The service may take long to respond: see PATIENT_STALL_TIMEOUT."""
    lease: Lease | None = None
    """The body is sent under this lease. If it expires, LeaseExpiredError is raised and the request stays
    incomplete."""

    @property
    def size(self) -> int:
        """Content-Length."""
        if self.body is None:
            return 0
        return len(self.before) + (len(self.body) if isinstance(self.body, bytes) else self.body.size) + len(self.after)


class Transport(Protocol):
    """Carries requests. BrokenError if there is no response; a response with any status is not an error."""

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        """The response with its body, of at most 16 MiB."""

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        """The response, with the body of a success in ``sink``. ``expect`` returns the expected length;
        None: unknown."""

    async def close(self) -> None:
        """Close all connections."""


class DirectTransport:
    """Requests by :mod:`asyncsync.stores.http.client`, with a third of the CPU time of aiohttp's session. Create it
    inside a running loop."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None, limits: ConnectionLimits) -> None:
        server = urlsplit(endpoint)
        self._base, self._host = server.path.rstrip("/"), server.netloc.rpartition("@")[2]
        host = Host(server.hostname or "", port_of(server), context)
        self._http = HttpClient(host, limits)
        patient = replace(
            limits,
            stall_timeout=max(PATIENT_STALL_TIMEOUT, limits.stall_timeout),
            max_connections=min(PATIENT_CONNECTIONS, limits.max_connections),
        )
        self._patient = HttpClient(host, patient)

    async def close(self) -> None:
        await self._http.close()
        await self._patient.close()

    def _head(self, request: GcsRequest, authorization: str | None) -> bytes:
        signed = "" if authorization is None else f"authorization: {authorization}\r\n"
        length = f"content-length: {request.size}\r\n" if request.method != "GET" else ""
        return (
            f"{request.method} {self._base}{request.target} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"user-agent: {USER_AGENT}\r\naccept: */*\r\n{request.headers}{signed}{length}\r\n"
        ).encode()

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        http = self._patient if request.patient else self._http
        return await http.send(
            self._head(request, authorization) + request.before,
            request.body,
            suffix=request.after,
            max_body=MAX_RESPONSE_BYTES,
            lease=request.lease,
            also=RESUME_INCOMPLETE,
        )

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        return await self._http.fetch(self._head(request, authorization), expect, sink)
