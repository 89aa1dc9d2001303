"""The limits that all requests of one engine share: slots, bytes per second, bytes in memory.

A slot is the right to have one request in flight. A large body also needs a bulk slot, of which there are fewer.
:mod:`asyncsync.stores.guard.adaptive` adjusts the number of slots while running;
:mod:`asyncsync.stores.guard.wait_queue` decides the order.

State changes are plain functions; only waiting awaits. Times are ``loop.time()``, so a virtual clock works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from asyncsync.stores.base import Lane
from asyncsync.stores.guard.adaptive import Adaptive, Climb
from asyncsync.stores.guard.bandwidth import Bandwidth, Payer
from asyncsync.stores.guard.slots import Slots
from asyncsync.stores.guard.wait_queue import SMALL_BODY

STARTS_PER_TURN = 4
"""Requests that may start in one turn of the event loop, which costs 0.1 ms each. Other tasks of the loop, such as a
training loop, run between two turns."""
SLOT_MEMORY = 2 << 20
"""Bytes of memory that a request may hold: one piece on the wire and one being read."""


class AttemptOutcome(Enum):
    """How an attempt ended, as far as the limits are concerned."""

    DONE = "done"
    THROTTLED = "throttled"
    """The store asked for fewer requests."""
    FAILED = "failed"
    """Anything else, also a cancel: no evidence about the right number of requests."""


class Grant(NamedTuple):
    """A slot; return it to :meth:`Budget.release`."""

    started: float
    """Event loop's clock."""
    bulk: bool


class Budget:
    """Slots and bandwidth for all requests of one engine.

    ``max_concurrency`` is the largest number of requests in flight; ``memory_limit`` (bytes) lowers it to
    ``memory_limit / 2 MiB``. ``bandwidth_limit`` is in bytes per second, both directions together; None: no limit.
    It is exact within 5 % over 10 s for transfers in small steps: small bodies, files sent by a store with the trait
    ``paced`` (256 KiB a step), and reads (1 MiB). Other bodies are paid for as a whole.
    """

    def __init__(
        self, *, max_concurrency: int = 256, bandwidth_limit: float | None = None, memory_limit: int | None = None
    ) -> None:
        ceiling = max_concurrency if memory_limit is None else min(max_concurrency, memory_limit // SLOT_MEMORY)
        self._slots = Slots(Adaptive(max(1, ceiling)), per_turn=STARTS_PER_TURN)
        self._bulk = Slots(Climb(max(1, ceiling)))
        self._bandwidth = None if bandwidth_limit is None else Bandwidth(bandwidth_limit)
        self.paced = bandwidth_limit is not None
        """Whether :meth:`pay` can wait at all."""

    @property
    def in_use(self) -> int:
        """Requests in flight."""
        return self._slots.in_use

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once, as of now."""
        return self._slots.limit

    @property
    def bulk_limit(self) -> int:
        """Of these, requests that may carry large bodies."""
        return self._bulk.limit

    @property
    def ceiling(self) -> int:
        """Upper bound of ``limit``."""
        return self._slots.ceiling

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._slots.waiting + self._bulk.waiting

    def prefer(self, owners: Sequence[str]) -> None:
        """From now on the requests of these owners get free slots before all others of their lane, in this order."""
        self._slots.queue.first = self._bulk.queue.first = tuple(owners)

    def share(self, lane: Lane) -> int:
        """Requests in flight that are useful to one owner.

        Unlimited while few requests wait for a slot. After that its share of the slots, and of the waiting requests
        that are needed so that each freed slot is taken at once.
        """
        limit = self._slots.rule.limit
        spare = max(2, limit // 4)
        if self._slots.queue.size + self._bulk.queue.size < spare:
            return self.ceiling
        (waiting, owners), (bulk, bulk_owners) = self._slots.ahead(lane), self._bulk.ahead(lane)
        if waiting + bulk < spare:
            return self.ceiling
        return -(-(limit + spare) // max(owners, bulk_owners))

    async def acquire(self, lane: Lane, owner: str, size: int) -> Grant:
        """Wait for a slot for a body of ``size`` bytes. The result must be passed to :meth:`release`.

        A caller that is cancelled here holds no slot.
        """
        bulk = size > SMALL_BODY
        if bulk:
            if self._bulk.in_use >= self._bulk.limit:
                self._slots.hurry(lane)
            await self._bulk.acquire(lane, owner, small=True)  # large bodies are equal among themselves
        try:
            await self._slots.acquire(lane, owner, small=not bulk)
        except BaseException:
            if bulk:
                self._bulk.release()
            raise
        return Grant(asyncio.get_running_loop().time(), bulk)

    def release(self, grant: Grant, size: int, outcome: AttemptOutcome) -> None:
        """Return a slot. ``size``: bytes that were moved."""
        now = asyncio.get_running_loop().time()
        for slots in (self._slots, self._bulk) if grant.bulk else (self._slots,):
            if outcome is AttemptOutcome.DONE:
                slots.done(now, grant.started, size)
            elif outcome is AttemptOutcome.THROTTLED:
                slots.throttled(now, grant.started)
            slots.release()

    async def pay(self, nbytes: int, lane: Lane = Lane.ARTIFACT) -> None:
        """Wait until ``nbytes`` may be moved; without ``bandwidth_limit`` at once. A cancelled call pays nothing."""
        if self._bandwidth is not None and nbytes > 0:
            await self._bandwidth.pay(nbytes, lane, self._bandwidth.turn())

    def payer(self, prepaid: int) -> Payer:
        """Pays for one body; ``prepaid`` bytes of it are paid for by :meth:`pay` before its request starts."""
        return Payer(self._bandwidth, prepaid)
