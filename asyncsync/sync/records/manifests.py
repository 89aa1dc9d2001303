"""Private: reads records, manifests and the parts of ranks. All other modules read them through this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from xxhash import xxh3_128_hexdigest

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher
from asyncsync.errors import CheckpointIncompleteError, DamagedError, IntegrityError, NotFoundError
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import MANIFEST, META_DIR, FileEntry, Manifest, ManifestSegment
from asyncsync.planning.segments import join, parse_head, parse_segment, segment_key
from asyncsync.stores.base import Store
from asyncsync.stores.read import uri_of
from asyncsync.sync.records.model import Record

SEGMENT_READERS = 8
"""Segments of one manifest that are read at the same time; each is about 1 MB."""
REPLACED_TRIES = 4
"""How often a manifest is read that is being replaced: its segments are deleted after the new one is written."""

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


async def segments_named(store: Store, prefix: str) -> frozenset[str] | None:
    """The keys of the segments that the manifest of a prefix names; None if there is no manifest. DamagedError."""
    found = await _get(store, prefix + MANIFEST)
    if found is None:
        return None
    head = await in_hasher(parse, store, prefix + MANIFEST, found[0], parse_head)
    return frozenset(prefix + segment_key(item.name) for item in (head.segments if head is not None else ()))


async def get_manifest(store: Store, key: str) -> tuple[Manifest, str] | None:
    """A manifest and its version; None if there is none. DamagedError if it cannot be read."""
    missing = ""
    for _ in range(REPLACED_TRIES):
        found = await _get(store, key)
        if found is None:
            return None
        data, version = found
        head = await in_hasher(parse, store, key, data, parse_head)
        if head is None:
            return await in_hasher(parse, store, key, data, Manifest.from_bytes), version
        try:
            return await _with_segments(store, key, head), version
        except _MissingSegmentError as error:  # of a manifest that has just been replaced?
            missing = str(error)
    uri = uri_of(store, key)
    raise DamagedError(f"{uri} is damaged: its segment {missing} is missing", uri=uri)


class _MissingSegmentError(Exception):
    """The key of a segment that the store does not have."""


async def _with_segments(store: Store, key: str, head: Manifest) -> Manifest:
    prefix = key[: key.rindex(f"{META_DIR}/")]
    parts: dict[str, Mapping[str, FileEntry]] = {}

    async def read(segment: ManifestSegment) -> None:
        where = prefix + segment_key(segment.name)
        found = await _get(store, where)
        if found is None:
            raise _MissingSegmentError(where)
        parser = partial(parse_segment, segment=segment, xxh3=xxh3_128_hexdigest)
        parts[segment.name] = (await in_hasher(parse, store, where, found[0], parser)).files

    await for_each_limited(head.segments, read, min(SEGMENT_READERS, len(head.segments)))

    def joined(_: bytes) -> Manifest:
        return join(head, (parts.pop(segment.name) for segment in head.segments))

    return await in_hasher(parse, store, key, b"", joined)


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
