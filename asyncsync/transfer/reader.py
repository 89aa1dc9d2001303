"""What reading needs: a guarded store for as long as one operation takes, and the one reader of all documents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from asyncsync.config import TransferConfig
from asyncsync.disk.files import in_hasher, worker_threads
from asyncsync.errors import CheckpointIncompleteError, DamagedError, IntegrityError, NotFoundError
from asyncsync.injected import need_asyncio
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.records import Record
from asyncsync.stores import open_store
from asyncsync.stores.base import Lane, Store
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore, GuardedView, RetryPolicy

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class NoManifestError(CheckpointIncompleteError):
    """A prefix has no manifest at all."""


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


async def get_record(store: Store, key: str, kind: type[R]) -> tuple[R, str] | None:
    """A record and its version; None if there is none. DamagedError if it cannot be read."""
    found = await _get(store, key)
    return None if found is None else (parse(store, key, found[0], kind.from_bytes), found[1])


async def find_record(store: Store, key: str, kind: type[R]) -> R | None:
    """A record, or None; DamagedError if it cannot be read."""
    found = await get_record(store, key, kind)
    return None if found is None else found[0]


async def find_manifest(store: Store, prefix: str, name: str = MANIFEST) -> Manifest | None:
    """The manifest of a prefix, or None; DamagedError if it cannot be read. ``name``: a rank's instead."""
    found = await get_manifest(store, prefix + name)
    return None if found is None else found[0]


async def get_manifest(store: Store, key: str) -> tuple[Manifest, str] | None:
    """A manifest and its version; None if there is none. DamagedError if it cannot be read."""
    found = await _get(store, key)
    if found is None:
        return None
    return await in_hasher(parse, store, key, found[0], Manifest.from_bytes), found[1]


async def _get(store: Store, key: str) -> tuple[bytes, str] | None:
    try:
        data, info = await store.get(key)
    except NotFoundError:
        return None
    except IntegrityError as error:  # again and again: it is damaged where it lies
        uri = uri_of(store, key)
        raise DamagedError(f"{uri} is damaged: {error}", uri=uri) from error
    return data, info.version


def parse(store: Store, key: str, data: bytes, parser: Callable[[bytes], T]) -> T:
    """What the object ``key`` says. The one door for records, manifests and parts of ranks: DamagedError, which names
    the object, whatever is wrong with it."""
    try:
        return parser(data)
    except DocumentError as error:
        uri = uri_of(store, key)
        raise DamagedError(f"{uri} {error}", uri=uri) from error


def uri_of(store: Store, key: str) -> str:
    """Where an object is, for messages."""
    return f"{store.uri.rstrip('/')}/{key}"


async def read_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of a prefix; NoManifestError if there is none, DamagedError if it cannot be read."""
    manifest = await find_manifest(store, prefix)
    if manifest is None:
        where = f"{store.uri.rstrip('/')}/{prefix}".rstrip("/")
        raise NoManifestError(f"{where} has no manifest: it was never completed, or was deleted since")
    return manifest
