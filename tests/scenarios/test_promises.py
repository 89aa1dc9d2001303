"""The promises of a sync (docs/concepts.md), in virtual time."""

import asyncio
import json
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import (
    CheckpointConfig,
    EngineClosedError,
    ExperimentExistsError,
    SyncConfig,
    SyncFailedError,
    SyncTimeoutError,
    UploadMode,
)
from asyncsync.errors import AccessDeniedError, UnavailableError
from asyncsync.events import SyncStarted, SyncTimedOut
from asyncsync.testing import run_virtual


def test_every_tree_is_synced_each_period_start_to_start(bench: Bench) -> None:
    async def main() -> list[float]:
        starts = []
        async with bench.engine(SyncConfig(sync_period=100)) as engine:
            stream = engine.events()
            engine.trial("t")
            await asyncio.sleep(450)
            while not stream._queue.empty():
                event = await anext(stream)
                if isinstance(event, SyncStarted) and event.tree == "t":
                    starts.append(event.time)
        return starts

    assert len(run_virtual(main())) == 5


@pytest.mark.parametrize("heartbeat", [None, 60.0])
def test_an_unchanged_tree_costs_no_request(bench: Bench, heartbeat: float | None) -> None:
    """A driver's heartbeat, once per period, is all that an idle engine sends."""

    async def main() -> tuple[set[str], int]:
        async with bench.engine(SyncConfig(sync_period=100, sync_artifacts=True, heartbeat=heartbeat)) as engine:
            trial = engine.trial("t")
            (engine.local_dir / "t").mkdir(parents=True, exist_ok=True)
            (trial.dir / "log").write_text("x")
            await trial.report({"loss": 1.0})
            await asyncio.sleep(150)
            before = len(bench.faults.requests)
            await asyncio.sleep(1000)
            return {request.key for request in bench.faults.requests[before:]}, len(bench.faults.requests) - before

    keys, requests = run_virtual(main())
    assert keys == ({".asyncsync/experiment.json"} if heartbeat else set())
    assert requests <= ((1000 // heartbeat + 1) * 2 if heartbeat else 0)


def test_a_hundred_forced_syncs_during_one_give_one_more(bench: Bench) -> None:
    async def main() -> int:
        async with bench.engine(SyncConfig(sync_period=10_000)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            stream = engine.events()
            await trial.report({"loss": 1.0})
            hang = bench.faults.hang(operation="put", key="t/")
            first = asyncio.ensure_future(trial.sync())
            await hang.reached.wait()
            rest = [asyncio.ensure_future(trial.sync()) for _ in range(100)]
            await asyncio.sleep(1)
            hang.release.set()
            await asyncio.gather(first, *rest)
            started = 0
            while not stream._queue.empty():
                started += isinstance(await anext(stream), SyncStarted)
            return started

    assert run_virtual(main()) == 2


def test_a_timeout_stops_the_requests_and_names_the_missing_files(bench: Bench) -> None:
    async def main() -> str:
        async with bench.engine(SyncConfig(sync_period=10_000, sync_timeout=50)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await trial.report({"loss": 1.0})
            bench.faults.hang(operation="put", key="t/result.json")
            with pytest.raises(SyncTimeoutError) as caught:
                await trial.sync()
            assert bench.faults.active == 0
            assert engine.status().requests_running == 0
            bench.faults.clear()
            return str(caught.value)

    message = run_virtual(main())
    assert "result.json" in message
    assert "sync_timeout=50" in message
    assert "t/result.json" in bench.keys()


def test_a_timeout_is_an_event_at_once(bench: Bench) -> None:
    async def main() -> list[str]:
        async with bench.engine(SyncConfig(sync_period=10_000, sync_timeout=50)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            stream = engine.events()
            await trial.report({"loss": 1.0})
            bench.faults.hang(operation="put", key="t/")
            with pytest.raises(SyncTimeoutError):
                await trial.sync()
            bench.faults.clear()
            kinds = []
            while not stream._queue.empty():
                kinds.append((await anext(stream)).kind)
            return kinds

    assert SyncTimedOut.__name__ in run_virtual(main())


def test_a_failure_that_nobody_waited_for_is_reported_at_the_next_report(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=100)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await trial.report({"loss": 1.0})
            bench.faults.fail(error=AccessDeniedError("no"), operation="put", key="t/", times=None)
            await asyncio.sleep(120)
            with pytest.raises(SyncFailedError, match="no"):
                await trial.report({"loss": 2.0})
            bench.faults.clear()

    run_virtual(main())


def test_a_store_that_is_away_for_a_minute_stops_nobody_and_loses_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=10)) as engine:
            trials = [engine.trial(f"t{index}") for index in range(50)]
            await engine.sync()
            bench.faults.fail(error=UnavailableError("away"), times=None)
            for step in range(12):
                await asyncio.gather(*(trial.report({"step": step}) for trial in trials))
                await asyncio.sleep(5)
            assert engine.status().durability_lag > 30
            bench.faults.clear()
            await asyncio.sleep(60)
            assert engine.status().durability_lag == 0

    run_virtual(main())
    lines = bench.store.contents["t7/result.json"].decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(12))


def test_leaving_normally_makes_everything_durable(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_artifacts=True)) as engine:
            for index in range(5):
                trial = engine.trial(f"t{index}", params={"lr": index})
                await trial.report({"loss": 1.0}, bench.checkpoint(f"c{index}"), upload=UploadMode.ASYNC)
                (trial.dir / "late.log").write_text("last words")
        with pytest.raises(EngineClosedError):
            engine.trial("x")

    run_virtual(main())
    assert len(bench.keys("late.log")) == 5
    assert len(bench.keys("checkpoint_000000/.asyncsync/manifest.json")) == 5


def test_leaving_normally_raises_if_anything_is_not_durable(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(SyncFailedError, match="denied"):
            async with bench.engine() as engine:
                trial = engine.trial("t")
                await trial.sync()
                await trial.report({"loss": 1.0})
                bench.faults.fail(error=AccessDeniedError("denied"), operation="put", key="t/", times=None)

    run_virtual(main())


def test_leaving_by_an_exception_still_syncs_and_lets_it_out(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with bench.engine() as engine:
                await engine.trial("t").report({"loss": 1.0})
                raise ZeroDivisionError

    run_virtual(main())
    assert "t/result.json" in bench.keys()


def test_leaving_by_an_exception_is_bounded_and_notes_the_losses(bench: Bench) -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(ZeroDivisionError) as caught:
            async with bench.engine(exit_grace=30) as engine:
                trial = engine.trial("t")
                await trial.sync()
                await trial.report({"loss": 1.0})
                bench.faults.hang(operation="put", times=None)
                started = loop.time()
                raise ZeroDivisionError
        assert loop.time() - started <= 31
        return caught.value.__notes__

    assert "t" in run_virtual(main())[0]


def test_leaving_by_a_cancel_syncs_within_the_grace(bench: Bench) -> None:
    async def body() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({"loss": 1.0})
            await asyncio.sleep(1e6)

    async def main() -> None:
        task = asyncio.create_task(body())
        await asyncio.sleep(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())
    assert "t/result.json" in bench.keys()


def test_artifacts_stay_local_unless_asked_for(bench: Bench) -> None:
    async def main(*, artifacts: bool, name: str) -> None:
        async with bench.engine(
            SyncConfig(sync_artifacts=artifacts), local_dir=bench.tmp_path / name, resume=True
        ) as engine:
            trial = engine.trial(name, params={"lr": 1})
            await trial.report({"loss": 1.0})
            (trial.dir / "plot.png").write_bytes(b"png")

    run_virtual(main(artifacts=False, name="without"))
    run_virtual(main(artifacts=True, name="with"))
    own = {"result.json", "progress.csv", "params.json"}
    found = {key for key in bench.keys() if ".asyncsync" not in key}
    assert found == {f"without/{file}" for file in own} | {f"with/{file}" for file in (*own, "plot.png")}


def test_the_experiments_own_files_are_always_synced(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            engine.trial("t")
            (engine.local_dir / "searcher-state.json").write_text("{}")

    run_virtual(main())
    assert "searcher-state.json" in bench.keys()


def test_an_experiment_that_exists_is_not_overwritten(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine():
            pass
        with pytest.raises(ExperimentExistsError):
            async with bench.engine():
                pass

    run_virtual(main())


def test_include_and_exclude_choose_the_artifacts(bench: Bench) -> None:
    async def main() -> None:
        config = SyncConfig(sync_artifacts=True, include=("*.log", "keep/"), exclude=("secret.log",))
        async with bench.engine(config) as engine:
            trial = engine.trial("t")
            await trial.report({"loss": 1.0})
            (trial.dir / "keep").mkdir()
            for name in ("a.log", "secret.log", "b.bin", "keep/x.bin"):
                (trial.dir / name).write_text("x")

    run_virtual(main())
    assert {Path(key).name for key in bench.keys() if ".asyncsync" not in key} == {
        "a.log",
        "x.bin",
        "result.json",
        "progress.csv",
    }


def test_max_pending_checkpoints_is_the_back_pressure(bench: Bench) -> None:
    async def main() -> bool:
        async with bench.engine(keep=CheckpointConfig(max_pending_checkpoints=2)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            hang = bench.faults.hang(operation="put", key="checkpoint_000000")
            for step in range(2):
                await trial.report({"step": step}, bench.checkpoint(f"c{step}"), upload=UploadMode.ASYNC)
            third = asyncio.ensure_future(trial.report({"step": 2}, bench.checkpoint("c2"), upload=UploadMode.ASYNC))
            await asyncio.sleep(5)
            waited = not third.done()
            hang.release.set()
            await third
            return waited

    assert run_virtual(main())
    assert len(bench.keys("manifest.json")) >= 3


def test_leaving_with_an_unreachable_store_ends_and_names_the_losses(bench: Bench) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(SyncFailedError, match="checkpoint_000000"):
            async with bench.engine() as engine:
                trial = engine.trial("t")
                await trial.sync()
                bench.faults.fail(error=UnavailableError("gone"), times=None)
                await trial.report({"loss": 1.0}, bench.checkpoint(), upload=UploadMode.ASYNC)
        return loop.time() - started

    assert run_virtual(main()) < 300


def test_a_finished_trial_leaves_the_schedule_and_takes_no_more_reports(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=10)) as engine:
            trial = engine.trial("t")
            await trial.report({"loss": 1.0})
            await trial.finish("failed", error=ValueError("diverged"))
            before = bench.faults.calls
            (trial.dir / "result.json").write_text("{}")
            await asyncio.sleep(100)
            assert bench.puts("t/result.json") == 1
            with pytest.raises(EngineClosedError, match="finished"):
                await trial.report({"loss": 2.0})
            assert bench.faults.calls >= before

    run_virtual(main())
    stored = json.loads(bench.store.contents["t/.asyncsync/trial.json"])
    assert (stored["status"], stored["error"]) == ("failed", "diverged")
