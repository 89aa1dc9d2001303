"""Metrics and spans for OpenTelemetry (``pip install 'asyncsync[opentelemetry]'``)::

    from asyncsync.integrations.opentelemetry import observe_engines, trace_engine

    observe_engines()                                   # metrics of all engines of this machine, read when exported
    async with SyncEngine(run) as engine, trace_engine(engine):
        ...                                             # one span for each sync and each checkpoint

Without these calls nothing of OpenTelemetry is imported, and nothing is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

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
    SyncFailed,
    SyncFinished,
    SyncStarted,
    SyncTimedOut,
)

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
async def trace_engine(engine: SyncEngine, provider: TracerProvider | None = None) -> AsyncIterator[None]:
    """While the block runs, make a span for each sync (``asyncsync.sync``) and each checkpoint
    (``asyncsync.checkpoint``, from its report until it is durable) of a running engine. Spans that are open at the end
    of the block end unfinished."""
    spans = _Spans(engine.uri, provider)
    stream = engine.events()
    task = asyncio.create_task(spans.follow(stream), name="asyncsync spans")
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
            key = ("asyncsync.checkpoint", f"{event.trial}/{event.checkpoint}")
        else:
            key = ("asyncsync.sync", event.tree)
        if isinstance(event, SyncStarted | CheckpointAccepted):
            self._begin(key, event.time)
        elif isinstance(event, SyncFinished | CheckpointDurable):
            self._end(key, event, None)
        elif isinstance(event, SyncFailed | SyncTimedOut | CheckpointFailed):
            self._end(key, event, event.error)

    def _begin(self, key: tuple[str, str], when: float) -> None:
        attributes = {"asyncsync.uri": self._uri, "asyncsync.name": key[1]}
        self._open[key] = self._tracer.start_span(key[0], start_time=_nanoseconds(when), attributes=attributes)
        if len(self._open) > MAX_OPEN_SPANS:
            self._open.pop(next(iter(self._open))).end()

    def _end(self, key: tuple[str, str], event: Event, error: str | None) -> None:
        span = self._open.pop(key, None)
        if span is None:
            return  # it began before the block
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


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
