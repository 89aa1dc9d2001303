"""A guarded store in virtual time, on a store in memory that fails on demand."""

from __future__ import annotations

import asyncio
from random import Random

from asyncsync.stores.base import Lane
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.testing import FaultyStore, MemoryStore


class World:
    """The store in memory, its faults, the budget, the guarded store, and one view of it."""

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
