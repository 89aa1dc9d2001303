"""A successor takes over although a write of its predecessor lands between its read and its write."""

import asyncio
from dataclasses import replace
from typing import TypeVar

import pytest
from machines import Machine, names, record, told
from onebench import Bench

from asyncsync import Checkpoint, CheckpointConfig, ConcurrentWriterError, SyncConfig, pin, verify
from asyncsync.engine.trials.resume import adopt_checkpoints, merge_late_record
from asyncsync.errors import AccessDeniedError
from asyncsync.stores.base import Store
from asyncsync.stores.wrapped import Call, Operation, WrappedStore
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord
from asyncsync.testing import run_virtual
from asyncsync.testing.faulty import Hang

T = TypeVar("T")
NEVER = SyncConfig(sync_period=100_000)
KEEP = CheckpointConfig(num_to_keep=5)
ARTIFACTS = SyncConfig(sync_period=100_000, sync_artifacts=True)


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


@pytest.mark.parametrize("moment", range(1, 25))
def test_tasks_that_take_a_trial_at_once_lose_nothing(bench: Bench, moment: int) -> None:
    """A report and a sync take the trial over while a late record lands, and one answer of the store is late."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with Machine(bench, "driver").engine(NEVER, KEEP, resume=False):
            pass
        async with one.killed(NEVER, KEEP, role="worker") as engine:
            await engine.trial("t").report({"n": 0}, bench.checkpoint("a"))
            ours = two.network.hang(operation="put", key="t/.asyncsync/trial.json")
            answer = Hang()

            async def succeed() -> None:
                async with two.engine(NEVER, KEEP, role="worker") as heir:
                    trial = heir.trial("t")
                    sync = asyncio.create_task(trial.sync())
                    report = asyncio.create_task(trial.report({"n": 2}, bench.checkpoint("c")))
                    await asyncio.wait([report], timeout=5)
                    answer.release.set()
                    await asyncio.gather(report, sync)
                    await trial.report({"n": 3}, bench.checkpoint("d"))

            successor = asyncio.create_task(succeed())
            await ours.reached.wait()
            await engine.trial("t").report({"n": 1}, bench.checkpoint("b"))
            answer = two.network.hang(moment, after=True)
            ours.release.set()
            await successor
        assert [item.metrics["n"] for item in record(bench).checkpoints] == [0, 1, 2, 3]
        assert (await verify("memory://b/exp", deep=True)).stray == []

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


def test_a_name_that_a_late_record_gives_up_is_not_used(bench: Bench) -> None:
    """The successor chose it before that record landed, and deletes what the record gives up."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with Machine(bench, "driver").engine(NEVER, KEEP, resume=False):
            pass
        async with one.killed(NEVER, KEEP, role="worker") as engine:
            trial = engine.trial("t")
            await trial.report({"who": "one"}, bench.checkpoint("a"))
            ours = two.network.hang(operation="put", key="t/.asyncsync/trial.json")

            async def succeed() -> None:
                async with two.engine(NEVER, KEEP, role="worker") as heir:
                    await heir.trial("t").report({"who": "two"}, bench.checkpoint("c"))

            successor = asyncio.create_task(succeed())
            await ours.reached.wait()
            one.network.hang(operation="delete", times=None)
            one.network.fail(
                operation="put", key="checkpoint_000001/.asyncsync/manifest", error=AccessDeniedError("no")
            )
            with pytest.raises(AccessDeniedError):
                await trial.report({"who": "one"}, bench.checkpoint("b"))
            await asyncio.sleep(1)
            assert record(bench).given_up == ["checkpoint_000001"]
            ours.release.set()
            await successor
        assert names(bench) == ["checkpoint_000000", "checkpoint_000002"]
        assert bench.store.contents["t/checkpoint_000002/weights"]

    run_virtual(main())


@pytest.mark.parametrize("trial_exists", [True, False])
def test_a_checkpoint_of_a_deleted_experiment_is_not_adopted(bench: Bench, *, trial_exists: bool) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, KEEP, resume=False) as engine:
            await engine.trial("t").report({}, bench.checkpoint("a"))
        late = {key: bench.store.contents[key] for key in bench.store.contents if "checkpoint_000000/" in key}
        await bench.store.delete(list(bench.store.contents))
        async with Machine(bench, "two").engine(NEVER, KEEP, resume=False) as engine:
            await engine.trial("t" if trial_exists else "other").report({}, None)
        for key, data in late.items():
            await bench.store.put(key, data)
        async with Machine(bench, "three").engine(NEVER, KEEP, resume=True) as engine:
            await engine.trial("t").report({}, bench.checkpoint("b"))
        assert names(bench) == ["checkpoint_000001"]

    run_virtual(main())


