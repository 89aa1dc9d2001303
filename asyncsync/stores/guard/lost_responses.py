"""When a retry is refused with 412: did our first attempt, whose response was lost, succeed?

A store that took a conditional write and whose response was lost refuses the retry as if another process had been
faster. Only an object that is provably our own write counts: same size, and same CRC32C or same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.errors import NotFoundError, PreconditionError, StoreError
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Part, Piece, Store, Upload, body_size

log = logging.getLogger("asyncsync")


async def written_is_ours(store: Store, key: str, body: Body, crc32c: int | None) -> ObjectInfo | None:
    """The object under ``key`` if it is ``body``, else None."""
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
    """The object under the key of ``upload`` if its size and CRC32C are those of the upload, else None.

    Without a CRC on both sides its ETag has to be that of an object made of exactly these parts. Size alone proves
    nothing.
    """
    info = await _head(store, upload.key)
    if info is None or info.size != sum(part.size for part in parts):
        return None
    if info.crc32c is None or crc32c is None:
        if info.version != multipart_etag(parts):
            return None
    elif info.crc32c != crc32c:
        return None
    try:  # the object may come from a copy and the upload still be open, or its parts are objects
        await store.abort_multipart(upload)
    except StoreError as error:
        log.warning('%s: parts of %r remain until "asyncsync prune" removes them: %s', store.uri, upload.key, error)
    return info


async def complete_over_present(store: Store, upload: Upload, parts: Sequence[Part], crc32c: int | None) -> ObjectInfo:
    """Complete an upload over the present object, also one of another process: an interrupted sync may have left it.

    All attempts name the version that existed before the first one. PreconditionError if another object was written
    since, unless its bytes are the same.
    """
    present = await _head(store, upload.key)
    version = MISSING if present is None else present.version
    try:
        return await store.complete_multipart(upload, parts, crc32c=crc32c, if_version=version)
    except PreconditionError:
        ours = await completed_is_ours(store, upload, parts, crc32c)
        if ours is None:
            raise
        return ours


def multipart_etag(parts: Sequence[Part]) -> str | None:
    """The ETag of an object of several parts: the MD5 of the parts' MD5s, and their number (Amazon S3 User Guide,
    "Checking object integrity"). None if the ETags of the parts are not MD5s."""
    try:
        digests = [bytes.fromhex(part.etag.strip('"')) for part in parts]
    except ValueError:
        return None
    if not digests or any(len(digest) != hashlib.md5(usedforsecurity=False).digest_size for digest in digests):
        return None
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


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
        return False  # replaced or deleted since: no longer ours
    return same and at == info.size
