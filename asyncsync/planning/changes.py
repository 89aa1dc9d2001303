"""What has to be sent: the difference between a snapshot and a manifest. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat

PART = 16 << 20
"""Bytes per part unless set otherwise: large enough that a request's cost vanishes, small enough to lose little."""
RACY_NS = 20_000_000
"""A file written this close to the scan may have been written again within the clock's tick (git's rule)."""
SCANNED = "scanned_ns"
"""Key in ``Manifest.info``: wall-clock nanoseconds of the scan that the manifest goes back to."""


@dataclass(slots=True)
class Changes:
    """``send``: new or possibly changed; ``skip``: how many are as the manifest says; ``missing``: no longer there."""

    send: list[FileStat] = field(default_factory=list)
    skip: int = 0
    missing: list[str] = field(default_factory=list)


class Comparison:
    """A tree as it is found, file by file, beside its manifest. By size, mtime and inode; what is in doubt is sent
    on to hashing. ``checksum``: doubt everything.

    A file that has not changed leaves nothing behind but its name: 100,000 of them cost 30 ms, not a list.
    """

    __slots__ = ("_found", "_known", "_racy_from")

    def __init__(self, manifest: Manifest | None, *, checksum: bool = False) -> None:
        self._known: Mapping[str, FileEntry] = manifest.files if manifest is not None else {}
        doubt_all = manifest is None or checksum
        self._racy_from = 0 if doubt_all else int(manifest.info.get(SCANNED, 0)) - RACY_NS  # type: ignore[union-attr]
        self._found: list[str] = []

    def same(self, path: str, size: int, mtime_ns: int, inode: int) -> bool:
        """Whether this file, of so many bytes, is as the manifest says. To be asked once a file."""
        entry = self._known.get(path)
        if entry is None:
            return False
        self._found.append(path)
        return entry.mtime_ns == mtime_ns < self._racy_from and entry.size == size and entry.inode == inode

    def missing(self) -> list[str]:
        """What the manifest names and was not asked for."""
        if len(self._found) == len(self._known):
            return []
        found = set(self._found)
        return [path for path in self._known if path not in found]


def in_the_way(missing: Iterable[str], present: Iterable[str]) -> list[str]:
    """Those of ``missing`` that were files where directories are now, or lay in directories that are files now: no file
    system holds both."""
    files = set(present)
    parents = {parent for path in files for parent in _parents(path)}
    return [path for path in missing if path in parents or not files.isdisjoint(_parents(path))]


def _parents(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


def part_size_for(size: int, wanted: int | None, *, least: int, most: int, max_parts: int) -> int:
    """Bytes per part of a file of ``size``: what was wanted, doubled until the parts are few enough.

    S3 takes 10,000 parts of 5 MiB to 5 GiB (Amazon S3 User Guide, "Multipart upload limits").
    """
    part = max(wanted or PART, least)
    while part * max_parts < size and part < most:
        part = min(part * 2, most)
    if part * max_parts < size:
        raise ValueError(f"{size} bytes do not fit into {max_parts} parts of {most} bytes")
    return part


def cut(size: int, part_size: int) -> list[tuple[int, int]]:
    """(offset, size) of each part."""
    return [(offset, min(part_size, size - offset)) for offset in range(0, size, part_size)]
