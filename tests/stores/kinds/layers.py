"""Layers over the memory store."""

from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.metered import MeteredStore
from asyncsync.stores.guard.retry_policy import RetryPolicy
from asyncsync.testing import FaultyStore, MemoryStore


def guarded(request):
    retry = RetryPolicy(base=0.0, cap=0.0)  # attempts without a lease are repeated, too
    return GuardedStore(MemoryStore("conformance", "prefix"), Budget(), retry=retry)


def metered(request):
    return MeteredStore(FaultyStore(MemoryStore("conformance", "prefix")))


KINDS = {"guarded": guarded, "metered": metered}

DIFFERENCES = {}
