"""What reading needs: a guarded store for as long as one operation takes, and the one reader of all documents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from asyncsync.aio.threads import worker_threads
from asyncsync.config import TransferConfig
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.sync.records.model import Record
from asyncsync.sync.session import READ_PATIENCE, open_guarded

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@asynccontextmanager
async def reading(
    uri: str | os.PathLike[str], transfer: TransferConfig, options: Mapping[str, object] | None
) -> AsyncIterator[GuardedView]:
    """The store at ``uri`` with its limits and retries; closed at the end. ConfigError for an unknown URI, and where
    asyncio does not run."""
    with worker_threads(transfer.threads):
        store = open_guarded(os.fspath(uri), transfer, options, patience=READ_PATIENCE)
        async with store.core.inner:
            try:
                yield store.view(Lane.CHECKPOINT, "read")
            finally:
                await store.close()
