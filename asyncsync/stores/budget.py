"""The limits that all requests of one engine share: slots, bytes per second, bytes in memory.

A slot is the right to have one request under way. Who waits for one is served by lane, within a lane round-robin
over owners (trees), within an owner small bodies before large ones. How many slots there are is found out while
running, see :class:`asyncsync.stores.adaptive.Adaptive`.

State changes are plain functions; only waiting awaits. Times are ``loop.time()``, so a virtual clock works.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from enum import Enum, IntEnum
from heapq import heappop, heappush

from asyncsync.stores.adaptive import Adaptive

SMALL = 1 << 20
"""Bodies up to this many bytes overtake larger ones of the same owner."""
SMALL_RUN = 8
"""After this many small bodies of an owner one large body goes, so that it is not starved."""
FAIR_EVERY = 16
"""One in so many grants goes to records first, and one to artifacts: a flood of checkpoints must not stop the
records that make them count."""
AT_ONCE = 4
"""Requests that may begin in one turn of the event loop, which costs 0.1 ms each: whoever sleeps in that loop, such as
a training loop, is woken between two turns."""
SLOT_MEMORY = 2 << 20
"""Bytes that a request may hold: one piece on the wire and one being read."""
BURST = 0.125
"""Seconds of bandwidth that may be saved up; 1.25 % over 10 s."""

STEP = 1 << 18
"""Bytes of a body from a file that are paid for at once."""
_BEGUN = -1
"""Rank of a body that has begun: before every lane."""

TICK = 0.002
"""Least seconds between two looks at the bandwidth: one timer for many small bodies."""


class Lane(IntEnum):
    """What a request is for; the lower value goes first."""

    CHECKPOINT = 0
    RECORD = 1
    ARTIFACT = 2


_STRICT = tuple(Lane)
_TURNS = {
    0: (Lane.ARTIFACT, Lane.RECORD, Lane.CHECKPOINT),
    FAIR_EVERY // 2: (Lane.RECORD, Lane.CHECKPOINT, Lane.ARTIFACT),
}


class Outcome(Enum):
    """How a request ended, as far as the limits care."""

    DONE = "done"
    THROTTLED = "throttled"
    """The store asked for fewer requests."""
    FAILED = "failed"
    """Anything else, a cancel too: says nothing about how many requests are right."""


class _Waiter:
    __slots__ = ("future", "granted", "lane", "owner", "small")

    def __init__(self, future: asyncio.Future[None], lane: Lane, owner: str, *, small: bool) -> None:
        self.future = future
        self.lane = lane
        self.owner = owner
        self.small = small
        self.granted = False


class _OwnerQueue:
    """Waiters of one owner: FIFO, small bodies first, but a large one after every SMALL_RUN small ones."""

    __slots__ = ("large", "run", "small")

    def __init__(self) -> None:
        self.small: OrderedDict[_Waiter, None] = OrderedDict()
        self.large: OrderedDict[_Waiter, None] = OrderedDict()
        self.run = 0

    def __bool__(self) -> bool:
        return bool(self.small or self.large)

    def add(self, waiter: _Waiter) -> None:
        (self.small if waiter.small else self.large)[waiter] = None

    def remove(self, waiter: _Waiter) -> None:
        (self.small if waiter.small else self.large).pop(waiter, None)

    def pop(self) -> _Waiter:
        if self.small and (self.run < SMALL_RUN or not self.large):
            self.run += 1
            return self.small.popitem(last=False)[0]
        self.run = 0
        return self.large.popitem(last=False)[0]


class _Queue:
    """All waiters. Every step is O(1), whatever the number of owners and waiters."""

    def __init__(self) -> None:
        self._lanes: tuple[OrderedDict[str, _OwnerQueue], ...] = tuple(OrderedDict() for _ in Lane)
        self._sizes = [0 for _ in Lane]
        self._grants = 0
        self.size = 0

    def add(self, waiter: _Waiter) -> None:
        owners = self._lanes[waiter.lane]
        queue = owners.get(waiter.owner)
        if queue is None:
            queue = owners[waiter.owner] = _OwnerQueue()
        queue.add(waiter)
        self._sizes[waiter.lane] += 1
        self.size += 1

    def remove(self, waiter: _Waiter) -> None:
        owners = self._lanes[waiter.lane]
        queue = owners[waiter.owner]
        queue.remove(waiter)
        if not queue:
            del owners[waiter.owner]
        self._sizes[waiter.lane] -= 1
        self.size -= 1

    def pop(self) -> _Waiter:
        self._grants = (self._grants + 1) % FAIR_EVERY
        order = _TURNS.get(self._grants, _STRICT)
        owners = next(self._lanes[lane] for lane in order if self._lanes[lane])
        owner, queue = next(iter(owners.items()))
        waiter = queue.pop()
        if queue:
            owners.move_to_end(owner)
        else:
            del owners[owner]
        self._sizes[waiter.lane] -= 1
        self.size -= 1
        return waiter

    def ahead(self, lane: Lane) -> tuple[int, int]:
        """Waiters and owners in this lane and those before it."""
        return sum(self._sizes[: lane + 1]), sum(len(owners) for owners in self._lanes[: lane + 1])


class _Payment:
    __slots__ = ("future", "need")

    def __init__(self, future: asyncio.Future[None], need: float) -> None:
        self.future = future
        self.need = need


class _Bandwidth:
    """A token bucket with a queue: bodies that have begun, then by lane, then in order.

    Paying bodies one after the other, not all a little at a time, keeps the wire evenly busy, and no request stands
    still for long: a store cuts those that do (S3 after 20 s).
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = 0.0
        self._filled: float | None = None
        self._heap: list[tuple[int, int, _Payment]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None

    def turn(self) -> int:
        """A place in the queue."""
        self._order += 1
        return self._order

    async def pay(self, nbytes: int, rank: int, turn: int) -> None:
        loop = asyncio.get_running_loop()
        self._fill(loop.time())
        payment = _Payment(loop.create_future(), nbytes)
        heappush(self._heap, (rank, turn, payment))
        self._serve(loop)
        try:
            await payment.future
        except BaseException:
            self._refund(payment, nbytes, loop)
            raise

    def _refund(self, payment: _Payment, nbytes: int, loop: asyncio.AbstractEventLoop) -> None:
        """A cancelled payment gives back what it had gathered; nothing of its body was sent."""
        self._tokens += nbytes - max(payment.need, 0.0)
        payment.need = 0.0
        self._serve(loop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._fill(loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap:
            payment = self._heap[0][2]
            if not payment.future.done():
                used = min(self._tokens, payment.need)
                self._tokens -= used
                payment.need -= used
                if payment.need > 1e-6:
                    self._timer = loop.call_later(max(payment.need / self._rate, TICK), self._serve, loop)
                    return
                payment.need = 0.0
                payment.future.set_result(None)
            heappop(self._heap)

    def _fill(self, now: float) -> None:
        if self._filled is None:
            self._filled = now
        earned = (now - self._filled) * self._rate
        self._filled = now
        # Only an idle bucket has a brim: what a waiting payment needs may be more than a burst.
        self._tokens = self._tokens + earned if self._heap else min(self._tokens + earned, self._rate * BURST)


class Payer:
    """Pays for one body step by step, so that a large one keeps the limit too. Once begun it goes before all bodies
    that have not, whatever their lane. ``ahead``: bytes that were paid for before its request."""

    __slots__ = ("_ahead", "_bandwidth", "_turn")

    def __init__(self, bandwidth: _Bandwidth | None, ahead: int) -> None:
        self._bandwidth, self._ahead = bandwidth, ahead
        self._turn = 0

    async def pay(self, nbytes: int) -> None:
        """Wait until the next ``nbytes`` may be moved."""
        free = min(self._ahead, nbytes)
        self._ahead -= free
        if self._bandwidth is not None and nbytes > free:
            self._turn = self._turn or self._bandwidth.turn()
            await self._bandwidth.pay(nbytes - free, _BEGUN, self._turn)


class Budget:
    """Slots and bandwidth for all requests of one engine.

    ``max_concurrency`` is the most requests at once; ``memory_limit`` (bytes) lowers that to
    ``memory_limit / 2 MiB``. ``bandwidth_limit`` is in bytes per second, both directions together, exact within
    5 % over 10 s for what moves in steps that are small beside ten seconds' worth: small bodies, files that a store
    with the trait ``paces`` sends (256 KiB a step), and reads (1 MiB). Other bodies are paid as a whole. None: no
    limit.
    """

    def __init__(
        self, *, max_concurrency: int = 256, bandwidth_limit: float | None = None, memory_limit: int | None = None
    ) -> None:
        ceiling = max_concurrency if memory_limit is None else min(max_concurrency, memory_limit // SLOT_MEMORY)
        self._slots = Adaptive(max(1, ceiling))
        self._in_use = 0
        self._queue = _Queue()
        self._begun = 0
        """Requests that began in this turn of the loop."""
        self._bandwidth = None if bandwidth_limit is None else _Bandwidth(bandwidth_limit)
        self.paced = bandwidth_limit is not None
        """Whether :meth:`pay` can wait at all."""

    @property
    def in_use(self) -> int:
        """Requests under way."""
        return self._in_use

    @property
    def limit(self) -> int:
        """Requests that may be under way at once, as of now."""
        return self._slots.limit

    @property
    def ceiling(self) -> int:
        """What ``limit`` never exceeds."""
        return self._slots.ceiling

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._queue.size

    def share(self, lane: Lane) -> int:
        """How many requests at once are of use to one owner: whatever it likes as long as few wait for a slot, then as
        many as its part of the slots, and of those that should wait so that each slot is taken again at once."""
        spare = max(2, self._slots.limit // 4)
        waiting, owners = self._queue.ahead(lane)
        if waiting < spare:
            return self._slots.ceiling
        return -(-(self._slots.limit + spare) // owners)

    async def acquire(self, lane: Lane, owner: str, size: int) -> float:
        """Wait for a slot for a body of ``size`` bytes; give the result to :meth:`release`, whatever happens.

        A caller that is cancelled here holds no slot.
        """
        loop = asyncio.get_running_loop()
        if self._queue.size or not self._may_begin():
            waiter = _Waiter(loop.create_future(), lane, owner, small=size <= SMALL)
            self._queue.add(waiter)
            self._note_waiting()
            try:
                await waiter.future
            except BaseException:
                self._leave(waiter)
                raise
        else:
            self._begin()
        return loop.time()

    def release(self, started: float, size: int, outcome: Outcome) -> None:
        """Give a slot back. ``started`` is what ``acquire`` returned, ``size`` the bytes that were moved."""
        self._note_waiting()
        self._in_use -= 1
        if outcome is Outcome.DONE:
            self._slots.done(asyncio.get_running_loop().time(), started, size)
        elif outcome is Outcome.THROTTLED:
            self._slots.throttled(asyncio.get_running_loop().time(), started)
        self._grant()

    def _note_waiting(self) -> None:
        """Whoever waits only for the next turn says nothing about the number of slots."""
        if self._queue.size and self._in_use >= self._slots.limit:
            self._slots.saturated = True

    def _may_begin(self) -> bool:
        return self._in_use < self._slots.limit and self._begun < AT_ONCE

    def _begin(self) -> None:
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._turn)
        self._in_use += 1
        self._begun += 1

    def _turn(self) -> None:
        self._begun = 0
        self._grant()

    async def pay(self, nbytes: int, lane: Lane = Lane.ARTIFACT) -> None:
        """Wait until ``nbytes`` may be moved. Returns at once without ``bandwidth_limit``. A cancel pays nothing."""
        if self._bandwidth is not None and nbytes > 0:
            await self._bandwidth.pay(nbytes, lane, self._bandwidth.turn())

    def payer(self, ahead: int) -> Payer:
        """For one body, of which ``ahead`` bytes are paid for by :meth:`pay` before its request starts."""
        return Payer(self._bandwidth, ahead)

    def _grant(self) -> None:
        while self._queue.size and self._may_begin():
            waiter = self._queue.pop()
            waiter.granted = True
            if not waiter.future.done():  # a cancelled one leaves the queue here, and takes nothing
                self._begin()
                waiter.future.set_result(None)

    def _leave(self, waiter: _Waiter) -> None:
        """A cancelled waiter: it waits in the queue, or was granted a slot in the tick of its cancel."""
        if not waiter.granted:
            self._queue.remove(waiter)
        elif not waiter.future.cancelled():
            self._in_use -= 1
            self._grant()
