"""Disk operations of the local store. All functions block; call them in a worker thread."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from asyncsync.disk.files import (
    CANNOT_COPY,
    PIECE,
    FileRange,
    Lease,
    close_descriptor,
    open_nonblocking,
    share_blocks,
)
from asyncsync.disk.landing import lock_temporary
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import IntegrityError, SourceChangedError, StoreError

COPY_STEP = 16 << 20
"""Bytes per copy_file_range. A cancelled call waits for at most one of them."""
DIRECTORY_ATTEMPTS = 100
"""How often a directory is created again after a concurrent delete has removed it."""

_NO_DIR_SYNC = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS}


class StoppedError(Exception):
    """The caller was cancelled. The operation has cleaned up."""


def check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError


@dataclass(frozen=True, slots=True)
class WritePermit:
    """Checked by a worker thread before each step: the caller was not cancelled, and its lease has not expired."""

    stop: threading.Event
    lease: Lease | None = None

    def check(self) -> None:
        """StoppedError, LeaseExpiredError."""
        check_stop(self.stop)
        if self.lease is not None:
            self.lease.check()


def version_of(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def temporary_beside(target: str) -> str:
    return os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}{TEMPORARY}")


def sync_dir(path: str) -> None:
    """Make the names in a directory durable, if the file system supports it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIR_SYNC:
            raise
    finally:
        close_descriptor(fd)


def make_dirs(path: str) -> None:
    """Like ``os.makedirs(exist_ok=True)``, but every new name is durable."""
    wanted = [path]
    while wanted:
        try:
            os.mkdir(wanted[-1])
        except FileExistsError:
            if not os.path.isdir(wanted[-1]):
                text = "an object is in the place of a directory of the key"
                raise NotADirectoryError(errno.ENOTDIR, text, wanted[-1]) from None
            wanted.pop()
        except FileNotFoundError:
            wanted.append(os.path.dirname(wanted[-1]))
        else:
            sync_dir(os.path.dirname(wanted.pop()))


def create(path: str) -> int:
    """Open a new file for writing, and create its directories. A concurrent delete may remove an empty directory.

    The file is locked while it is open, so that a sweep can distinguish it from one whose writer was killed.
    """
    for _ in range(DIRECTORY_ATTEMPTS):
        make_dirs(os.path.dirname(path))
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if _keeps_its_name(fd, path):
                return fd
    raise FileNotFoundError(errno.ENOENT, "directory keeps being removed by another process", os.path.dirname(path))


def _keeps_its_name(fd: int, path: str) -> bool:
    """Lock a new file; whether it still has its name. Closes it if a sweep has removed it, or an error is raised."""
    try:
        if lock_temporary(fd, path) or os.fstat(fd).st_nlink:
            return True
    except BaseException:
        close_descriptor(fd)
        unlink(path)
        raise
    close_descriptor(fd)
    return False


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An open file to copy from."""

    fd: int
    path: str
    offset: int
    size: int
    found: os.stat_result

    @property
    def whole(self) -> bool:
        return self.offset == 0 and self.size == self.found.st_size


@contextlib.contextmanager
def open_source(body: FileRange) -> Iterator[SourceFile]:
    fd = open_nonblocking(body.path, os.O_RDONLY)
    try:
        yield SourceFile(fd, body.path, body.offset, body.size, os.fstat(fd))
    finally:
        close_descriptor(fd)


def write_bytes(fd: int, data: bytes, at: int, permit: WritePermit) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        permit.check()
        done += os.pwrite(fd, view[done : done + PIECE], at + done)


def copy_range(source: SourceFile, fd: int, at: int, permit: WritePermit) -> None:
    """Copy ``source`` to offset ``at`` of ``fd``, if possible in the kernel: shared blocks, else copy_file_range.

    The kernel computes no checksum. SourceChangedError if the size or mtime of the source differs after the copy.
    """
    permit.check()
    if not (at == 0 and source.whole and source.size and share_blocks(source.fd, fd)):
        done = _copy_in_kernel(source, fd, at, permit)
        while done < source.size:
            permit.check()
            data = os.pread(source.fd, min(PIECE, source.size - done), source.offset + done)
            if not data:
                raise SourceChangedError(
                    f"{source.path}: the file ended after {done} of {source.size} bytes while it was read"
                )
            write_bytes(fd, data, at + done, permit)
            done += len(data)
    after = os.fstat(source.fd)
    if (after.st_mtime_ns, after.st_size) != (source.found.st_mtime_ns, source.found.st_size):
        raise SourceChangedError(f"{source.path}: the file changed while it was copied")


def _copy_in_kernel(source: SourceFile, fd: int, at: int, permit: WritePermit) -> int:
    """The bytes copied: all, or fewer if the system does not support it (another file system, macOS)."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < source.size:
        permit.check()
        try:
            step = os.copy_file_range(
                source.fd, fd, min(COPY_STEP, source.size - done), source.offset + done, at + done
            )
        except OSError as error:
            if error.errno not in CANNOT_COPY:
                raise
            return done
        if step == 0:
            return done
        done += step
    return done


def check_crc(where: str, data: bytes, crc32c: int | None) -> int:
    """The CRC32C of ``data``; IntegrityError if it differs from ``crc32c``."""
    actual = int(google_crc32c.value(data))
    if crc32c is not None and actual != crc32c:
        raise IntegrityError(f"{where}: the data has CRC32C {actual:08x}, not {crc32c:08x}", retryable=True)
    return actual


def seal(fd: int) -> os.stat_result:
    """Make the bytes durable. The kernel's file times tick every 4 ms, but a version needs the exact time."""
    now = time.time_ns()
    os.utime(fd, ns=(now, now))
    os.fsync(fd)
    return os.fstat(fd)


def beneath(path: str, root: str) -> str:
    """``path`` with its symbolic links resolved; StoreError if that is outside ``root``."""
    real, base = os.path.realpath(path), os.path.realpath(root)
    if real != base and not real.startswith(base.rstrip("/") + "/"):
        raise StoreError(f"{path}: refused: a symbolic link leads out of {root}")
    return real


def open_object(path: str, root: str) -> tuple[int, os.stat_result]:
    """Open an object for reading. FileNotFoundError for anything but a regular file."""
    real = beneath(path, root)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except NotADirectoryError as error:  # "a/b" where "a" is an object
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    except BaseException:
        close_descriptor(fd)
        raise
    return fd, found


def unlink(path: str) -> None:
    """Remove a file. A missing file or a directory is not an error."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except PermissionError:
        if not os.path.isdir(path):  # macOS: EPERM for a directory
            raise
