"""An Azure store on the strict fake."""

import pytest

from asyncsync.stores import open_store
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.retry_policy import RetryPolicy


@pytest.fixture
def container(azure_strict):
    """The container of the fake."""
    return azure_strict.containers["conformance"]


@pytest.fixture
async def store(azure_strict):
    async with open_store("az://conformance/p", options=azure_strict.storage_options) as opened:
        yield opened


@pytest.fixture
def guarded(store):
    """The same, with retries that do not wait."""
    return GuardedStore(store, Budget(max_concurrency=8), retry=RetryPolicy(attempts=5, base=0.0, cap=0.0))
