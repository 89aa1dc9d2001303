"""The files of a checkpoint in the state in which it was accepted: exactly these are sent, or nothing. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from xxhash import xxh3_128

from asyncsync.disk.descent import bottom_up
from asyncsync.disk.digests import digest_range, stat_file
from asyncsync.disk.files import FileRange
from asyncsync.disk.mappings import mapped_below, mapped_since
from asyncsync.disk.own_names import OWN_NAME, is_own_name, is_text
from asyncsync.disk.scan import scan
from asyncsync.errors import CheckpointIncompleteError, SourceChangedError, SyncFailedError
from asyncsync.planning.changes import RACY_NS
from asyncsync.planning.patterns import Rules
from asyncsync.planning.snapshot import FileStat, Snapshot
from asyncsync.runtime import wall_time

CHECKPOINT_RULES = Rules(symlinks="follow", whole=True)
"""Filters do not apply to checkpoints, and links are followed, also out of the directory."""
SHOWN = 5
"""How many paths an error message names."""


@dataclass(frozen=True)
class Accepted:
    """The accepted files. ``single``: the checkpoint is one file in ``root``; other files there are not part of it."""

    root: str
    real: str
    """``root`` without links: files are deleted only there."""
    files: tuple[FileStat, ...]
    single: bool
    looked: int
    """Wall-clock time (ns) just before the directory was read."""
    mapped: frozenset[str] = frozenset()
    """Paths of files that were being written through memory at that time."""
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The directory, or the one file."""
        return f"{self.root}/{self.files[0].path}" if self.single else self.root

    @property
    def real_path(self) -> str:
        """The same, its directory without links."""
        return f"{self.real}/{self.files[0].path}" if self.single else self.real

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """XXH3-128 (hex) of the names and states of all files: equal for equal files in equal states."""
        identity = xxh3_128()
        for file in self.files:
            identity.update(repr(file[:4]).encode("utf-8", "surrogateescape"))
        return identity.hexdigest()

    def check(self, crcs: Mapping[str, int] | None = None) -> None:
        """Check that no file has changed. SourceChangedError or CheckpointIncompleteError names the files that have;
        SyncFailedError if it cannot be seen.

        ``crcs``: CRC32C of the bytes sent of each file, if all of them were sent. Files that were written just before
        they were accepted, or that are written through memory, are read once more: they may have changed without a new
        mtime.
        """
        try:
            if not self._is_same():
                self._compare()
            if crcs is not None:
                other = [file.path for file in self._just_written() if self._crc(file) != crcs.get(file.path)]
                if other:
                    raise self.changed(other)
        except OSError as error:
            raise SyncFailedError(
                f"the checkpoint {self.path!r} cannot be read: {error}", {self.path: error}
            ) from error

    def _compare(self) -> None:
        now, broken = self._now()
        before = {file.path: file for file in self.files}
        missing = [path for path in before if path not in now]
        if missing:
            raise CheckpointIncompleteError(
                f"{self.path}: {some(missing)} vanished since the checkpoint was reported; keep the directory until it "
                "is durable, or report Checkpoint.snapshot(directory)"
            )
        other = [path for path, file in now.items() if path not in before or not file.same_content_as(before[path])]
        if other or broken:
            raise self.changed([*other, *broken])

    def holds(self, stored: Mapping[str, tuple[int, int]]) -> bool:
        """Whether the files are exactly these, by size and CRC32C. Reads the files only if names and sizes are the
        same."""
        if {path: size for path, (size, _) in stored.items()} != {file.path: file.size for file in self.files}:
            return False
        return all(self._crc(file) == stored[file.path][1] for file in self.files)

    def changed(self, paths: Iterable[str]) -> SourceChangedError:
        """The error for files that have changed."""
        return SourceChangedError(
            f"{self.path}: {some(sorted(paths))} changed since the checkpoint was reported, so that it would mix two "
            "states; write each checkpoint to a directory of its own, or report Checkpoint.snapshot(directory)"
        )

    def remove(self) -> list[str]:
        """Delete the files that are still as they were sent, and directories that become empty; returns the paths that
        stay. Of a link only the link itself is deleted."""
        if os.path.realpath(self.root) != self.real:
            return [self.path]  # it is a link to another directory now
        stayed = {file.path for file in self.files if not _remove(self.real, file)}
        if self.single:
            return sorted(stayed)
        stayed |= set(_remove_empty(self.real))
        if not stayed and os.path.islink(self.root):
            os.unlink(self.root)
        return sorted(stayed)

    def _is_same(self) -> bool:
        """Whether nothing at all has changed; most checks end here."""
        if self.single:
            return False
        state = {file.path: file[1:4] for file in self.files}
        try:
            found = scan(self.root, CHECKPOINT_RULES, lambda path, *now: state.get(path) == now)
        except OSError:
            return False
        return found.same == len(state) and not (found.files or found.broken or found.refused)

    def _now(self) -> tuple[dict[str, FileStat], list[str]]:
        """The present files, and a description of anything that no checkpoint may hold."""
        try:
            if self.single:
                return {file.path: stat_file(self.root, file.path) for file in self.files}, []
            found = scan(self.root, CHECKPOINT_RULES)
        except (FileNotFoundError, NotADirectoryError):
            return {}, []
        return {file.path: file for file in found.files}, [*found.broken, *map(repr, found.refused)]

    def _just_written(self) -> list[FileStat]:
        mapped = self.mapped | mapped_since(self.root)
        return [file for file in self.files if file.mtime_ns >= self.looked - RACY_NS or file.path in mapped]

    def _crc(self, file: FileStat) -> int:
        try:
            return digest_range(FileRange(f"{self.root}/{file.path}", 0, file.size)).crc32c
        except (FileNotFoundError, NotADirectoryError, SourceChangedError):
            return -1  # it has changed since its stat, a moment ago


