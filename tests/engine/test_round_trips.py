"""Round trips to a store that is 30 ms away. Only requests take virtual time, so the counts are exact."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from machines import Machine, names
from onebench import Bench

from asyncsync import CheckpointConfig, SyncConfig
from asyncsync.errors import AsyncsyncError, UnavailableError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.stores.guard.fenced import LEASE_HEAD_START, LEASE_SECONDS
from asyncsync.testing import run_virtual

QUIET = SyncConfig(sync_period=100_000, heartbeat=None)
ROUND_TRIP = 0.03
"""Seconds."""


@pytest.fixture
def far(bench: Bench) -> Bench:
    bench.storage_options["latency"] = ROUND_TRIP
    return bench


def three_files(bench: Bench, name: str) -> Path:
    return bench.checkpoint(name, **{file: f"{file} of {name}".encode() for file in ("weights", "config", "state")})


async def cost(bench: Bench, work: Awaitable[object]) -> tuple[float, int]:
    """Round trips and requests of ``work``."""
    loop, before = asyncio.get_running_loop(), bench.faults.calls
    began = loop.time()
    await work
    return round((loop.time() - began) / ROUND_TRIP, 2), bench.faults.calls - before


def test_a_trial_makes_its_first_request_after_two_round_trips(far: Bench) -> None:
    async def main() -> float:
        reached = far.faults.hang(key="t/")
        async with far.engine(QUIET) as engine:
            sync = asyncio.create_task(engine.trial("t").sync())
            await reached.reached.wait()
            waited = asyncio.get_running_loop().time()
            reached.release.set()
            await sync
        return waited / ROUND_TRIP

    assert run_virtual(main()) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("pause", "expected"),
    [(20.0, (4.0, 9)), (LEASE_SECONDS, (4.0, 9)), (LEASE_HEAD_START - 1, (3.0, 7)), (0.0, (3.0, 7))],
)
def test_a_checkpoint_takes_four_round_trips_and_three_soon_after_another(
    far: Bench, pause: float, expected: tuple[float, int]
) -> None:
    """The question who writes, the files, the manifest, the record. The question counts for ten seconds; it is asked
    again beside the files."""

    async def main() -> tuple[float, int]:
        async with far.engine(QUIET) as engine:
            trial = engine.trial("t")
            await trial.report({}, three_files(far, "first"))
            await trial.sync()
            await trial.report({}, three_files(far, "second"))
            await asyncio.sleep(pause)
            return await cost(far, trial.report({}, three_files(far, "third")))

    assert run_virtual(main()) == expected


def test_a_new_trial_with_its_checkpoint_takes_six_round_trips(far: Bench) -> None:
    """Its record comes before its files, and is written again for the checkpoint, after the background sync."""

    async def main() -> tuple[float, int]:
        async with far.engine(QUIET) as engine:
            await asyncio.sleep(20)
            return await cost(far, engine.trial("t").report({}, three_files(far, "first")))

    trips, requests = run_virtual(main())
    assert trips <= 6.0
    assert requests <= 13  # of which 4 belong to the background sync


def test_a_sync_after_a_report_takes_four_round_trips(far: Bench) -> None:
    async def main() -> tuple[float, int]:
        async with far.engine(QUIET) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await asyncio.sleep(20)
            await trial.report({"loss": 0.5})
            return await cost(far, trial.sync())

    assert run_virtual(main()) == (4.0, 6)


def test_the_question_beside_the_files_stops_a_replaced_process(far: Bench) -> None:
    """A confirmation of an earlier pass counts for the files of this one, but not for its manifest."""

    async def main() -> None:
        one, two = Machine(far, "one"), Machine(far, "two")
        with pytest.raises(AsyncsyncError):
            async with one.engine(QUIET, resume=False) as old:
                trial = old.trial("t")
                await trial.report({}, three_files(far, "first"))
                await trial.sync()
                async with two.engine(QUIET) as heir:
                    await heir.trial("t").sync()
                    before = far.store.contents.keys()
                    with pytest.raises(AsyncsyncError):
                        await trial.report({}, three_files(far, "late"))
                    added = far.store.contents.keys() - before
                    assert added  # the lease still counted
                    assert not [key for key in added if key.endswith(MANIFEST)]
        assert names(far) == ["checkpoint_000000"]

    run_virtual(main())


def test_a_slow_upload_asks_again_before_its_manifest(far: Bench) -> None:
    """The question beside its files is too old by then."""

    async def main() -> list[str]:
        async with far.engine(QUIET) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await asyncio.sleep(20)
            hang = far.faults.hang(operation="put", key="weights")
            before = far.faults.calls
            report = asyncio.create_task(trial.report({}, three_files(far, "slow")))
            await hang.reached.wait()
            await asyncio.sleep(2)
            hang.release.set()
            await report
            return [f"{request.operation} {request.key}" for request in far.faults.requests[before:]]

    asked = run_virtual(main())
    assert asked.count("head t/.asyncsync/trial.json") == 3
    assert asked[-4:-2] == ["head .asyncsync/experiment.json", "head t/.asyncsync/trial.json"]


@pytest.mark.parametrize("struck", ["experiment.json", "trial.json"])
def test_a_question_beside_the_files_that_fails_is_retried_with_the_rest(far: Bench, struck: str) -> None:
    async def main() -> list[str]:
        async with far.engine(QUIET) as engine:
            trial = engine.trial("t")
            await trial.sync()
            await asyncio.sleep(20)
            far.faults.fail(2, UnavailableError("injected"), operation="head", key=struck, times=6)
            await trial.report({}, three_files(far, "first"))
        return names(far)

    assert run_virtual(main()) == ["checkpoint_000000"]


@pytest.mark.parametrize("number", [1, 40])
def test_a_retired_checkpoint_costs_at_most_three_requests(far: Bench, number: int) -> None:
    """Its listing, and a part in the deletions of manifests and files; the record of this process is known."""

    async def main() -> tuple[float, int]:
        async with far.engine(QUIET, CheckpointConfig(num_to_keep=1)) as engine:
            trials = [engine.trial(f"t{at}") for at in range(number)]
            held = far.faults.hang(operation="list", key="checkpoint_000000", times=None)
            for step in range(2):
                for trial in trials:
                    await trial.report({}, three_files(far, f"{trial.name} {step}"))
            await held.reached.wait()
            await asyncio.sleep(1)
            listed = sum(request.operation == "list" for request in far.faults.requests)
            before, began = far.faults.calls - listed, asyncio.get_running_loop().time()
            far.faults.clear()
            held.release.set()
            await engine._context.janitor.clean_up()
            assert not [key for key in far.keys() if "checkpoint_000000" in key]
            trips = (asyncio.get_running_loop().time() - began) / ROUND_TRIP
            return trips, far.faults.calls - before

    trips, requests = run_virtual(main())
    print(f"{number} in {trips:.1f} round trips, {number / trips / ROUND_TRIP:.0f} a second, {requests} requests")
    assert number / (trips * ROUND_TRIP) >= (80 if number > 1 else 5)
    assert requests <= 3 * number
