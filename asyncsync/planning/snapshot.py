"""The content of a tree at one moment, as data. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import astuple


class FileStat(Struct, frozen=True, order=True, gc=False):
    """One file of a snapshot. ``path`` is relative to the tree, with ``/``; size in bytes. A struct for the same reason
    as :class:`asyncsync.planning.manifest.FileEntry`."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    mode: int
    """Permission bits."""

    @classmethod
    def of(cls, path: str, info: os.stat_result) -> FileStat:
        """From the result of ``os.stat``."""
        return cls(path, info.st_size, info.st_mtime_ns, info.st_ino, info.st_mode & 0o7777)

    def is_state(self, info: os.stat_result) -> bool:
        """Whether this is the file's state as of ``info``, its permission bits included."""
        return (
            self.size == info.st_size
            and self.mtime_ns == info.st_mtime_ns
            and self.inode == info.st_ino
            and self.mode == info.st_mode & 0o7777
        )

    def same_content_as(self, other: FileStat) -> bool:
        """Whether size, mtime and inode are equal: the file was not changed in between."""
        return self[:4] == other[:4]

    def __getitem__(self, fields: slice) -> tuple[str | int, ...]:
        """Some of its fields, in their order."""
        return astuple(self)[fields]


@dataclass(slots=True)
class Snapshot:
    """The result of a scan: ``files`` that may have changed, what was left out, and counts of all files. ``refused``
    are names that no store could hold: not UTF-8, or longer than a path may be."""

    files: list[FileStat] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Entries that a checkpoint must not contain, each with the reason: broken links, reserved names."""
    unread: dict[str, OSError] = field(default_factory=dict)
    """Files and directories that could not be read, with the error: their content is unknown."""
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Directories that are sent as one unit each, and the paths of their markers."""
    unready: dict[str, None] = field(default_factory=dict)
    """Directories that were left alone because their markers are missing."""
    left_out: int = 0
    """Files left out because no store could hold them."""
    same: int = 0
    """Number of files that are known and unchanged."""
    bytes_total: int = 0
    """Bytes of all files, unchanged ones included."""
