"""The queue for slots. Order: by lane; within a lane round-robin over owners (trees); within an owner small bodies
before large ones. Plain state; every step is O(1), whatever the number of owners and waiters."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from asyncsync.stores.base import Lane

SMALL_BODY = 1 << 20
"""Largest small body in bytes. Small bodies overtake large ones of the same owner."""
SMALL_BODIES_IN_A_ROW = 8
"""After so many small bodies of an owner one large body is next, so that none starves."""
FAIR_GRANT_EVERY = 16
"""One in so many grants goes to records first, and one to artifacts first: a flood of checkpoints must not stop the
records that register them."""


_STRICT = tuple(Lane)
_TURNS = {
    0: (Lane.ARTIFACT, Lane.RECORD, Lane.CHECKPOINT),
    FAIR_GRANT_EVERY // 2: (Lane.RECORD, Lane.CHECKPOINT, Lane.ARTIFACT),
}


class Waiter:
    """One waiting request. ``granted``: it has left the queue, with a slot."""

    __slots__ = ("future", "granted", "lane", "owner", "small")

    def __init__(self, future: asyncio.Future[None], lane: Lane, owner: str, *, small: bool) -> None:
        self.future = future
        self.lane = lane
        self.owner = owner
        self.small = small
        self.granted = False


class _OwnerQueue:
    """Waiters of one owner: FIFO, small bodies first, but a large one after SMALL_BODIES_IN_A_ROW small ones."""

    __slots__ = ("large", "run", "small")

    def __init__(self) -> None:
        self.small: OrderedDict[Waiter, None] = OrderedDict()
        self.large: OrderedDict[Waiter, None] = OrderedDict()
        self.run = 0

    def __bool__(self) -> bool:
        return bool(self.small or self.large)

    def add(self, waiter: Waiter) -> None:
        (self.small if waiter.small else self.large)[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        (self.small if waiter.small else self.large).pop(waiter, None)

    def pop(self) -> Waiter:
        if self.small and (self.run < SMALL_BODIES_IN_A_ROW or not self.large):
            self.run += 1
            return self.small.popitem(last=False)[0]
        self.run = 0
        return self.large.popitem(last=False)[0]


class WaitQueue:
    """All requests that wait for one kind of slot."""

    def __init__(self) -> None:
        self._lanes: tuple[OrderedDict[str, _OwnerQueue], ...] = tuple(OrderedDict() for _ in Lane)
        self._sizes = [0 for _ in Lane]
        self._grants = 0
        self.size = 0
        self.first: tuple[str, ...] = ()
        """Owners that come before all others of their lane, in this order; few, they are looked through each time."""

    def add(self, waiter: Waiter) -> None:
        owners = self._lanes[waiter.lane]
        queue = owners.get(waiter.owner)
        if queue is None:
            queue = owners[waiter.owner] = _OwnerQueue()
        queue.add(waiter)
        self._sizes[waiter.lane] += 1
        self.size += 1

    def remove(self, waiter: Waiter) -> None:
        owners = self._lanes[waiter.lane]
        queue = owners[waiter.owner]
        queue.remove(waiter)
        if not queue:
            del owners[waiter.owner]
        self._sizes[waiter.lane] -= 1
        self.size -= 1

    def pop(self) -> Waiter:
        self._grants = (self._grants + 1) % FAIR_GRANT_EVERY
        order = _TURNS.get(self._grants, _STRICT)
        for lane in order:
            if owners := self._lanes[lane]:
                break
        owner = next((name for name in self.first if name in owners), None) or next(iter(owners))
        queue = owners[owner]
        waiter = queue.pop()
        if not queue:
            del owners[owner]
        elif len(owners) > 1:
            owners.move_to_end(owner)
        self._sizes[waiter.lane] -= 1
        self.size -= 1
        return waiter

    def ahead(self, lane: Lane) -> tuple[int, int]:
        """Waiters and owners in this lane and those before it."""
        waiters = owners = 0
        for at in range(lane + 1):
            waiters += self._sizes[at]
            owners += len(self._lanes[at])
        return waiters, owners
