"""Directories that are sent as one unit, once a marker shows that they are complete. See ``SyncConfig.ready``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat, Snapshot
from asyncsync.sync.upload.tree_upload import Tally


def unit_of(path: str, units: Collection[str]) -> str | None:
    """The unit that holds the path, if there is one."""
    end = path.rfind("/")
    while end > 0:
        if path[:end] in units:
            return path[:end]
        end = path.rfind("/", 0, end)
    return None


def really_missing(missing: list[str], snapshot: Snapshot, known: Manifest | None) -> list[str]:
    """The paths of ``missing`` that were deleted on purpose.

    A unit that lost files while its markers are unchanged is being deleted: it stays in the store until its directory
    is missing, so that the store never holds a marker beside half a unit.
    """
    if not snapshot.units or known is None:
        return missing
    changed = {file.path for file in snapshot.files if not _is_same(file, known.files.get(file.path))}
    half = {unit for unit, markers in snapshot.units.items() if changed.isdisjoint(markers)}
    return [path for path in missing if unit_of(path, half) is None]


def _is_same(file: FileStat, entry: FileEntry | None) -> bool:
    """Whether the file was not written again. A scan lists files of the last moment, too, that may have been."""
    return entry is not None and file[:4] == (entry.path, entry.size, entry.mtime_ns, entry.inode)


@dataclass(slots=True)
class ReadyUnits:
    """The units of one pass. ``files``: those to send. ``known``: the last manifest."""

    units: Mapping[str, tuple[str, ...]]
    """Directory -> paths of its markers."""
    files: list[FileStat]
    known: Manifest | None = None
    _of: dict[str, str] = field(default_factory=dict)
    """Path of each file to send that is in a unit -> the unit."""

    def __post_init__(self) -> None:
        if self.units:
            found = ((file.path, unit_of(file.path, self.units)) for file in self.files)
            self._of = {path: unit for path, unit in found if unit is not None}

    def batches(self, tally: Tally) -> Iterator[list[FileStat]]:
        """The files to send, in two steps: all but the markers; then the markers of units whose other files are
        stored."""
        if not self._of:
            yield self.files
            return
        markers = {path for paths in self.units.values() for path in paths}
        yield [file for file in self.files if file.path not in markers]
        bad = self._incomplete(tally, markers)
        last = [file for file in self.files if file.path in markers and self._of.get(file.path) not in bad]
        if last:
            yield last

    def settle(self, tally: Tally) -> list[str]:
        """Remove the entries of new units that are incomplete, so that no manifest names half a unit. Returns their
        paths. A unit that the last manifest names keeps its entries: its objects are replaced already."""
        bad = self._incomplete(tally)
        if bad:
            bad -= self._known_units()
        dropped = [path for path, unit in self._of.items() if unit in bad and path in tally.entries]
        for path in dropped:
            del tally.entries[path]
        return dropped

    def incomplete(self, tally: Tally) -> list[str]:
        """Units of which a file was not stored."""
        return sorted(self._incomplete(tally))

    def _incomplete(self, tally: Tally, ignored: Collection[str] = ()) -> set[str]:
        done = tally.entries
        return {unit for path, unit in self._of.items() if path not in done and path not in ignored}

    def _known_units(self) -> set[str]:
        known: Iterable[str] | Mapping[str, FileEntry] = self.known.files if self.known is not None else ()
        return {unit for unit in (unit_of(path, self.units) for path in known) if unit is not None}
