"""``status``: the running engines of this machine, and the experiments at a URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import click

from asyncsync import Experiment, ExperimentSummary, RunningEngine, contents, running_engines
from asyncsync.cli.app import DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, age, jsonable
from asyncsync.errors import ConfigError
from asyncsync.status import AGENT, EngineStatus
from asyncsync.units import counted, duration_text, size_text

STATUS = """Show whether the work of running engines is safe now.

Why: it shows what a crash would cost at this moment: the durability lag, the bytes at risk, the pending checkpoints,
and the reason why something waits. Without URL it shows the engines of this machine and user, from their status
files and without any request. With URL it also shows the experiments there, from their records. An engine that was
killed, or an experiment without a heartbeat for three periods, is lost: the same program with resume=True continues it.

\b
Examples:
  asyncsync status
  asyncsync status --watch
  asyncsync status s3://bucket/experiments/sweep
  asyncsync status --json

With --watch --json it prints one JSON document per line.

Exit codes: 0 done, 1 the URL cannot be read, 2 usage, 130 interrupted.
"""


@command(help=STATUS)
@click.argument("url", required=False)
@click.option("-w", "--watch", is_flag=True, help="Show it again every --period until Ctrl-C.")
@click.option("--period", type=float, default=2.0, show_default=True, metavar="SECONDS", help="With --watch.")
async def status(output: Output, settings: Settings, *, url: str | None, watch: bool, period: float) -> int:
    """See STATUS."""
    if period <= 0:
        raise ConfigError(f"invalid --period {period:g}: must be more than 0 seconds")
    uri = None if url is None else resolve_url(url)
    while True:
        stored = [] if uri is None else await _experiments(uri, settings)
        engines = [engine for engine in running_engines() if uri is None or _is_within(engine.uri, uri)]
        if watch and output.terminal:
            click.clear()
        _show(output, engines, stored, uri)
        if not watch:
            return DONE
        await asyncio.sleep(period)


def _is_within(uri: str, above: str) -> bool:
    return uri == above.rstrip("/") or uri.startswith(above.rstrip("/") + "/")


async def _experiments(uri: str, settings: Settings) -> Sequence[Experiment | ExperimentSummary]:
    found = await contents(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    if isinstance(found, Experiment):
        return [found]
    if isinstance(found, list):
        return found
    raise ConfigError(
        f"invalid URL {uri!r}: it is neither an experiment nor a storage path; asyncsync ls {uri} shows it"
    )


def _show(
    output: Output, engines: Sequence[RunningEngine], stored: Sequence[Experiment | ExperimentSummary], uri: str | None
) -> None:
    for engine in engines:
        output.lines(engine_lines(engine, time.time()), before="")
    if not engines:
        output.line(f"no engine of this user runs on this machine{'' if uri is None else f' below {uri}'}")
    for item in stored:
        output.line(f"{item.name}: {_stored_text(item)}")
    output.document(
        {
            "ok": True,
            "engines": [_engine_json(engine) for engine in engines],
            "experiments": [_stored_json(item) for item in stored],
        }
    )


def engine_lines(engine: RunningEngine, now: float) -> list[str]:
    """The state of one engine, for people: one line for the verdict, one for the work, then what is wrong."""
    status, since = engine.status, now - engine.written
    lines = [f"{engine.uri}: {_verdict(engine, now)}"]
    sending = engine.rate_at(now)
    rate = "idle" if sending is None else f"{size_text(sending)}/s"
    lines.append(
        f"  {_work(engine)}; sent {size_text(status.totals.bytes_sent)} at "
        f"{rate}, {counted(status.requests, 'request')}, {counted(sum(status.errors.values()), 'error')}; "
        f"pid {engine.pid}, {engine.role}, started {age(engine.started)}"
    )
    if status.waiting_for:
        lines.append(f"  waits for {' '.join(status.waiting_for.split())[:300]}")
    if status.totals.last_error:
        lines.append(
            f"  last error, {age(status.totals.last_error_time)}: {' '.join(status.totals.last_error.split())}"
        )
    return [*lines, *_trial_lines(status, since if engine.alive else 0.0)]


def _verdict(engine: RunningEngine, now: float) -> str:
    status = engine.status
    size = f" ({size_text(status.bytes_at_risk)})" if status.bytes_at_risk else ""  # an agent does not know it
    risk = f"{counted(status.pending_checkpoints, 'checkpoint')} pending{size}"
    if not engine.alive:
        lost = "everything was in the store" if status.is_safe else f"not in the store: {risk}"
        return f"lost: its process has ended; {lost}. {_continued_by(engine)}"
    if status.is_safe:
        return "safe: everything is in the store"
    store = "" if status.store_healthy else "; the store is unavailable"
    return f"at risk: {risk}, not in the store for {duration_text(engine.lag_at(now))}{store}"


def _continued_by(engine: RunningEngine) -> str:
    if engine.role.startswith(AGENT):
        return "The workers of its node upload by themselves and start another agent"
    return "The same program with resume=True continues it"


def _work(engine: RunningEngine) -> str:
    """The work so far. An agent knows calls of workers, and no trials."""
    totals = engine.status.totals
    if engine.role.startswith(AGENT):
        running = counted(engine.status.syncs_running, "running call")
        return f"{counted(totals.checkpoints_durable, 'durable checkpoint')}, {running} of workers"
    return f"{counted(engine.trials, 'trial')}, {_last_step(engine.status)}"


def _last_step(status: EngineStatus) -> str:
    times = [trial.last_durable_time for trial in status.trials.values() if trial.last_durable_time is not None]
    return f"last durable checkpoint {age(max(times))}" if times else "no durable checkpoint"


def _trial_lines(status: EngineStatus, since: float) -> list[str]:
    worst = sorted(status.trials.values(), key=lambda trial: -trial.durability_lag)
    return [
        f"  {trial.name}: {counted(trial.pending_checkpoints, 'checkpoint')} pending, "
        f"{size_text(trial.bytes_at_risk)}, lag {duration_text(trial.durability_lag + since)}, "
        f"last durable {'none' if trial.last_durable is None else trial.last_durable}"
        for trial in worst[:5]
        if trial.durability_lag
    ]


def _engine_json(engine: RunningEngine) -> dict[str, Any]:
    found: dict[str, Any] = jsonable(engine)
    return {**found, "requests": engine.status.requests, "safe": engine.alive and engine.status.is_safe}


def _stored_text(item: Experiment | ExperimentSummary) -> str:
    state = "lost" if item.lost else item.status
    if isinstance(item, ExperimentSummary):
        trials = ", ".join(f"{number} {status}" for status, number in item.trials.items()) or "no trials"
        return f"{state}, {trials}, record written {age(item.updated)}"
    lost = sum(trial.lost for trial in item.trials)
    return f"{state}, {counted(len(item.trials), 'trial')}{f', {lost} of them lost' if lost else ''}"


def _stored_json(item: Experiment | ExperimentSummary) -> dict[str, Any]:
    trials = item.trials if isinstance(item, ExperimentSummary) else {trial.name: trial.status for trial in item.trials}
    return {"name": item.name, "uri": item.uri, "status": item.status, "lost": item.lost, "trials": jsonable(trials)}
