"""Slots of one kind: their number, the queue for them, and how many requests may start in one turn of the loop."""

from __future__ import annotations

import asyncio

from asyncsync.stores.base import Lane
from asyncsync.stores.guard.adaptive import Adaptive, Climb
from asyncsync.stores.guard.wait_queue import Waiter, WaitQueue


class Slots:
    """At most ``rule.limit`` in use, and at most ``per_turn`` taken in one turn of the loop (None: any number)."""

    def __init__(self, rule: Adaptive | Climb, per_turn: int | None = None) -> None:
        self.rule, self._per_turn = rule, per_turn
        self.queue = WaitQueue()
        self._large: dict[Waiter, None] = {}
        """Waiters in the queue that are not small."""
        self.in_use = 0
        """Slots that are taken."""
        self._begun = 0
        """Slots taken in this turn of the loop."""

    @property
    def limit(self) -> int:
        """Slots that exist now."""
        return self.rule.limit

    @property
    def ceiling(self) -> int:
        """Upper bound of ``limit``."""
        return self.rule.ceiling

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self.queue.size

    def ahead(self, lane: Lane) -> tuple[int, int]:
        """Waiters, and their owners, in this lane and those before it."""
        return self.queue.ahead(lane)

    async def acquire(self, lane: Lane, owner: str, *, small: bool = False) -> None:
        """Wait for a slot; return it with :meth:`release`. A caller that is cancelled here holds none."""
        if not self.queue.size and self._may_begin():
            self._begin()
            return
        waiter = Waiter(asyncio.get_running_loop().create_future(), lane, owner, small=small)
        self.queue.add(waiter)
        if not small:
            self._large[waiter] = None
        self._note_waiting()
        try:
            await waiter.future
        except BaseException:
            self._leave(waiter)
            raise

    def hurry(self, lane: Lane) -> None:
        """Move waiting large bodies of later lanes to ``lane``: a request there waits for their bulk slots."""
        for waiter in self._large:
            if waiter.lane > lane:
                self.queue.remove(waiter)
                waiter.lane = lane
                self.queue.add(waiter)

    def done(self, now: float, started: float, size: int) -> None:
        """A request took ``now - started`` seconds and moved ``size`` bytes. Call before its release."""
        self._note_waiting()
        self.rule.done(now, started, size)

    def throttled(self, now: float, started: float) -> None:
        """The store asked for fewer requests. Call before the request's release."""
        self.rule.throttled(now, started)

    def release(self) -> None:
        """Return a slot."""
        self._note_waiting()
        self.in_use -= 1
        self._grant()

    def _note_waiting(self) -> None:
        """Saturated means that requests wait for slots; those that only wait for the next turn do not count."""
        if self.queue.size and self.in_use >= self.rule.limit:
            self.rule.saturated = True

    def _may_begin(self) -> bool:
        return self.in_use < self.rule.limit and (self._per_turn is None or self._begun < self._per_turn)

    def _begin(self) -> None:
        self.in_use += 1
        if self._per_turn is not None:
            if not self._begun:
                asyncio.get_running_loop().call_soon(self._turn)
            self._begun += 1

    def _turn(self) -> None:
        self._begun = 0
        self._grant()

    def _grant(self) -> None:
        while self.queue.size and self._may_begin():
            waiter = self.queue.pop()
            self._large.pop(waiter, None)
            waiter.granted = True
            if not waiter.future.done():  # a cancelled waiter leaves the queue here, without a slot
                self._begin()
                waiter.future.set_result(None)

    def _leave(self, waiter: Waiter) -> None:
        """A cancelled waiter is still in the queue, or was granted a slot in the tick of its cancel."""
        if not waiter.granted:
            self.queue.remove(waiter)
            self._large.pop(waiter, None)
        elif not waiter.future.cancelled():
            self.in_use -= 1
            self._grant()
