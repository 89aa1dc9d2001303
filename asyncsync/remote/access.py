"""Private: the access that every operation on stored data begins with: a guarded store, open for one operation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asyncsync.aio.threads import worker_threads
from asyncsync.config import TransferConfig
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.sync.session import READ_PATIENCE, open_guarded

DEFAULT_TRANSFER = TransferConfig()


@dataclass(frozen=True)
class StoreAccess:
    """The options that open the same store again later."""

    options: Mapping[str, object] = field(default_factory=dict, repr=False)
    transfer: TransferConfig = DEFAULT_TRANSFER


@asynccontextmanager
async def open_for_reading(
    uri: str | os.PathLike[str], transfer: TransferConfig, options: Mapping[str, object] | None
) -> AsyncIterator[GuardedView]:
    """Open the store at ``uri`` with its limits and retries, and close it at the end.

    A request waits up to 120 s for a store that is away (``READ_PATIENCE``), longer than in an engine (20 s):
    nothing retries a whole read later.

    Raises:
        ConfigError: the URI or an option is unknown, or the event loop is not asyncio's.
    """
    with worker_threads(transfer.threads):
        store = open_guarded(os.fspath(uri), transfer, options, patience=READ_PATIENCE)
        async with store.core.inner:
            try:
                yield store.view(Lane.CHECKPOINT, "read")
            finally:
                await store.close()
