"""``flush`` sends the most valuable bytes first, and its report lists exactly which trees are durable."""

import asyncio

import pytest
from onebench import Bench

from asyncsync import Checkpoint, CheckpointConfig, SyncConfig, SyncEngine, TransferConfig, Trial, UploadMode
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.status import FlushReport
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import run_virtual

TRIALS = ("a", "b", "c")
KEEP = CheckpointConfig(max_pending_checkpoints=9)
ARTIFACTS = SyncConfig(sync_period=10_000, sync_artifacts=True, sync_artifacts_on_checkpoint=False)


def slow(bench: Bench) -> None:
    """One second a request, and one request at a time: the order can be seen and counted."""
    bench.storage_options = {"latency": 1.0}
    bench.transfer = TransferConfig(max_concurrency=1)


async def busy(bench: Bench, engine: SyncEngine) -> list[Trial]:
    """Each trial has two checkpoints on their way and artifacts that nobody has sent."""
    trials = [engine.trial(name) for name in TRIALS]
    await engine.sync()
    for trial in trials:
        for number in range(4):
            (trial.dir / f"log{number}").write_text(trial.name)
        for step in range(2):
            files = {f"part{number}": f"{trial.name}{step}{number}".encode() for number in range(3)}
            directory = bench.checkpoint(f"{trial.name}-{step}", **files)
            await trial.report({"step": step}, Checkpoint.take(directory), upload=UploadMode.ASYNC)
    await asyncio.sleep(2)
    bench.faults.requests.clear()
    return trials


def check(bench: Bench, report: FlushReport) -> None:
    """Compare the report with the contents of the store."""
    contents = bench.store.contents
    named = set()
    for trial in TRIALS:
        record = TrialRecord.from_bytes(contents[f"{trial}/.asyncsync/trial.json"])
        named |= {f"{trial}/{item.name}" for item in record.checkpoints}
    durable = {name for name in report.durable if "/checkpoint_" in name}
    assert durable <= named
    for name in durable:
        for path in Manifest.from_bytes(contents[f"{name}/{MANIFEST}"]).files:
            assert f"{name}/{path}" in contents
    for trial in set(TRIALS) & set(report.durable):
        assert {f"{trial}/log{number}" for number in range(4)} <= contents.keys()
    assert set(report.durable).isdisjoint(report.not_durable)
    everything = {"", *TRIALS, *(f"{trial}/checkpoint_{number:06d}" for trial in TRIALS for number in range(2))}
    assert {*report.durable, *report.not_durable} == everything


def test_flush_sends_newest_checkpoints_then_records_then_artifacts(bench: Bench) -> None:
    slow(bench)

    async def main() -> None:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            await busy(bench, engine)
            report = await engine.flush(deadline=1000)
            assert report.not_durable == ()
            check(bench, report)

    run_virtual(main())
    order = [request.key for request in bench.faults.requests if request.operation == "put"]
    newest = [order.index(f"{trial}/checkpoint_000001/{MANIFEST}") for trial in TRIALS]
    records = [order.index(f"{trial}/.asyncsync/trial.json") for trial in TRIALS]
    older = [order.index(f"{trial}/checkpoint_000000/{MANIFEST}") for trial in TRIALS]
    artifacts = [order.index(f"{trial}/log0") for trial in TRIALS]
    assert max(newest) < min(older)
    assert max(records) < min(older + artifacts)


@pytest.mark.parametrize("deadline", [1, 5, 12, 17, 22, 30, 45])
def test_a_flush_ends_at_its_deadline_with_an_exact_report(bench: Bench, deadline: int) -> None:
    slow(bench)

    async def main() -> FlushReport:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            await busy(bench, engine)
            started = asyncio.get_running_loop().time()
            report = await engine.flush(deadline)
            assert asyncio.get_running_loop().time() - started <= deadline
            check(bench, report)
        return report

    report = run_virtual(main())
    newest = {f"{trial}/checkpoint_000001" for trial in TRIALS}
    older = {f"{trial}/checkpoint_000000" for trial in TRIALS}
    assert newest <= set(report.durable) or not older & set(report.durable)


def test_work_not_done_in_time_continues_afterwards(bench: Bench) -> None:
    slow(bench)

    async def main() -> None:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            await busy(bench, engine)
            assert (await engine.flush(6)).not_durable
        assert engine._registry.trials["a"].record.next_checkpoint == 2

    run_virtual(main())
    for trial in TRIALS:
        record = TrialRecord.from_bytes(bench.store.contents[f"{trial}/.asyncsync/trial.json"])
        assert [item.metrics["step"] for item in record.checkpoints] == [0, 1]
        for item in record.checkpoints:
            for number in range(3):
                expected = f"{trial}{item.number}{number}".encode()
                assert bench.store.contents[f"{trial}/{item.name}/part{number}"] == expected


def test_sent_files_of_an_interrupted_checkpoint_are_not_sent_again(bench: Bench) -> None:
    slow(bench)

    async def main() -> None:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            await busy(bench, engine)
            await engine.flush(1000)

    run_virtual(main())
    sent = [request.key for request in bench.faults.requests if "checkpoint_" in request.key]
    again = {key for key in sent if "part" in key and sent.count(key) > 1}
    assert len(again) <= 1  # the one that was under way when it was interrupted


def test_no_report_is_taken_during_a_flush(bench: Bench) -> None:
    slow(bench)

    async def main() -> None:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            trials = await busy(bench, engine)
            flush = asyncio.create_task(engine.flush(10))
            await asyncio.sleep(1)
            late = asyncio.create_task(trials[0].report({"step": 2}, bench.checkpoint("late"), upload=UploadMode.ASYNC))
            report = await flush
            assert not late.done()
            assert "a/checkpoint_000002" not in {*report.durable, *report.not_durable}
            await late

    run_virtual(main())
    assert bench.keys(f"a/checkpoint_000002/{MANIFEST}")


def test_a_waiter_of_an_interrupted_sync_gets_the_next_one(bench: Bench) -> None:
    slow(bench)

    async def main() -> None:
        async with bench.engine(ARTIFACTS, KEEP) as engine:
            trials = await busy(bench, engine)
            waiting = asyncio.create_task(trials[0].sync())
            await asyncio.sleep(2)
            await engine.flush(5)
            await waiting
            assert bench.keys("a/log0")

    run_virtual(main())


def test_leaving_by_an_exception_saves_the_newest_checkpoints_first(bench: Bench) -> None:
    slow(bench)

    async def main() -> list[str]:
        with pytest.raises(ZeroDivisionError) as caught:
            async with bench.engine(ARTIFACTS, KEEP, exit_grace=27) as engine:
                await busy(bench, engine)
                raise ZeroDivisionError
        return caught.value.__notes__

    (note,) = run_virtual(main())
    names = {key.split("/")[1] for key in bench.keys(MANIFEST) if "checkpoint_" in key}
    assert names == {"checkpoint_000001"}
    assert "a/checkpoint_000000" in note
    assert "checkpoint_000001" not in note
