"""Files that are only ever appended to: which of their parts need not be read again. Pure.

Nothing that a file system tells proves that the beginning of a file that has grown is as it was. So this is for files
whose name says that their writer appends, and only for large ones; the rest is read whole (and sent in part). Even of
these samples are compared: whatever moves bytes, and every run of changed bytes that is longer than the gap between two
samples, shows in them. A shorter edit in the middle does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat

TRUSTED_FROM = 256 << 20
"""Bytes. Smaller files are read whole: that costs a tenth of a second."""
SAMPLE_COUNT, SAMPLE_BYTES = 64, 256
"""How many samples are taken of a file, and the bytes of each: 16 KiB."""


def is_sampled(file: FileStat, patterns: Sequence[str]) -> bool:
    """Whether ``file`` is one of those that are appended to, and large enough to matter."""
    name = file.path.rpartition("/")[2]
    return file.size >= TRUSTED_FROM and any(fnmatchcase(name, pattern) for pattern in patterns)


def may_be_appended(file: FileStat, known: FileEntry, patterns: Sequence[str]) -> bool:
    """Whether ``file`` is the one that ``known`` describes, longer, and one of those that are appended to.

    It is to be believed only if ``known.samples`` are as they were, and the last part if that was no whole one.
    """
    return (
        bool(known.samples)
        and known.part_size > 0
        and known.inode == file.inode
        and TRUSTED_FROM <= known.size < file.size
        and is_sampled(file, patterns)
    )


def sample_offsets(size: int) -> list[int]:
    """Where the samples of a file of ``size`` bytes begin: the first and the last bytes, and one somewhere in each
    stretch between, for what has a rhythm of its own must not fall into step with them."""
    gap = max(size // (SAMPLE_COUNT - 1), SAMPLE_BYTES)
    inside = range(gap, size - gap, gap)
    return [0, *(at + at * 2_654_435_761 % (gap - SAMPLE_BYTES + 1) for at in inside), max(size - SAMPLE_BYTES, 0)]
