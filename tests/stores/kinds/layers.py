"""Layers over the memory store."""

from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.metered import MeteredStore
from asyncsync.testing import FaultyStore, MemoryStore


def guarded(request):
    return GuardedStore(MemoryStore("conformance", "prefix"), Budget())


def metered(request):
    return MeteredStore(FaultyStore(MemoryStore("conformance", "prefix")))


KINDS = {"guarded": guarded, "metered": metered}

DIFFERENCES = {}
