"""The status file of a running engine, and the heartbeat in its record."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import Experiment, SyncConfig, contents, running_engines, status_file
from asyncsync.errors import UnavailableError
from asyncsync.testing import run_virtual

RECORD = ".asyncsync/experiment.json"

KILLED = """
import asyncio, os, pathlib, sys
from asyncsync import RunConfig, SyncEngine

async def main():
    run = RunConfig(name="exp", storage_path=sys.argv[1])
    async with SyncEngine(run, local_dir=sys.argv[2]) as engine:
        await engine.trial("t").report({"loss": 1.0})
        await engine.sync()
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_the_file_says_the_same_as_the_engine(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        report = await trial.report({"loss": 1.0}, bench.checkpoint())
        await trial.sync()
        await until(lambda: running_engines() and running_engines()[0].status.totals.checkpoints_durable == 1)
        (found,) = running_engines()
        status = engine.status()
    assert (found.uri, found.pid, found.role, found.rank) == ("memory://b/exp", os.getpid(), "driver", 0)
    assert found.alive
    assert found.trials == 1
    assert found.status.trials["t"].last_durable == status.trials["t"].last_durable == 0
    assert found.status.totals.durable_counts == status.totals.durable_counts
    assert sum(status.totals.durable_counts) == 1
    assert report.checkpoint is not None


async def test_the_file_is_gone_after_the_engine(bench: Bench) -> None:
    async with bench.engine():
        await until(running_engines)
    assert running_engines() == []
    assert list(status_file.status_directory().iterdir()) == []


def test_it_is_written_at_most_once_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []
    real = status_file._replace

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(status_file, "_replace", lambda *args: (written.append(loop.time()), real(*args)))
        async with bench.engine() as engine:
            trial = engine.trial("t")
            for step in range(200):
                await trial.report({"step": step})
                await asyncio.sleep(0.1)

    run_virtual(main())
    assert len(written) >= 15
    assert min(later - earlier for earlier, later in pairwise(written)) > 0.999


def test_an_idle_engine_writes_by_the_period_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    real = status_file._replace
    monkeypatch.setattr(status_file, "_replace", lambda *args: (written.append(args[0]), real(*args)))

    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=100_000)):
            await asyncio.sleep(100)
            written.clear()
            await asyncio.sleep(600)
            assert len(written) in (9, 10)

    run_virtual(main())


async def test_a_directory_that_cannot_be_written_is_a_warning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status_file, "_replace", fail)
    async with bench.engine() as engine:
        await until(lambda: "No space left" in caplog.text)
        await engine.trial("t").report({}, bench.checkpoint())
        assert engine.status().totals.checkpoints_durable == 1


def test_damaged_files_are_left_out(bench: Bench) -> None:
    directory = status_file.status_directory()
    directory.mkdir(parents=True)
    valid = {"format": 1, "engine": "x", "status": {"trials": []}}
    for number, text in enumerate(("", "[]", "{", "[" * 100_000, json.dumps(valid), '{"format": 2}', "\xff")):
        (directory / f"{number}.json").write_text(text, encoding="latin-1")
    assert running_engines() == []


def test_a_killed_engine_is_lost_until_it_is_resumed(tmp_path: Path) -> None:
    store, local = tmp_path / "store", tmp_path / "local"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store), str(local)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (engine,) = running_engines()
    assert engine.alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (engine,) = running_engines()
    assert not engine.alive

    async def look() -> tuple[bool, bool, bool]:
        experiment = await Experiment.open(store / "exp")
        (summary,) = await contents(store)
        return experiment.lost, experiment.trial("t").lost, summary.lost

    assert asyncio.run(look()) == (True, True, True)

    async def resume() -> tuple[int, bool]:
        from asyncsync import RunConfig, SyncEngine

        async with SyncEngine(RunConfig(name="exp", storage_path=store), local_dir=local, resume=True):
            await until(lambda: [engine.alive for engine in running_engines()] == [True])
            return len(running_engines()), (await Experiment.open(store / "exp")).lost

    assert asyncio.run(resume()) == (1, False)


