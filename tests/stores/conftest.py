"""A Cloud Storage store on the strict fake."""

import pytest

from asyncsync.stores import open_store
from asyncsync.stores.budget import Budget
from asyncsync.stores.guarded import GuardedStore, RetryPolicy


@pytest.fixture
def objects(gcs_strict):
    """What the bucket has, by name."""
    return gcs_strict.buckets["conformance"].objects


@pytest.fixture
async def store(gcs_strict):
    async with open_store("gs://conformance/p", options=gcs_strict.storage_options) as opened:
        yield opened


@pytest.fixture
def guarded(store):
    """The same, with retries that do not wait."""
    return GuardedStore(store, Budget(max_concurrency=8), retry=RetryPolicy(attempts=5, base=0.0, cap=0.0))
