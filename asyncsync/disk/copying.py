"""Copies of single files for ``Checkpoint.snapshot``. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat

from asyncsync.disk.reading import TRIES
from asyncsync.errors import SourceChangedError
from asyncsync.planning.snapshot import FileStat

FICLONE = 0x40049409
"""ioctl of Linux: share the blocks of another file (``man 2 ioctl_ficlone``)."""

_CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


def copy_file(source: str, target: str) -> None:
    """Shared blocks where the file system can, else the bytes; with mode and times. What is no regular file is left
    out. SourceChangedError if it changed each time that it was copied."""
    if not stat.S_ISREG(os.stat(source).st_mode):
        return
    for _ in range(TRIES):
        with open(source, "rb") as reader, open(target, "wb") as writer:
            before = FileStat.of(source, os.fstat(reader.fileno()))
            if not _clone(reader.fileno(), writer.fileno()):
                shutil.copyfileobj(reader, writer, 1 << 20)
        if before.same_content_as(FileStat.of(source, os.stat(source))):
            shutil.copystat(source, target)
            return
    raise SourceChangedError(f"{source}: changed {TRIES} times while it was copied; is it written to all the time?")


def link_file(source: str, target: str) -> None:
    """A hard link, or a copy where there can be none."""
    if not stat.S_ISREG(os.stat(source).st_mode):
        return
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        copy_file(source, target)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        return False
    return True
