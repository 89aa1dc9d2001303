"""The circuit breaker: requests to an unreachable store wait together, one probes, and all resume after recovery."""

from __future__ import annotations

import asyncio

import pytest
from guarded_world import World

from asyncsync.errors import LeaseExpiredError, NotFoundError, UnavailableError
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.breaker import FAILURES_TO_OPEN, LONGEST_PROBE_PAUSE, RETURN_SPREAD, StillUnavailableError
from asyncsync.stores.guard.fenced import FencedView
from asyncsync.stores.guard.retry_policy import RetryPolicy
from asyncsync.sync.records.model import RankRecord
from asyncsync.sync.records.writer import RecordFile

pytestmark = pytest.mark.virtual_time


async def gone(world, requests=FAILURES_TO_OPEN):
    """Let the store go away, and be noticed."""
    world.faults.fail(1, times=None)
    tasks = [asyncio.create_task(world.view.put(str(number), b"x")) for number in range(requests)]
    while world.guarded.healthy:
        await asyncio.sleep(0.001)
    return tasks


async def test_writes_wait_for_an_unreachable_store_together_not_in_turn():
    """Each asks first whether it still may write."""
    world = World(slots=64, retry=RetryPolicy(patience=20.0))
    await asyncio.gather(*await gone(world), return_exceptions=True)
    record = RecordFile("record", RankRecord("t", 0, 1))
    fenced = FencedView(world.guarded, Lane.CHECKPOINT, "tree", record.confirm)
    for _ in range(2):
        began = world.now
        writes = [fenced.put(str(number), b"x") for number in range(20)]
        errors = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(error) for error in errors} == {StillUnavailableError}
        assert world.now - began == pytest.approx(20.0, abs=0.1)
    world.faults.clear()
    await asyncio.gather(*(fenced.put(str(number), b"x") for number in range(20)))


async def test_an_unreachable_store_is_probed_by_one_request_at_a_time():
    world = World(slots=64)
    tasks = await gone(world, 50)
    before, began = world.faults.calls, world.now
    assert isinstance(world.guarded.last_error, UnavailableError)
    await asyncio.sleep(60)
    assert world.faults.active <= 1
    assert 60 / LONGEST_PROBE_PAUSE <= world.faults.calls - before <= 10 + 42
    assert world.now - began >= 60
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    world.check()


async def test_everything_resumes_when_the_store_is_back():
    world = World(slots=64)
    tasks = await gone(world, 200)
    await asyncio.sleep(60)
    world.faults.clear()
    await asyncio.gather(*tasks)
    assert world.guarded.healthy
    assert world.now < 60 + LONGEST_PROBE_PAUSE + 1
    world.check()


async def test_waiting_for_an_unreachable_store_ends():
    world = World(slots=64, retry=RetryPolicy(patience=100))
    tasks = await gone(world, 50)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {isinstance(result, UnavailableError) for result in results} == {True}
    assert world.now < 130
    world.check()


async def test_a_cancelled_probe_leaves_the_next_one_to_ask():
    world = World(slots=64)
    tasks = await gone(world, 20)
    world.faults.clear()
    hang = world.faults.hang(1)
    await hang.reached.wait()
    for task in tasks[:-1]:  # the probing request is most likely among them; the others must get through
        task.cancel()
    hang.release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert world.guarded.healthy
    assert not tasks[-1].cancelled()
    await asyncio.wait_for(world.view.put("after", b"x"), 60)
    world.check()


async def test_an_error_response_does_not_open_the_circuit():
    world = World()
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(NotFoundError):
            await world.view.head("nothing")
    assert world.guarded.healthy


async def test_waiting_retries_resume_soon_after_recovery_not_all_at_once():
    world, ended = World(slots=64), list[float]()
    tasks = await gone(world, 50)
    breaker = world.guarded.core.breaker

    async def rest(seconds: float) -> None:
        await breaker.wait_to_retry(seconds, world.now)
        ended.append(world.now)

    resting = [asyncio.create_task(rest(1000.0)) for _ in range(50)]
    await asyncio.sleep(30)
    assert not ended
    world.faults.clear()
    await asyncio.gather(*tasks, *resting)
    assert 30 < min(ended) < max(ended) < 30 + LONGEST_PROBE_PAUSE + 1 + RETURN_SPREAD
    assert len(set(ended)) > 25
    assert not breaker.on_back


async def test_a_rest_never_takes_longer_than_it_was_to():
    world = World()
    breaker = world.guarded.core.breaker
    await breaker.wait_to_retry(7.0, world.now)
    assert world.now == pytest.approx(7.0)
    tasks = await gone(world)
    world.faults.clear()
    await asyncio.gather(*tasks)
    began = world.now
    await breaker.wait_to_retry(0.001, since=0.0)
    assert world.now - began <= 0.0011


async def test_a_retry_pauses_shortly_if_it_began_before_the_store_was_back():
    world = World()
    tasks = await gone(world)
    began = world.now
    world.faults.clear()
    await asyncio.gather(*tasks)
    before = world.now
    await world.guarded.core.breaker.wait_to_retry(1000.0, began)
    assert world.now - before <= RETURN_SPREAD
    await world.guarded.core.breaker.wait_to_retry(1000.0, world.now)
    assert world.now - before >= 1000


async def test_an_expired_lease_says_nothing_about_the_store():
    world = World(slots=64)
    world.faults.fail(1, times=None, error=LeaseExpiredError("too old"))
    results = await asyncio.gather(
        *(world.view.put(str(number), b"x") for number in range(FAILURES_TO_OPEN)), return_exceptions=True
    )
    assert {type(result) for result in results} == {LeaseExpiredError}
    assert world.guarded.healthy
    assert not world.guarded.core.breaker.failing
