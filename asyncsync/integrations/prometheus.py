"""Metrics for Prometheus (``pip install 'asyncsync[prometheus]'``)::

    from prometheus_client import REGISTRY
    from asyncsync.integrations.prometheus import EngineCollector

    REGISTRY.register(EngineCollector())

It reads the status files that running engines keep (see :func:`asyncsync.running_engines`), so one collector in any
process serves all engines of this machine and user, costs them nothing, and still reports an engine that was killed.
Values are at most a second older than the engine. Units are seconds and bytes, counters begin with the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncsync import RunningEngine, running_engines
from asyncsync.status import DURABLE_BOUNDS

LABELS = ("uri", "role", "rank")


class EngineCollector(Collector):
    """Collects the metrics of running engines.

    Args:
        read: returns the engines; the default reads the status files of this machine.
        uri: only engines of experiments below this URI; the default is all.
    """

    def __init__(self, read: Callable[[], Iterable[RunningEngine]] = running_engines, uri: str = "") -> None:
        self._read, self._uri = read, uri.rstrip("/")

    def collect(self) -> Iterator[Metric]:
        """Called by Prometheus' client at each scrape, from any thread."""
        engines = [engine for engine in self._read() if f"{engine.uri}/".startswith(f"{self._uri}/") or not self._uri]
        yield from self._gauges(engines)
        yield from self._counters(engines)
        yield self._durable(engines)

    def describe(self) -> Iterable[Metric]:
        """Called when it is registered: the names, without reading anything."""
        return [*self._gauges([]), *self._counters([]), self._durable([])]

    def _gauges(self, engines: list[RunningEngine]) -> Iterator[Metric]:
        now = time.time()
        for name, text, value in GAUGES:
            family = GaugeMetricFamily(f"asyncsync_{name}", text, labels=LABELS)
            for engine in engines:
                family.add_metric(_labels(engine), value(engine, now))
            yield family

    def _counters(self, engines: list[RunningEngine]) -> Iterator[Metric]:
        for name, text, labels, values in COUNTERS:
            family = CounterMetricFamily(f"asyncsync_{name}", text, labels=(*LABELS, *labels))
            for engine in engines:
                for more, value in values(engine):
                    family.add_metric((*_labels(engine), *more), value)
            yield family

    def _durable(self, engines: list[RunningEngine]) -> Metric:
        text = "Seconds from the report of a checkpoint until it was durable."
        family = HistogramMetricFamily("asyncsync_time_to_durable_seconds", text, labels=LABELS)
        for engine in engines:
            totals, below, buckets = engine.status.totals, 0, []
            for bound, count in zip((*map(str, DURABLE_BOUNDS), "+Inf"), totals.durable_counts, strict=True):
                below += count
                buckets.append((bound, float(below)))
            family.add_metric(_labels(engine), buckets, totals.durable_seconds)
        return family


def _labels(engine: RunningEngine) -> tuple[str, ...]:
    return engine.uri, engine.role, str(engine.rank)


def _lag(engine: RunningEngine, now: float) -> float:
    lag = engine.status.durability_lag
    return lag + max(0.0, now - engine.written) if lag else 0.0


Gauge = tuple[str, str, Callable[[RunningEngine, float], float]]
Values = Callable[[RunningEngine], Iterable[tuple[tuple[str, ...], float]]]

GAUGES: tuple[Gauge, ...] = (
    ("up", "1: the engine runs; 0: its process ended without leaving it.", lambda engine, _: engine.alive),
    ("durability_lag_seconds", "Age of the oldest report or checkpoint that is not in the store.", _lag),
    ("at_risk_bytes", "Bytes of accepted checkpoints that are not durable.", lambda e, _: e.status.bytes_at_risk),
    ("pending_checkpoints", "Accepted checkpoints that are not durable.", lambda e, _: e.status.pending_checkpoints),
    ("trials", "Trials of the engine.", lambda engine, _: engine.trials),
    ("store_available", "0: requests keep failing and the store is probed.", lambda e, _: e.status.store_healthy),
    ("requests_in_flight", "Requests to the store in flight.", lambda e, _: e.status.requests_running),
    ("requests_waiting", "Requests that wait for a slot.", lambda e, _: e.status.requests_waiting),
    ("request_slots", "Requests in flight that the engine allows now.", lambda e, _: e.status.request_limit),
    ("status_age_seconds", "Age of the status file.", lambda engine, now: max(0.0, now - engine.written)),
)

COUNTERS: tuple[tuple[str, str, tuple[str, ...], Values], ...] = (
    ("sent_bytes", "Bytes that travelled to the store.", (), lambda e: [((), e.status.totals.bytes_sent)]),
    ("copied_bytes", "Bytes that the store copied itself.", (), lambda e: [((), e.status.totals.bytes_copied)]),
    (
        "saved_bytes",
        "Bytes of durable checkpoints that did not travel.",
        (),
        lambda e: [((), e.status.totals.bytes_saved)],
    ),
    (
        "checkpoints",
        "Checkpoints by their end.",
        ("result",),
        lambda e: [
            (("durable",), e.status.totals.checkpoints_durable),
            (("failed",), e.status.totals.checkpoints_failed),
            (("retired",), e.status.totals.checkpoints_retired),
        ],
    ),
    (
        "syncs",
        "Syncs of trees by their end.",
        ("result",),
        lambda e: [(("ok",), e.status.totals.syncs), (("failed",), e.status.totals.syncs_failed)],
    ),
    (
        "requests",
        "Attempted requests to the store.",
        ("operation",),
        lambda e: [((name,), item.requests) for name, item in sorted(e.status.operations.items())],
    ),
    (
        "request_seconds",
        "Seconds of requests, summed over those that ran at the same time.",
        ("operation",),
        lambda e: [((name,), item.seconds) for name, item in sorted(e.status.operations.items())],
    ),
    (
        "request_errors",
        "Attempted requests that failed.",
        ("operation", "error"),
        lambda e: [((*name.split(" ", 1),), count) for name, count in sorted(e.status.errors.items())],
    ),
    ("request_retries", "Attempts beyond the first of their request.", (), lambda e: [((), e.status.retries)]),
)