def accept(path: str, *, may_be_empty: bool = False) -> Accepted:
    """Accept a directory, or one file, as a checkpoint, or as what one of several processes has of it.

    CheckpointIncompleteError if it is missing, holds no file (unless ``may_be_empty``), or holds something that cannot
    be sent: a broken or circular link, or a name that no store could hold.
    """
    path, looked = absolute(path), int(wall_time() * 1e9)
    try:
        if os.path.isfile(path):
            return _accept_file(path, looked)
        found = scan(path, CHECKPOINT_RULES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointIncompleteError(
            f"the checkpoint {path!r} is neither a directory nor a file on this machine"
        ) from error
    except OSError as error:
        raise CheckpointIncompleteError(f"the checkpoint {path!r} cannot be read: {error}") from error
    _refuse(path, found, may_be_empty=may_be_empty)
    return Accepted(
        path,
        os.path.realpath(path),
        tuple(sorted(found.files)),
        single=False,
        looked=looked,
        mapped=mapped_below(path, fresh=True),
        warnings=tuple(found.warnings),
    )


def _accept_file(path: str, looked: int) -> Accepted:
    root, name = os.path.split(path)
    found = Snapshot([stat_file(root, name)])
    if is_own_name(name):
        found.broken.append(f"{name}: {OWN_NAME}")
    elif not is_text(name):
        found.refused.append(name)
    _refuse(path, found)
    return Accepted(
        root,
        os.path.realpath(root),
        tuple(found.files),
        single=True,
        looked=looked,
        mapped=mapped_below(root, fresh=True),
    )


def existing_directories(root: str, names: frozenset[str]) -> frozenset[str]:
    """The names that still are directories of ``root``, so that a set of checkpoints there stays bounded."""
    return frozenset(name for name in names if os.path.isdir(f"{root}/{name}"))


def absolute(path: str) -> str:
    """The absolute path of a checkpoint. ``..`` after a link is resolved behind the link, unlike in os.path.abspath."""
    if ".." in path.split(os.sep):
        parent, name = os.path.split(path.rstrip(os.sep))
        path = os.path.realpath(path) if name in ("", ".", "..") else f"{os.path.realpath(parent)}/{name}"
    return os.path.abspath(path)


def _refuse(path: str, found: Snapshot, *, may_be_empty: bool = False) -> None:
    if found.broken:
        raise CheckpointIncompleteError(f"the checkpoint {path!r} cannot be sent as it is: {some(found.broken)}")
    if found.refused:
        names = some([repr(name) for name in found.refused])
        raise CheckpointIncompleteError(f"the checkpoint {path!r} has names that are not UTF-8: {names}")
    if not found.files and not may_be_empty:
        raise CheckpointIncompleteError(
            f"the checkpoint {path!r} holds no file: report a directory after everything has been written to it"
        )


def some(paths: Sequence[str]) -> str:
    """The first paths, and the number of further ones."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _remove(root: str, file: FileStat) -> bool:
    """Delete a file if it is still as it was sent; whether it is missing afterwards."""
    path = root
    for name in file.path.split("/"):
        path = f"{path}/{name}"
        if os.path.islink(path):
            break  # what is behind a link is not part of the checkpoint
    if not os.path.lexists(path):
        return True
    try:
        if not stat_file(root, file.path).same_content_as(file):
            return False  # changed since, or a link created since
        os.unlink(path)
    except OSError:
        return not os.path.lexists(path)
    return True


def _remove_empty(root: str) -> list[str]:
    """Delete the empty directories; returns the paths that keep the others."""
    found: list[str] = []
    for visit in bottom_up(root, prune=True):
        found += [f"{visit.prefix}{name}" for name in visit.names]
    with suppress(OSError):  # not empty: it stays
        os.rmdir(root)
    return found
