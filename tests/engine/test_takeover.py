"""A successor takes over although a write of its predecessor lands between its read and its write."""

import asyncio

import pytest
from machines import Machine, names, record, told
from onebench import Bench

from asyncsync import CheckpointConfig, ConcurrentWriterError, SyncConfig
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.testing import run_virtual

NEVER = SyncConfig(sync_period=100_000)
KEEP = CheckpointConfig(num_to_keep=5)


def test_a_late_experiment_record_does_not_refuse_the_successor(bench: Bench) -> None:
    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.killed(NEVER, resume=False) as engine:
            await engine.sync()
            engine.trial("t")
            late = one.network.hang(operation="put", key="experiment.json")
            sync = asyncio.create_task(told(engine.sync()))
            await late.reached.wait()
            ours = two.network.hang(operation="put", key="experiment.json")

            async def succeed() -> None:
                async with two.engine(NEVER) as heir:
                    await heir.trial("t").report({"who": "two"}, bench.checkpoint("b"))

            successor = asyncio.create_task(succeed())
            await ours.reached.wait()
            late.release.set()
            await sync
            ours.release.set()
            await successor
        assert ExperimentRecord.from_bytes(bench.store.contents[".asyncsync/experiment.json"]).epoch == 2
        assert names(bench) == ["checkpoint_000000"]

    run_virtual(main())


def test_a_late_trial_record_is_continued(bench: Bench) -> None:
    """It names a checkpoint that was acknowledged: that stays, and the next one gets another number."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.killed(NEVER, KEEP, resume=False) as engine:
            trial = engine.trial("t")
            await trial.report({"who": "one"}, bench.checkpoint("a"))
            late = one.network.hang(2, operation="put", key="t/.asyncsync/trial.json", after=False)
            report = asyncio.create_task(told(trial.report({"who": "one"}, bench.checkpoint("b"))))
            await late.reached.wait()
            ours = two.network.hang(operation="put", key="t/.asyncsync/trial.json")

            async def succeed() -> None:
                async with two.engine(NEVER, KEEP) as heir:
                    await heir.trial("t").report({"who": "two"}, bench.checkpoint("c"))

            successor = asyncio.create_task(succeed())
            await ours.reached.wait()
            late.release.set()
            await asyncio.sleep(0.5)
            ours.release.set()
            await successor
            acknowledged = await report
        assert names(bench) == ["checkpoint_000000", "checkpoint_000001", "checkpoint_000002"]
        assert [item.metrics["who"] for item in record(bench).checkpoints] == ["one", "one", "two"]
        assert record(bench).epoch == 2
        del acknowledged

    run_virtual(main())


@pytest.mark.parametrize("writes", [2, 4])
def test_every_record_within_the_last_lease_is_continued(bench: Bench, writes: int) -> None:
    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.killed(NEVER, resume=False) as engine:
            trial = engine.trial("t")
            await trial.report({"n": 0})
            await trial.sync()
            ours = two.network.hang(operation="put", key="t/.asyncsync/trial.json")

            async def succeed() -> None:
                async with two.engine(NEVER) as heir:
                    await heir.trial("t").sync()

            successor = asyncio.create_task(succeed())
            for number in range(1, writes + 1):
                await ours.reached.wait()
                await trial.report({"n": number})
                await trial._state.keeper.save()
                before, ours = ours, two.network.hang(operation="put", key="t/.asyncsync/trial.json")
                before.release.set()
            await ours.reached.wait()
            ours.release.set()
            await successor
        assert (record(bench).metrics, record(bench).reports) == ({"n": writes}, writes + 1)

    run_virtual(main())


def test_a_record_of_a_third_process_refuses_the_successor(bench: Bench) -> None:
    async def main() -> None:
        one, two, three = Machine(bench, "one"), Machine(bench, "two"), Machine(bench, "three")
        async with one.killed(NEVER, resume=False) as engine:
            await engine.sync()
        ours = two.network.hang(operation="put", key="experiment.json")

        async def succeed() -> None:
            async with two.engine(NEVER):
                pytest.fail("the third process has taken over")

        successor = asyncio.create_task(told(succeed()))
        await ours.reached.wait()
        async with three.engine(NEVER) as heir:
            await heir.sync()
            ours.release.set()
            assert isinstance(await successor, ConcurrentWriterError)

    run_virtual(main())
