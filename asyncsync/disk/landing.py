"""Files that a download writes: checked paths, temporary files beside the target, one rename. Blocking.

Nothing is synced to disk before the rename: restored data is still in the store, so a power failure costs a second
download, never data.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress

import google_crc32c
import xxhash

from asyncsync.disk.descent import Beneath
from asyncsync.disk.digests import crc32c_extend
from asyncsync.disk.files import PIECE, close_descriptor
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import SyncError
from asyncsync.planning.manifest import META_DIR, FileEntry

_NO_MODE_OR_TIME = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EROFS,
    errno.ENOTTY,
}
"""Errors of file systems whose files have no mode or time of their own."""


def check_entries(entries: Iterable[FileEntry], source: str) -> None:
    """Refuse a manifest whose paths could leave the target or collide; SyncError names the path."""
    paths: set[str] = set()
    parents: set[str] = set()
    for entry in entries:
        steps = entry.path.split("/")
        if "\0" in entry.path or not {"", ".", ".."}.isdisjoint(steps) or META_DIR in steps:
            raise SyncError(f"{source}: refused, {entry.path!r} is outside the target directory; nothing was written")
        if not -(2**62) < entry.mtime_ns < 2**62:
            raise SyncError(
                f"{source}: refused, {entry.path!r} has the impossible time {entry.mtime_ns}; nothing was written"
            )
        paths.add(entry.path)
        for depth in range(1, len(steps)):
            parents.add("/".join(steps[:depth]))
    if both := paths & parents:
        raise SyncError(f"{source}: refused, {min(both)!r} is a file and a directory; nothing was written")


def check_parents(target: str, directories: Iterable[str]) -> None:
    """Refuse directories that a symbolic link leads outside ``target``; SyncError names the path."""
    real = os.path.realpath(target)
    inside = real.rstrip("/") + "/"
    for directory in directories:
        resolved = os.path.realpath(f"{target}/{directory}")
        if resolved != real and not resolved.startswith(inside):
            raise SyncError(
                f"{target}: refused, {directory!r} leads outside through a symbolic link (to {resolved}); "
                "nothing was written"
            )


def already_right(target: Beneath, entries: Sequence[FileEntry]) -> list[bool]:
    """For each entry, whether the file exists with the same bytes; its mode and time are then set too."""
    return [_is_right(target, entry) for entry in entries]


def same_bytes(target: Beneath, entries: Sequence[FileEntry]) -> list[bool]:
    """For each entry, whether the file exists with the same bytes. Nothing is changed."""
    return [_is_right(target, entry, change=False) for entry in entries]


def _is_right(target: Beneath, entry: FileEntry, *, change: bool = True) -> bool:
    directory, _, name = entry.path.rpartition("/")
    try:
        with target.opened(directory) as above:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
    except OSError:
        return False  # missing, a link, or not readable: it is replaced
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
            return False
        if _crc32c(descriptor, 0, entry.size) != entry.crc32c:
            return False
        return not change or _set_mode_and_time(descriptor, entry, target) or info.st_uid == os.geteuid()
    finally:
        close_descriptor(descriptor)


def _crc32c(descriptor: int, offset: int, size: int) -> int:
    """CRC32C of a range; -1 if the file ends before."""
    crc, end = 0, offset + size
    while offset < end:
        piece = os.pread(descriptor, min(PIECE, end - offset), offset)
        if not piece:
            return -1
        crc, offset = google_crc32c.extend(crc, piece), offset + len(piece)
    return int(crc)


def make_directories(target: Beneath, directories: Iterable[str]) -> None:
    """Make ``target`` and the directories below it."""
    os.makedirs(target.path, exist_ok=True)
    for directory in sorted(directories):
        with target.opened(directory, make=True):
            continue


def check_space(target: str, size: int) -> None:
    """OSError (ENOSPC) if ``size`` bytes cannot fit, before any of them is transferred."""
    info = os.statvfs(target)
    free = info.f_bavail * info.f_frsize
    if info.f_blocks and size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed and {free:,} are free", target)


def _set_mode_and_time(descriptor: int, entry: FileEntry, target: Beneath) -> bool:
    """Set permission bits and time, never set-user-id and the like. False where the file system refuses (vfat, SMB,
    FUSE): the bytes are right all the same, and ``target.refused`` has the error."""
    try:
        os.fchmod(descriptor, entry.mode & 0o777)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    except OSError as error:
        if error.errno not in _NO_MODE_OR_TIME:
            raise
        target.refused = error
        return False
    return True


def sweep(target: Beneath, directories: Iterable[str], keep: Set[str]) -> None:
    """Remove temporary files that killed downloads left in these directories, except ``keep``, which this download
    resumes. A running download holds a lock on each of its own."""
    for directory in {"", *directories}:
        with target.opened(directory) as descriptor:
            with os.scandir(descriptor) as entries:
                names = [entry.name for entry in entries if entry.name[:1] == "." and entry.name.endswith(TEMPORARY)]
            for name in names:
                if _join(directory, name) not in keep:
                    remove_stale(name, descriptor)


def remove_stale(path: str, above: int | None = None) -> bool:
    """Remove a temporary file that nobody has locked; whether it was one. ``above``: descriptor of its directory, if
    ``path`` is its name there."""
    try:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, dir_fd=above)
    except OSError:
        return False  # missing, a directory, a link, or not ours
    try:
        stale = stat.S_ISREG(os.fstat(descriptor).st_mode) and lock_temporary(descriptor, path, above)
        if stale:
            os.unlink(path, dir_fd=above)
        return stale
    finally:
        close_descriptor(descriptor)


def lock_temporary(descriptor: int, path: str, above: int | None = None) -> bool:
    """Lock a file; whether it is ours alone and still has this name. The lock ends with the descriptor, also by
    SIGKILL. On a file system without locks this returns False."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=above, follow_symlinks=False))
    except OSError:
        return False


