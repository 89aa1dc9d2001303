"""What the local store does to the disk: plain blocking functions, each called in a worker thread."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from asyncsync.disk.files import PIECE, FileRange, Lease, open_nonblocking
from asyncsync.disk.landing import lock_temporary
from asyncsync.errors import IntegrityError, PreconditionError, SourceChangedError, StoreError
from asyncsync.stores.base import MISSING, Body

TEMPORARY = ".asyncsync-tmp"
CONTROL = ".asyncsync"
LOCK = ".lock"
COPY_CHUNK = 16 << 20
"""Bytes per copy_file_range: a cancel waits for one of them at most."""

_FICLONE = 0x40049409  # linux/fs.h: make the whole target share the blocks of the source
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ENOTTY}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h
_CANNOT_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_CANNOT_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_DIR_SYNC = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY}


class StoppedError(Exception):
    """The caller was cancelled; whatever was begun has been cleaned up."""


def check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError


@dataclass(frozen=True, slots=True)
class Permit:
    """What a worker thread asks before each step: whether its caller is still there, and has the right to write."""

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
    """Make the names in a directory durable, where the file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIR_SYNC:
            raise
    finally:
        os.close(fd)


def make_dirs(path: str) -> None:
    """Like ``os.makedirs(exist_ok=True)``, and every new name is durable."""
    wanted = [path]
    while wanted:
        try:
            os.mkdir(wanted[-1])
        except FileExistsError:
            if not os.path.isdir(wanted[-1]):
                text = "an object lies where a directory is needed"
                raise NotADirectoryError(errno.ENOTDIR, text, wanted[-1]) from None
            wanted.pop()
        except FileNotFoundError:
            wanted.append(os.path.dirname(wanted[-1]))
        else:
            sync_dir(os.path.dirname(wanted.pop()))


def create(path: str) -> int:
    """Open a new file for writing, with its directories. A delete may remove an empty directory at any moment.

    It is locked for as long as it is open, so that a sweep can tell it from one whose writer was killed.
    """
    for _ in range(100):
        make_dirs(os.path.dirname(path))
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if lock_temporary(fd, path) or os.fstat(fd).st_nlink:  # else a sweep was faster
                return fd
            os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "the directory is removed again and again", os.path.dirname(path))


@dataclass(frozen=True, slots=True)
class Source:
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
def open_source(body: FileRange) -> Iterator[Source]:
    fd = open_nonblocking(body.path, os.O_RDONLY)
    try:
        yield Source(fd, body.path, body.offset, body.size, os.fstat(fd))
    finally:
        os.close(fd)


def write_bytes(fd: int, data: bytes, at: int, permit: Permit) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        permit.check()
        done += os.pwrite(fd, view[done : done + PIECE], at + done)


def copy_range(source: Source, fd: int, at: int, permit: Permit) -> None:
    """Copy ``source`` to offset ``at`` of ``fd``, in the kernel where it can: shared blocks, else copy_file_range.

    The bytes are not seen on the way, so no checksum can be compared; a source whose size or mtime differs after
    the copy raises SourceChangedError.
    """
    permit.check()
    if not (at == 0 and source.whole and source.size and _clone(source.fd, fd)):
        done = _copy_in_kernel(source, fd, at, permit)
        while done < source.size:
            permit.check()
            data = os.pread(source.fd, min(PIECE, source.size - done), source.offset + done)
            if not data:
                raise SourceChangedError(f"{source.path} ended after {done} of {source.size} bytes while it was read")
            write_bytes(fd, data, at + done, permit)
            done += len(data)
    after = os.fstat(source.fd)
    if (after.st_mtime_ns, after.st_size) != (source.found.st_mtime_ns, source.found.st_size):
        raise SourceChangedError(f"{source.path} changed while it was copied")


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
        return False
    return True


def _copy_in_kernel(source: Source, fd: int, at: int, permit: Permit) -> int:
    """Bytes copied: all, or fewer where the system cannot (another file system, macOS)."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < source.size:
        permit.check()
        try:
            step = os.copy_file_range(
                source.fd, fd, min(COPY_CHUNK, source.size - done), source.offset + done, at + done
            )
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            return done
        if step == 0:
            return done
        done += step
    return done


def check_crc(where: str, data: bytes, crc32c: int | None) -> int:
    """CRC32C of ``data``; IntegrityError if it is not the one that was sent along."""
    actual = int(google_crc32c.value(data))
    if crc32c is not None and actual != crc32c:
        raise IntegrityError(f"{where}: CRC32C is {actual:08x}, sent was {crc32c:08x}", retryable=True)
    return actual


@contextlib.contextmanager
def _locked(target: str) -> Iterator[None]:
    """Hold the lock of all conditional replaces of one directory, whatever the root of the store that does it."""
    parent = os.path.dirname(target)
    home = parent if os.path.basename(parent) == CONTROL else os.path.join(parent, CONTROL)
    path = os.path.join(home, LOCK)
    while True:
        make_dirs(home)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a delete has just removed the directory
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_still(fd, path):
                yield
                return
        finally:
            os.close(fd)


def _is_still(fd: int, path: str) -> bool:
    """Whether the lock file was not removed (see prune) while we waited for it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def publish(temporary: str, target: str, where: str, if_version: str | None, permit: Permit) -> None:
    """Give a finished file its name, atomically, if the condition holds; the temporary name is gone then."""
    permit.check()
    if if_version is None:
        os.replace(temporary, target)
    elif if_version == MISSING:
        _publish_new(temporary, target, where, permit)
    else:
        with _locked(target):
            have = _current(target)
            if have != if_version:
                raise PreconditionError(f"{where} has version {have!r}, expected was {if_version!r}")
            permit.check()  # the lock may have been long in coming
            os.replace(temporary, target)
    sync_dir(os.path.dirname(target))


