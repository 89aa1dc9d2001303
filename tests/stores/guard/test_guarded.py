"""The guarded store: which requests are retried and when, and which never run twice."""

from __future__ import annotations

import asyncio
from random import Random

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.stores.base import MISSING, Lane
from asyncsync.stores.guard.breaker import (
    FAILURES_TO_OPEN,
    LONGEST_PROBE_PAUSE,
    RETURN_SPREAD,
    Breaker,
    StillUnavailableError,
)
from asyncsync.stores.guard.budget import AttemptOutcome, Budget
from asyncsync.stores.guard.fenced import FencedView
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.retry import RetryPolicy
from asyncsync.sync.records.writer import RecordFile
from asyncsync.testing import FaultyStore, MemoryStore

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


class NoChecksum(MemoryStore):
    """Does not tell CRCs, as some servers."""

    async def head(self, key):
        info = await super().head(key)
        return type(info)(info.key, info.size, info.version)


class World:
    def __init__(self, store=None, **options):
        self.memory = store or MemoryStore()
        self.inner = FaultyStore(self.memory)
        self.faults = self.inner.faults
        self.budget = Budget(max_concurrency=options.pop("slots", 4))
        self.guarded = GuardedStore(self.inner, self.budget, random=Random(1), **options)
        self.view = self.guarded.view(Lane.ARTIFACT, "tree")

    @property
    def now(self):
        return asyncio.get_running_loop().time()

    def check(self):
        assert (self.budget.in_use, self.budget.waiting) == (0, 0)


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
async def test_what_cannot_get_better_is_not_tried_again(error):
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


async def test_no_slot_is_held_while_waiting_to_try_again():
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


async def test_a_lost_answer_to_a_create_is_no_conflict():
    world = World()
    world.faults.fail(1, after=True, operation="put")
    info = await world.view.put("k", b"mine", if_version=MISSING)
    assert info.size == 4


async def test_a_lost_answer_to_a_replacement_is_no_conflict():
    world = World()
    first = await world.view.put("k", b"one")
    world.faults.fail(1, after=True, operation="put")
    info = await world.view.put("k", b"two", if_version=first.version)
    assert (await world.view.get("k"))[0] == b"two"
    assert info.version == (await world.view.head("k")).version


async def test_somebody_elses_object_is_a_conflict():
    world = World()
    await world.memory.put("k", b"them")
    world.faults.fail(1, operation="put")
    with pytest.raises(PreconditionError):
        await world.view.put("k", b"mine", if_version=MISSING)
    assert (await world.view.get("k"))[0] == b"them"


async def test_equal_bytes_of_another_writer_conflict_at_the_first_attempt():
    world = World()
    await world.memory.put("k", b"same")
    with pytest.raises(PreconditionError):
        await world.view.put("k", b"same", if_version=MISSING)


@pytest.mark.parametrize(("theirs", "conflict"), [(None, False), (b"B" * 3 * MIB, True)])
async def test_without_checksums_the_bytes_themselves_decide(tmp_path, theirs, conflict):
    world = World(NoChecksum())
    (tmp_path / "f").write_bytes(b"A" * 3 * MIB)
    body = FileRange(str(tmp_path / "f"), 0, 3 * MIB)
    if theirs:
        await world.memory.put("k", theirs)
    world.faults.fail(1, after=not theirs, operation="put")
    if conflict:
        with pytest.raises(PreconditionError):
            await world.view.put("k", body, if_version=MISSING)
    else:
        assert (await world.view.put("k", body, if_version=MISSING)).size == 3 * MIB


async def complete(world, *, data=b"x" * 100):
    upload = await world.view.create_multipart("k")
    part = await world.view.put_part(upload, 1, 0, data)
    crc32c = google_crc32c.value(data)
    return await world.view.complete_multipart(upload, [part], crc32c=crc32c, if_version=MISSING)


async def test_a_lost_answer_to_a_completion_is_no_failure():
    world = World()
    world.faults.fail(1, after=True, operation="complete_multipart")
    # The second time the upload is gone, as after a completion on most stores.
    world.faults.fail(2, NotFoundError("no such upload"), operation="complete_multipart")
    assert (await complete(world)).size == 100


async def test_another_object_of_the_same_size_is_not_our_completion():
    world = World()
    await world.memory.put("k", b"y" * 100)
    world.faults.fail(1, operation="complete_multipart")
    world.faults.fail(2, NotFoundError("no such upload"), operation="complete_multipart")
    with pytest.raises(NotFoundError):
        await complete(world)


@pytest.mark.parametrize(("start", "length"), [(0, None), (0, 4 * MIB), (MIB // 2, 3 * MIB), (0, 9 * MIB)])
@pytest.mark.parametrize("broken", [(0,), (MIB,), (MIB, 0, 5), (2 * MIB + 17,)])
async def test_a_broken_download_goes_on_where_it_stopped(start, length, broken):
    world = World(Cutting())
    data = Random(1).randbytes(4 * MIB)
    await world.memory.put("k", data)
    world.memory.broken = broken
    pieces, sink = collector()
    info = await world.view.read("k", sink, start=start, length=length)
    assert b"".join(pieces) == data[start : None if length is None else start + length]
    assert info.size == len(data)
    world.check()


async def test_a_download_never_goes_on_in_another_object():
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


async def test_a_short_download_is_delivered_once_and_whole():
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


async def test_a_failing_sink_is_told_and_frees_the_slot():
    world = World()
    await world.memory.put("k", b"x" * 10)

    async def full(piece):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await world.view.read("k", full)
    world.check()


async def test_a_control_request_that_gets_no_answer_is_tried_again():
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


# The circuit breaker


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
    record = RecordFile("record", lambda _: b"ours")
    fenced = FencedView(world.guarded, Lane.CHECKPOINT, "tree", record.confirm)
    for _ in range(2):
        began = world.now
        writes = [fenced.put(str(number), b"x") for number in range(20)]
        errors = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(error) for error in errors} == {StillUnavailableError}
        assert world.now - began == pytest.approx(20.0, abs=0.1)
    world.faults.clear()
    await asyncio.gather(*(fenced.put(str(number), b"x") for number in range(20)))


async def test_a_store_that_is_gone_is_seen_and_asked_by_one_request_at_a_time():
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


async def test_everything_goes_on_when_the_store_is_back():
    world = World(slots=64)
    tasks = await gone(world, 200)
    await asyncio.sleep(60)
    world.faults.clear()
    await asyncio.gather(*tasks)
    assert world.guarded.healthy
    assert world.now < 60 + LONGEST_PROBE_PAUSE + 1
    world.check()


async def test_waiting_for_a_store_that_is_gone_ends():
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
    for task in tasks[:-1]:  # whoever probes is most likely among them; who is left must get through
        task.cancel()
    hang.release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert world.guarded.healthy
    assert not tasks[-1].cancelled()
    await asyncio.wait_for(world.view.put("after", b"x"), 60)
    world.check()


async def test_an_error_that_is_an_answer_does_not_open_the_circuit():
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


async def test_what_was_begun_before_the_store_was_back_rests_shortly():
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


# What passes through


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