def space_taken(target: Beneath, paths: Iterable[str]) -> int:
    """Bytes on disk of those files that exist."""
    taken = 0
    for path in paths:
        directory, _, name = path.rpartition("/")
        with suppress(FileNotFoundError), target.opened(directory) as descriptor:
            taken += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
    return taken


def _has_locks(descriptor: int) -> bool:
    """Whether the file system supports locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return True


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def resumable(entry: FileEntry) -> str:
    """Path of the temporary file of a large file, below the target: the same for the same content, so that the next
    process finds it."""
    parent, _, name = entry.path.rpartition("/")
    content = xxhash.xxh3_64_hexdigest(f"{entry.size} {entry.crc32c} {entry.part_size} {entry.parts}".encode())
    # Shortened, so that the longest name of a file system (255 bytes) still fits.
    return _join(parent, f".{name[:40]}.{content}{TEMPORARY}")


class Landing:
    """One file of a download: a temporary file that is renamed to the target, or removed, or kept for the next process.

    ``drop`` may be called while a worker thread is in any other method (its caller was cancelled). Under the lock, that
    thread then neither creates the temporary file nor renames it.
    """

    def __init__(self, target: str | Beneath, entry: FileEntry) -> None:
        self.entry = entry
        self.has_parts = False
        """Whether the temporary file holds verified parts, which are worth keeping."""
        self.is_in_place = False
        """Whether the file has its final name. Final after ``drop``, which may meet a thread that is just renaming."""
        self._target = target if isinstance(target, Beneath) else Beneath(target)
        self._directory, _, self._name = entry.path.rpartition("/")
        self._temporary = ""
        """Name of the temporary file in the same directory."""
        self._passed_over = ""
        """Name of the temporary file of an earlier download that could not be locked. Another download may have it."""
        self._descriptor: int | None = None
        """Only holds the lock. Writers open the file anew, so no thread ever writes to a reused descriptor."""
        self._lock = threading.Lock()
        self._dropped = False

    def create(self, *, resume: bool = False) -> bool:
        """Create the temporary file at its full size. With ``resume``, True if an earlier download left it: any part of
        it may then be right."""
        with self._lock:
            if self._dropped:
                return False
            with self._target.opened(self._directory) as above:
                name = resumable(self.entry).rpartition("/")[2]
                if not resume or not self._open(name, above, alone=True):
                    self._passed_over = name if resume else ""
                    while not self._open(f".{os.urandom(8).hex()}{TEMPORARY}", above, alone=False):
                        continue
                try:
                    return self._has_its_size()
                except BaseException:
                    if self._temporary != name:
                        os.unlink(self._temporary, dir_fd=above)  # the next download cannot find it
                    self._close()
                    raise

    def _has_its_size(self) -> bool:
        """Give the temporary file its size; whether it had that already."""
        assert self._descriptor is not None
        there = os.fstat(self._descriptor).st_size
        os.ftruncate(self._descriptor, self.entry.size)
        return 0 < there == self.entry.size

    def _open(self, name: str, above: int, *, alone: bool) -> bool:
        """``alone``: fail without the lock. A random name belongs to nobody else, but a sweep may have been faster."""
        try:
            descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=above)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
        ours = False
        try:
            ours = self._is_ours(name, descriptor, above, alone=alone)
        except BaseException:
            with suppress(OSError):  # the next download removes it
                os.unlink(name, dir_fd=above)
            raise
        finally:
            if not ours:
                close_descriptor(descriptor)
        if ours:
            self._temporary, self._descriptor = name, descriptor
        return ours

    @staticmethod
    def _is_ours(name: str, descriptor: int, above: int, *, alone: bool) -> bool:
        """Whether the opened temporary file can be used; an empty one that nobody could resume is removed."""
        info = os.fstat(descriptor)
        if lock_temporary(descriptor, name, above):
            return True
        if not alone:
            return info.st_nlink > 0
        if not info.st_size and not _has_locks(descriptor):
            os.unlink(name, dir_fd=above)
        return False

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        with self._target.opened(self._directory) as above:
            descriptor = os.open(self._temporary, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=above)
        try:
            yield descriptor
        finally:
            os.close(descriptor)  # a file server may report here that a write failed

    def is_right(self, offset: int, size: int, crc: int) -> bool:
        """Whether the temporary file already has these bytes."""
        with self._opened(os.O_RDONLY) as descriptor:
            return _crc32c(descriptor, offset, size) == crc

    def write(self, offset: int, piece: bytes | memoryview, crc: int) -> int:
        """Write a piece and return ``crc`` extended by it, in one call to a worker thread."""
        with self._opened(os.O_WRONLY) as descriptor:
            view = memoryview(piece)
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        return crc32c_extend(crc, piece)

    def finish(self) -> None:
        """Set mode and time, then rename."""
        with self._lock:
            if not self._dropped:
                assert self._descriptor is not None
                _set_mode_and_time(self._descriptor, self.entry, self._target)
                with self._target.opened(self._directory) as above:
                    os.replace(self._temporary, self._name, src_dir_fd=above, dst_dir_fd=above)
                    self.is_in_place = True
                    if self._passed_over:
                        with suppress(OSError):  # the next download removes it
                            remove_stale(self._passed_over, above)
                self._close()

    def save(self, data: bytes) -> bool:
        """Write a small file in one call; False, and nothing is written, if ``data`` does not match the entry."""
        if len(data) != self.entry.size or int(google_crc32c.value(data)) != self.entry.crc32c:
            return False
        self.create()
        if data:
            self.write(0, data, 0)
        self.finish()
        return True

    def drop(self, *, keep: bool = False) -> None:
        """Remove the temporary file, or ``keep`` it for the next download. A thread that still works on it has no
        effect."""
        with self._lock:
            self._dropped = True
            if self._descriptor is not None:
                if not keep:
                    # its directory may have been removed or moved
                    with suppress(OSError), self._target.opened(self._directory) as above:
                        os.unlink(self._temporary, dir_fd=above)
                self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            close_descriptor(descriptor)
