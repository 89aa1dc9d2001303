"""What reading needs: a guarded store for as long as one operation takes, and the one reader of all documents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from asyncsync.aio.threads import worker_threads
from asyncsync.config import TransferConfig
from asyncsync.runtime import need_asyncio
from asyncsync.stores import open_store
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore, GuardedView
from asyncsync.stores.guard.retry import RetryPolicy
from asyncsync.sync.records.model import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@asynccontextmanager
async def reading(
    uri: str | os.PathLike[str], transfer: TransferConfig, options: Mapping[str, object] | None
) -> AsyncIterator[GuardedView]:
    """The store at ``uri`` with its limits and retries; closed at the end. ConfigError for an unknown URI, and where
    asyncio does not run."""
    need_asyncio()
    inner = open_store(uri, options=dict(options or {}), transfer=transfer)
    budget = Budget(
        max_concurrency=transfer.max_concurrency,
        bandwidth_limit=transfer.bandwidth_limit,
        memory_limit=transfer.memory_limit,
    )
    with worker_threads(transfer.threads):
        async with inner:
            store = GuardedStore(inner, budget, retry=RetryPolicy(attempts=transfer.max_attempts))
            try:
                yield store.view(Lane.CHECKPOINT, "read")
            finally:
                await store.close()
