"""A checkpoint that several ranks write: the names of their records, and the one manifest that follows from them.

Pure: whoever has all records makes the same manifest, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncsync.planning.manifest import META_DIR, FileEntry, Manifest

GENERATION = "generation"
"""Key in a record's info: the epoch of the trial in which it was written. Parts of two generations never mix."""
RETURNED = "returned"
"""Key in a record's info: true for a rank that came back in the midst of a generation. Whether the others are alive it
cannot know, so such a part only counts for rank 0: whoever has the trial's record is alive, or nobody goes on."""
_OWN = ("rank", RETURNED)
"""What a record says of its rank, and not of the checkpoint."""
_NAME = re.compile(r"rank-(\d{5,})-of-(\d{5,})(\.failed)?\.json")


def rank_name(rank: int) -> str:
    """Directory of a rank's artifacts below its trial: ``rank_00003``."""
    return f"rank_{rank:05d}"


def claim_name(rank: int) -> str:
    """Below a trial: the record that says who is this rank."""
    return f"{META_DIR}/rank-{rank:05d}.json"


def part_name(rank: int, world_size: int) -> str:
    """Below a checkpoint: the record that says what this rank has sent, ``rank-00003-of-00008.json``."""
    return f"{META_DIR}/rank-{rank:05d}-of-{world_size:05d}.json"


def failure_name(rank: int, world_size: int) -> str:
    """Below a checkpoint: the record that says why this rank has given it up, ``rank-00003-of-00008.failed.json``."""
    return f"{META_DIR}/rank-{rank:05d}-of-{world_size:05d}.failed.json"


def rank_of(name: str, world_size: int, *, failed: bool = False) -> int | None:
    """The rank whose record this file name is, of a part or of a failure; None if of none of ``world_size`` ranks."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[2]) != world_size or (match[3] is not None) != failed:
        return None
    return int(match[1])


class SameFileError(ValueError):
    """Two ranks have sent different files of one name."""

    def __init__(self, path: str, ranks: tuple[int, int]) -> None:
        super().__init__(
            f"ranks {ranks[0]} and {ranks[1]} both wrote {path!r} with different content: give the files of the ranks "
            f"different names, such as {rank_name(ranks[1])}/{path}"
        )
        self.path, self.ranks = path, ranks


def merge(parts: Mapping[int, Manifest]) -> Manifest:
    """The manifest of the whole checkpoint: the files of all ranks, and what rank 0 says of it, whoever
    merges them. SameFileError."""
    files: dict[str, FileEntry] = {}
    owner: dict[str, int] = {}
    for rank in sorted(parts):
        for path, entry in parts[rank].files.items():
            other = files.setdefault(path, entry)
            if (other.size, other.crc32c) != (entry.size, entry.crc32c):
                raise SameFileError(path, (owner[path], rank))
            owner.setdefault(path, rank)
    info = {key: value for key, value in parts[0].info.items() if key not in _OWN}
    return Manifest(files, info, parts[0].extra, parts[0].by)
