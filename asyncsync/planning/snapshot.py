"""What a tree holds at one moment, as data. Pure."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import NamedTuple


class FileStat(NamedTuple):
    """One file of a snapshot. ``path`` is relative to the tree, with ``/``; size in bytes."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    mode: int
    """Permission bits."""

    @classmethod
    def of(cls, path: str, info: os.stat_result) -> FileStat:
        """From what ``os.stat`` gave."""
        return cls(path, info.st_size, info.st_mtime_ns, info.st_ino, stat.S_IMODE(info.st_mode))

    def same_content_as(self, other: FileStat) -> bool:
        """Whether size, mtime and inode are equal: the file was not touched in between."""
        return self[:4] == other[:4]


@dataclass(slots=True)
class Snapshot:
    """What a scan found: ``files`` that may have changed, what was left out, and counts of all. ``refused`` are names
    that no store could hold: not UTF-8, or longer than a path may be."""

    files: list[FileStat] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What a checkpoint may not hold, and why: links that lead nowhere, names of our own."""
    unread: dict[str, OSError] = field(default_factory=dict)
    """Files and directories that could not be looked at, and why: nobody knows what is there."""
    left_out: int = 0
    """Files that no store could hold, once that has been found out."""
    same: int = 0
    """Files that were known as they are."""
    bytes_total: int = 0
    """Of all files, the same ones too."""
