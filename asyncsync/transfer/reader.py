"""What reading needs: a guarded store for as long as one operation takes, and manifests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from asyncsync.config import TransferConfig
from asyncsync.disk.files import in_thread, worker_threads
from asyncsync.errors import CheckpointIncompleteError, IntegrityError, NotFoundError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.stores import open_store
from asyncsync.stores.base import Store
from asyncsync.stores.budget import Budget
from asyncsync.stores.guarded import GuardedStore, GuardedView, RetryPolicy
from asyncsync.stores.waiting import Lane


class NoManifestError(CheckpointIncompleteError):
    """A prefix has no manifest at all."""


@asynccontextmanager
async def reading(
    uri: str | os.PathLike[str], transfer: TransferConfig, options: Mapping[str, object] | None
) -> AsyncIterator[GuardedView]:
    """The store at ``uri`` with its limits and retries; closed at the end. ConfigError for an unknown URI."""
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


async def find(store: Store, key: str) -> bytes | None:
    """A small object, or None."""
    try:
        return (await store.get(key))[0]
    except NotFoundError:
        return None


async def exists(store: Store, key: str) -> bool:
    """Whether there is such an object."""
    try:
        await store.head(key)
    except NotFoundError:
        return False
    return True


async def find_manifest(store: Store, prefix: str, name: str = MANIFEST) -> Manifest | None:
    """The manifest of a prefix, or None; IntegrityError if it cannot be read. ``name``: a rank's instead."""
    data = await find(store, prefix + name)
    if data is None:
        return None
    try:
        return await in_thread(Manifest.from_bytes, data)
    except ValueError as error:
        raise IntegrityError(f"{store.uri.rstrip('/')}/{prefix}{name}: {error}") from error


async def read_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of a prefix; NoManifestError if there is none."""
    manifest = await find_manifest(store, prefix)
    if manifest is None:
        where = f"{store.uri.rstrip('/')}/{prefix}".rstrip("/")
        raise NoManifestError(f"{where} has no manifest: it was never completed, or was deleted since")
    return manifest
