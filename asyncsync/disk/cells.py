"""Checksums of one part of a file, and of its beginning by itself. Blocking: for worker threads."""

from __future__ import annotations

from dataclasses import dataclass

import google_crc32c
import xxhash

from asyncsync.disk.files import FileRange
from asyncsync.disk.hashing import crc32c_combine
from asyncsync.disk.reading import Digest
from asyncsync.errors import SourceChangedError


@dataclass(frozen=True, slots=True)
class Cell:
    """Checksums of a part; ``head`` are those of its first bytes, as many as were asked for."""

    whole: Digest
    head: Digest | None = None

    def tail_crc(self, size: int) -> int:
        """CRC32C of the ``size`` bytes behind the head."""
        assert self.head is not None
        return crc32c_combine(self.head.crc32c, 0, size) ^ self.whole.crc32c


def digest_cell(body: FileRange, mark: int = 0) -> Cell:
    """Read a part once. ``mark``: bytes at its start to know by themselves. SourceChangedError if the file ended."""
    crc, identity, done = 0, xxhash.xxh3_128(), 0
    head: Digest | None = None
    for piece in body.pieces():
        rest = piece
        if done < mark <= done + len(piece):
            first, rest = piece[: mark - done], piece[mark - done :]
            crc = google_crc32c.extend(crc, first)
            identity.update(first)
            head = Digest(int(crc), identity.hexdigest())
        crc = google_crc32c.extend(crc, rest)
        identity.update(rest)
        done += len(piece)
    if done != body.size:
        raise SourceChangedError(f"{body.path}: became shorter while it was read")
    return Cell(Digest(int(crc), identity.hexdigest()), head)
