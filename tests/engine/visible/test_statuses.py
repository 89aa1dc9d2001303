"""The status of an engine: it is read anew only for the trials that have changed."""

from __future__ import annotations

import asyncio

from onebench import Bench

from asyncsync import SyncConfig
from asyncsync.testing import run_virtual

RARELY = SyncConfig(sync_period=1000)


def test_a_durable_trial_is_read_again_only_after_it_has_changed(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(RARELY) as engine:
            for name in "abc":
                await engine.trial(name).report({"loss": 1.0})
            await engine.sync()
            first = engine.status().trials
            second = engine.status().trials
            assert all(first[name] is second[name] for name in "abc")
            await engine.trial("b").report({"loss": 0.5})
            third = engine.status().trials
            assert third["a"] is first["a"]
            assert third["b"].metrics == {"loss": 0.5}
            assert first["b"].metrics == {"loss": 1.0}

    run_virtual(main())


def test_the_lag_of_a_trial_grows_until_it_is_durable(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(RARELY) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await trial.report({"loss": 1.0})
            lags = [engine.status().durability_lag]
            for _ in range(2):
                await asyncio.sleep(10)
                lags.append(engine.status().trials["t"].durability_lag)
            await trial.sync()
            lags.append(engine.status().trials["t"].durability_lag)
            assert lags == [0, 10, 20, 0]

    run_virtual(main())


def test_a_trial_that_begins_or_ends_after_the_first_look_is_in_the_next(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(RARELY) as engine:
            assert engine.status().trials == {}
            trial = engine.trial("t")
            assert engine.status().trials["t"].status == "running"
            await trial.report({"loss": 1.0}, checkpoint=bench.checkpoint())
            await trial.finish("done")
            found = engine.status()
            assert (found.trials["t"].status, found.trials["t"].last_durable) == ("done", 0)
            assert found.durability_lag == found.pending_checkpoints == found.bytes_at_risk == 0

    run_virtual(main())


def test_the_largest_lag_and_the_bytes_are_those_of_all_trials(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(RARELY) as engine:
            for name in "abc":
                await engine.trial(name).sync()  # the first one is due at once
            for name in "ab":
                await engine.trial(name).report({"loss": 1.0})
                await asyncio.sleep(10)
            await engine.trial("c").report({"loss": 1.0}, checkpoint=bench.checkpoint(), upload="async")
            found = engine.status()
            assert found.durability_lag == max(trial.durability_lag for trial in found.trials.values()) == 20
            assert (found.bytes_at_risk, found.pending_checkpoints) == (1000, 1)

    run_virtual(main())
