"""Reading only what is new of files that are appended to; see :mod:`asyncsync.planning.appended`."""

from __future__ import annotations

from asyncsync.aio.threads import in_hasher, in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import Digest, PartDigests, digest_part, digest_samples
from asyncsync.disk.files import FileRange
from asyncsync.planning.appended import SAMPLE, is_sampled, may_be_appended, samples_of
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat


async def samples(path: str, file: FileStat, config: TransferConfig) -> str:
    """By which the next sync knows the file again, if it is one that is appended to; else empty.

    Taken before the file is read: what is written in between is then noticed at the latest by the next sync.
    """
    if not is_sampled(file, config.append_only):
        return ""
    return await in_thread(digest_samples, path, samples_of(file.size), SAMPLE)


async def trusted(
    path: str, file: FileStat, known: FileEntry | None, part_size: int, config: TransferConfig
) -> dict[int, PartDigests]:
    """The parts that need not be read again, by index: nothing, unless the file is ``known`` and more behind it.

    Reads the samples, and the part that the file ended in before together with what came into it since.
    """
    if known is None or known.part_size != part_size or not may_be_appended(file, known, config.append_only):
        return {}
    if await in_thread(digest_samples, path, samples_of(known.size), SAMPLE) != known.samples:
        return {}
    digests = [Digest(crc, xxh3) for crc, xxh3 in zip(known.part_crcs, known.parts, strict=True)]
    whole, partial = divmod(known.size, part_size)
    cells = {index: PartDigests(digest) for index, digest in enumerate(digests[:whole])}
    if partial:
        offset = whole * part_size
        body = FileRange(path, offset, min(part_size, file.size - offset))
        cells[whole] = await in_hasher(digest_part, body, partial)
        if cells[whole].head != digests[whole]:
            return {}
    return cells
