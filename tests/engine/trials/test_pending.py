"""An accepted checkpoint that asyncsync owns becomes durable, whatever happens to the process that accepted it."""

import asyncio
import json
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import Checkpoint, CheckpointConfig, SyncFailedError, TransferConfig, UploadMode
from asyncsync.disk.journal import Journal, PendingCheckpoint, journal_path
from asyncsync.errors import AccessDeniedError, CheckpointIncompleteError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import run_virtual

MIB = 1 << 20


def pending() -> list[PendingCheckpoint]:
    async def main() -> list[PendingCheckpoint]:
        async with Journal.open(journal_path()) as journal:
            return await journal.pending_checkpoints("memory://b/exp")

    return run_virtual(main())


def record(bench: Bench) -> TrialRecord:
    return TrialRecord.from_bytes(bench.store.contents["t/.asyncsync/trial.json"])


def names(bench: Bench) -> list[str]:
    return [item.name for item in record(bench).checkpoints]


async def killed(
    bench: Bench, *sources: Checkpoint, hang: str = "checkpoint_", operation: str | None = None, **options
) -> None:
    """Accept these, and end like a process that is killed: nothing after a request that stands still."""

    async def body() -> None:
        async with bench.engine(exit_grace=0.01, keep=CheckpointConfig(max_pending_checkpoints=9), **options) as engine:
            trial = engine.trial("t", params={"lr": 1})
            await trial.sync()
            stuck = bench.faults.hang(key=hang, operation=operation, times=None)
            for step, source in enumerate(sources):
                await trial.report({"step": step}, source, upload=UploadMode.ASYNC, metadata={"at": step})
            await stuck.reached.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await body()
    bench.faults.clear()


async def resumed(bench: Bench, **options) -> None:
    async with bench.engine(resume=True, **options):
        pass


def test_a_pending_checkpoint_is_uploaded_by_the_next_process(bench: Bench) -> None:
    one, two = bench.checkpoint("one", weights=b"1"), bench.checkpoint("two", weights=b"2")
    run_virtual(killed(bench, Checkpoint.take(one), Checkpoint.take(two)))
    assert len(pending()) == 2
    run_virtual(resumed(bench))
    assert names(bench) == ["checkpoint_000000", "checkpoint_000001"]
    assert [bench.store.contents[f"t/{name}/weights"] for name in names(bench)] == [b"1", b"2"]
    assert [(item.metrics, item.metadata) for item in record(bench).checkpoints] == [
        ({"step": 0}, {"at": 0}),
        ({"step": 1}, {"at": 1}),
    ]
    assert (one.exists(), two.exists(), pending()) == (False, False, [])


def test_a_lent_directory_is_not_taken_up(bench: Bench) -> None:
    run_virtual(killed(bench, Checkpoint.lend(bench.checkpoint("mine"))))
    run_virtual(resumed(bench))
    assert not bench.keys("weights")
    assert pending() == []


def test_a_snapshot_is_taken_up(bench: Bench) -> None:
    source = bench.checkpoint("live", weights=b"then")
    run_virtual(killed(bench, Checkpoint.snapshot(source)))
    (source / "weights").write_bytes(b"now")
    run_virtual(resumed(bench))
    assert bench.store.contents["t/checkpoint_000000/weights"] == b"then"
    assert [path.name for path in bench.tmp_path.iterdir() if "asyncsync-tmp" in path.name] == []


def test_reports_continue_after_it(bench: Bench) -> None:
    async def main() -> None:
        await killed(bench, Checkpoint.take(bench.checkpoint("one")))
        async with bench.engine(resume=True) as engine:
            report = await engine.trial("t", params={"lr": 2}).report({"step": 1}, bench.checkpoint("two"))
            assert report.checkpoint is not None
            assert report.checkpoint.name == "checkpoint_000001"

    run_virtual(main())
    assert names(bench) == ["checkpoint_000000", "checkpoint_000001"]
    assert record(bench).params == json.loads(bench.store.contents["t/params.json"]) == {"lr": 2}


