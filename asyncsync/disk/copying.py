"""Copies for ``Checkpoint.snapshot``. Blocking."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asyncsync.disk.descent import remove_tree
from asyncsync.disk.digests import READ_ATTEMPTS
from asyncsync.disk.files import close_descriptor, share_blocks
from asyncsync.disk.landing import lock_temporary
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import CheckpointIncompleteError, SourceChangedError
from asyncsync.planning.snapshot import FileStat

log = logging.getLogger("asyncsync")

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}

UNFINISHED = f".part{TEMPORARY}"
"""Suffix of unfinished copies."""


def copy_tree(source: Path, *, link: bool) -> Path:
    """Make a hidden copy beside ``source``. Unfinished copies of killed processes are removed first."""
    for left in source.parent.glob(f".{glob.escape(source.name)}.*{UNFINISHED}"):
        _remove_unfinished(left)
    name = f".{source.name}.{os.urandom(4).hex()}"
    making, made = source.with_name(name + UNFINISHED), source.with_name(name + TEMPORARY)
    making.mkdir()
    descriptor = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock_temporary(descriptor, str(making))
        _copy_below(str(source), str(making), link_file if link else copy_file)
        making.rename(made)
    except BaseException:
        _discard(making)
        raise
    finally:
        close_descriptor(descriptor)
    return made


def _discard(path: Path) -> None:
    with suppress(OSError):  # the next copy removes it
        remove_tree(str(path))


def _copy_below(source: str, target: str, copy: Callable[[str, str], None]) -> None:
    """Copy the content of ``source`` into the existing ``target``. Links are followed; no recursion.

    CheckpointIncompleteError for a link that leads back to a directory above it. Directories get their mode and times
    once they are filled.
    """
    left = [("", frozenset[tuple[int, int]]())]
    directories: list[str] = []
    while left:
        below, above = left.pop()
        info = os.stat(f"{source}{below}")
        if (here := (info.st_dev, info.st_ino)) in above:
            raise CheckpointIncompleteError(f"{source}{below}: the link leads back to a directory above it")
        if below:
            os.mkdir(f"{target}{below}")
        directories.append(below)
        with os.scandir(f"{source}{below}") as entries:
            for entry in entries:
                path = f"{below}/{entry.name}"
                if entry.is_dir():
                    left.append((path, above | {here}))
                else:
                    copy(f"{source}{path}", f"{target}{path}")
    for below in reversed(directories):
        shutil.copystat(f"{source}{below}", f"{target}{below}")


def _remove_unfinished(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # missing, or not a copy of ours
    try:
        if lock_temporary(descriptor, str(path)):
            _discard(path)
    finally:
        close_descriptor(descriptor)


def _is_regular(path: str) -> bool:
    """Whether the path leads to a regular file. Anything else is left out, with a warning."""
    if stat.S_ISREG(os.stat(path).st_mode):
        return True
    log.warning("%s is a socket, pipe or device: it is left out of the snapshot", path)
    return False


def copy_file(source: str, target: str) -> None:
    """Share blocks where the file system can, otherwise copy the bytes; mode and times included. Anything but a regular
    file is left out. SourceChangedError if the file changed during every attempt."""
    if not _is_regular(source):
        return
    for _ in range(READ_ATTEMPTS):
        with open(source, "rb") as reader, open(target, "wb") as writer:
            before = FileStat.of(source, os.fstat(reader.fileno()))
            if not share_blocks(reader.fileno(), writer.fileno()):
                shutil.copyfileobj(reader, writer, 1 << 20)
        if before.same_content_as(FileStat.of(source, os.stat(source))):
            shutil.copystat(source, target)
            return
    raise SourceChangedError(
        f"{source}: changed {READ_ATTEMPTS} times while it was copied; is it written to all the time?"
    )


def link_file(source: str, target: str) -> None:
    """Make a hard link, or a copy where links are impossible."""
    if not _is_regular(source):
        return
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        copy_file(source, target)
