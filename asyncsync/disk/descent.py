"""Walking a tree to change it: by descriptors, without recursion, and never through a link. Blocking.

One descriptor at a time, however deep the tree is (``..`` leads back), and no path: what lies deeper than a path can
say is reached too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening gives where there is no directory, or a link to one."""


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
