"""Parts of a file: how large they are, and which of them objects of the store have, by their checksums. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asyncsync.planning.copied_ranges import Origin
from asyncsync.planning.manifest import FileEntry

DEFAULT_PART_SIZE = 16 << 20
"""Bytes per part unless configured: large enough that the cost of a request does not matter, small enough that an
interrupted part loses little."""


def part_size_for(size: int, wanted: int | None, *, least: int, most: int, max_parts: int) -> int:
    """Bytes per part of a file of ``size``: the wanted number, doubled until there are few enough parts.

    S3 allows 10,000 parts of 5 MiB to 5 GiB (Amazon S3 User Guide, "Multipart upload limits").
    """
    part = max(wanted or DEFAULT_PART_SIZE, least)
    while part * max_parts < size and part < most:
        part = min(part * 2, most)
    if part * max_parts < size:
        raise ValueError(f"{size} bytes do not fit into {max_parts} parts of {most} bytes")
    return part


def cut(size: int, part_size: int) -> list[tuple[int, int]]:
    """(offset, size) of each part."""
    return [(offset, min(part_size, size - offset)) for offset in range(0, size, part_size)]


class Candidate(NamedTuple):
    """An object that may hold parts of a file: its key in the store, and its entry in a manifest."""

    key: str
    entry: FileEntry

    def origin(self, start: int = 0) -> Origin:
        """The place ``start`` bytes into the object."""
        return Origin(self.key, self.entry.version, start, self.entry.size)


class Matches:
    """The parts of some candidates. Memory: about 200 bytes a part.

    If a part is in several places, the one that continues the part before is taken, so that both are copied in one
    request; otherwise the one at the same offset; otherwise the one in the first candidate.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._table: dict[tuple[str, int, int], list[Origin]] = {}
        self._candidates = candidates
        self._next: Origin | None = None
        for candidate in candidates:
            for xxh3, (offset, size, crc) in zip(candidate.entry.parts, candidate.entry.ranges(), strict=True):
                if size:
                    self._table.setdefault((xxh3, crc, size), []).append(candidate.origin(offset))

    def part_size(self, wanted: int, size: int, max_parts: int) -> int:
        """The part size of the candidates, so that equal parts are found, if it suits a file of ``size``; else
        ``wanted``."""
        for candidate in self._candidates:
            known = candidate.entry.part_size
            if known and known * max_parts >= size:
                return known
        return wanted

    def split_point(self, offset: int, size: int) -> int:
        """Bytes of the part at ``offset`` up to the end of a candidate, to be hashed separately; 0 if no candidate ends
        there."""
        for candidate in self._candidates:
            length = candidate.entry.size - offset
            if candidate.entry.part_size and 0 < length < size and offset % candidate.entry.part_size == 0:
                return length
        return 0

    def find(self, offset: int, size: int, xxh3: str, crc32c: int) -> Origin | None:
        """Where the store has these bytes. Call it in the order of the file."""
        found = self._table.get((xxh3, crc32c, size))
        if found is None:
            self._next = None
            return None
        origin = self._next if self._next in found else None
        if origin is None:
            origin = next((place for place in found if place.start == offset), found[0])
        self._next = origin.at(size)
        return origin