def test_one_that_was_committed_is_only_registered(bench: Bench) -> None:
    one = bench.checkpoint("one", weights=b"1")
    run_virtual(killed(bench, Checkpoint.take(one), hang="t/.asyncsync/trial.json", operation="put"))
    assert bench.keys(f"t/checkpoint_000000/{MANIFEST}")
    (one / "weights").unlink()  # as if it had been killed while it deleted the directory
    run_virtual(resumed(bench))
    assert (names(bench), one.exists(), pending()) == (["checkpoint_000000"], False, [])
    assert bench.store.contents["t/checkpoint_000000/weights"] == b"1"


def test_only_missing_files_are_sent(bench: Bench) -> None:
    one = bench.checkpoint("one", weights=bytes(range(256)) * (80 * 4096))
    split = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)

    async def main() -> None:
        bench.transfer = split
        bench.faults.hang(at=6, operation="put_part", times=None)
        with pytest.raises(KeyboardInterrupt):
            async with bench.engine(exit_grace=0.01) as engine:
                await engine.trial("t").report({}, Checkpoint.take(one), upload=UploadMode.ASYNC)
                await asyncio.sleep(100)
                raise KeyboardInterrupt
        sent = sum(len(upload.parts) for upload in bench.store.bucket.uploads.values())
        bench.faults.clear()
        bench.faults.requests.clear()
        await resumed(bench)
        assert sent == 5
        assert bench.faults.count("put_part") == 16 - sent

    run_virtual(main())
    assert names(bench) == ["checkpoint_000000"]


def test_a_name_that_another_machine_has_used_since_is_not_touched(bench: Bench) -> None:
    async def elsewhere() -> None:
        async with bench.engine(resume=True, local_dir=bench.tmp_path / "elsewhere") as engine:
            await engine.trial("t").report({}, bench.checkpoint("theirs", weights=b"theirs"))

    run_virtual(killed(bench, Checkpoint.take(bench.checkpoint("ours", weights=b"ours")), hang=""))
    mine = journal_path().rename(journal_path().with_name("mine"))
    run_virtual(elsewhere())
    for path in journal_path().parent.glob("journal*"):
        path.unlink()
    mine.rename(journal_path())
    run_virtual(resumed(bench))
    ours, theirs = names(bench)  # newest last: theirs was reported later
    assert theirs == "checkpoint_000000"
    assert ours.startswith("checkpoint_000000-")
    assert [bench.store.contents[f"t/{name}/weights"] for name in (ours, theirs)] == [b"ours", b"theirs"]


def test_a_checkpoint_with_a_missing_directory_is_reported(bench: Bench) -> None:
    one = bench.checkpoint("one")

    async def main() -> None:
        await killed(bench, Checkpoint.take(one))
        (one / "weights").unlink()
        one.rmdir()
        with pytest.raises(CheckpointIncompleteError, match=r"lost.*neither a directory nor"):
            await resumed(bench)

    run_virtual(main())
    assert pending() == []


def test_one_that_failed_for_good_is_not_tried_again(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(SyncFailedError, match="not you"):
            async with bench.engine() as engine:
                bench.faults.fail(error=AccessDeniedError("not you"), operation="put", key="weights")
                await engine.trial("t").report({}, Checkpoint.take(bench.checkpoint()), upload=UploadMode.ASYNC)

    run_virtual(main())
    assert pending() == []


def test_checkpoints_accepted_by_a_living_process_are_left_to_it(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(role="worker") as worker:
            trial = worker.trial("t")
            await trial.sync()
            hang = bench.faults.hang(key="checkpoint_")
            await trial.report({}, Checkpoint.take(bench.checkpoint("one")), upload=UploadMode.ASYNC)
            await hang.reached.wait()
            async with bench.engine(role="worker", resume=True) as other:
                assert other._registry.trials == {}
            hang.release.set()

    run_virtual(main())
    assert names(bench) == ["checkpoint_000000"]


def test_uploads_without_a_pending_checkpoint_are_aborted(bench: Bench, tmp_path: Path) -> None:
    lent = bench.checkpoint("lent", weights=bytes(12 * MIB))
    bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)

    async def again() -> None:
        async with bench.engine(resume=True) as engine:
            await engine.trial("t").report({"step": 1})

    run_virtual(killed(bench, Checkpoint.lend(lent)))
    run_virtual(again())
    assert bench.store.bucket.uploads == {}
