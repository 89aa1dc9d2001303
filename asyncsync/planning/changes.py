"""The files to send: the difference between a snapshot and a manifest. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat

RACY_NS = 20_000_000
"""A file written this close to the scan may have been written again within the clock's tick (git's rule)."""
SCANNED = "scanned_ns"
"""Key in ``Manifest.info``: wall-clock time (ns) of the scan behind the manifest."""


@dataclass(slots=True)
class Changes:
    """``send``: new or possibly changed files; ``skip``: number of unchanged files; ``missing``: files that no longer
    exist."""

    send: list[FileStat] = field(default_factory=list)
    skip: int = 0
    missing: list[str] = field(default_factory=list)


class Comparison:
    """Compares files one by one with a manifest, by size, mtime and inode. Possibly changed files are hashed later.
    ``checksum``: treat every file as possibly changed.

    An unchanged file leaves only its name behind: 100,000 of them cost 30 ms, and no list of stats.
    """

    __slots__ = ("_found", "_known", "_racy_from")

    def __init__(self, manifest: Manifest | None, *, checksum: bool = False) -> None:
        self._known: Mapping[str, FileEntry] = manifest.files if manifest is not None else {}
        doubt_all = manifest is None or checksum
        self._racy_from = 0 if doubt_all else int(manifest.info.get(SCANNED, 0)) - RACY_NS  # type: ignore[union-attr]
        self._found: list[str] = []

    def same(self, path: str, size: int, mtime_ns: int, inode: int) -> bool:
        """Whether the file is unchanged. Call it once per file."""
        entry = self._known.get(path)
        if entry is None:
            return False
        self._found.append(path)
        return entry.mtime_ns == mtime_ns < self._racy_from and entry.size == size and entry.inode == inode

    def missing(self) -> list[str]:
        """Paths of the manifest for which :meth:`same` was not called."""
        if len(self._found) == len(self._known):
            return []
        found = {path for path in self._found}  # noqa: C416  set() would hold the interpreter for all of them
        return [path for path in self._known if path not in found]


def in_the_way(missing: Iterable[str], present: Iterable[str]) -> list[str]:
    """Those of ``missing`` that were files where directories are now, or lay in directories that are files now: no file
    system can hold both."""
    files = set(present)
    parents = {parent for path in files for parent in _parents(path)}
    return [path for path in missing if path in parents or not files.isdisjoint(_parents(path))]


def _parents(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)
