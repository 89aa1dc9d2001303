"""Checkpoints that the user pins or retires, and those that are kept for their step."""

import asyncio

import pytest
from onebench import Bench

from asyncsync import (
    CheckpointConfig,
    CheckpointRetiredError,
    ConfigError,
    Experiment,
    SyncEngine,
    Trial,
    UploadMode,
    pin,
    verify,
)
from asyncsync.errors import UnavailableError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.sync.records.model import TrialRecord

pytestmark = pytest.mark.virtual_time
KEEP_ONE = CheckpointConfig(num_to_keep=1)


def stored(bench: Bench) -> list[str]:
    return sorted(key.split("/")[1] for key in bench.keys(MANIFEST) if "/checkpoint_" in key)


def record(bench: Bench) -> TrialRecord:
    return TrialRecord.from_bytes(bench.store.contents["t/.asyncsync/trial.json"])


async def reported(bench: Bench, trial: Trial, *steps: int) -> list[str]:
    names = []
    for step in steps:
        report = await trial.report({}, bench.checkpoint(f"c{step}", w=b"%d" % step), step=step)
        assert report.checkpoint is not None
        names.append(report.checkpoint.name)
    return names


async def settled(engine: SyncEngine) -> None:
    await engine.flush()


async def test_a_retired_checkpoint_leaves_the_record_before_its_data(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        first, second = await reported(bench, trial, 1, 2)
        hold = bench.faults.hang(operation="delete", times=None)
        await trial.retire(first)
        assert [item.name for item in record(bench).checkpoints] == [second]
        assert record(bench).given_up == [first]
        assert stored(bench) == [first, second]
        hold.release.set()
        await settled(engine)
    assert stored(bench) == [second]
    assert (await verify("memory://b/exp", deep=True)).ok


async def test_the_newest_can_be_retired_and_its_number_is_not_used_again(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        first, second = await reported(bench, trial, 1, 2)
        await settled(engine)
        assert engine.status().trials["t"].last_durable == 1
        await trial.retire(second)
        assert trial.latest().name == first
        assert engine.status().trials["t"].last_durable == 0
    async with bench.engine(resume=True) as engine:
        (third,) = await reported(bench, engine.trial("t"), 3)
    assert third == "checkpoint_000002"
    assert stored(bench) == [first, third]


async def test_a_pinned_checkpoint_is_kept_also_by_the_next_process(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        (first,) = await reported(bench, engine.trial("t"), 1)
        await engine.trial("t").pin(first)
    async with bench.engine(keep=KEEP_ONE, resume=True) as engine:
        names = await reported(bench, engine.trial("t"), 2, 3)
    assert stored(bench) == [first, names[-1]]
    view = (await Experiment.open("memory://b/exp")).checkpoint("t", name=first)
    assert (view.pinned, view.step) == (True, 1)


async def test_unpinned_it_is_retired_by_the_next_checkpoint(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        trial = engine.trial("t")
        (first,) = await reported(bench, trial, 1)
        await trial.pin(first)
        await reported(bench, trial, 2)
        await trial.unpin(first)
        names = await reported(bench, trial, 3)
    assert stored(bench) == names


async def test_with_keep_pinned_false_pins_do_not_count(bench: Bench) -> None:
    async with bench.engine(keep=CheckpointConfig(num_to_keep=1, keep_pinned=False)) as engine:
        trial = engine.trial("t")
        (first,) = await reported(bench, trial, 1)
        await trial.pin(first)
        names = await reported(bench, trial, 2)
    assert stored(bench) == names


async def test_every_nth_step_is_kept_beside_the_best(bench: Bench) -> None:
    async with bench.engine(keep=CheckpointConfig(num_to_keep=1, keep_every=10)) as engine:
        names = await reported(bench, engine.trial("t"), 5, 10, 15, 20, 25)
    assert stored(bench) == [names[1], names[3], names[4]]


async def test_a_pinned_checkpoint_must_be_unpinned_before_it_is_retired(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        (first,) = await reported(bench, trial, 1)
        await trial.pin(first)
        with pytest.raises(ConfigError, match=r"is pinned; call unpin\('checkpoint_000000'\) first"):
            await trial.retire(first)


async def test_a_checkpoint_that_is_pinned_while_it_is_retired_stays(bench: Bench) -> None:
    """By another process, between the reading of the record and its writing."""
    async with bench.engine() as engine:
        trial = engine.trial("t")
        first, second = await reported(bench, trial, 1, 2)
        hold = bench.faults.hang(operation="put", key="trial.json")
        retiring = asyncio.create_task(trial.retire(first))
        await hold.reached.wait()
        await pin(f"memory://b/exp/t/{first}")
        hold.release.set()
        with pytest.raises(ConfigError, match="is pinned"):
            await retiring
    assert stored(bench) == [first, second]
    assert [item.pinned for item in record(bench).checkpoints] == [True, False]


@pytest.mark.parametrize("verb", ["retire", "pin", "unpin"])
async def test_an_unknown_name_is_refused_with_those_that_exist(bench: Bench, verb: str) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await reported(bench, trial, 1)
        with pytest.raises(ConfigError, match=f"invalid {verb}.*it has checkpoint_000000"):
            await getattr(trial, verb)("checkpoint_000007")


async def test_a_pending_checkpoint_cannot_be_retired(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        hold = bench.faults.hang(key="checkpoint_")
        report = await trial.report({}, bench.checkpoint(), upload=UploadMode.ASYNC)
        with pytest.raises(ConfigError, match="not durable yet"):
            await trial.retire(report.checkpoint.name)
        hold.release.set()


async def test_a_pin_that_comes_too_late_says_so(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        trial = engine.trial("t")
        (first,) = await reported(bench, trial, 1)
        await trial.sync()  # the first sync, which was due at once, writes the record no more
        hold = bench.faults.hang(operation="put", key="trial.json")
        report = await trial.report({}, bench.checkpoint("c2"), upload=UploadMode.ASYNC)
        await hold.reached.wait()
        with pytest.raises(CheckpointRetiredError, match="is being retired"):
            await trial.pin(first)
        hold.release.set()
        await report.checkpoint.durable()
    assert stored(bench) == [report.checkpoint.name]


@pytest.mark.parametrize("call", range(1, 12))
async def test_whatever_request_fails_the_record_lists_complete_ones_only(bench: Bench, call: int) -> None:
    """Pins, retirements and reports at once; requests fail, and a response is lost."""
    async with bench.engine(keep=CheckpointConfig(num_to_keep=2)) as engine:
        trial = engine.trial("t")
        first, second = await reported(bench, trial, 1, 2)
        bench.faults.fail(call, times=3)
        bench.faults.fail(call + 4, after=True)
        results = await asyncio.gather(
            trial.pin(first), trial.retire(second), reported(bench, trial, 3, 4), return_exceptions=True
        )
        bench.faults.clear()
        assert not [error for error in results if isinstance(error, BaseException) and not _is_told(error)]
        names = {item.name for item in record(bench).checkpoints}
        assert names <= set(stored(bench))
    assert {item.name for item in record(bench).checkpoints} == set(stored(bench))
    assert (await verify("memory://b/exp", deep=True)).ok


def _is_told(error: BaseException) -> bool:
    return isinstance(error, UnavailableError | CheckpointRetiredError)


async def test_a_finished_trial_is_durable_after_a_pin(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        (first,) = await reported(bench, trial, 1)
        await trial.finish()
        await trial.pin(first)
        assert (await engine.flush()).not_durable == ()
        assert engine.status().durability_lag == 0
    assert [item.pinned for item in record(bench).checkpoints] == [True]