def _publish_new(temporary: str, target: str, where: str, permit: Permit) -> None:
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError as error:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target) from error
        raise PreconditionError(f"{where} exists already") from error
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _rename_new(temporary, target, where, permit)
    else:
        os.unlink(temporary)


def _rename_new(temporary: str, target: str, where: str, permit: Permit) -> None:
    """Where there are no hard links: by a rename that does not replace, where the system has one. Else those of us who
    create only, or replace one version, exclude each other."""
    permit.check()
    try:
        rename_exclusive(temporary, target)
    except FileExistsError as error:
        raise PreconditionError(f"{where} exists already") from error
    except OSError as error:
        if error.errno not in _CANNOT_RENAME:
            raise
        with _locked(target):
            if os.path.lexists(target):
                raise PreconditionError(f"{where} exists already") from error
            permit.check()
            os.replace(temporary, target)


def rename_exclusive(old: str, new: str) -> None:
    """Rename, unless ``new`` exists: FileExistsError. OSError with ENOSYS or EINVAL where system or file system have no
    such call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.6
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), old)
    if rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def _current(target: str) -> str:
    try:
        return version_of(os.stat(target))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING


def write_file(
    target: str, body: Body | Source, where: str, permit: Permit, crc32c: int | None, if_version: str | None
) -> tuple[os.stat_result, int | None]:
    """The whole of a put: temporary file, bytes, fsync, name, fsync of the directory."""
    checked = check_crc(where, body, crc32c) if isinstance(body, bytes) else None
    permit.check()
    temporary = temporary_beside(target)
    fd = create(temporary)
    try:
        if isinstance(body, bytes):
            write_bytes(fd, body, 0, permit)
        elif isinstance(body, Source):
            copy_range(body, fd, 0, permit)
        else:
            with open_source(body) as source:
                copy_range(source, fd, 0, permit)
        found = seal(fd)
        publish(temporary, target, where, if_version, permit)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    return found, checked


def seal(fd: int) -> os.stat_result:
    """Make the bytes durable. The clock of files ticks every 4 ms; a version needs the exact time."""
    now = time.time_ns()
    os.utime(fd, ns=(now, now))
    os.fsync(fd)
    return os.fstat(fd)


def prune(path: str, root: str) -> None:
    """Remove ``path`` and its parents as long as they are empty and below ``root``."""
    while path.startswith(root.rstrip("/") + "/"):
        try:
            _drop_lock(path if os.path.basename(path) == CONTROL else os.path.join(path, CONTROL))
            os.rmdir(path)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            if error.errno != errno.ENOENT:  # else somebody was faster, and the parent may be empty now
                return
        path = os.path.dirname(path)


def _drop_lock(control: str) -> None:
    """Remove a control directory that holds nothing but a lock file which nobody holds."""
    try:
        if os.listdir(control) != [LOCK]:
            return
        fd = os.open(os.path.join(control, LOCK), os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(fd, os.path.join(control, LOCK)):
            os.unlink(os.path.join(control, LOCK))
            os.rmdir(control)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def beneath(path: str, root: str) -> str:
    """``path`` with its symbolic links resolved; StoreError if that leads out of ``root``."""
    real, base = os.path.realpath(path), os.path.realpath(root)
    if real != base and not real.startswith(base.rstrip("/") + "/"):
        raise StoreError(f"{path} leads out of {root} through a symbolic link; refused")
    return real


def open_object(path: str, root: str) -> tuple[int, os.stat_result]:
    """Open an object for reading. Only regular files are objects."""
    real = beneath(path, root)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except NotADirectoryError as error:  # `a/b` where `a` is an object
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return fd, found


def unlink(path: str) -> None:
    """Remove a file; what is gone, or is a directory, is no object and no error."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except PermissionError:
        if not os.path.isdir(path):  # macOS says EPERM for a directory
            raise
