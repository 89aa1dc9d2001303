"""A process that was stopped while its successor started loses at its next write and writes nothing more."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from onebench import Bench

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine, TransferConfig, UploadMode
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.stores.guard.fenced import LEASE_HEAD_START, LEASE_SECONDS
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import run_virtual

ARTIFACTS = SyncConfig(sync_period=1000, sync_artifacts=True)
Act = Callable[[SyncEngine], Awaitable[object]]


def heir(bench: Bench, **options: object) -> SyncEngine:
    return bench.engine(ARTIFACTS, resume=True, local_dir=bench.tmp_path / "other", **options)


async def report(engine: SyncEngine) -> None:
    await engine.trial("t").report({"who": "zombie"})
    await engine.trial("t").sync()


async def artifacts(engine: SyncEngine) -> None:
    (engine.trial("t").dir / "log").write_bytes(b"zombie")
    await engine.trial("t").sync()


async def own_files(engine: SyncEngine) -> None:
    (engine.local_dir / "searcher").write_bytes(b"zombie")
    await engine.sync()


async def another_trial(engine: SyncEngine) -> None:
    await engine.trial("untouched").report({"who": "zombie"})
    await engine.trial("untouched").sync()


def acts(bench: Bench) -> dict[str, Act]:
    checkpoint = bench.checkpoint("late", weights=b"zombie" * 100)
    return {
        "sync checkpoint": lambda engine: engine.trial("t").report({"who": "zombie"}, checkpoint),
        "checkpoint of another trial": lambda engine: engine.trial("untouched").report({"who": "zombie"}, checkpoint),
        "report": report,
        "artifacts": artifacts,
        "own files": own_files,
        "another trial": another_trial,
        "finish": lambda engine: engine.trial("t").finish(),
    }


NAMES = (
    "sync checkpoint",
    "checkpoint of another trial",
    "report",
    "artifacts",
    "own files",
    "another trial",
    "finish",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_zombie_writes_nothing_more(bench: Bench, name: str) -> None:
    """Not even in its last sync. Responses of the second before do count."""

    async def main() -> None:
        with pytest.raises(AsyncsyncError):
            async with bench.engine(ARTIFACTS) as zombie:
                await zombie.trial("t").report({"who": "old"}, bench.checkpoint())
                await zombie.trial("untouched").report({"who": "old"}, bench.checkpoint())
                await zombie.sync()
                async with heir(bench) as successor:
                    await successor.trial("t").report({"who": "heir"}, bench.checkpoint())
                    await successor.sync()
                    await asyncio.sleep(LEASE_HEAD_START)
                    before = bench.store.contents
                    with pytest.raises(AsyncsyncError):
                        await acts(bench)[name](zombie)
                    assert bench.store.contents == before
        after = bench.store.contents
        assert not [key for key, data in after.items() if b"zombie" in data]

    run_virtual(main())


def test_a_process_replaced_during_a_checkpoint_writes_no_manifest(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(AsyncsyncError):
            async with bench.engine() as zombie:
                trial = zombie.trial("t")
                await trial.sync()
                hang = bench.faults.hang(operation="put", key="checkpoint_000000/weights")
                late = await trial.report({}, bench.checkpoint("late", weights=b"z"), upload=UploadMode.ASYNC)
                await hang.reached.wait()
                async with heir(bench) as successor:
                    await successor.trial("t").report({}, bench.checkpoint())
                    await successor.trial("t").report({}, bench.checkpoint())
                    before = bench.store.contents
                    hang.release.set()
                    assert late.checkpoint is not None
                    with pytest.raises(ConcurrentWriterError):
                        await late.checkpoint.durable()
                    added = bench.store.contents.keys() - before.keys()
                    assert not [key for key in added if key.endswith(MANIFEST)], added

    run_virtual(main())


def test_a_process_replaced_during_a_sync_sends_no_further_file(bench: Bench) -> None:
    async def main() -> None:
        run = RunConfig(
            name="exp", storage_path="memory://b", sync_config=ARTIFACTS, transfer=TransferConfig(max_concurrency=1)
        )
        with pytest.raises(AsyncsyncError):
            async with SyncEngine(run, local_dir=bench.tmp_path / "local") as zombie:
                trial = zombie.trial("t")
                await trial.sync()
                for number in range(5):
                    (trial.dir / f"f{number}").write_bytes(b"zombie")
                hang = bench.faults.hang(2, operation="put", key="t/f")
                async with asyncio.TaskGroup() as group:
                    sync = group.create_task(swallow(trial.sync()))
                    await hang.reached.wait()
                    async with heir(bench) as successor:
                        await successor.trial("t").report({"who": "heir"})
                        await successor.sync()
                        await asyncio.sleep(LEASE_SECONDS)
                        hang.release.set()
                        assert isinstance(await sync, AsyncsyncError)

    run_virtual(main())
    assert len([key for key in bench.store.contents if key.startswith("t/f")]) == 1  # requests in flight are not ended


async def swallow(work: Awaitable[object]) -> Exception | None:
    try:
        await work
    except AsyncsyncError as error:
        return error
    return None


def test_a_retired_checkpoint_does_not_come_back_with_a_successor(bench: Bench) -> None:
    """The record is written first, then the data are deleted: a process that starts in between must not adopt them."""

    async def main() -> list[str]:
        hang = bench.faults.hang(operation="delete", key="checkpoint_000000")
        async with bench.engine(keep=CheckpointConfig(num_to_keep=1)) as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint())
            await trial.report({}, bench.checkpoint())
            await trial.finish()
            await hang.reached.wait()
            async with bench.engine(role="worker", resume=True, local_dir=bench.tmp_path / "other") as successor:
                await successor.trial("t").sync()
            hang.release.set()
        return [
            item.name for item in TrialRecord.from_bytes(bench.store.contents["t/.asyncsync/trial.json"]).checkpoints
        ]

    assert run_virtual(main()) == ["checkpoint_000001"]
    assert "t/checkpoint_000000/weights" not in bench.store.contents
