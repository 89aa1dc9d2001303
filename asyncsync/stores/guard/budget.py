"""The limits that all requests of one engine share: slots, bytes per second, bytes in memory.

A slot is the right to have one request in flight; a large body also needs one of the bulk slots, which are fewer.
:mod:`asyncsync.stores.guard.adaptive` adjusts their number while running;
:mod:`asyncsync.stores.guard.wait_queue` decides whose turn it is.

State changes are plain functions; only waiting awaits. Times are ``loop.time()``, so a virtual clock works.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import NamedTuple

from asyncsync.stores.base import Lane
from asyncsync.stores.guard.adaptive import Adaptive, Climb
from asyncsync.stores.guard.bandwidth import Bandwidth, Payer
from asyncsync.stores.guard.slots import Slots
from asyncsync.stores.guard.wait_queue import SMALL

AT_ONCE = 4
"""Requests that may begin in one turn of the event loop, which costs 0.1 ms each: whoever sleeps in that loop, such as
a training loop, is woken between two turns."""
SLOT_MEMORY = 2 << 20
"""Bytes that a request may hold: one piece on the wire and one being read."""


class Outcome(Enum):
    """How a request ended, as far as the limits care."""

    DONE = "done"
    THROTTLED = "throttled"
    """The store asked for fewer requests."""
    FAILED = "failed"
    """Anything else, a cancel too: says nothing about how many requests are right."""


class Grant(NamedTuple):
    """The right to one request, for :meth:`Budget.release`."""

    started: float
    """On the loop's clock."""
    bulk: bool


class Budget:
    """Slots and bandwidth for all requests of one engine.

    ``max_concurrency`` is the most requests at once; ``memory_limit`` (bytes) lowers that to
    ``memory_limit / 2 MiB``. ``bandwidth_limit`` is in bytes per second, both directions together, exact within
    5 % over 10 s for what moves in steps that are small beside ten seconds' worth: small bodies, files that a store
    with the trait ``paced`` sends (256 KiB a step), and reads (1 MiB). Other bodies are paid as a whole. None: no
    limit.
    """

    def __init__(
        self, *, max_concurrency: int = 256, bandwidth_limit: float | None = None, memory_limit: int | None = None
    ) -> None:
        ceiling = max_concurrency if memory_limit is None else min(max_concurrency, memory_limit // SLOT_MEMORY)
        self._slots = Slots(Adaptive(max(1, ceiling)), a_turn=AT_ONCE)
        self._bulk = Slots(Climb(max(1, ceiling)))
        self._bandwidth = None if bandwidth_limit is None else Bandwidth(bandwidth_limit)
        self.paced = bandwidth_limit is not None
        """Whether :meth:`pay` can wait at all."""

    @property
    def in_use(self) -> int:
        """Requests under way."""
        return self._slots.in_use

    @property
    def limit(self) -> int:
        """Requests that may be under way at once, as of now."""
        return self._slots.limit

    @property
    def bulk_limit(self) -> int:
        """How many of them may carry large bodies."""
        return self._bulk.limit

    @property
    def ceiling(self) -> int:
        """What ``limit`` never exceeds."""
        return self._slots.ceiling

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._slots.waiting + self._bulk.waiting

    def share(self, lane: Lane) -> int:
        """How many requests at once are of use to one owner: whatever it likes as long as few wait for a slot, then as
        many as its part of the slots, and of those that should wait so that each slot is taken again at once."""
        spare = max(2, self.limit // 4)
        if self.waiting < spare:
            return self.ceiling
        (waiting, owners), (bulk, bulk_owners) = self._slots.ahead(lane), self._bulk.ahead(lane)
        if waiting + bulk < spare:
            return self.ceiling
        return -(-(self.limit + spare) // max(owners, bulk_owners))

    async def acquire(self, lane: Lane, owner: str, size: int) -> Grant:
        """Wait for a slot for a body of ``size`` bytes; give the result to :meth:`release`, whatever happens.

        A caller that is cancelled here holds no slot.
        """
        bulk = size > SMALL
        if bulk:
            if self._bulk.in_use >= self._bulk.limit:
                self._slots.hurry(lane)
            await self._bulk.acquire(lane, owner, small=True)  # among themselves they are all alike
        try:
            await self._slots.acquire(lane, owner, small=not bulk)
        except BaseException:
            if bulk:
                self._bulk.release()
            raise
        return Grant(asyncio.get_running_loop().time(), bulk)

    def release(self, grant: Grant, size: int, outcome: Outcome) -> None:
        """Give a slot back. ``size`` is the bytes that were moved."""
        now = asyncio.get_running_loop().time()
        for slots in (self._slots, self._bulk) if grant.bulk else (self._slots,):
            if outcome is Outcome.DONE:
                slots.done(now, grant.started, size)
            elif outcome is Outcome.THROTTLED:
                slots.throttled(now, grant.started)
            slots.release()

    async def pay(self, nbytes: int, lane: Lane = Lane.ARTIFACT) -> None:
        """Wait until ``nbytes`` may be moved. Returns at once without ``bandwidth_limit``. A cancel pays nothing."""
        if self._bandwidth is not None and nbytes > 0:
            await self._bandwidth.pay(nbytes, lane, self._bandwidth.turn())

    def payer(self, ahead: int) -> Payer:
        """For one body, of which ``ahead`` bytes are paid for by :meth:`pay` before its request starts."""
        return Payer(self._bandwidth, ahead)
