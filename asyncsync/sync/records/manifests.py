"""Private: reads records, manifests and the parts of ranks. All other modules read them through this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from asyncsync.aio.threads import in_hasher
from asyncsync.errors import CheckpointIncompleteError, DamagedError, IntegrityError, NotFoundError
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.stores.base import Store
from asyncsync.stores.read import uri_of
from asyncsync.sync.records.model import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class NoManifestError(CheckpointIncompleteError):
    """A prefix has no manifest at all."""


async def get_record(store: Store, key: str, kind: type[R]) -> tuple[R, str] | None:
    """A record and its version; None if there is none. DamagedError if it cannot be read."""
    found = await _get(store, key)
    return None if found is None else (parse(store, key, found[0], kind.from_bytes), found[1])


async def find_record(store: Store, key: str, kind: type[R]) -> R | None:
    """A record, or None; DamagedError if it cannot be read."""
    found = await get_record(store, key, kind)
    return None if found is None else found[0]


async def find_manifest(store: Store, prefix: str, name: str = MANIFEST) -> Manifest | None:
    """The manifest of a prefix, or None; DamagedError if it cannot be read. ``name``: another name, that of a rank."""
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
    except IntegrityError as error:  # also after retries: the object itself is damaged
        uri = uri_of(store, key)
        raise DamagedError(f"{uri} is damaged: {error}", uri=uri) from error
    return data, info.version


def parse(store: Store, key: str, data: bytes, parser: Callable[[bytes], T]) -> T:
    """Parse the object ``key``, a record, a manifest or the part of a rank. DamagedError, which names the object, for
    any content that cannot be parsed."""
    try:
        return parser(data)
    except DocumentError as error:
        uri = uri_of(store, key)
        raise DamagedError(f"{uri} {error}", uri=uri) from error


async def read_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of a prefix; NoManifestError if there is none, DamagedError if it cannot be read."""
    manifest = await find_manifest(store, prefix)
    if manifest is None:
        where = f"{store.uri.rstrip('/')}/{prefix}".rstrip("/")
        raise NoManifestError(f"{where} has no manifest: it was never completed, or was deleted since")
    return manifest
