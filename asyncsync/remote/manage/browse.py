"""Look at any prefix of a store, also one that asyncsync did not write: list it, and read one object."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import ConfigError, NotFoundError
from asyncsync.planning.manifest import META_DIR
from asyncsync.remote.access import DEFAULT_TRANSFER, open_for_reading
from asyncsync.stores.read import list_all

BytesSink = Callable[[bytes], Awaitable[None]]
"""Takes the next bytes of an object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object below a prefix, or with ``recursive=False`` a directory."""

    path: str
    """Relative to the prefix; a directory ends in ``/``."""
    size: int = 0
    """Bytes; 0 for a directory."""
    modified: float | None = None
    """Unix seconds, if the store reports it."""


async def browse(
    uri: str | os.PathLike[str],
    *,
    recursive: bool = True,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> list[StoredObject]:
    """The objects below ``uri``, sorted by path, also those of other programs. asyncsync's documents are left out.

    ``recursive=False``: one level, with its directories. One request for each thousand objects.

    Raises:
        NotFoundError: there is nothing below ``uri``.
        ConfigError: the URI or an option is unknown.
        StoreError: the store refused or failed a request.
    """
    address, options = split_sas(os.fspath(uri), storage_options)
    async with open_for_reading(address, transfer, options) as store:
        if recursive:
            everything = await list_all(store, "")
            found = [StoredObject(key, item.size, item.modified) for key, item in everything.items()]
        else:
            found, token = [], None
            while True:
                page = await store.list("", delimiter="/", token=token)
                found += [StoredObject(prefix) for prefix in page.prefixes]
                found += [StoredObject(item.key, item.size, item.modified) for item in page.objects]
                token = page.token
                if token is None:
                    break
    shown = [item for item in found if META_DIR not in item.path.split("/")]
    if not found:
        raise NotFoundError(f"{address} holds nothing. Check the URL: asyncsync ls shows the prefix above it")
    return sorted(shown, key=lambda item: item.path)


async def read_object(
    uri: str | os.PathLike[str],
    sink: BytesSink,
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> int:
    """Pass the bytes of one object to ``sink``, in pieces of about 1 MiB; returns how many there were.

    Raises:
        NotFoundError: the object does not exist.
        ConfigError: the URI or an option is unknown, or the URI names no object.
        StoreError: the store refused or failed a request.
    """
    address, options = split_sas(os.fspath(uri), storage_options)
    parent, _, name = address.rpartition("/")
    if not name or parent.endswith(":/"):
        raise ConfigError(f"invalid URL {address!r}: it must name one object, such as s3://bucket/results/a.txt")
    size = 0

    async def take(piece: bytes | bytearray | memoryview) -> None:
        nonlocal size
        size += len(piece)
        await sink(bytes(piece))

    async with open_for_reading(parent or "/", transfer, options) as store:
        await store.read(name, take)
    return size
