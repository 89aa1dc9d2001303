"""However an engine ends, every waiter gets a result or an error, and nothing is left behind."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from machines import Machine, names, stored, told
from onebench import Bench
from stored import check_complete

from asyncsync import CheckpointConfig, EngineClosedError, SyncConfig, UploadMode
from asyncsync.disk.journal import journal_path
from asyncsync.errors import AsyncsyncError
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.testing import run_virtual

ARTIFACTS = SyncConfig(sync_period=100_000, sync_artifacts=True, delete=False)


@pytest.mark.parametrize("turns", range(6))
def test_checkpoints_not_yet_begun_are_resolved_when_the_engine_stops(bench: Bench, turns: int) -> None:
    """Their runner may have been made just now, and never have come to its first line."""

    async def main() -> None:
        one = Machine(bench, "one")
        handles = []
        with pytest.raises(ZeroDivisionError):
            async with one.engine(ARTIFACTS, CheckpointConfig(max_pending_checkpoints=9), exit_grace=0) as engine:
                for name in ("t", "u", "v"):
                    await engine.trial(name).sync()
                one.network.hang(times=None)
                for step, name in enumerate(("t", "u", "v", "t", "u", "v")):
                    directory = bench.checkpoint(f"c{step}")
                    report = await engine.trial(name).report({}, directory, upload=UploadMode.ASYNC)
                    assert report.checkpoint is not None
                    handles.append(report.checkpoint)
                for _ in range(turns):
                    await asyncio.sleep(0)
                raise ZeroDivisionError
        ends = await asyncio.wait_for(asyncio.gather(*(told(handle.durable()) for handle in handles)), 5)
        assert all(isinstance(end, EngineClosedError) for end in ends)
        one.network.clear()

    run_virtual(main())


def test_a_timeout_while_leaving_names_the_checkpoints_not_durable(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(100):
                async with one.engine(ARTIFACTS, resume=False, exit_grace=10) as engine:
                    for name in ("t", "u"):
                        await engine.trial(name).sync()
                    one.network.hang(operation="put", key="t/checkpoint_000000", times=None)
                    await engine.trial("t").report({}, bench.checkpoint("a"), upload=UploadMode.ASYNC)
                    await engine.trial("u").report({"last": 1}, bench.checkpoint("b"), upload=UploadMode.ASYNC)
        cause = caught.value.__cause__
        assert "t/checkpoint_000000" in "".join(getattr(cause, "__notes__", []))
        assert ExperimentRecord.from_bytes(bench.store.contents[EXPERIMENT_RECORD]).status == "interrupted"
        assert names(bench, "u") == ["checkpoint_000000"]
        assert b'"last": 1' in bench.store.contents["u/result.json"]
        assert stored(bench, "u/checkpoint_000000/")
        one.network.clear()

    run_virtual(main())


def test_a_missing_artifact_that_was_overwritten_late_is_not_named(bench: Bench) -> None:
    """A replaced process overwrites a file that its successor has deleted locally: nobody has the right bytes."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        with pytest.raises(AsyncsyncError):
            async with one.engine(ARTIFACTS, resume=False) as old:
                trial = old.trial("t")
                (trial.dir / "artifact").write_bytes(b"right")
                await trial.sync()
                (trial.dir / "artifact").write_bytes(b"zombie")
                late = one.network.hang(operation="put", key="t/artifact")
                sync = asyncio.create_task(told(trial.sync()))
                await late.reached.wait()
                async with two.engine(ARTIFACTS) as heir:
                    await heir.trial("t").report({})
                    await heir.trial("t").sync()
                    (heir.trial("t").dir / "artifact").unlink()
                    await heir.trial("t").sync()
                    late.release.set()
                    await asyncio.sleep(1)
                    assert bench.store.contents["t/artifact"] == b"zombie"
                await sync
        check_complete(bench.store.contents)

    run_virtual(main())


def test_a_successor_does_not_wait_for_a_predecessor_that_ended(bench: Bench) -> None:
    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        with pytest.raises(ZeroDivisionError):
            async with one.engine(ARTIFACTS, resume=False) as engine:
                await engine.trial("t").report({})
                raise ZeroDivisionError
        began = asyncio.get_running_loop().time()
        async with two.engine(ARTIFACTS) as engine:
            await engine.trial("t").report({})
            await engine.trial("t").finish()
        assert asyncio.get_running_loop().time() - began < 1

    run_virtual(main())


def rows() -> dict[str, int]:
    """The rows of each table of the journal."""
    with closing(sqlite3.connect(journal_path())) as journal:
        tables = [name for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: journal.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}


def test_a_finished_trial_has_no_row_and_keeps_its_checkpoints(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=100, heartbeat=None)) as engine:
            trial = engine.trial("t", params={"rate": 1})
            for _ in range(2):
                await trial.report({"loss": 1.0}, checkpoint=bench.checkpoint())
            await trial.finish()
            await asyncio.sleep(10)  # the row that says so waits for others
            assert rows()["trees"] == 1  # the experiment's own files
            assert rows()["checkpoints"] == 0
            await trial.pin("checkpoint_000000")
            found = await trial.restore(bench.tmp_path / "found")
            assert found.checkpoint.name == "checkpoint_000001"
            await trial.retire("checkpoint_000001")
            await asyncio.sleep(50)
            assert bench.keys("checkpoint_000001/weights") == []
            assert trial.status == engine.status().trials["t"].status == "finished"
        check_complete(bench.store.contents)

    run_virtual(main())


def test_a_finished_trial_that_is_resumed_sends_only_news(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t", params={"rate": 1}).report({"loss": 1.0})
            await engine.trial("t").finish()
        before = dict(bench.store.contents)
        bench.faults.requests.clear()
        async with bench.engine(resume=True) as engine:
            await engine.trial("t").sync()
            assert bench.puts("t/result.json") == bench.puts("t/params.json") == 0
            await engine.trial("t").report({"loss": 0.5})
        assert bench.store.contents["t/result.json"].startswith(before["t/result.json"])
        assert bench.puts("t/result.json") == 1

    run_virtual(main())
