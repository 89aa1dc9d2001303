"""Copying an object inside a store that is larger than one request may copy: in ranges, a few at a time."""

from __future__ import annotations

import asyncio
import contextlib

from asyncsync.disk.hashing import crc32c_combine
from asyncsync.errors import StoreError
from asyncsync.planning.delta import MOST_COPIED
from asyncsync.stores.base import ObjectInfo, Part, Store, Upload

AT_ONCE = 4
"""Ranges under way: the store has to move their bytes."""


async def copy_in_ranges(store: Store, source: str, key: str, size: int, version: str | None) -> ObjectInfo:
    """Copy ``size`` bytes of ``source``, which is at ``version`` (None: whatever it is), by a multipart upload.

    A failure throws the upload away; one that was cancelled stays open, as one does whose process was killed.
    """
    upload = await store.create_multipart(key)
    try:
        parts = await _copy(store, upload, source, _cut(store, size), version)
        return await store.complete_multipart(upload, parts, crc32c=_combined(parts))
    except Exception:
        with contextlib.suppress(StoreError):
            await store.abort_multipart(upload)
        raise


def _cut(store: Store, size: int) -> list[tuple[int, int]]:
    """Offset and length of the ranges, all but the last of the same length."""
    traits = store.traits
    most = max(min(MOST_COPIED, traits.max_single_put), -(-size // traits.max_parts))
    step = max(-(-size // -(-size // most)), traits.min_part_size)
    return [(start, min(step, size - start)) for start in range(0, size, step)]


async def _copy(
    store: Store, upload: Upload, source: str, ranges: list[tuple[int, int]], version: str | None
) -> list[Part]:
    parts: dict[int, Part] = {}
    left = list(reversed(list(enumerate(ranges, 1))))

    async def worker() -> None:
        while left:
            number, (start, length) = left.pop()
            parts[number] = await store.copy_part(
                upload, number, start, source, start, length, if_source_version=version
            )

    try:
        async with asyncio.TaskGroup() as group:
            for index in range(min(AT_ONCE, len(ranges))):
                group.create_task(worker(), name=f"copy {upload.key}#{index}")
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [parts[number] for number in sorted(parts)]


def _combined(parts: list[Part]) -> int | None:
    """CRC32C of the whole; None if the store did not say that of every range."""
    total = 0
    for part in parts:
        if part.crc32c is None:
            return None
        total = crc32c_combine(total, part.crc32c, part.size)
    return total
