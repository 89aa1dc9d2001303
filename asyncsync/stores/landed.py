"""Has a write whose answer was lost reached the store? Asked when its repetition is refused.

A store that took a conditional write and lost the answer refuses the second attempt with 412, as if somebody else
had been faster. Only what is provably our own write counts: same size, and same CRC32C or same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import google_crc32c

from asyncsync.disk.files import in_thread
from asyncsync.errors import NotFoundError, PreconditionError, StoreError
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Part, Piece, Store, Upload

log = logging.getLogger("asyncsync")


def body_size(body: Body) -> int:
    """Bytes of a body."""
    return len(body) if isinstance(body, bytes) else body.size


async def written_is_ours(store: Store, key: str, body: Body, crc32c: int | None) -> ObjectInfo | None:
    """What the store has under ``key`` if that is ``body``, else None."""
    info = await _head(store, key)
    if info is None or info.size != body_size(body):
        return None
    if crc32c is None and isinstance(body, bytes):
        crc32c = google_crc32c.value(body)
    if info.crc32c is not None and crc32c is not None:
        return info if info.crc32c == crc32c else None
    return info if await _same_bytes(store, info, body) else None


async def completed_is_ours(
    store: Store, upload: Upload, parts: Sequence[Part], crc32c: int | None
) -> ObjectInfo | None:
    """What the store has under the key of ``upload`` if size and CRC32C are those of the upload, else None.

    Without a CRC on both sides nothing is proved: another object may have the same size.
    """
    info = await _head(store, upload.key)
    if info is None or info.crc32c is None or info.crc32c != crc32c:
        return None
    if info.size != sum(part.size for part in parts):
        return None
    if store.traits.complete_asks:  # its parts are objects, and whoever lost the answer has not removed them
        try:
            await store.abort_multipart(upload)
        except StoreError as error:
            log.warning("%s: parts of %r stay until they are pruned: %s", store.uri, upload.key, error)
    return info


async def complete_what_stands(store: Store, upload: Upload, parts: Sequence[Part], crc32c: int | None) -> ObjectInfo:
    """Complete an upload over what is there now, whosever that is: a sync that was broken off may have left it.

    All attempts name the version that was there before the first. PreconditionError if another object was written
    since; one with the same bytes is as good as ours.
    """
    stands = await _head(store, upload.key)
    version = MISSING if stands is None else stands.version
    try:
        return await store.complete_multipart(upload, parts, crc32c=crc32c, if_version=version)
    except PreconditionError:
        ours = await completed_is_ours(store, upload, parts, crc32c)
        if ours is None:
            raise
        return ours


async def _head(store: Store, key: str) -> ObjectInfo | None:
    try:
        return await store.head(key)
    except NotFoundError:
        return None


async def _same_bytes(store: Store, info: ObjectInfo, body: Body) -> bool:
    at, same = 0, True

    async def compare(piece: Piece) -> None:
        nonlocal at, same
        if same:
            size = len(piece)
            ours = body[at : at + size] if isinstance(body, bytes) else await in_thread(body.read, at, size)
            same = ours == piece
            at += size

    try:
        await store.read(info.key, compare, if_version=info.version)
    except (NotFoundError, PreconditionError):
        return False  # replaced or deleted since: not ours any more
    return same and at == info.size
