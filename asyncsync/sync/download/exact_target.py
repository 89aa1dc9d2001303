"""A download target that holds the downloaded files and nothing else afterwards. Blocking: for worker threads.

Every name is looked up relative to the descriptor of its directory, without following links. Nothing outside the target
can be reached, even if directories are renamed meanwhile.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager, suppress
from itertools import groupby

from asyncsync.config import state_dir
from asyncsync.disk.descent import DIRECTORY_FLAGS, NO_DIRECTORY, bottom_up
from asyncsync.disk.files import close_descriptor
from asyncsync.disk.landing import remove_stale
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import ConfigError, SyncFailedError
from asyncsync.planning.manifest import META_DIR

MOST_PATHS_IN_ERROR = 5
"""How many paths an error message names."""


def remove_files(target: str, paths: Collection[str]) -> None:
    """Remove files that a download put into ``target``, by relative path, and directories that become empty."""
    root = os.path.realpath(target)
    for directory, group in groupby(sorted(paths), key=lambda path: path[: path.rfind("/") + 1]):
        with _below(root, directory) as descriptor:
            for path in group if descriptor is not None else ():
                with suppress(FileNotFoundError):
                    os.unlink(path[len(directory) :], dir_fd=descriptor)
    for parent in sorted(_parents(paths), reverse=True):
        _remove_empty(root, parent)


def remove_empty(target: str) -> None:
    """Remove ``target`` and the directories below it that hold no file. Links are not followed."""
    root = os.path.realpath(target)
    with suppress(OSError):  # a directory that cannot be read is not empty
        for _ in bottom_up(root, prune=True):
            continue
        os.rmdir(root)


class ExactTarget:
    """Call ``check``, then ``make_room`` for each download, then ``clear``; ``put_back`` if a download failed."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(target)
        self._aside: dict[str, str] = {}
        """Path that was in the way of a download -> where it was moved."""
        self._lock = threading.Lock()

    def check(self) -> None:
        """ConfigError if the target holds something that no download may remove: the home directory, a directory above
        the working directory, the directory of temporary files, or anything that asyncsync syncs (a trial's directory,
        a store)."""
        places = {
            "the home directory": os.path.expanduser("~"),
            "the directory of temporary files": tempfile.gettempdir(),
            "the state of asyncsync (ASYNCSYNC_STATE_DIR)": os.fspath(state_dir()),
            "the working directory": os.path.dirname(os.getcwd()),
        }
        for what, place in places.items():
            if self._holds(os.path.realpath(place)):
                raise self._refused(f"it holds {what}")
        for _ in self._walk():
            continue

    def make_room(self, paths: Collection[str]) -> None:
        """Move aside directories that have the name of a future file, and files and links where a future directory
        goes. OSError."""
        with self._lock:
            for parent in sorted(_parents(paths)):
                self._set_aside(parent, is_directory=False)
            for path in paths:
                self._set_aside(path, is_directory=True)

    def put_back(self) -> None:
        """Give everything that was moved aside its name back, unless the name is taken."""
        with self._lock:
            for path, aside in self._aside.items():
                directory, slash, name = path.rpartition("/")
                with suppress(FileNotFoundError), _below(self._root, directory + slash) as above:
                    if above is not None and not _is_there(name, above):
                        os.rename(aside.rpartition("/")[2], name, src_dir_fd=above, dst_dir_fd=above)
            self._aside.clear()

    def others(self, named: Set[str]) -> list[str]:
        """The files and links that :meth:`clear` would remove, sorted."""
        found = [f"{directory}{name}" for directory, names, _ in self._walk() for name in names]
        return sorted(path for path in found if path not in named)

    def clear(self, named: Set[str]) -> int:
        """Remove all files and links that are not ``named``, then empty directories; returns the number of files and
        links.

        Temporary files of running downloads stay. SyncFailedError names what could not be removed.
        """
        failures: dict[str, OSError] = {}
        removed = 0
        for directory, names, descriptor in self._walk(prune=True):
            for name in names:
                if (path := f"{directory}{name}") in named:
                    continue
                try:
                    removed += self._remove(path, name, descriptor)
                except OSError as error:
                    failures[path] = error
        if failures:
            text = "; ".join(
                f"{path}: {error.strerror}" for path, error in list(failures.items())[:MOST_PATHS_IN_ERROR]
            )
            raise SyncFailedError(
                f"{self._root} holds the download, but {len(failures)} other file(s) cannot be removed: {text}",
                failures,
            )
        return removed

    def _holds(self, place: str) -> bool:
        return f"{place}/".startswith(self._root.rstrip("/") + "/")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"exact=True is refused for {self._root}, because {why}: everything there that was not downloaded would be "
            "removed. Use a directory of its own"
        )

    def _set_aside(self, path: str, *, is_directory: bool) -> None:
        directory, slash, name = path.rpartition("/")
        with _below(self._root, directory + slash) as above:
            if above is None:
                return
            try:
                info = os.stat(name, dir_fd=above, follow_symlinks=False)
            except FileNotFoundError:
                return
            if stat.S_ISDIR(info.st_mode) == is_directory:
                aside = f".{name[:40]}.{os.urandom(8).hex()}{TEMPORARY}"
                self._aside[path] = f"{directory}{slash}{aside}"
                os.rename(name, aside, src_dir_fd=above, dst_dir_fd=above)

    def _walk(self, *, prune: bool = False) -> Iterator[tuple[str, list[str], int]]:
        """Each directory (``""``, or a path that ends in ``/``) with the names of its non-directories and its
        descriptor. ConfigError where asyncsync syncs something. ``prune``: remove the directory afterwards if it is
        empty."""
        for visit in bottom_up(self._root, prune=prune):
            if META_DIR in visit.directories or META_DIR in visit.names:
                raise self._refused(f"asyncsync keeps {visit.prefix or 'it'} in sync (there is {META_DIR})")
            yield visit.prefix, visit.names, visit.descriptor

    def _remove(self, path: str, name: str, descriptor: int) -> bool:
        if name.endswith(TEMPORARY) and path not in self._aside.values() and _is_file(name, descriptor):
            return remove_stale(name, descriptor)
        os.unlink(name, dir_fd=descriptor)
        return True


@contextmanager
def _below(root: str, directory: str) -> Iterator[int | None]:
    """A descriptor of one directory (``""``, or a path that ends in ``/``), reached through real directories only. None
    if it is missing: it was removed, or replaced by a file or link, since it was seen."""
    descriptor: int | None = None
    try:
        for step in [root, *directory.split("/")[:-1]]:
            above, descriptor = descriptor, os.open(step, DIRECTORY_FLAGS, dir_fd=descriptor)
            if above is not None:
                close_descriptor(above)
    except OSError as error:
        if descriptor is not None:
            close_descriptor(descriptor)
        if error.errno not in NO_DIRECTORY:
            raise
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            close_descriptor(descriptor)


def _remove_empty(root: str, directory: str) -> None:
    parent, slash, name = directory.rpartition("/")
    with suppress(OSError), _below(root, parent + slash) as descriptor:  # not empty
        if descriptor is not None:
            os.rmdir(name, dir_fd=descriptor)


def _is_there(name: str, descriptor: int) -> bool:
    try:
        os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_file(name: str, descriptor: int) -> bool:
    return stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)


def _parents(paths: Collection[str]) -> set[str]:
    """Every directory on the way to these paths."""
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found
