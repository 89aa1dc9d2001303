"""Sending and reading only the new bytes of append-only files; see :mod:`asyncsync.planning.appended`."""

from __future__ import annotations

from msgspec import structs

from asyncsync.aio.threads import in_hasher, in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import Digest, PartDigests, digest_part, digest_samples
from asyncsync.disk.files import FileRange
from asyncsync.planning.appended import (
    APPENDED_FROM,
    SAMPLE_BYTES,
    is_append_only,
    is_sampled,
    may_be_appended,
    sample_offsets,
)
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Traits


def appended_to(file: FileStat, known: FileEntry | None, config: TransferConfig, traits: Traits) -> FileEntry | None:
    """The entry to compare a file with that was appended to, although it is small enough for one request; None if it
    is sent as a whole.

    A file that was sent in one request counts as one part, so the store copies it and only the new bytes are sent.
    """
    least = max(APPENDED_FROM, traits.min_part_size, traits.min_range_source + 1)
    if known is None or known.inode != file.inode or not least <= known.size <= file.size:
        return None
    if known.size == file.size and not known.part_size:
        return None  # unchanged or rewritten: its checksum decides
    if not is_append_only(file.path, config.append_only):
        return None
    return known if known.part_size else structs.replace(known, part_size=known.size)


async def digest_file_samples(path: str, file: FileStat, config: TransferConfig) -> str:
    """Digest of samples by which the next sync recognises an append-only file; empty for any other file.

    Call it before the file is read: the next sync then notices at the latest what is written in between.
    """
    if not is_sampled(file, config.append_only):
        return ""
    return await in_thread(digest_samples, path, sample_offsets(file.size), SAMPLE_BYTES)


async def trusted_parts(
    path: str, file: FileStat, known: FileEntry | None, part_size: int, config: TransferConfig
) -> dict[int, PartDigests]:
    """The parts that need not be read again, by index; empty unless the file only grew since ``known``.

    Reads the samples, and the part in which the file ended before, up to the present end of that part.
    """
    if known is None or known.part_size != part_size or not may_be_appended(file, known, config.append_only):
        return {}
    if await in_thread(digest_samples, path, sample_offsets(known.size), SAMPLE_BYTES) != known.samples:
        return {}
    digests = [Digest(crc, xxh3) for crc, xxh3 in zip(known.part_crcs, known.parts, strict=True)]
    full, rest = divmod(known.size, part_size)
    trusted = {index: PartDigests(digest) for index, digest in enumerate(digests[:full])}
    if rest:
        offset = full * part_size
        body = FileRange(path, offset, min(part_size, file.size - offset))
        trusted[full] = await in_hasher(digest_part, body, rest)
        if trusted[full].head != digests[full]:
            return {}
    return trusted
