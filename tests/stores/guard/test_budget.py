"""The shared limits: the order of slots, their number, and the bandwidth."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from asyncsync.stores.base import Lane
from asyncsync.stores.guard.adaptive import INITIAL_BULK_SLOTS, INITIAL_SLOTS, MIN_ADAPTIVE_SLOTS, Adaptive, Climb
from asyncsync.stores.guard.bandwidth import PAID_STEP
from asyncsync.stores.guard.budget import STARTS_PER_TURN, AttemptOutcome, Budget
from asyncsync.stores.guard.wait_queue import FAIR_GRANT_EVERY, SMALL_BODIES_IN_A_ROW, SMALL_BODY

virtual = pytest.mark.virtual_time
LARGE = SMALL_BODY + 1


async def order_of(requests, preferred=()):
    """The order in which waiters for the only slot are served; ``requests`` are (lane, owner, size)."""
    budget = Budget(max_concurrency=1)
    budget.prefer(preferred)
    first = await budget.acquire(Lane.ARTIFACT, "", 0)
    served = []

    async def one(request):
        started = await budget.acquire(*request)
        served.append(request)
        budget.release(started, 0, AttemptOutcome.FAILED)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
        await asyncio.sleep(0)
        assert budget.waiting == len(requests)
        budget.release(first, 0, AttemptOutcome.FAILED)
    assert (budget.in_use, budget.waiting) == (0, 0)
    return served


async def test_a_free_slot_is_taken_without_waiting():
    budget = Budget(max_concurrency=2)
    taking = budget.acquire(Lane.ARTIFACT, "a", 1)
    with pytest.raises(StopIteration):
        taking.send(None)
    assert budget.in_use == 1


async def test_checkpoints_go_before_records_and_records_before_artifacts():
    requests = [(lane, "a", 0) for lane in (Lane.ARTIFACT, Lane.RECORD, Lane.CHECKPOINT)]
    assert await order_of(requests) == requests[::-1]


async def test_owners_are_served_in_turn():
    requests = [(Lane.ARTIFACT, owner, 0) for owner in "aaabbc"]
    assert "".join(owner for _, owner, _ in await order_of(requests)) == "abcaba"


async def test_preferred_owners_come_first_within_their_lane():
    requests = [(Lane.ARTIFACT, owner, 0) for owner in "aabbcc"] + [(Lane.CHECKPOINT, "d", 0)]
    assert "".join(owner for _, owner, _ in await order_of(requests, ["c", "x", "b"])) == "dccbbaa"


async def test_an_owner_is_served_in_order():
    requests = [(Lane.ARTIFACT, "a", size) for size in range(20)]
    assert await order_of(requests) == requests


async def test_small_bodies_overtake_large_ones():
    requests = [(Lane.ARTIFACT, "a", LARGE), (Lane.ARTIFACT, "a", 1)]
    assert await order_of(requests) == requests[::-1]


async def test_small_bodies_do_not_starve_large_ones():
    requests = [(Lane.ARTIFACT, "a", LARGE)] + [(Lane.ARTIFACT, "a", 1)] * (3 * SMALL_BODIES_IN_A_ROW)
    assert (await order_of(requests)).index(requests[0]) == SMALL_BODIES_IN_A_ROW


@pytest.mark.parametrize("lane", [Lane.RECORD, Lane.ARTIFACT])
async def test_a_flood_of_a_higher_lane_does_not_starve_a_lower_one(lane):
    requests = [(lane, "a", 0)] + [(Lane.CHECKPOINT, "b", 0)] * (2 * FAIR_GRANT_EVERY)
    assert (await order_of(requests)).index(requests[0]) < FAIR_GRANT_EVERY


async def test_memory_bounds_the_slots():
    assert Budget(memory_limit=10 << 20).ceiling == 5
    assert Budget(memory_limit=1).ceiling == 1
    assert Budget(memory_limit=1 << 40, max_concurrency=7).ceiling == 7


def test_slots_start_at_64_but_never_above_the_ceiling():
    assert Budget().limit == INITIAL_SLOTS
    assert Budget(max_concurrency=3).limit == 3


@virtual
@pytest.mark.parametrize("step", range(12))
async def test_a_cancel_at_any_step_leaks_no_slot(step):
    budget = Budget(max_concurrency=2)

    async def work(owner):
        started = await budget.acquire(Lane.ARTIFACT, owner, 0)
        try:
            await asyncio.sleep(1)
        finally:
            budget.release(started, 0, AttemptOutcome.FAILED)

    tasks = [asyncio.create_task(work(str(number % 3))) for number in range(8)]
    for _ in range(step // 3):
        await asyncio.sleep(0)
    if step >= 6:
        # In the very tick in which slots change hands.
        asyncio.get_running_loop().call_later(1 if step % 2 else 0.5, lambda: [task.cancel() for task in tasks[2:6]])
    else:
        for task in tasks[step % 3 :: 2]:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (budget.in_use, budget.waiting) == (0, 0)
    await asyncio.wait_for(work("after"), 10)


async def test_a_slot_granted_in_the_tick_of_the_cancel_goes_to_the_next():
    budget = Budget(max_concurrency=1)
    started = await budget.acquire(Lane.ARTIFACT, "a", 0)
    cancelled = asyncio.create_task(budget.acquire(Lane.ARTIFACT, "a", 0))
    following = asyncio.create_task(budget.acquire(Lane.ARTIFACT, "b", 0))
    await asyncio.sleep(0)
    budget.release(started, 0, AttemptOutcome.FAILED)
    cancelled.cancel()
    await following
    assert cancelled.cancelled()
    assert (budget.in_use, budget.waiting) == (1, 0)


class Server:
    """Serves ``capacity`` requests a second, each ``delay`` seconds after its turn."""

    def __init__(self, capacity, delay):
        self.gap, self.delay, self.free = 1 / capacity, delay, 0.0

    async def answer(self):
        now = asyncio.get_running_loop().time()
        self.free = max(self.free, now) + self.gap
        await asyncio.sleep(self.free - now + self.delay)


async def requests(budget, server, count):
    """Make ``count`` requests, as many at once as there are slots; the seconds that it took."""
    began = asyncio.get_running_loop().time()

    async def one():
        started = await budget.acquire(Lane.ARTIFACT, "a", 0)
        await server.answer()
        budget.release(started, 0, AttemptOutcome.DONE)

    await asyncio.gather(*(one() for _ in range(count)))
    return asyncio.get_running_loop().time() - began


@virtual
async def test_slots_grow_while_throughput_grows():
    budget = Budget()
    seconds = await requests(budget, Server(1e6, 0.03), 5000)
    assert budget.limit == 256
    assert seconds < 1.25 * 5000 * 0.03 / 256


def test_slots_do_not_grow_when_nobody_waits():
    slots = Adaptive(256)
    for number in range(1000):
        slots.done(number / 100 + 0.03, number / 100, 0)
    assert slots.limit == INITIAL_SLOTS


@virtual
async def test_slots_fall_when_requests_only_wait_longer():
    budget = Budget()
    seconds = await requests(budget, Server(1000, 0.02), 10_000)
    assert MIN_ADAPTIVE_SLOTS <= budget.limit <= 2 * INITIAL_SLOTS
    assert seconds < 1.01 * 10_000 / 1000


@virtual
async def test_a_store_that_becomes_slower_by_itself_does_not_cost_slots():
    budget, server = Budget(max_concurrency=64), Server(1e6, 0.01)
    await requests(budget, server, 2000)
    server.delay = 0.2
    await requests(budget, server, 5000)
    assert budget.limit >= 48


async def test_few_requests_begin_in_one_turn_of_the_loop():
    """Other tasks of the loop run in between, and no request waits longer than necessary."""
    budget, begun, seen = Budget(), 0, []

    async def one():
        nonlocal begun
        await budget.acquire(Lane.ARTIFACT, "a", 0)
        begun += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(INITIAL_SLOTS):
            group.create_task(one())
        while begun < INITIAL_SLOTS:
            await asyncio.sleep(0)
            seen.append(begun)
    steps = [after - before for before, after in itertools.pairwise([0, *seen])]
    assert max(steps) == STARTS_PER_TURN
    assert len(seen) <= INITIAL_SLOTS // STARTS_PER_TURN + 2


@virtual
async def test_a_wait_of_one_turn_does_not_count_against_the_slots():
    budget = Budget()
    for _ in range(20):
        await requests(budget, Server(1e6, 0.03), INITIAL_SLOTS)
    assert budget.limit == INITIAL_SLOTS


@virtual
async def test_a_trees_share_is_all_until_requests_wait_and_then_its_part():
    budget = Budget(max_concurrency=40)
    spare = 10
    assert budget.share(Lane.ARTIFACT) == 40
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(budget.acquire(Lane.ARTIFACT, f"{number % 5}", 0)) for number in range(40 + spare)]
        await asyncio.sleep(1)
        assert budget.share(Lane.ARTIFACT) == (40 + spare) / 5
        assert budget.share(Lane.CHECKPOINT) == 40, "what comes after it is not in its way"
        for task in waiting[-spare:]:
            task.cancel()


async def bulk(budget, server, count):
    """Send ``count`` large bodies; the seconds that it took."""
    began = asyncio.get_running_loop().time()

    async def one():
        grant = await budget.acquire(Lane.ARTIFACT, "a", LARGE)
        await server.answer()
        budget.release(grant, LARGE, AttemptOutcome.DONE)

    await asyncio.gather(*(one() for _ in range(count)))
    return asyncio.get_running_loop().time() - began


@virtual
async def test_large_bodies_start_four_at_a_time_and_grow_if_that_is_faster():
    budget = Budget()
    assert budget.bulk_limit == 4
    seconds = await bulk(budget, Server(1e6, 0.1), 1000)
    assert budget.bulk_limit >= 64
    assert seconds < 4


@virtual
async def test_large_bodies_stay_few_where_more_of_them_only_wait():
    budget = Budget()
    await bulk(budget, Server(40, 0.001), 1000)
    assert budget.bulk_limit in (4, 8)  # 8 while that is being tried again


@virtual
async def test_large_bodies_leave_slots_to_small_ones():
    budget, server = Budget(max_concurrency=8), Server(1e6, 1)
    sending = asyncio.create_task(bulk(budget, server, 100))
    await asyncio.sleep(0.5)
    assert await requests(budget, server, 4) == pytest.approx(1, abs=0.01)
    await sending


@virtual
async def test_a_checkpoints_large_body_overtakes_waiting_artifacts():
    """They have the slots for large bodies, and small bodies of checkpoints and artifacts are in their way."""
    budget, server, loop = Budget(max_concurrency=8), Server(1e6, 0.05), asyncio.get_running_loop()

    async def one(lane, owner, size):
        grant = await budget.acquire(lane, owner, size)
        await server.answer()
        budget.release(grant, size, AttemptOutcome.DONE)

    async def flood(lane, owner):
        while True:
            await one(lane, owner, 0)

    async with asyncio.TaskGroup() as group:
        flooding = [
            group.create_task(flood(lane, f"{n}")) for lane in (Lane.CHECKPOINT, Lane.ARTIFACT) for n in range(32)
        ]
        flooding += [group.create_task(one(Lane.ARTIFACT, f"{n}", LARGE)) for n in range(20)]
        await asyncio.sleep(1)
        began = loop.time()
        await one(Lane.CHECKPOINT, "c", LARGE)
        assert loop.time() - began < 3
        for task in flooding:
            task.cancel()


@pytest.mark.parametrize("ceiling", range(1, 20))
def test_trying_more_large_bodies_in_vain_leaves_as_many_as_before(ceiling):
    climb, now, limits = Climb(ceiling), 0.0, []
    for _ in range(5000):
        climb.saturated, now = True, now + 0.01
        climb.done(now, now - 0.001, LARGE)
        limits.append(climb.limit)
    assert min(limits) == limits[0] == min(INITIAL_BULK_SLOTS, ceiling)


def test_throttling_halves_the_large_ones_too():
    climb = Climb(256)
    for _ in range(50):
        climb.throttled(now=1.0, started=0.5)
    assert climb.limit == INITIAL_BULK_SLOTS // 2


def test_throttling_halves_once_per_round_trip():
    slots = Adaptive(256)
    for _ in range(50):
        slots.throttled(now=1.0, started=0.5)
    assert slots.limit == INITIAL_SLOTS // 2
    slots.throttled(now=2.0, started=1.5)
    assert slots.limit == INITIAL_SLOTS // 4


def test_throttling_leaves_one_slot():
    slots = Adaptive(256)
    for number in range(20):
        slots.throttled(number, number)
    assert slots.limit == 1


@virtual
async def test_slots_recover_after_throttling():
    budget = Budget(max_concurrency=64)
    for _ in range(6):
        budget.release(await budget.acquire(Lane.ARTIFACT, "a", 0), 0, AttemptOutcome.THROTTLED)
        await asyncio.sleep(0.1)
    assert budget.limit == 1
    await requests(budget, Server(1e6, 0.03), 5000)
    assert budget.limit == 64


@virtual
async def test_at_most_as_many_requests_as_slots_are_in_flight():
    budget, most, now = Budget(max_concurrency=5), 0, 0

    async def one():
        nonlocal most, now
        started = await budget.acquire(Lane.ARTIFACT, "a", 0)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        budget.release(started, 0, AttemptOutcome.DONE)

    await asyncio.gather(*(one() for _ in range(50)))
    assert most == 5


@virtual
@pytest.mark.parametrize(("rate", "body"), [(1e6, 10_000), (10e6, 100_000), (10e6, 3), (1e9, 16 << 20)])
async def test_bandwidth_is_exact_within_5_percent_over_10_seconds(rate, body):
    budget, sent = Budget(bandwidth_limit=rate), 0
    count = min(20_000, int(12 * rate / body))
    loop = asyncio.get_running_loop()

    async def one():
        nonlocal sent
        await budget.pay(body)
        sent += body

    async def all_of_them():
        await asyncio.gather(*(one() for _ in range(count)))

    began = loop.time()
    try:
        await asyncio.wait_for(all_of_them(), 10)
    except TimeoutError:
        pass
    else:
        assert loop.time() - began == pytest.approx(sent / rate, rel=0.05, abs=0.2)
        return
    assert sent == pytest.approx(10 * rate, rel=0.05)


@virtual
async def test_large_bodies_paying_in_steps_keep_the_limit_and_none_starves():
    """Sixteen bodies of 20 MiB at 1 MB/s: 10 MB in any ten seconds, and a body that has begun is not kept waiting."""
    budget, loop = Budget(bandwidth_limit=1e6), asyncio.get_running_loop()
    moved, gaps = [], []

    async def one():
        await budget.pay(PAID_STEP)
        payer, last = budget.payer(PAID_STEP), loop.time()
        for _ in range(80):
            await payer.pay(PAID_STEP)
            gaps.append(loop.time() - last)
            last = loop.time()
            moved.append(last)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(16))), 45)
    for start in range(30):
        within = sum(start < when <= start + 10 for when in moved) * PAID_STEP
        assert within == pytest.approx(10e6, rel=0.05)
    assert max(gaps) < 2


@virtual
async def test_a_body_that_has_begun_goes_before_a_checkpoint_that_has_not():
    budget, paid = Budget(bandwidth_limit=1e6), []
    begun = budget.payer(0)
    await begun.pay(1)

    async def one(name, paying):
        await paying
        paid.append(name)

    await asyncio.gather(one("checkpoint", budget.pay(1_000_000, Lane.CHECKPOINT)), one("begun", begun.pay(1_000_000)))
    assert paid == ["begun", "checkpoint"]


@virtual
async def test_idle_time_does_not_save_up_bandwidth():
    budget, loop = Budget(bandwidth_limit=1e6), asyncio.get_running_loop()
    await budget.pay(1)
    await asyncio.sleep(1000)
    began = loop.time()
    await budget.pay(2_000_000)
    assert loop.time() - began == pytest.approx(2, rel=0.1)


@virtual
async def test_bandwidth_goes_to_checkpoints_first():
    budget, paid = Budget(bandwidth_limit=1e6), []

    async def one(lane):
        await budget.pay(1_000_000, lane)
        paid.append(lane)

    await asyncio.gather(*(one(lane) for lane in (Lane.ARTIFACT, Lane.ARTIFACT, Lane.RECORD, Lane.CHECKPOINT)))
    assert paid == sorted(paid)


@virtual
async def test_a_cancelled_payment_pays_nothing():
    budget, loop = Budget(bandwidth_limit=1e6), asyncio.get_running_loop()
    paying = asyncio.create_task(budget.pay(50_000_000))
    following = asyncio.create_task(budget.pay(2_000_000))
    await asyncio.sleep(1)
    paying.cancel()
    await following
    assert loop.time() == pytest.approx(2, rel=0.1)


async def test_without_a_limit_paying_never_waits():
    budget = Budget()
    assert not budget.paced
    with pytest.raises(StopIteration):
        budget.pay(1 << 40).send(None)
