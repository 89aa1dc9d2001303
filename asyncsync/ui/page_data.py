"""The content of the page, as JSON documents made from the records and status files. Pure.

Texts stay as they are, whatever they contain: the page writes them as text, never as markup. JSON has no NaN and no
infinity: they travel as the texts ``NaN``, ``Infinity`` and ``-Infinity``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asyncsync import CheckpointView, Experiment, RunningEngine, TrialView
from asyncsync.planning.retention import flatten
from asyncsync.ui.retention_forecast import RetentionRule
from asyncsync.ui.verdict import AtRisk, Reading, holders, verdict_of

MOST_COLUMNS = 60
"""Parameters, and metrics, in the table: those that the most trials have."""
MOST_CHARACTERS = 300
"""Of a value in the table."""
MOST_ENGINE_TRIALS = 50
HIDDEN_METRICS = frozenset({"timestamp", "checkpoint_dir_name", "training_iteration"})


def as_json(document: Any) -> bytes:
    """A document as JSON that may stand inside a ``script`` element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").encode()


def value(raw: Any) -> Any:
    """One value of a record as JSON: a number, or a text of bounded length."""
    if isinstance(raw, float) and not math.isfinite(raw):
        return "NaN" if math.isnan(raw) else "Infinity" if raw > 0 else "-Infinity"
    if raw is None or isinstance(raw, bool | float) or (isinstance(raw, int) and abs(raw) < 2**53):
        return raw
    text = raw if isinstance(raw, str) else json.dumps(raw, default=str)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def experiment_document(experiment: Experiment | None) -> dict[str, Any]:
    """The experiment with a table of its trials, column by column."""
    if experiment is None:
        return {"experiment": None}
    rule = RetentionRule.of(experiment.config)
    head = {
        "name": value(experiment.name),
        "uri": value(experiment.uri),
        "status": "lost" if experiment.lost else value(experiment.status),
        "started": experiment.started,
        "heartbeat": experiment.heartbeat,
        "retention": rule.text,
        "score": rule.attribute,
        "order": rule.order,
    }
    return {"experiment": head, "table": table_document(experiment.trials, rule)}


def live_document(
    experiment: Experiment | None, engines: Sequence[RunningEngine], reading: Reading, now: float
) -> dict[str, Any]:
    """The part that changes every second."""
    verdict = verdict_of(experiment, engines, reading, now)
    risk = AtRisk.of(holders(experiment, engines), now)
    trials = experiment.trials if experiment is not None else []
    return {
        "now": now,
        "read_at": reading.read_at,
        "error": reading.error,
        "level": verdict.level,
        "verdict": value(verdict.text),
        "at_risk": {"checkpoints": risk.checkpoints, "bytes": risk.bytes, "lag": risk.lag},
        "trials": len(trials),
        "records": sum(trial.updated > 0 or trial.status == "unreadable" for trial in trials),
        "engines": [engine_document(engine) for engine in engines],
    }


def engine_document(engine: RunningEngine) -> dict[str, Any]:
    """One engine of this machine."""
    status, totals = engine.status, engine.status.totals
    worst = sorted(status.trials.values(), key=lambda trial: -trial.durability_lag)[:MOST_ENGINE_TRIALS]
    return {
        **{name: value(getattr(engine, name)) for name in ("role", "rank", "pid", "started", "written", "alive")},
        "local_dir": value(engine.local_dir),
        "trials": engine.trials,
        "lag": status.durability_lag,
        "bytes_at_risk": status.bytes_at_risk,
        "pending": status.pending_checkpoints,
        "healthy": status.store_healthy,
        "in_flight": status.requests_running,
        "waiting": status.requests_waiting,
        "limit": status.request_limit,
        "rate": status.bytes_per_second,
        "requests": status.requests,
        "errors": sum(status.errors.values()),
        "retries": status.retries,
        "waiting_for": value(status.waiting_for),
        "last_error": value(totals.last_error),
        "sent": totals.bytes_sent,
        "copied": totals.bytes_copied,
        "saved": totals.bytes_saved,
        "durable": totals.checkpoints_durable,
        "failed": totals.checkpoints_failed,
        "behind": [
            {
                "name": value(trial.name),
                "pending": trial.pending_checkpoints,
                "bytes": trial.bytes_at_risk,
                "lag": trial.durability_lag,
                "last": trial.last_durable,
            }
            for trial in worst
            if trial.durability_lag
        ],
    }