async def test_a_file_of_another_machine_or_boot_is_no_running_engine(bench: Bench) -> None:
    """Machines may share the state directory, such as a home directory; and a machine may be started again."""
    directory = status_file.status_directory()
    async with bench.engine():
        await until(running_engines)
        (path,) = directory.glob("*.json")
        written = json.loads(path.read_bytes())
    boot, _, rest = written["engine"].partition(" ")
    (directory / "1.json").write_text(json.dumps({**written, "machine": f"not {written['machine']}"}))
    (directory / "2.json").write_text(json.dumps({**written, "engine": f"{boot[::-1]} {rest}"}))
    assert [engine.alive for engine in running_engines()] == [False]


def test_where_processes_have_no_names_their_id_decides() -> None:
    assert status_file._is_alive({"engine": "", "pid": os.getpid()})
    assert not status_file._is_alive({"engine": "", "pid": 2**22 + 1})
    assert not status_file._is_alive({"engine": "", "pid": "x"})


# the heartbeat


@pytest.mark.parametrize(("heartbeat", "beats"), [(60.0, 10), (300.0, 2), (None, 0)])
def test_an_idle_driver_beats_once_in_a_period(bench: Bench, heartbeat: float | None, beats: int) -> None:
    async def main() -> int:
        async with bench.engine(SyncConfig(sync_period=100_000, heartbeat=heartbeat)):
            await asyncio.sleep(10)
            before = bench.puts(RECORD)
            await asyncio.sleep(600)
            return bench.puts(RECORD) - before

    assert run_virtual(main()) == beats


def test_a_record_that_is_written_anyway_needs_no_heartbeat(bench: Bench) -> None:
    async def main() -> int:
        async with bench.engine(SyncConfig(sync_period=50)) as engine:
            await asyncio.sleep(1)
            before = bench.puts(RECORD)
            for number in range(10):
                await asyncio.sleep(50)
                engine.trial(f"t{number}")
            return bench.puts(RECORD) - before

    assert run_virtual(main()) <= 11


def test_a_worker_beats_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(role="worker"):
            await asyncio.sleep(600)

    run_virtual(main())
    assert bench.puts(RECORD) == 0


def test_a_failed_heartbeat_ends_nothing(bench: Bench) -> None:
    async def main() -> int:
        async with bench.engine(SyncConfig(sync_period=100_000)) as engine:
            await asyncio.sleep(10)
            bench.faults.fail(1, UnavailableError("gone"), operation="put", key=RECORD, times=30)
            await asyncio.sleep(1200)
            before = bench.puts(RECORD)
            await asyncio.sleep(600)
            await engine.sync()
            return bench.puts(RECORD) - before

    assert run_virtual(main()) >= 9


def test_a_record_with_an_old_heartbeat_is_lost() -> None:
    from asyncsync.sync.records.model import ExperimentRecord

    record = ExperimentRecord("exp", heartbeat=1000.0, heartbeat_period=60.0, runner="elsewhere 1 2/3 x")
    assert not record.is_lost(1180.0)
    assert record.is_lost(1181.0)
    record.status = "finished"
    assert not record.is_lost(1e9)
    record.status, record.heartbeat_period = "running", 0.0
    assert not record.is_lost(1e9)


async def test_answers_that_were_asked_for_are_no_errors(bench: Bench) -> None:
    async with bench.engine() as engine:
        await engine.trial("t").report({}, bench.checkpoint())
        before = engine.status()
        bench.faults.fail(1, UnavailableError("gone"), operation="put", key="checkpoint_000001")
        await engine.trial("t").report({}, bench.checkpoint("other"))
        after = engine.status()
    assert before.errors == {}
    assert before.requests > 5
    assert (after.errors, after.retries) == ({"put UnavailableError": 1}, 1)
