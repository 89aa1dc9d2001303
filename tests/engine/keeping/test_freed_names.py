"""A name is used again only when nobody can be deleting what it named before."""

import asyncio
import json
import os
from contextlib import suppress

import pytest
from machines import Machine, record
from onebench import Bench

from asyncsync import SyncEngine, SyncFailedError, Trial, verify
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.session import DELETE
from asyncsync.testing import run_virtual
from asyncsync.testing.faulty import Hang


async def reported_as_best(bench: Bench, trial: Trial, data: bytes) -> None:
    await trial.report({}, bench.checkpoint(data.decode(), w=data), name="best")


async def freed(engine: SyncEngine) -> None:
    while "best" in engine._registry.trials["t"].record.given_up:
        await asyncio.sleep(0.01)


async def check_new(bench: Bench) -> None:
    assert bench.store.contents["t/best/w"] == b"new"
    assert (await verify("memory://b/exp", deep=True)).ok


@pytest.mark.virtual_time
async def test_a_second_deletion_of_a_name_does_not_meet_its_next_use(bench: Bench) -> None:
    """The journal of a killed process still holds the deletion that this one records, too."""
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await reported_as_best(bench, trial, b"old")
        hold = bench.faults.hang(operation="list", key="t/best", at=2)
        engine._context.session.owe_delete("t", "best", record(bench).nonce)
        await trial.retire("best")
        await freed(engine)
        await reported_as_best(bench, trial, b"new")
        hold.release.set()
        await engine.flush()
    await check_new(bench)


@pytest.mark.virtual_time
async def test_a_deletion_recorded_while_another_runs_is_done_with_it(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await reported_as_best(bench, trial, b"old")
        first = bench.faults.hang(operation="list", key="t/best")
        await trial.retire("best")
        await first.reached.wait()
        second = bench.faults.hang(operation="list", key="t/best", at=1)
        engine._context.session.owe_delete("t", "best", record(bench).nonce)
        engine._context.janitor.kick()
        first.release.set()
        await freed(engine)
        report = asyncio.create_task(reported_as_best(bench, trial, b"new"))
        await asyncio.wait([report], timeout=5)
        second.release.set()
        await report
        await engine.flush()
    await check_new(bench)


def test_a_replaced_process_that_still_deletes_does_not_meet_the_next_use(bench: Bench) -> None:
    """The first machine is cut off while it deletes; the second resumes, deletes too, and uses the name again."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        hold = one.network.hang(operation="list", key="t/best")
        with suppress(SyncFailedError):
            async with one.engine(resume=False) as first:
                await reported_as_best(bench, first.trial("t"), b"old")
                await first.trial("t").retire("best")
                await hold.reached.wait()
                await uses_the_name_again(two, hold)
        await check_new(bench)

    async def uses_the_name_again(two: Machine, hold: Hang) -> None:
        async with two.engine() as second:
            await second.trial("t").report({})
            await second.sync()
            await freed(second)
            report = asyncio.create_task(reported_as_best(bench, second.trial("t"), b"new"))
            await asyncio.wait([report], timeout=5)
            hold.release.set()
            await report

    run_virtual(main())


@pytest.mark.virtual_time
async def test_a_live_process_of_the_machine_does_its_own_deletions(bench: Bench) -> None:
    """Only that process knows when the name is used again."""
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await reported_as_best(bench, trial, b"new")
        session = engine._context.session
        payload = {"trial": "t", "name": "best", "nonce": record(bench).nonce, "pid": os.getppid()}
        session.journal.owe(session.uri, DELETE, json.dumps(payload))
        assert await clean_up(session) == 0
