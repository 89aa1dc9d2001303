"""Metrics and spans for OpenTelemetry (``pip install 'asyncsync[opentelemetry]'``)::

    from asyncsync.integrations.opentelemetry import observe_engines, trace_engine

    observe_engines()                                   # metrics of all engines of this machine, read when exported
    async with SyncEngine(run) as engine, trace_engine(engine):
        ...                                             # spans for syncs, checkpoints, files and requests

Without these calls nothing of OpenTelemetry is imported, and nothing is measured.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, nullcontext

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from asyncsync import RunningEngine, SyncEngine, running_engines
from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointEvent,
    CheckpointFailed,
    Event,
    RequestEnded,
    SyncFailed,
    SyncFinished,
    SyncStarted,
    SyncTimedOut,
)

log = logging.getLogger("asyncsync")

SYNC, CHECKPOINT, FILE, REQUEST = "asyncsync.sync", "asyncsync.checkpoint", "asyncsync.file", "asyncsync.request"
LAST_OF_FILE = ("put", "complete_multipart", "copy")
"""Operations that complete a file."""
FILE_OPERATIONS = (*LAST_OF_FILE, "create_multipart", "put_part", "copy_part")
META_DIR = ".asyncsync"
MAX_OPEN_SPANS = 10_000
"""Spans that may be open at once; of more, the oldest are dropped."""

Value = Callable[[RunningEngine], float]
GAUGES: tuple[tuple[str, str, str, Value], ...] = (
    ("asyncsync.durability_lag", "s", "Age of the oldest report not in the store.", lambda e: e.status.durability_lag),
    ("asyncsync.at_risk", "By", "Bytes of checkpoints that are not durable.", lambda e: e.status.bytes_at_risk),
    ("asyncsync.pending_checkpoints", "1", "Checkpoints not durable.", lambda e: e.status.pending_checkpoints),
    ("asyncsync.up", "1", "1: the engine runs; 0: it was killed.", lambda e: float(e.alive)),
)
COUNTERS: tuple[tuple[str, str, str, Value], ...] = (
    ("asyncsync.sent", "By", "Bytes that travelled to the store.", lambda e: e.status.totals.bytes_sent),
    ("asyncsync.copied", "By", "Bytes that the store copied itself.", lambda e: e.status.totals.bytes_copied),
    ("asyncsync.requests", "1", "Attempted requests to the store.", lambda e: e.status.requests),
    ("asyncsync.request_errors", "1", "Requests that failed.", lambda e: sum(e.status.errors.values())),
    ("asyncsync.request_retries", "1", "Attempts beyond the first.", lambda e: e.status.retries),
    ("asyncsync.checkpoints_durable", "1", "Durable checkpoints.", lambda e: e.status.totals.checkpoints_durable),
    ("asyncsync.checkpoints_failed", "1", "Failed checkpoints.", lambda e: e.status.totals.checkpoints_failed),
)


def observe_engines(
    provider: MeterProvider | None = None, read: Callable[[], Iterable[RunningEngine]] = running_engines
) -> None:
    """Register instruments that report all engines of this machine whenever metrics are exported. Seconds and bytes.

    ``read`` returns the engines; the default reads their status files. Attributes: ``uri``, ``role``, ``rank``.
    """
    meter = (provider or metrics.get_meter_provider()).get_meter("asyncsync")
    for name, unit, text, value in GAUGES:
        meter.create_observable_gauge(name, [_observer(value, read)], unit=unit, description=text)
    for name, unit, text, value in COUNTERS:
        meter.create_observable_counter(name, [_observer(value, read)], unit=unit, description=text)


def _observer(
    value: Value, read: Callable[[], Iterable[RunningEngine]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for engine in read():
            yield Observation(value(engine), {"uri": engine.uri, "role": engine.role, "rank": engine.rank})

    return observe


@asynccontextmanager
async def trace_engine(
    engine: SyncEngine, provider: TracerProvider | None = None, *, requests: bool = True
) -> AsyncIterator[None]:
    """While the block runs, make a span for each sync (``asyncsync.sync``) and each checkpoint
    (``asyncsync.checkpoint``, from its report until it is durable) of a running engine; inside them, unless
    ``requests`` is False, one for each file (``asyncsync.file``) and each attempted request
    (``asyncsync.request``). Spans that are open at the end of the block
    end unfinished. If there is no tracer provider when the block begins, nothing is traced and nothing costs time."""
    if isinstance(provider or trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        log.info("%s: nothing is traced, because no tracer provider of OpenTelemetry is set", engine.uri)
        yield
        return
    spans = _Spans(engine.uri, provider)
    stream = engine.events()
    task = asyncio.create_task(spans.follow(stream), name="asyncsync spans")
    with engine.on_request(spans.take_request) if requests else nullcontext():
        try:
            yield
        finally:
            await asyncio.sleep(0)  # events of this turn are still taken
            await stream.aclose()
            task.cancel()
            await asyncio.wait([task])
            spans.close()


class _Spans:
    """The open spans, by kind and name."""

    def __init__(self, uri: str, provider: TracerProvider | None) -> None:
        self._uri = uri
        self._tracer = trace.get_tracer("asyncsync", tracer_provider=provider)
        self._open: dict[tuple[str, str], Span] = {}

    async def follow(self, events: AsyncIterator[Event]) -> None:
        """Take events until the stream ends."""
        async for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Begin or end the span that an event belongs to."""
        if isinstance(event, CheckpointEvent):
            key = (CHECKPOINT, f"{event.trial}/{event.checkpoint}")
        else:
            key = (SYNC, event.tree)
        if isinstance(event, SyncStarted | CheckpointAccepted):
            self._begin(key, event.time)
        elif isinstance(event, SyncFinished | CheckpointDurable):
            self._end_with_files(key, event, None)
        elif isinstance(event, SyncFailed | SyncTimedOut | CheckpointFailed):
            self._end_with_files(key, event, event.error)

    def take_request(self, ended: RequestEnded) -> None:
        """Make the span of a request, inside the one of its file if it writes data."""
        began, over = _nanoseconds(ended.time - ended.seconds), _nanoseconds(ended.time)
        file = (FILE, ended.key)
        if _sends_file(ended) and file not in self._open:
            self._begin(file, ended.time - ended.seconds)
        attributes: dict[str, str | int] = {
            "asyncsync.operation": ended.operation,
            "asyncsync.key": ended.key,
            "asyncsync.bytes": ended.bytes,
        }
        inside = self._open.get(file) or self._around(ended.key)
        context = None if inside is None else trace.set_span_in_context(inside)
        span = self._tracer.start_span(REQUEST, context, start_time=began, attributes=attributes)
        if ended.error is not None:
            span.set_status(Status(StatusCode.ERROR, ended.error))
        span.end(over)
        if ended.error is None and ended.operation in LAST_OF_FILE and file in self._open:
            self._open.pop(file).end(over)

    def _begin(self, key: tuple[str, str], when: float) -> None:
        attributes = {"asyncsync.uri": self._uri, "asyncsync.name": key[1]}
        around = self._around(key[1]) if key[0] == FILE else None
        context = None if around is None else trace.set_span_in_context(around)
        span = self._tracer.start_span(key[0], context, start_time=_nanoseconds(when), attributes=attributes)
        self._open[key] = span
        if len(self._open) > MAX_OPEN_SPANS:
            self._open.pop(next(iter(self._open))).end()

    def _around(self, path: str) -> Span | None:
        """The open span of the checkpoint or tree that holds the path, the innermost one."""
        steps = path.split("/")
        for count in range(len(steps) - 1, -1, -1):
            above = "/".join(steps[:count])
            found = self._open.get((CHECKPOINT, above)) or self._open.get((SYNC, above))
            if found is not None:
                return found
        return None

    def _end_with_files(self, key: tuple[str, str], event: Event, error: str | None) -> None:
        """End a span, after those of files in it that are not complete."""
        span = self._open.pop(key, None)
        if span is None:
            return  # it began before the block
        for name in [name for kind, name in self._open if kind == FILE and name.startswith(f"{key[1]}/")]:
            if self._around(name) is None:
                left = self._open.pop((FILE, name))
                left.set_status(Status(StatusCode.ERROR, "incomplete"))
                left.end(_nanoseconds(event.time))
        for name in ("bytes_total", "bytes_sent", "bytes_copied", "requests"):
            if hasattr(event, name):
                span.set_attribute(f"asyncsync.{name}", getattr(event, name))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(event.time))

    def close(self) -> None:
        """End all that is open."""
        for span in self._open.values():
            span.end()
        self._open.clear()


def _sends_file(ended: RequestEnded) -> bool:
    """Whether a request sends a part of a file, or copies it: not a document of asyncsync."""
    return ended.operation in FILE_OPERATIONS and META_DIR not in ended.key.split("/")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
