"""How a request to Cloud Storage travels: what it is made of, and our own HTTP client that carries it.

The other carrier, for proxies, is :mod:`asyncsync.stores.gcs.proxy_transport`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from asyncsync.disk.files import FileRange, Lease
from asyncsync.stores.base import Sink
from asyncsync.stores.http.client import HttpClient
from asyncsync.stores.http.pool import Host
from asyncsync.stores.http.response import Response

PATIENT_STALL_TIMEOUT = 90.0
"""Silence allowed while the service works on stored bytes: compose and one step of a rewrite."""
PATIENT_CONNECTIONS = 16
MAX_RESPONSE_BYTES = 1 << 24
"""Bytes of an answer that are kept in memory. A page of 1,000 objects with names of 1,024 bytes has 2 MB."""
RESUME_INCOMPLETE = 308
"""A resumable upload has taken what came and waits for more (Cloud Storage documentation, "Resumable uploads")."""
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class GcsRequest:
    """One request. ``target`` and ``headers`` (a line each, with its end) are rendered: bulk pays for each object."""

    method: str
    target: str
    headers: str = ""
    body: bytes | FileRange | None = None
    before: bytes = b""
    """What goes out before the body, and counts as part of it."""
    after: bytes = b""
    patient: bool = False
    """The service may be silent for a while before it answers."""
    lease: Lease | None = None
    """Under which the body is sent: LeaseExpiredError, and nobody can carry the request out."""

    @property
    def size(self) -> int:
        """Content-Length."""
        if self.body is None:
            return 0
        return len(self.before) + (len(self.body) if isinstance(self.body, bytes) else self.body.size) + len(self.after)


class Transport(Protocol):
    """Carries requests. BrokenError if no answer came; an answer of any status is no error."""

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        """The answer with its body, at most 16 MiB of it."""

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        """The body of a success goes to ``sink``; ``expect`` gives the bytes that must come, None:
        unknown."""

    async def close(self) -> None:
        """Free all connections."""


class DirectTransport:
    """Requests by :mod:`asyncsync.stores.http.client`: a third of the CPU time of aiohttp's session. Must be created
    inside a running loop."""

    def __init__(
        self, endpoint: str, context: ssl.SSLContext | None, *, stall_timeout: float, connect_timeout: float,
        max_connections: int,
    ) -> None:  # fmt: skip
        server = urlsplit(endpoint)
        self._base, self._host = server.path.rstrip("/"), server.netloc.rpartition("@")[2]
        host = Host(server.hostname or "", server.port or _PORTS[server.scheme], context)
        self._http = HttpClient(
            host, stall_timeout=stall_timeout, connect_timeout=connect_timeout, max_connections=max_connections
        )
        self._patient = HttpClient(
            host, stall_timeout=max(PATIENT_STALL_TIMEOUT, stall_timeout), connect_timeout=connect_timeout,
            max_connections=min(PATIENT_CONNECTIONS, max_connections),
        )  # fmt: skip

    async def close(self) -> None:
        await self._http.close()
        await self._patient.close()

    def _head(self, request: GcsRequest, authorization: str | None) -> bytes:
        signed = "" if authorization is None else f"authorization: {authorization}\r\n"
        length = f"content-length: {request.size}\r\n" if request.method != "GET" else ""
        return (
            f"{request.method} {self._base}{request.target} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"user-agent: asyncsync\r\naccept: */*\r\n{request.headers}{signed}{length}\r\n"
        ).encode()

    async def send(self, request: GcsRequest, authorization: str | None) -> Response:
        http = self._patient if request.patient else self._http
        head = self._head(request, authorization)
        return await http.send(
            head + request.before,
            request.body,
            suffix=request.after,
            most=MAX_RESPONSE_BYTES,
            lease=request.lease,
            also=RESUME_INCOMPLETE,
        )

    async def fetch(
        self, request: GcsRequest, authorization: str | None, expect: Callable[[Response], int | None], sink: Sink
    ) -> Response:
        return await self._http.fetch(self._head(request, authorization), expect, sink)
