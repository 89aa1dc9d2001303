"""Scanning a directory. Blocking: for worker threads.

One ``os.scandir`` pass, one ``stat`` per file, no ``Path`` objects: 300,000 files a second on one core.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from asyncsync.disk.files import close_descriptor
from asyncsync.disk.own_names import OWN_NAME, is_own_name, is_text
from asyncsync.planning.manifest import META_DIR
from asyncsync.planning.patterns import EVERYTHING, Rules, compile_patterns
from asyncsync.planning.snapshot import FileStat, Snapshot

if TYPE_CHECKING:
    pass

T = TypeVar("T")
_NUMBERED = re.compile(r"checkpoint_\d{6,}")


Same = Callable[[str, int, int, int], bool]
"""Whether a file of this path, size (bytes), mtime (ns) and inode is known and unchanged."""


def nothing_known(path: str, size: int, mtime_ns: int, inode: int) -> bool:  # noqa: ARG001
    """For a tree without a manifest: every file is new."""
    return False


def scan(root: str, rules: Rules = EVERYTHING, same: Same = nothing_known) -> Snapshot:
    """All selected files below ``root``, in no particular order. FileNotFoundError if ``root`` is missing, OSError if
    it cannot be read.

    A directory or file below it that cannot be read is tried once more; then it is listed in ``Snapshot.unread``, and
    the scan continues. Entries too deep to have a path (4,096 bytes on Linux) are left out and named.

    Files that are the ``same`` are counted and not kept, so that a repeated scan of a large tree takes no memory.
    """
    walk = _Scan(root, rules, same)
    if rules.only is not None:
        walk.only(rules.only)
        return walk.found
    walk.everything()
    return walk.found


def _above(root: str, *, all_the_way: bool) -> set[tuple[int, int]]:
    """Directories that a link must not lead back to. ``all_the_way``: also those above the root, where a link would
    take in everything beside the root before it is found to lead back."""
    path, found = os.path.realpath(root), set[tuple[int, int]]()
    while True:
        info = os.stat(path)
        found.add((info.st_dev, info.st_ino))
        if not all_the_way or path == "/":
            return found
        path = os.path.dirname(path)


class _Counts(NamedTuple):
    """How much was found at some point of the scan."""

    files: int
    warnings: int
    refused: int
    broken: int
    same: int
    bytes_total: int


class _PendingDirectory(NamedTuple):
    """A directory to visit or, with ``before``, to leave: everything below it has been visited then."""

    path: str
    here: tuple[int, int]
    before: _Counts | None = None


class _Scan:
    """One scan. Directories on the way down are known by (device, inode), so that a link to a parent ends there."""

    def __init__(self, root: str, rules: Rules, same: Same) -> None:
        self.found = Snapshot()
        self._root, self._rules, self._same = root, rules, same
        self._include = compile_patterns(rules.include) if rules.include else None
        self._exclude = compile_patterns(rules.exclude) if rules.exclude else None
        self._ready = [(compile_patterns([pattern]), markers) for pattern, markers in rules.ready]
        self._everything = self._include is None and self._exclude is None

    def only(self, names: Iterable[str]) -> None:
        """Visit only these files; missing ones are left out."""
        for name in names:
            try:
                info = _again(os.stat, f"{self._root}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._unread(name, error)
                continue
            if is_text(name):
                self._keep(name, info)
            else:
                self.found.refused.append(name)

    def everything(self) -> None:
        """Visit the root and everything below it, without recursion: trees may be deeper than Python's stack."""
        left = self._again("")
        above = _above(self._root, all_the_way=self._rules.whole) if left else set()  # on the way to the present one
        while left:
            path, here, before = left.pop()
            if before is not None:
                above.discard(here)
                if self._is_marked(path):
                    self._take_back(
                        before
                    )  # the directory is new: its mark came after the first look, but before any file
            elif here in above:
                self._left_out(path, "the link leads back to a directory above it")
            else:
                above.add(here)
                left.append(_PendingDirectory(path, here, self._count()))
                left += self._deeper(path)

    def _deeper(self, path: str) -> list[_PendingDirectory]:
        """The directories in one; none if it cannot be read."""
        try:
            return self._again(path)
        except (FileNotFoundError, NotADirectoryError):
            return []  # missing since it was listed: the next scan decides
        except OSError as error:
            self._unread(path, error)
            return []

    def _again(self, path: str) -> list[_PendingDirectory]:
        """Visit one directory; an OSError is raised only if it comes twice: an NFS handle may be stale once."""
        before = self._count()
        try:
            return self._directory(path)
        except OSError:
            self._take_back(before)
        try:
            return self._directory(path)
        except OSError:
            self._take_back(before)
            raise

    def _directory(self, path: str) -> list[_PendingDirectory]:
        """Visit the files of one directory; returns its directories. Files are looked up relative to the descriptor,
        because their paths are long."""
        full, prefix = (f"{self._root}/{path}", f"{path}/") if path else (self._root, "")
        deeper: list[_PendingDirectory] = []
        descriptor = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as entries:
                self._entries(entries, full, prefix, deeper)
        finally:
            close_descriptor(descriptor)
        return deeper

    def _unread(self, path: str, error: OSError) -> None:
        """Record a path that cannot be read. A path that is too long for the system can never be sent; other errors may
        be transient."""
        if self._rules.whole:
            self.found.broken.append(f"{path}: it cannot be read: {error.strerror}")
        elif error.errno == errno.ENAMETOOLONG:
            self.found.refused.append(path)
        else:
            self.found.unread[path] = error

    def _entries(
        self, entries: Iterable[os.DirEntry[str]], parent: str, prefix: str, deeper: list[_PendingDirectory]
    ) -> None:
        """Visit the entries of one directory. An unchanged plain file takes the short way, with one call of ours."""
        plain, same, found = self._everything and is_text(prefix), self._same, self.found
        for entry in entries:
            name = entry.name
            path = prefix + name
            if META_DIR in name and is_own_name(name):
                if self._rules.whole:
                    self._left_out(path, OWN_NAME)
                continue
            try:
                if plain and name.isascii() and entry.is_file(follow_symlinks=False):
                    info = entry.stat(follow_symlinks=False)
                    size = info.st_size
                    if same(path, size, info.st_mtime_ns, info.st_ino):
                        found.same += 1
                    else:
                        found.files.append(FileStat.of(path, info))
                    found.bytes_total += size
                elif not entry.is_symlink() or self._may_follow(f"{parent}/{name}", path):
                    self._entry(entry, path, deeper)
            except FileNotFoundError:
                continue  # missing since it was listed: the next scan decides
            except OSError as error:
                self._once_more(entry, path, deeper, error)

    def _once_more(self, entry: os.DirEntry[str], path: str, deeper: list[_PendingDirectory], error: OSError) -> None:
        """Retry an entry that could not be read."""
        try:
            self._entry(entry, path, deeper)
        except FileNotFoundError:
            return
        except OSError:
            self._unread(path, error)

    def _entry(self, entry: os.DirEntry[str], path: str, deeper: list[_PendingDirectory]) -> None:
        if entry.is_dir():
            if self._descends(path):
                info = entry.stat()
                deeper.append(_PendingDirectory(path, (info.st_dev, info.st_ino)))
        elif self._counts(path):
            self._file(entry.stat(), path)

    def _file(self, info: os.stat_result, path: str) -> None:
        if not stat.S_ISREG(info.st_mode):
            self.found.warnings.append(f"{path!r}: skipped, not a regular file (socket, pipe or device)")
        elif not path.isascii() and not is_text(path):
            self.found.refused.append(path)
        else:
            self._keep(path, info)

    def _keep(self, path: str, info: os.stat_result) -> None:
        found, size = self.found, info.st_size
        found.bytes_total += size
        if self._same(path, size, info.st_mtime_ns, info.st_ino):
            found.same += 1
        else:
            found.files.append(FileStat.of(path, info))

    def _descends(self, path: str) -> bool:
        if self._rules.skip_numbered and _NUMBERED.fullmatch(path):
            return False
        if self._is_marked(path):
            return False
        if path in self._rules.skip or (self._exclude is not None and self._exclude.match_file(path + "/")):
            return False
        return not self._ready or self._is_ready(path)

    def _is_ready(self, path: str) -> bool:
        """Whether the directory is not a unit, or its markers show that it is complete. A unit inside another one
        belongs to that."""
        parents = path.split("/")
        if any("/".join(parents[:count]) in self.found.units for count in range(1, len(parents))):
            return True
        markers = next((markers for spec, markers in self._ready if spec.match_file(path + "/")), None)
        if markers is None:
            return True
        wanted = tuple(f"{path}/{name}" for name in markers if not name.startswith("!"))
        unwanted = [f"{path}/{name[1:]}" for name in markers if name.startswith("!")]
        exists = [os.path.lexists(f"{self._root}/{name}") for name in (*wanted, *unwanted)]
        if all(exists[: len(wanted)]) and not any(exists[len(wanted) :]):
            self.found.units[path] = wanted
            return True
        self.found.unready[path] = None
        return False

    def _is_marked(self, path: str) -> bool:
        return self._rules.skip_marked and "/" not in path and os.path.isdir(f"{self._root}/{path}/{META_DIR}")

    def _count(self) -> _Counts:
        found = self.found
        return _Counts(
            len(found.files), len(found.warnings), len(found.refused), len(found.broken), found.same, found.bytes_total
        )

    def _take_back(self, before: _Counts) -> None:
        """Forget everything found since :meth:`_count`."""
        found = self.found
        del found.files[before.files :], found.warnings[before.warnings :], found.refused[before.refused :]
        del found.broken[before.broken :]
        found.same, found.bytes_total = before.same, before.bytes_total

    def _counts(self, path: str) -> bool:
        if path in self._rules.always:
            return True
        if self._exclude is not None and self._exclude.match_file(path):
            return False
        return self._include is None or self._include.match_file(path)

    def _may_follow(self, link: str, path: str) -> bool:
        if self._rules.symlinks == "skip":
            why = "a symbolic link"
        elif self._rules.symlinks == "inside" and not self._inside(os.path.realpath(link)):
            why = "the link leaves the tree (symlinks='follow' takes it along)"
        elif not os.path.exists(link):
            why = "the link points to nothing"
        else:
            return True
        self._left_out(path, why)
        return False

    def _left_out(self, path: str, why: str) -> None:
        if self._rules.whole:
            self.found.broken.append(f"{path}: {why}")
        else:
            self.found.warnings.append(f"{path}: skipped, {why}")

    def _inside(self, target: str) -> bool:
        root = os.path.realpath(self._root)
        return target == root or target.startswith(root + os.sep)


def _again(look: Callable[[str], T], path: str) -> T:
    """Call ``look`` once more after an OSError, unless the path is missing."""
    try:
        return look(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:
        return look(path)
