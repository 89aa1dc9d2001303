"""Walking a tree to change it: by descriptors, without recursion, and never through a link. Blocking.

Uses one descriptor at a time, however deep the tree is (``..`` leads back), and no paths: entries deeper than the
longest possible path are reached too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from asyncsync.disk.files import close_descriptor

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for opening a directory."""
NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of opening a missing directory, or a link to one."""


class Beneath:
    """Access to one directory and everything below it, through real directories only.

    A directory that is swapped for a link meanwhile never leads outside. A link to a directory inside counts as that
    directory.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.realpath(root)
        self._here: tuple[int, int] | None = None
        """Device and inode of the root once it was opened; another directory of the same name is refused."""
        self.refused: OSError | None = None
        """The error that a file could not get its mode or time, if there was one."""

    @contextmanager
    def opened(self, directory: str, *, make: bool = False) -> Iterator[int]:
        """The descriptor of a directory, by its path below the root; empty for the root. ``make``: create it if it is
        missing. OSError, also if the path leads outside."""
        try:
            descriptor = self._descend(directory, make=make)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            descriptor = self._descend(self._inside(directory), make=make)
        try:
            yield descriptor
        finally:
            close_descriptor(descriptor)

    def _inside(self, directory: str) -> str:
        real = os.path.realpath(f"{self.path}/{directory}")
        if real != self.path and not real.startswith(self.path.rstrip("/") + "/"):
            raise OSError(errno.ELOOP, "it leads outside of the target through a symbolic link", directory)
        return real[len(self.path) :].strip("/")

    def _descend(self, directory: str, *, make: bool) -> int:
        descriptor = self._root()
        try:
            for step in directory.split("/") if directory else ():
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(step, dir_fd=descriptor)
                below = os.open(step, DIRECTORY_FLAGS, dir_fd=descriptor)
                close_descriptor(descriptor)
                descriptor = below
        except BaseException:
            close_descriptor(descriptor)
            raise
        return descriptor

    def _root(self) -> int:
        descriptor = os.open(self.path, DIRECTORY_FLAGS)
        found = _identity(descriptor)
        self._here = self._here or found
        if found != self._here:
            close_descriptor(descriptor)
            raise OSError(errno.ESTALE, "another directory has taken its place", self.path)
        return descriptor


class Visit(NamedTuple):
    """A visited directory. ``prefix``: its path below the root with ``/`` at the end; empty for the root."""

    prefix: str
    directories: list[str]
    names: list[str]
    """Names of everything that is not a directory, links included."""
    descriptor: int
    """Open until the next visit."""


class _Level(NamedTuple):
    prefix: str
    here: tuple[int, int]
    left: list[str]
    """Directories in it that have not been visited."""
    visit: Visit


def bottom_up(root: str, *, prune: bool = False) -> Iterator[Visit]:
    """Visit each directory after those in it, ``root`` last; no visit if ``root`` is not a directory. ``prune``: remove
    each directory below ``root`` after its visit if it is empty. OSError if a directory cannot be read, or is moved
    meanwhile."""
    descriptor = _open(root, None)
    if descriptor is None:
        return
    try:
        levels = [_level("", descriptor)]
        while levels:
            level = levels[-1]
            if level.left:
                name = level.left.pop()
                below = _open(name, descriptor)
                if below is not None:
                    close_descriptor(descriptor)
                    descriptor = below
                    levels.append(_level(f"{level.prefix}{name}/", descriptor))
                continue
            yield level.visit._replace(descriptor=descriptor)
            levels.pop()
            if levels:
                above = _up(descriptor, levels[-1])
                close_descriptor(descriptor)
                descriptor = above
                if prune:
                    with suppress(OSError):  # it is not empty
                        os.rmdir(level.prefix[len(levels[-1].prefix) : -1], dir_fd=descriptor)
    finally:
        close_descriptor(descriptor)


def remove_tree(root: str) -> None:
    """Remove ``root`` and everything in it. OSError if something remains."""
    for visit in bottom_up(root, prune=True):
        for name in visit.names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=visit.descriptor)
    os.rmdir(root)


def _open(name: str, above: int | None) -> int | None:
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=above)
    except OSError as error:
        if error.errno in NO_DIRECTORY:
            return None
        raise


def _identity(descriptor: int) -> tuple[int, int]:
    """Device and inode of an open file, which is closed if they cannot be had."""
    try:
        info = os.fstat(descriptor)
    except BaseException:
        close_descriptor(descriptor)
        raise
    return info.st_dev, info.st_ino


def _level(prefix: str, descriptor: int) -> _Level:
    info = os.fstat(descriptor)
    visit = Visit(prefix, [], [], descriptor)
    with os.scandir(descriptor) as entries:
        for entry in entries:
            (visit.directories if entry.is_dir(follow_symlinks=False) else visit.names).append(entry.name)
    return _Level(prefix, (info.st_dev, info.st_ino), list(visit.directories), visit)


def _up(descriptor: int, level: _Level) -> int:
    """The parent directory; OSError unless it is the one that the walk came from."""
    above = os.open("..", DIRECTORY_FLAGS, dir_fd=descriptor)
    if _identity(above) != level.here:
        close_descriptor(above)
        raise OSError(errno.ESTALE, "a directory was moved while the tree was walked", level.prefix)
    return above
