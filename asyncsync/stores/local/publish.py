"""Gives finished files their names in the local store, and removes empty directories. All functions block."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Iterator

from asyncsync.disk.files import close_descriptor
from asyncsync.errors import PreconditionError
from asyncsync.stores.base import MISSING, Body
from asyncsync.stores.local import files as disk
from asyncsync.stores.local.keys import CONTROL_DIR, LOCK_NAME

log = logging.getLogger("asyncsync")

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h
_CANNOT_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_CANNOT_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_LONGEST_PAUSE = 0.05
"""Seconds between two tries to get a lock."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_warned_devices: set[int] = set()
"""File systems without locks that the log names already."""
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY}


def write_file(
    target: str,
    body: Body | disk.SourceFile,
    where: str,
    permit: disk.WritePermit,
    crc32c: int | None,
    if_version: str | None,
) -> tuple[os.stat_result, int | None]:
    """All steps of a put: temporary file, bytes, fsync, rename, fsync of the directory."""
    checked = disk.check_crc(where, body, crc32c) if isinstance(body, bytes) else None
    permit.check()
    temporary = disk.temporary_beside(target)
    fd = disk.create(temporary)
    try:
        if isinstance(body, bytes):
            disk.write_bytes(fd, body, 0, permit)
        elif isinstance(body, disk.SourceFile):
            disk.copy_range(body, fd, 0, permit)
        else:
            with disk.open_source(body) as source:
                disk.copy_range(source, fd, 0, permit)
        found = disk.seal(fd)
        publish(temporary, target, where, if_version, permit)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        close_descriptor(fd)
    return found, checked


def publish(temporary: str, target: str, where: str, if_version: str | None, permit: disk.WritePermit) -> None:
    """Rename a finished file to its target, atomically, if the condition holds."""
    permit.check()
    if if_version is None:
        os.replace(temporary, target)
    elif if_version == MISSING:
        _publish_new(temporary, target, where, permit)
    else:
        with _locked(target, permit):
            have = _current(target)
            if have != if_version:
                raise PreconditionError(f"{where} has version {have!r}, not {if_version!r}")
            permit.check()  # waiting for the lock may have taken long
            os.replace(temporary, target)
    disk.sync_dir(os.path.dirname(target))


def _publish_new(temporary: str, target: str, where: str, permit: disk.WritePermit) -> None:
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError as error:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target) from error
        raise PreconditionError(f"{where} already exists") from error
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _rename_new(temporary, target, where, permit)
    else:
        os.unlink(temporary)


def _rename_new(temporary: str, target: str, where: str, permit: disk.WritePermit) -> None:
    """Publish a new file without hard links: by a rename that does not replace, if the system supports it. Otherwise by
    the lock, which only excludes other conditional writes."""
    permit.check()
    try:
        rename_exclusive(temporary, target)
    except FileExistsError as error:
        raise PreconditionError(f"{where} already exists") from error
    except OSError as error:
        if error.errno not in _CANNOT_RENAME:
            raise
        with _locked(target, permit):
            if os.path.lexists(target):
                raise PreconditionError(f"{where} already exists") from error
            permit.check()
            os.replace(temporary, target)


def rename_exclusive(old: str, new: str) -> None:
    """Rename unless ``new`` exists (FileExistsError). OSError with ENOSYS or EINVAL if the system or the file system
    does not support it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.6
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), old)
    if rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def _current(target: str) -> str:
    try:
        return disk.version_of(os.stat(target))
    except (FileNotFoundError, NotADirectoryError):
        return MISSING


@contextlib.contextmanager
def _locked(target: str, permit: disk.WritePermit) -> Iterator[None]:
    """Hold the lock for conditional replaces in one directory. Stores with other roots use the same lock file."""
    parent = os.path.dirname(target)
    home = parent if os.path.basename(parent) == CONTROL_DIR else os.path.join(parent, CONTROL_DIR)
    path = os.path.join(home, LOCK_NAME)
    while True:
        disk.make_dirs(home)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a concurrent delete has removed the directory
        try:
            _wait_for_lock(fd, path, permit)
            if _is_same_file(fd, path):
                yield
                return
        finally:
            close_descriptor(fd)


def _wait_for_lock(fd: int, path: str, permit: disk.WritePermit) -> None:
    """Lock ``fd``. Its holder may be stopped, or cut off from a file server, so the wait ends with the permit."""
    pause = 0.001
    while not _try_lock(fd, path):
        permit.stop.wait(pause)
        permit.check()
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try_lock(fd: int, path: str) -> bool:
    """Lock ``fd`` unless somebody else holds its lock. Where the file system has no locks, nobody does: only a write in
    the moment between a check and its rename goes unnoticed then."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_without_locks(fd, path, os.strerror(error.errno))
    return True


def _warn_without_locks(fd: int, path: str, reason: str) -> None:
    device = os.fstat(fd).st_dev
    if device not in _warned_devices:
        _warned_devices.add(device)
        log.warning(
            "the file system of %s has no locks (%s): two processes that replace the same record or manifest at the "
            "same moment may not notice each other",
            path,
            reason,
        )


def _is_same_file(fd: int, path: str) -> bool:
    """Whether the lock file was not removed (see prune) while we waited for its lock."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def prune(path: str, root: str) -> None:
    """Remove ``path`` and its parents while they are empty and below ``root``."""
    while path.startswith(root.rstrip("/") + "/"):
        try:
            _remove_unused_lock(path if os.path.basename(path) == CONTROL_DIR else os.path.join(path, CONTROL_DIR))
            os.rmdir(path)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            if error.errno != errno.ENOENT:  # else another process removed it, and the parent may be empty now
                return
        path = os.path.dirname(path)


def _remove_unused_lock(control: str) -> None:
    """Remove a control directory that contains only an unlocked lock file."""
    path = os.path.join(control, LOCK_NAME)
    try:
        if os.listdir(control) != [LOCK_NAME]:
            return
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if _try_lock(fd, path) and _is_same_file(fd, path):
            os.unlink(path)
            os.rmdir(control)
    finally:
        close_descriptor(fd)
