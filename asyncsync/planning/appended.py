"""Append-only files: which of their parts need not be read again. Pure.

No information of a file system proves that the beginning of a longer file is unchanged. This module is therefore only
for files whose name shows that their writer appends, and only for large ones; all others are read completely (and sent
in part). Even for append-only files samples are compared. They reveal bytes that moved, and every run of changed bytes
that is longer than the gap between two samples. A shorter edit in the middle is not noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat

TRUSTED_FROM = 256 << 20
"""Bytes. Smaller files are read completely: that takes a tenth of a second."""
APPENDED_FROM = 5 << 20
"""Bytes. Of smaller files, S3 copies no ranges into an upload, so they are sent as a whole."""
SAMPLE_COUNT, SAMPLE_BYTES = 64, 256
"""Number of samples of a file, and bytes of each: 16 KiB in all."""


def is_sampled(file: FileStat, patterns: Sequence[str]) -> bool:
    """Whether ``file`` is append-only by its name, and large enough."""
    return file.size >= TRUSTED_FROM and is_append_only(file.path, patterns)


def is_append_only(path: str, patterns: Sequence[str]) -> bool:
    """Whether the name shows that its writer only appends."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def may_be_appended(file: FileStat, known: FileEntry, patterns: Sequence[str]) -> bool:
    """Whether ``file`` may be the file that ``known`` describes with bytes appended.

    The caller has to check that ``known.samples`` are unchanged, and the last part if it was incomplete.
    """
    return (
        bool(known.samples)
        and known.part_size > 0
        and known.inode == file.inode
        and TRUSTED_FROM <= known.size < file.size
        and is_sampled(file, patterns)
    )


def sample_offsets(size: int) -> list[int]:
    """Offsets of the samples of a file of ``size`` bytes: the first and the last bytes, and one sample at an irregular
    place in each stretch between, because a file with a regular structure must not fall in step with the samples."""
    gap = max(size // (SAMPLE_COUNT - 1), SAMPLE_BYTES)
    inside = range(gap, size - gap, gap)
    return [0, *(at + at * 2_654_435_761 % (gap - SAMPLE_BYTES + 1) for at in inside), max(size - SAMPLE_BYTES, 0)]
