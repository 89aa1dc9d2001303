"""``status``: engines of this machine, and experiments at a URL."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onebench import Bench
from statuses import running_engine

from asyncsync import EngineTotals, RunningEngine, TrialStatus
from asyncsync.cli.running.engine_status import engine_lines
from asyncsync.status import AGENT
from asyncsync.testing import run_virtual

from .conftest import Invoke

Answer = Callable[..., dict[str, Any]]


def engine(*, alive: bool = True, healthy: bool = True, lag: float = 0.0, size: int = 0) -> RunningEngine:
    pending = 1 if size else 0
    return running_engine(
        alive=alive,
        trials=(TrialStatus("t", "running", 3, 900.0, lag, size, pending, {}),),
        lag=lag,
        size=size,
        store_healthy=healthy,
        pending_checkpoints=pending,
        totals=EngineTotals(last_error=None if healthy else "no\nroute", last_error_time=990.0),
    )


def test_a_safe_engine_is_one_verdict() -> None:
    lines = engine_lines(engine(), 1000.0)
    assert lines[0] == "s3://b/e: safe: everything is in the store"
    assert len(lines) == 2


def test_the_lag_grows_between_two_writes_of_the_file() -> None:
    lines = engine_lines(engine(lag=40.0, size=2048), 1050.0)
    assert lines[0] == "s3://b/e: at risk: 1 checkpoint pending (2.0 KiB), not in the store for 90 s"
    assert "t: 1 checkpoint pending, 2.0 KiB, lag 90 s, last durable 3" in lines[-1]


def test_an_unavailable_store_and_the_last_error_show() -> None:
    lines = engine_lines(engine(healthy=False, lag=5.0, size=1), 1000.0)
    assert lines[0].endswith("; the store is unavailable")
    assert any(line.endswith("no route") for line in lines)


def test_a_killed_engine_says_what_is_not_in_the_store() -> None:
    assert "everything was in the store" in engine_lines(engine(alive=False), 1000.0)[0]
    lost = engine_lines(engine(alive=False, lag=5.0, size=1024), 1000.0)[0]
    assert lost.startswith("s3://b/e: lost: ")
    assert "not in the store: 1 checkpoint pending (1.0 KiB)" in lost


def test_the_agent_of_a_ray_node_counts_calls_of_workers() -> None:
    totals = EngineTotals(checkpoints_durable=2, bytes_sent=2048)
    busy = running_engine(lag=5.0, totals=totals, pending_checkpoints=1)
    lines = engine_lines(replace(busy, role=f"{AGENT}4f8a2c91", status=replace(busy.status, syncs_running=3)), 1000.0)
    assert lines[0] == "s3://b/e: at risk: 1 checkpoint pending, not in the store for 5.0 s"
    assert lines[1].startswith("  2 durable checkpoints, 3 running calls of workers; sent 2.0 KiB at ")
    assert "agent of node 4f8a2c91" in lines[1]
    lost = engine_lines(replace(busy, role=f"{AGENT}4f8a2c91", alive=False), 1000.0)[0]
    assert "workers of its node" in lost and "resume=True" not in lost


def test_no_engine_is_said_and_is_no_error(invoke: Invoke, answer: Answer) -> None:
    assert invoke("status").stdout == "no engine of this user runs on this machine\n"
    assert answer("status") == {"ok": True, "engines": [], "experiments": []}


def test_a_url_shows_its_experiments(invoke: Invoke, answer: Answer, bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as running:
            await running.trial("t").report({"loss": 1.0})

    run_virtual(main())
    assert "exp: finished, 1 running, record written" in invoke("status", "memory://b").stdout
    (found,) = answer("status", "memory://b/exp")["experiments"]
    assert (found["name"], found["lost"], list(found["trials"])) == ("exp", False, ["t"])


@pytest.mark.parametrize(("arguments", "code"), [(("memory://b/nothing",), 1), (("--period", "0"), 2)])
def test_what_cannot_be_shown_is_an_error(invoke: Invoke, arguments: tuple[str, ...], code: int) -> None:
    assert invoke("status", *arguments).exit_code == code


def test_a_file_of_another_version_is_left_out(invoke: Invoke, tmp_path: Path) -> None:
    directory = tmp_path / "state" / "engines"
    directory.mkdir(parents=True)
    (directory / "1.json").write_text(json.dumps({"format": 99, "written": time.time()}))
    assert invoke("status").exit_code == 0
