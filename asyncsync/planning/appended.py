"""Files that are only ever appended to: which of their parts need not be read again. Pure.

Nothing that a file system tells proves that the beginning of a file that has grown is as it was. So this is for files
whose name says that their writer appends, and only for large ones; the rest is read whole (and sent in part).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat

TRUSTED_FROM = 256 << 20
"""Bytes. Smaller files are read whole: that costs a tenth of a second."""


def may_be_appended(file: FileStat, known: FileEntry | None, patterns: Sequence[str]) -> bool:
    """Whether ``file`` is the one that ``known`` describes, longer, and one of those that are appended to.

    It is to be believed only if the first and the last part of ``known`` are as they were.
    """
    return (
        known is not None
        and known.part_size > 0
        and known.inode == file.inode
        and TRUSTED_FROM <= known.size < file.size
        and any(fnmatchcase(file.path.rpartition("/")[2], pattern) for pattern in patterns)
    )


def to_verify(known: FileEntry) -> list[int]:
    """The parts that must be as they were, by index: the first, and the last, behind which a writer goes on."""
    return sorted({0, len(known.parts) - 1})


def to_trust(known: FileEntry) -> range:
    """The parts that are then taken to be as they were: all but the last, which is read with what follows it."""
    return range(len(known.parts) - 1)
