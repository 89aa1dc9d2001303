"""The guarded store: which requests are retried and when, and which never run twice."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from guarded_world import World

from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.breaker import FAILURES_TO_OPEN, Breaker
from asyncsync.stores.guard.budget import AttemptOutcome, Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.retry_policy import RetryPolicy
from asyncsync.testing import MemoryStore

pytestmark = pytest.mark.virtual_time
MIB = 1 << 20


class Cutting(MemoryStore):
    """Breaks the next downloads off after some bytes; ``broken`` holds how many bytes each is to give."""

    broken: tuple[int, ...] = ()
    error: Exception = UnavailableError("cut")

    async def read(self, key, sink, *, start=0, length=None, if_version=None):
        if not self.broken:
            return await super().read(key, sink, start=start, length=length, if_version=if_version)
        give, self.broken = self.broken[0], self.broken[1:]
        if give:
            await super().read(key, sink, start=start, length=give, if_version=if_version)
        raise self.error


def collector():
    pieces = []

    async def sink(piece):
        pieces.append(piece)

    return pieces, sink


async def test_a_request_that_works_is_made_once():
    world = World()
    await world.view.put("k", b"x")
    assert (world.faults.calls, world.view.requests, world.view.retries, world.view.bytes_sent) == (1, 1, 0, 1)
    world.check()


async def test_a_retryable_failure_is_tried_again():
    world = World()
    world.faults.fail(1, times=2)
    await world.view.put("k", b"x")
    assert (world.view.requests, world.view.retries, world.view.bytes_sent) == (3, 2, 1)


async def test_attempts_are_bounded_and_noted():
    world = World()
    world.faults.fail(1, times=None)
    with pytest.raises(UnavailableError) as caught:
        await world.view.put("k", b"x")
    assert world.faults.calls == 6
    assert "attempt 6 of 6" in caught.value.__notes__[0]
    world.check()


@pytest.mark.parametrize("error", [AccessDeniedError("no"), NotFoundError("no"), IntegrityError("no")])
async def test_permanent_errors_are_not_retried(error):
    world = World()
    world.faults.fail(1, error, times=None)
    with pytest.raises(type(error)):
        await world.view.head("k")
    assert world.faults.calls == 1


async def test_damage_in_transit_is_tried_again():
    world = World()
    world.faults.fail(1, IntegrityError("flipped", retryable=True))
    await world.view.put("k", b"x")
    assert world.view.retries == 1


async def test_pauses_are_random_below_a_doubling_bound():
    policy = RetryPolicy(base=1, cap=5)
    pauses = [
        [policy.pause(attempt, UnavailableError(""), Random(seed)) for seed in range(300)] for attempt in (1, 2, 9)
    ]
    for bound, some in zip((1, 2, 5), pauses, strict=True):
        assert 0.9 * bound < max(some) <= bound
        assert min(some) < 0.1 * bound


async def test_the_stores_own_wish_is_a_least_pause():
    world = World()
    world.faults.fail(1, ThrottledError("slow down", retry_after=7))
    await world.view.put("k", b"x")
    assert 7 <= world.now <= 7.3


async def test_a_request_holds_no_slot_between_its_attempts():
    world = World(slots=1)
    world.faults.fail(1, ThrottledError("slow down", retry_after=50))
    async with asyncio.TaskGroup() as group:
        group.create_task(world.view.put("slow", b"x"))
        await asyncio.sleep(1)
        assert world.budget.in_use == 0
        await world.view.put("quick", b"x")
        assert world.now < 2


async def test_throttling_lowers_the_slots():
    world = World(slots=8)
    world.faults.fail(1, ThrottledError("slow down"))
    await world.view.put("k", b"x")
    assert world.budget.limit == 4


@pytest.mark.parametrize(("start", "length"), [(0, None), (0, 4 * MIB), (MIB // 2, 3 * MIB), (0, 9 * MIB)])
@pytest.mark.parametrize("broken", [(0,), (MIB,), (MIB, 0, 5), (2 * MIB + 17,)])
async def test_a_broken_download_resumes_where_it_stopped(start, length, broken):
    world = World(Cutting())
    data = Random(1).randbytes(4 * MIB)
    await world.memory.put("k", data)
    world.memory.broken = broken
    pieces, sink = collector()
    info = await world.view.read("k", sink, start=start, length=length)
    assert b"".join(pieces) == data[start : None if length is None else start + length]
    assert info.size == len(data)
    world.check()


async def test_a_download_never_resumes_in_another_object():
    world = World(Cutting())
    await world.memory.put("k", b"a" * 4 * MIB)
    world.memory.broken = (MIB,)
    pieces, sink = collector()

    async def replacing(piece):
        await sink(piece)
        if len(pieces) == 1:
            await world.memory.put("k", b"b" * 4 * MIB)

    with pytest.raises(PreconditionError):
        await world.view.read("k", replacing)
    assert set(b"".join(pieces)) == {ord("a")}


async def test_a_short_download_is_delivered_once_and_complete():
    world = World(Cutting())
    await world.memory.put("k", b"0123456789")
    world.memory.broken = (4, 2)
    pieces, sink = collector()
    await world.view.read("k", sink, start=1, length=8)
    assert pieces == [b"12345678"]


async def test_damage_that_was_delivered_is_not_hidden_by_another_attempt():
    world = World(Cutting())
    await world.memory.put("k", b"a" * 2 * MIB)
    world.memory.broken = (MIB,)
    world.memory.error = IntegrityError("flipped", retryable=True)
    _, sink = collector()
    with pytest.raises(IntegrityError):
        await world.view.read("k", sink)


async def test_an_error_of_the_sink_is_raised_and_frees_the_slot():
    world = World()
    await world.memory.put("k", b"x" * 10)

    async def full(piece):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await world.view.read("k", full)
    world.check()


async def test_a_control_request_without_a_response_is_retried():
    world = World(request_timeout=5)
    world.faults.hang(1)
    await world.memory.put("k", b"x")
    await world.view.head("k")
    assert 5 <= world.now <= 5.3
    world.check()


async def test_a_timeout_of_the_caller_is_not_taken_for_ours():
    world = World(request_timeout=50)
    world.faults.hang(1, times=None)
    with pytest.raises(TimeoutError) as caught:
        await asyncio.wait_for(world.view.head("k"), 1)
    assert not isinstance(caught.value, UnavailableError)
    world.check()


@pytest.mark.parametrize("when", [0, 0.1, 1, 3, 10, 30])
async def test_a_cancel_at_any_time_leaks_nothing(when):
    world = World(slots=2)
    world.faults.fail(1, times=30)
    world.faults.hang(31, times=2)
    tasks = [asyncio.create_task(world.view.put(str(number), b"x")) for number in range(12)]
    await asyncio.sleep(when)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    world.check()
    world.faults.clear()
    await asyncio.wait_for(world.view.put("after", b"x"), 60)
    world.check()


# Calls that pass through


async def test_a_view_is_the_store_with_its_own_counts():
    world = World()
    one, two = world.guarded.view(Lane.RECORD, "a"), world.guarded.view(Lane.ARTIFACT, "b")
    await one.put("k", b"abc")
    await two.head("k")
    assert (one.requests, one.bytes_sent, two.requests, two.bytes_sent) == (1, 3, 1, 0)
    assert (one.uri, one.traits) == (world.inner.uri, world.inner.traits)


async def test_every_request_passes():
    world = World()
    await world.view.put("a", b"x" * 10)
    await world.view.copy("a", "b")
    assert {item.key for item in (await world.view.list()).objects} == {"a", "b"}
    upload = await world.view.create_multipart("c")
    part = await world.view.put_part(upload, 1, 0, b"y")
    assert [item.etag for item in await world.view.list_parts(upload)] == [part.etag]
    assert [item.key for item in await world.view.list_multiparts()] == ["c"]
    await world.view.copy_part(upload, 1, 0, "a", 0, 10)
    await world.view.abort_multipart(upload)
    await world.view.delete(["a", "b"])
    await world.view.delete([])
    assert not (await world.view.list()).objects
    world.check()


async def test_the_bandwidth_limit_holds_for_both_directions():
    memory = MemoryStore()
    guarded = GuardedStore(memory, Budget(bandwidth_limit=1e6))
    view = guarded.view(Lane.ARTIFACT, "a")
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(view.put(str(number), bytes(100_000)) for number in range(50)))
    assert loop.time() == pytest.approx(5, rel=0.05)
    await asyncio.gather(*(view.get(str(number)) for number in range(50)))
    assert loop.time() == pytest.approx(10, rel=0.05)


async def test_a_lane_that_matters_more_is_sent_first():
    world = World(slots=1)
    started = await world.budget.acquire(Lane.ARTIFACT, "x", 0)
    lanes = [Lane.ARTIFACT, Lane.RECORD, Lane.CHECKPOINT]
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(world.guarded.view(lane, "a").put(lane.name, b"x"))
        await asyncio.sleep(0)
        world.budget.release(started, 0, AttemptOutcome.FAILED)
    assert [request.key for request in world.faults.requests] == [lane.name for lane in reversed(lanes)]


async def test_closing_closes_the_store_inside():
    class Closing(MemoryStore):
        closed = False

        async def close(self):
            self.closed = True

    memory = Closing()
    async with GuardedStore(memory, Budget()) as guarded:
        await guarded.view(Lane.ARTIFACT, "a").close()
        assert not memory.closed
    assert memory.closed


async def test_a_copy_past_its_deadline_is_slow_and_the_store_reachable():
    world = World(request_timeout=20.0)
    await world.memory.put("k", b"x")
    world.faults.hang(operation="copy", times=None)
    with pytest.raises(StoreError, match="no response to a copy within 20 s") as caught:
        await world.view.copy("k", "l")
    assert not caught.value.retryable
    assert (world.view.requests, world.guarded.healthy, world.guarded.last_error) == (1, True, None)
    world.check()


async def test_a_probe_goes_though_its_timer_is_early():
    """asyncio runs a timer up to the clock's resolution before its time."""
    loop = asyncio.get_running_loop()
    breaker = Breaker("memory://b")
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(UnavailableError("away"), probe=False)
    exact, began = loop.time, loop.time()
    loop.time = lambda: exact() - (2.0**-22 if exact() > began else 0)
    assert await breaker.enter(10.0)
    breaker.abandoned(probe=True)
    breaker.close()