def sample_of(engines: Sequence[RunningEngine], now: float) -> dict[str, float]:
    """The transfers of the running engines at this moment."""
    alive = [engine for engine in engines if engine.alive]
    risk = AtRisk.of(alive, now)
    return {
        "now": now,
        "rate": sum(engine.rate_at(now) or 0.0 for engine in alive),
        "in_flight": sum(engine.status.requests_running for engine in alive),
        "waiting": sum(engine.status.requests_waiting for engine in alive),
        "limit": sum(engine.status.request_limit for engine in alive),
        "lag": risk.lag,
        "bytes_at_risk": risk.bytes,
    }


def table_document(trials: Sequence[TrialView], rule: RetentionRule) -> dict[str, Any]:
    """Columns of the same length: ``{"columns": [{"id", "kind"}], "values": {id: [...]}}``."""
    params = [flatten(trial.params) for trial in trials]
    metrics = [flatten(trial.metrics) for trial in trials]
    columns: dict[str, tuple[str, list[Any]]] = {
        "trial": ("name", [value(trial.name) for trial in trials]),
        "status": ("field", [value(trial.shown_status) for trial in trials]),
        "last durable": ("time", [trial.checkpoints[-1].time if trial.checkpoints else None for trial in trials]),
        "reports": ("field", [trial.reports for trial in trials]),
    }
    for kind, rows in (("metric", metrics), ("param", params)):
        for name in _most_common(rows):
            columns[value(f"{kind}:{name}")] = (kind, [value(row.get(name)) for row in rows])
    columns |= {
        "checkpoints": ("field", [len(trial.checkpoints) for trial in trials]),
        "size": ("bytes", [sum(item.bytes for item in trial.checkpoints) for trial in trials]),
        "removed next": ("bytes", [_removed_bytes(trial, rule) for trial in trials]),
        "updated": ("time", [trial.updated or None for trial in trials]),
    }
    if any(trial.error for trial in trials):
        columns["error"] = ("error", [value(trial.error) for trial in trials])
    return {
        "columns": [{"id": name, "kind": kind} for name, (kind, _) in columns.items()],
        "values": {name: found for name, (_, found) in columns.items()},
        "left_out": max(0, len(_names(metrics)) - MOST_COLUMNS) + max(0, len(_names(params)) - MOST_COLUMNS),
        "pinned": sum(item.pinned for trial in trials for item in trial.checkpoints),
        "given_up": sum(len(trial.given_up) for trial in trials),
    }


def _names(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    return Counter(name for row in rows for name in row if name not in HIDDEN_METRICS)


def _most_common(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [name for name, _ in _names(rows).most_common(MOST_COLUMNS)]


def _removed_bytes(trial: TrialView, rule: RetentionRule) -> int:
    """Bytes that the next checkpoint of a running trial removes; 0 for a trial that has ended."""
    if trial.shown_status != "running":
        return 0
    names = set(rule.removed_next(trial.checkpoints))
    return sum(item.bytes for item in trial.checkpoints if item.name in names)


def trial_document(trial: TrialView, rule: RetentionRule) -> dict[str, Any]:
    """One trial with its checkpoints."""
    goes = set(rule.removed_next(trial.checkpoints)) if trial.shown_status == "running" else set()
    best = rule.best(trial.checkpoints)
    return {
        "name": value(trial.name),
        "uri": value(trial.uri),
        "status": value(trial.shown_status),
        "error": None if trial.error is None else trial.error.encode("utf-8", "backslashreplace").decode()[:20_000],
        "reports": trial.reports,
        "started": trial.started,
        "updated": trial.updated,
        "params": {value(name): value(raw) for name, raw in flatten(trial.params).items()},
        "metrics": {value(name): value(raw) for name, raw in flatten(trial.metrics).items()},
        "checkpoints": [checkpoint_document(item, best, goes) for item in trial.checkpoints],
        "given_up": [value(name) for name in trial.given_up],
    }


def checkpoint_document(item: CheckpointView, best: str | None, goes: set[str]) -> dict[str, Any]:
    """One checkpoint of the record."""
    return {
        "name": value(item.name),
        "uri": value(item.uri),
        "step": item.step,
        "number": item.number,
        "metrics": {value(name): value(raw) for name, raw in flatten(item.metrics).items()},
        "files": item.files,
        "bytes": item.bytes,
        "time": item.time,
        "pinned": item.pinned,
        "tags": [value(name) for name in item.tags],
        "best": item.name == best,
        "removed_next": item.name in goes,
    }
