"""The health and the metrics of ``watch`` over HTTP, for probes of Kubernetes and for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from asyncsync.errors import ConfigError
from asyncsync.report import SyncReport

MAX_REQUEST_BYTES = 8192
REQUEST_SECONDS = 5.0
"""A client that has not sent its request by then is disconnected."""
_METRICS = (
    ("lag_seconds", "gauge", "Seconds since the start of the last sync that stored everything."),
    ("last_success_timestamp_seconds", "gauge", "When that sync ended, Unix seconds; 0 before the first."),
    ("syncs_total", "counter", "Syncs that stored everything."),
    ("sync_failures_total", "counter", "Syncs that failed."),
    ("files_sent_total", "counter", "Files of which bytes were sent."),
    ("bytes_sent_total", "counter", "Bytes sent."),
    ("on_durable_failures_total", "counter", "Failed runs of --on-durable."),
)


@dataclass(slots=True)
class Health:
    """The results of a watch. ``max_lag``: seconds after which it is no longer healthy; None: it always is."""

    max_lag: float | None = None
    waiting: bool = False
    """Whether the directory does not exist yet: then nothing can be lost."""
    counts: dict[str, float] = field(default_factory=lambda: {name: 0.0 for name, _, _ in _METRICS})
    _clean_since: float = field(default_factory=time.monotonic)
    """When the last successful sync began."""

    @property
    def lag(self) -> float:
        """Seconds since the start of the last sync that stored everything."""
        return 0.0 if self.waiting else time.monotonic() - self._clean_since

    @property
    def healthy(self) -> bool:
        """Whether the lag is within its limit."""
        return self.max_lag is None or self.lag <= self.max_lag

    def begin(self) -> None:
        """The directory exists now."""
        self.waiting, self._clean_since = False, time.monotonic()

    def succeeded(self, started: float, report: SyncReport) -> None:
        """A sync that began at ``started`` (``time.monotonic()``) stored everything."""
        self._clean_since = started
        self.counts["syncs_total"] += 1
        self.counts["files_sent_total"] += report.files_sent
        self.counts["bytes_sent_total"] += report.bytes_sent
        self.counts["last_success_timestamp_seconds"] = time.time()

    def count(self, name: str) -> None:
        """Add one to a counter."""
        self.counts[name] += 1

    def metrics(self) -> str:
        """The metrics in the text format of Prometheus."""
        values = {**self.counts, "lag_seconds": self.lag}
        lines = []
        for name, kind, text in _METRICS:
            lines += [f"# HELP asyncsync_{name} {text}", f"# TYPE asyncsync_{name} {kind}"]
            lines.append(f"asyncsync_{name} {values[name]:.3f}".removesuffix(".000"))
        return "\n".join(lines) + "\n"

    def response(self, path: str) -> tuple[str, str]:
        """(status, body) for a path."""
        if path == "/metrics":
            return "200 OK", self.metrics()
        if path != "/healthz":
            return "404 Not Found", "try /healthz or /metrics\n"
        if self.healthy:
            return "200 OK", f"ok, lag {self.lag:.1f} s\n"
        return "503 Service Unavailable", f"lag {self.lag:.1f} s is more than --max-lag {self.max_lag:g} s\n"


@asynccontextmanager
async def serving(health: Health, host: str, port: int | None) -> AsyncIterator[None]:
    """Serve ``/healthz`` and ``/metrics`` during the block. ConfigError if the port is taken. None: no server."""
    if port is None:
        yield
        return

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await _respond(health, reader, writer)
        writer.close()

    try:
        server = await asyncio.start_server(serve, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise ConfigError(f"invalid --health-port {port}: {host}:{port} cannot be opened: {error}") from error
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def _respond(health: Health, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, path, _ = head.split(" ", 2)
    status, body = health.response(path.partition("?")[0])
    if method not in ("GET", "HEAD"):
        status, body = "405 Method Not Allowed", "only GET\n"
    data = body.encode()
    kind = "text/plain; version=0.0.4; charset=utf-8"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + (data if method != "HEAD" else b""))
    await writer.drain()
