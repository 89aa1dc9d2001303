"""The store is unreachable for a minute during fifty trials: nothing crashes, is lost or piles up."""

import asyncio
import json
from collections.abc import Callable

import pytest
from onebench import Bench

from asyncsync import SyncConfig, UploadMode, verify
from asyncsync.engine.engine import SyncEngine
from asyncsync.errors import SyncFailedError, ThrottledError, UnavailableError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.stores.guard.breaker import LONGEST_PROBE_PAUSE, RETURN_SPREAD
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import run_virtual

TRIALS, STEPS = 50, 21


async def train(engine: SyncEngine, bench: Bench, number: int) -> None:
    """A report every 5 s, with a checkpoint every third time."""
    trial = engine.trial(f"t{number:02}")
    for step in range(STEPS):
        source = bench.checkpoint(f"source{number}-{step}", weights=f"{number} {step}".encode() * 100)
        await trial.report({"step": step}, source if step % 3 == 2 else None, upload=UploadMode.ASYNC)
        await asyncio.sleep(5)


def load(engine: SyncEngine) -> dict[str, int]:
    """Sizes of all that could grow while the store is unreachable."""
    status = engine.status()
    return {
        "tasks": len(asyncio.all_tasks()),
        "inbox": status.inbox,
        "requests": status.requests_waiting + status.requests_running,
        "checkpoints": sum(trial.pending_checkpoints for trial in status.trials.values()),
    }


@pytest.mark.parametrize("error", [UnavailableError, ThrottledError])
def test_an_outage_of_a_minute_costs_a_lag_and_nothing_else(bench: Bench, error: Callable[[str], Exception]) -> None:
    seen: dict[str, dict[str, int]] = {}

    async def main() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        async with bench.engine(SyncConfig(sync_period=10)) as engine:
            async with asyncio.TaskGroup() as group:
                for number in range(TRIALS):
                    group.create_task(train(engine, bench, number))
                await asyncio.sleep(20)
                bench.faults.fail(error=error("away"), times=None)
                before = bench.faults.calls
                for second in range(0, 60, 10):
                    seen[f"{second}"] = load(engine)
                    await asyncio.sleep(10)
                assert engine.status().durability_lag > 40
                asked = bench.faults.calls - before
                bench.faults.clear()
                back = loop.time()
                while engine.status().durability_lag > 20:  # two periods
                    await asyncio.sleep(1)
                caught_up = loop.time() - back
            return asked, caught_up

    asked, caught_up = run_virtual(main())
    late = seen["50"]
    assert late["checkpoints"] <= 2 * TRIALS  # max_pending_checkpoints
    # A trial, its runner and its sync with one inside of each, two files on their way, two questions about the lease
    # beside them and two by whom they are asked again; and a few of the engine.
    assert late["tasks"] <= 14 * TRIALS + 10
    assert late["requests"] <= late["tasks"]
    assert late["inbox"] <= 2 * TRIALS
    # A store that is back is asked at once; one that throttled is not known to be, and backoff is a minute at most.
    assert caught_up < (LONGEST_PROBE_PAUSE + RETURN_SPREAD + 20 if error is UnavailableError else 150)
    if error is UnavailableError:
        assert asked < 200  # the circuit is open: probes, not a storm
    for number in range(TRIALS):
        lines = bench.store.contents[f"t{number:02}/result.json"].decode().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
        record = TrialRecord.from_bytes(bench.store.contents[f"t{number:02}/{TRIAL_RECORD}"])
        assert [item.metrics["step"] for item in record.checkpoints] == list(range(2, STEPS, 3))
    assert run_virtual(verify("memory://b/exp", deep=True)).ok


@pytest.mark.parametrize("trials", [1, TRIALS])
@pytest.mark.parametrize("late", range(0, 60, 13))
def test_when_the_store_is_back_nobody_waits_out_a_failure(bench: Bench, trials: int, late: int) -> None:
    """After ten minutes every tree and checkpoint waits a minute between two tries; now all come."""

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        async with bench.engine(SyncConfig(sync_period=1000)) as engine:
            running = [engine.trial(f"t{number:02}") for number in range(trials)]
            source = bench.checkpoint()
            await engine.sync()
            bench.faults.fail(error=UnavailableError("away"), times=None)
            for trial in running:
                await trial.report({}, source, upload=UploadMode.ASYNC)
                await engine._context.scheduler.ask(trial.name, force=True)
            await asyncio.sleep(600 + late)
            bench.faults.clear()
            gone = loop.time()
            while not engine.status().store_healthy:
                await asyncio.sleep(0.01)
            back = loop.time()
            while engine.status().durability_lag > loop.time() - back + 0.01:  # of the level before
                await asyncio.sleep(0.01)
            return back - gone, loop.time() - back

    noticed, caught_up = run_virtual(main())
    assert noticed < LONGEST_PROBE_PAUSE + 0.02  # looked at every hundredth of a second
    assert caught_up < RETURN_SPREAD + 2


def test_an_unreachable_store_delays_the_exit_once_not_per_trial(bench: Bench) -> None:
    """All wait for it at the same time, for as long as one would."""

    async def main(trials: int) -> float:
        loop, left = asyncio.get_running_loop(), 0.0
        with pytest.raises(SyncFailedError, match="not durable"):
            async with bench.engine(SyncConfig(sync_period=1000), resume=True) as engine:
                running = [engine.trial(f"t{number:02}") for number in range(trials)]
                await engine.sync()
                bench.faults.fail(error=UnavailableError("away"), times=None)
                for trial in running:
                    await trial.report({"step": 1})
                left = loop.time()
        bench.faults.clear()
        return loop.time() - left

    one, all_of_them = run_virtual(main(1)), run_virtual(main(TRIALS))
    assert all_of_them < one + 60