def test_what_a_new_worker_left_in_a_deleted_experiment_is_not_continued(bench: Bench) -> None:
    """Its files were sent, the experiment was deleted, and then its manifest landed: nothing of it may be listed."""

    async def main() -> None:
        async with Machine(bench, "driver").engine(NEVER, KEEP, resume=False):
            pass
        one = Machine(bench, "one")
        async with one.killed(NEVER, KEEP, role="worker", resume=False) as engine:
            one.network.late = lambda request: request.key.endswith("checkpoint_000000/.asyncsync/manifest.json")
            await engine.trial("t").report({}, Checkpoint.take(bench.checkpoint("a")), upload="async")
            while not one.network.under_way:
                await asyncio.sleep(0.1)
        one.network.late = lambda _: False
        await bench.store.delete(list(bench.store.contents))
        await one.network.land()
        assert list(bench.store.contents) == ["t/checkpoint_000000/.asyncsync/manifest.json"]
        async with one.engine(NEVER, KEEP, role="worker") as engine:
            await engine.trial("t").report({}, bench.checkpoint("b"))
        assert names(bench) == ["checkpoint_000001"]

    run_virtual(main())


class GivesUp(WrappedStore):
    """Another task gives the checkpoint up while this one compares its files with its manifest."""

    def __init__(self, inner: Store, record: TrialRecord) -> None:
        super().__init__(inner)
        self.record = record

    async def around(self, operation: Operation, call: Call[T]) -> T:
        result = await call()
        if (operation.name, operation.key) == ("list", "t/checkpoint_000000/"):
            self.record.given_up.append("checkpoint_000000")
        return result


def test_what_is_given_up_while_it_is_adopted_is_not_listed(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, KEEP, resume=False) as engine:
            await engine.trial("t").report({}, bench.checkpoint("a"))
        unregistered = replace(record(bench), checkpoints=[])
        await adopt_checkpoints(GivesUp(bench.store, unregistered), unregistered, lambda _info: True, warnings.append)
        assert (unregistered.checkpoints, unregistered.given_up) == ([], ["checkpoint_000000"])

    warnings: list[str] = []
    run_virtual(main())


def test_what_a_late_record_lists_is_not_given_up(bench: Bench) -> None:
    async def main() -> None:
        async with Machine(bench, "one").engine(NEVER, KEEP, resume=False) as engine:
            await engine.trial("t").report({}, bench.checkpoint("a"))
        late = record(bench)
        ours = replace(late, checkpoints=[], given_up=["checkpoint_000000", "checkpoint_000007"])
        merged = merge_late_record(ours, late)
        assert [item.name for item in merged.checkpoints] == ["checkpoint_000000"]
        assert merged.given_up == ["checkpoint_000007"]

    run_virtual(main())


def test_a_repair_that_fails_is_tried_again(bench: Bench) -> None:
    """What a replaced process wrote late is found when its lease is over, and sent again until that succeeds."""
    config = SyncConfig(sync_period=5, sync_artifacts=False)

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.killed(config, resume=False) as engine:
            await engine.trial("t").report({"loss": 0})
            await engine.trial("t").sync()
            async with two.engine(config) as heir:
                await heir.trial("t").report({"loss": 1})
                await heir.trial("t").sync()
                right = bench.store.contents["t/result.json"]
                await bench.store.put("t/result.json", b"a late write\n")
                repair = two.network.fail(1, AccessDeniedError("no"), operation="put", key="t/result.json")
                await asyncio.sleep(60)
                assert repair.seen == 2
                assert bench.store.contents["t/result.json"] == right

    run_virtual(main())


def test_a_replaced_process_does_not_store_a_mark_that_it_adopts(bench: Bench) -> None:
    """The successor of the experiment has not written the trial's record yet."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.killed(NEVER, resume=False) as engine:
            trial = engine.trial("t")
            await trial.report({"who": "one"}, bench.checkpoint("a"))
            await asyncio.sleep(30)
            async with two.engine(NEVER) as heir:
                await pin("memory://b/exp/t/checkpoint_000000")
                before = dict(bench.store.contents)
                assert isinstance(
                    await told(trial.report({"who": "one"}, bench.checkpoint("b"))), ConcurrentWriterError
                )
                assert bench.store.contents == before
                await heir.trial("t").report({"who": "two"}, bench.checkpoint("c"))
        pinned = [item.name for item in record(bench).checkpoints if item.pinned]
        assert pinned == ["checkpoint_000000"]

    run_virtual(main())


@pytest.mark.parametrize("size", [5, 300_000])
def test_a_file_newer_than_the_manifest_is_restored_as_it_is(
    bench: Bench, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """A process that was killed in a sync had sent it, and deleted another one."""

    async def main() -> None:
        async with Machine(bench, "one").engine(ARTIFACTS, resume=False) as engine:
            for name in ("log", "gone"):
                (engine.trial("t").dir / name).write_bytes(b"old")
        await bench.store.put("t/log", b"n" * size)
        await bench.store.delete(["t/gone"])
        async with Machine(bench, "two").engine(ARTIFACTS) as heir:
            trial = heir.trial("t")
            await trial.report({"n": 1})
            assert (trial.dir / "log").read_bytes() == b"n" * size
            assert not (trial.dir / "gone").exists()

    run_virtual(main())
    assert "1 file(s) are newer than the manifest and are restored as they are: log" in caplog.text
    assert "1 file(s) in the manifest are missing in the store: gone" in caplog.text
