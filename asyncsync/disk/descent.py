"""Walking a tree to change it: by descriptors, without recursion, and never through a link. Blocking.

One descriptor at a time, however deep the tree is (``..`` leads back), and no path: what lies deeper than a path can
say is reached too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening gives where there is no directory, or a link to one."""


class Beneath:
    """What lies below one directory, reached from there on through real directories only.

    One that is swapped for a link meanwhile never leads outside. Links to a directory inside count as that directory.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.realpath(root)
        self._here: tuple[int, int] | None = None
        """Which directory it is, once it was opened; another one of its name is refused."""
        self.refused: OSError | None = None
        """Why a file did not get its mode or time, if one did not."""

    @contextmanager
    def opened(self, directory: str, *, make: bool = False) -> Iterator[int]:
        """The descriptor of a directory by its path below the root; empty for the root. ``make``: it is made if it is
        missing. OSError, also for one that leads outside."""
        try:
            descriptor = self._descend(directory, make=make)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            descriptor = self._descend(self._inside(directory), make=make)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

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
                below = os.open(step, DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _root(self) -> int:
        descriptor = os.open(self.path, DIRECTORY)
        info = os.fstat(descriptor)
        here = self._here = self._here or (info.st_dev, info.st_ino)
        if (info.st_dev, info.st_ino) != here:
            os.close(descriptor)
            raise OSError(errno.ESTALE, "another directory has taken its place", self.path)
        return descriptor


class Visit(NamedTuple):
    """A directory. ``prefix``: its path below the root, with ``/`` at the end; empty for the root."""

    prefix: str
    directories: list[str]
    names: list[str]
    """Of what is no directory; links are among them."""
    descriptor: int
    """Open until the next one is asked for."""


class _Level(NamedTuple):
    prefix: str
    here: tuple[int, int]
    left: list[str]
    """Directories in it that have not been visited."""
    visit: Visit


def bottom_up(root: str, *, prune: bool = False) -> Iterator[Visit]:
    """Each directory after those in it, ``root`` last; nothing if that is none. With ``prune``, those below ``root``
    are removed after their visit if they are empty then. OSError if one cannot be read or is moved meanwhile."""
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
                    os.close(descriptor)
                    descriptor = below
                    levels.append(_level(f"{level.prefix}{name}/", descriptor))
                continue
            yield level.visit._replace(descriptor=descriptor)
            levels.pop()
            if levels:
                above = _up(descriptor, levels[-1])
                os.close(descriptor)
                descriptor = above
                if prune:
                    with suppress(OSError):  # it is not empty
                        os.rmdir(level.prefix[len(levels[-1].prefix) : -1], dir_fd=descriptor)
    finally:
        os.close(descriptor)


def remove_tree(root: str) -> None:
    """Remove ``root`` and all that is in it. OSError if something stays."""
    for visit in bottom_up(root, prune=True):
        for name in visit.names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=visit.descriptor)
    os.rmdir(root)


def _open(name: str, above: int | None) -> int | None:
    try:
        return os.open(name, DIRECTORY, dir_fd=above)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _level(prefix: str, descriptor: int) -> _Level:
    info = os.fstat(descriptor)
    visit = Visit(prefix, [], [], descriptor)
    with os.scandir(descriptor) as entries:
        for entry in entries:
            (visit.directories if entry.is_dir(follow_symlinks=False) else visit.names).append(entry.name)
    return _Level(prefix, (info.st_dev, info.st_ino), list(visit.directories), visit)


def _up(descriptor: int, level: _Level) -> int:
    """The directory above, which has to be the one that we came from."""
    above = os.open("..", DIRECTORY, dir_fd=descriptor)
    info = os.fstat(above)
    if (info.st_dev, info.st_ino) != level.here:
        os.close(above)
        raise OSError(errno.ESTALE, "a directory was moved while the tree was walked", level.prefix)
    return above
