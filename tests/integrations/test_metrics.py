"""Metrics of running engines: Prometheus' text format and OpenTelemetry's instruments and spans."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from onebench import Bench
from statuses import running_engine

from asyncsync import (
    EngineTotals,
    OperationTotals,
    RunningEngine,
    TransferConfig,
    TrialStatus,
    UploadMode,
    running_engines,
)
from asyncsync.errors import AccessDeniedError, SyncFailedError, UnavailableError
from asyncsync.events import RequestEnded

NAME = re.compile(r"asyncsync_[a-z_]+(_seconds|_bytes|_total|_sum|_count|_bucket)?")


def engine(uri: str = "s3://b/e", *, alive: bool = True) -> RunningEngine:
    trial = TrialStatus("t", "running", 3, 900.0, 40.0, 2048, 1, {})
    totals = EngineTotals(bytes_sent=10, checkpoints_durable=3, durable_counts=[1, 0, 2, *[0] * 8], durable_seconds=1.5)
    return running_engine(
        uri,
        alive=alive,
        trials=(trial,),
        lag=40.0,
        size=2048,
        requests_running=2,
        requests_waiting=1,
        operations={"put": OperationTotals(7, 2, 100, 3.5)},
        errors={"put ThrottledError": 2},
        pending_checkpoints=1,
        totals=totals,
    )


def scraped(*engines: RunningEngine, uri: str = "") -> dict[str, float]:
    client = pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from asyncsync.integrations.prometheus import EngineCollector

    registry = client.CollectorRegistry()
    registry.register(EngineCollector(lambda: engines, uri))
    text = client.generate_latest(registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join((sample.name, *_values(sample.labels))): sample.value for sample in samples}


def _values(labels: dict[str, str]) -> list[str]:
    return [labels[name] for name in ("uri", "operation", "error", "result", "le") if name in labels]


def test_the_scrape_has_every_value() -> None:
    found = scraped(engine())
    assert found["asyncsync_up s3://b/e"] == 1
    assert found["asyncsync_durability_lag_seconds s3://b/e"] > 40
    assert found["asyncsync_at_risk_bytes s3://b/e"] == 2048
    assert found["asyncsync_sent_bytes_total s3://b/e"] == 10
    assert found["asyncsync_requests_total s3://b/e put"] == 7
    assert found["asyncsync_request_errors_total s3://b/e put ThrottledError"] == 2
    assert found["asyncsync_checkpoints_total s3://b/e durable"] == 3


def test_time_to_durable_is_a_cumulative_histogram() -> None:
    found = scraped(engine())
    buckets = [value for name, value in found.items() if name.startswith("asyncsync_time_to_durable_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[0] == 1
    assert buckets[-1] == found["asyncsync_time_to_durable_seconds_count s3://b/e"] == 3
    assert found["asyncsync_time_to_durable_seconds_sum s3://b/e"] == 1.5


def test_names_follow_the_rules_of_prometheus() -> None:
    names = {name.split(" ")[0] for name in scraped(engine())}
    assert all(NAME.fullmatch(name) for name in names), names
    assert not [name for name in names if re.search(r"_(ms|kb|mib|percent)", name)]


def test_a_killed_engine_is_down_and_others_can_be_left_out() -> None:
    found = scraped(engine("s3://b/e", alive=False), engine("s3://b/e2"), uri="s3://b/e")
    assert found["asyncsync_up s3://b/e"] == 0
    assert "asyncsync_up s3://b/e2" not in found


async def test_a_running_engine_is_scraped_from_its_status_file(bench: Bench) -> None:
    pytest.importorskip("prometheus_client")
    async with bench.engine() as running:
        await running.trial("t").report({"loss": 1.0}, bench.checkpoint())
        async with asyncio.timeout(20):
            while not running_engines() or not running_engines()[0].status.totals.checkpoints_durable:
                await asyncio.sleep(0.02)
        found = scraped(*running_engines())
    assert found["asyncsync_checkpoints_total memory://b/exp durable"] == 1
    assert found["asyncsync_requests_total memory://b/exp put"] >= 4


def test_instruments_observe_all_engines() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from asyncsync.integrations.opentelemetry import observe_engines

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe_engines(provider, lambda: [engine(), engine("s3://b/e2")])
    data = reader.get_metrics_data()
    points = {
        (metric.name, point.attributes["uri"]): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    provider.shutdown()
    assert points["asyncsync.at_risk", "s3://b/e2"] == 2048
    assert points["asyncsync.requests", "s3://b/e"] == 7


async def test_a_checkpoint_is_a_span_and_a_failure_is_its_status(bench: Bench) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from asyncsync.integrations.opentelemetry import trace_engine

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with bench.engine() as running:
        async with trace_engine(running, provider):
            trial = running.trial("t")
            await trial.report({}, bench.checkpoint("a"))
            bench.faults.fail(1, AccessDeniedError("403"), operation="put", key="checkpoint_000001")
            with pytest.raises(SyncFailedError):
                await trial.report({}, bench.checkpoint("b"))
            report = await trial.report({}, bench.checkpoint("c"), upload=UploadMode.ASYNC)
            await report.checkpoint.durable()
    provider.shutdown()
    spans = {
        span.attributes["asyncsync.name"]: span for span in exporter.get_finished_spans() if "checkpoint" in span.name
    }
    assert spans["t/checkpoint_000000"].attributes["asyncsync.bytes_sent"] == 1000
    assert spans["t/checkpoint_000000"].end_time >= spans["t/checkpoint_000000"].start_time
    assert any(not span.status.is_ok for span in spans.values())


async def test_files_and_requests_are_spans_inside_their_checkpoint(bench: Bench) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from asyncsync.integrations.opentelemetry import trace_engine

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    bench.transfer = TransferConfig(part_size=5 << 20, multipart_threshold=5 << 20)
    async with bench.engine() as running:
        async with trace_engine(running, provider):
            bench.faults.fail(1, UnavailableError("lost"), operation="put_part")
            await running.trial("t").report({}, bench.checkpoint("a", large=bytes(12 << 20), small=b"x"))
        first = len(exporter.get_finished_spans())
        await running.trial("t").report({}, bench.checkpoint("b"))
    provider.shutdown()
    spans = exporter.get_finished_spans()
    assert len(spans) == first, "nothing is traced after the block"
    by_id = {span.context.span_id: span for span in spans}
    files = {span.attributes["asyncsync.name"]: span for span in spans if span.name == "asyncsync.file"}
    assert files.keys() >= {"t/checkpoint_000000/large", "t/checkpoint_000000/small"}
    parts = [span for span in spans if span.attributes.get("asyncsync.operation") == "put_part"]
    assert len(parts) == 4
    assert [not span.status.is_ok for span in parts].count(True) == 1
    assert {by_id[span.parent.span_id].name for span in parts} == {"asyncsync.file"}
    large = files["t/checkpoint_000000/large"]
    assert by_id[large.parent.span_id].name == "asyncsync.checkpoint"
    assert large.start_time <= min(span.start_time for span in parts)
    assert large.end_time >= max(span.end_time for span in parts)
    assert not any(".asyncsync" in name for name in files)


@pytest.mark.parametrize("given", [False, True])
async def test_without_a_tracer_provider_nothing_listens(
    bench: Bench, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    from asyncsync.integrations.opentelemetry import trace_engine

    caplog.set_level("INFO", "asyncsync")
    asked: list[object] = []
    async with bench.engine() as running:
        for name in ("events", "on_request"):
            setattr(running, name, asked.append)
        async with trace_engine(running, trace.NoOpTracerProvider() if given else None):
            await running.trial("t").report({}, bench.checkpoint("a"))
    assert asked == []
    assert "memory://b/exp: nothing is traced" in caplog.text


async def test_a_listener_that_raises_ends_no_transfer(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def listen(ended: RequestEnded) -> None:
        seen.append(ended)
        raise ZeroDivisionError

    async with bench.engine() as running:
        with running.on_request(listen):
            await running.trial("t").report({}, bench.checkpoint("a"))
    assert len(seen) == 1
    assert seen[0].seconds >= 0
    assert "is not called again" in caplog.text


# the files beside the documentation

MONITORING = Path(__file__).parents[2] / "docs/monitoring"
USED = re.compile(r"\basyncsync_[a-z_]+")


def known_names() -> set[str]:
    return {name.split(" ")[0] for name in scraped(engine())}


def test_the_alert_rules_use_metrics_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        used = set(USED.findall(rule["expr"]))
        assert used, rule["alert"]
        assert used <= known_names(), rule["alert"]
        assert {"summary", "action"} <= set(rule["annotations"]), rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", MONITORING / "alerts_test.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    yaml = pytest.importorskip("yaml")
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    tried = {(case["alertname"], "exp_alerts" in case) for item in cases for case in item["alert_rule_test"]}
    assert tried == {(rule["alert"], fires) for rule in group["rules"] for fires in (False, True)}
    series = {name for item in cases for given in item["input_series"] for name in USED.findall(given["series"])}
    assert series <= known_names()


def test_the_dashboard_uses_metrics_that_exist() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    for panel in panels:
        (target,) = panel["targets"]
        used = set(USED.findall(target["expr"]))
        assert used, panel["title"]
        assert used <= known_names(), panel["title"]
