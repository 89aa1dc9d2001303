"""Where downloads land: checked paths, temporary files beside the target, one rename. Blocking: for worker threads.

Nothing is synced to disk before the rename: restored data is still in the store, so a power cut costs a second
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
from asyncsync.disk.files import PIECE
from asyncsync.disk.hashing import crc32c_extend
from asyncsync.disk.scan import TEMPORARY
from asyncsync.errors import SyncError
from asyncsync.planning.manifest import META_DIR, FileEntry

_REFUSED = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EROFS,
    errno.ENOTTY,
}
"""How file systems say that files there have no mode or time of their own."""


def check_entries(entries: Iterable[FileEntry], source: str) -> None:
    """Refuse a manifest whose paths could leave the target or get in each other's way; SyncError names the path."""
    paths: set[str] = set()
    parents: set[str] = set()
    for entry in entries:
        steps = entry.path.split("/")
        if "\0" in entry.path or not {"", ".", ".."}.isdisjoint(steps) or META_DIR in steps:
            raise SyncError(f"{source}: refused, {entry.path!r} is no path below the target; nothing was written")
        if not -(2**62) < entry.mtime_ns < 2**62:
            raise SyncError(f"{source}: refused, {entry.path!r} has the impossible time {entry.mtime_ns}")
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
    """For each entry, whether the file is there with the same bytes; its mode and time are then set too."""
    return [_is_right(target, entry) for entry in entries]


def _is_right(target: Beneath, entry: FileEntry) -> bool:
    directory, _, name = entry.path.rpartition("/")
    try:
        with target.opened(directory) as above:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
    except OSError:
        return False  # not there, a link, not ours to read: replaced by a file of our own
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
            return False
        if _crc32c(descriptor, 0, entry.size) != entry.crc32c:
            return False
        return _dress(descriptor, entry, target) or info.st_uid == os.geteuid()
    finally:
        os.close(descriptor)


def _crc32c(descriptor: int, offset: int, size: int) -> int:
    """Of a range; -1 if the file ends before."""
    crc, end = 0, offset + size
    while offset < end:
        piece = os.pread(descriptor, min(PIECE, end - offset), offset)
        if not piece:
            return -1
        crc, offset = google_crc32c.extend(crc, piece), offset + len(piece)
    return int(crc)


def make_directories(target: Beneath, directories: Iterable[str]) -> None:
    """Make ``target`` and what is below it."""
    os.makedirs(target.path, exist_ok=True)
    for directory in sorted(directories):
        with target.opened(directory, make=True):
            continue


def check_space(target: str, size: int) -> None:
    """OSError (ENOSPC) if ``size`` bytes cannot fit, before any of them travels."""
    info = os.statvfs(target)
    free = info.f_bavail * info.f_frsize
    if info.f_blocks and size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed and {free:,} are free", target)


def _dress(descriptor: int, entry: FileEntry, target: Beneath) -> bool:
    """Permission bits and time; never set-user-id and the like, which a store has no business to give. False where the
    file system refuses that (vfat, SMB, FUSE): the bytes are right all the same, and ``target`` keeps why."""
    try:
        os.fchmod(descriptor, entry.mode & 0o777)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        target.refused = error
        return False
    return True


def sweep(target: Beneath, directories: Iterable[str], keep: Set[str]) -> None:
    """Remove the temporary files that a killed download left in these directories, except ``keep``, with which this one
    goes on. A living download holds a lock on each of its own."""
    for directory in {"", *directories}:
        with target.opened(directory) as descriptor:
            with os.scandir(descriptor) as entries:
                names = [entry.name for entry in entries if entry.name[:1] == "." and entry.name.endswith(TEMPORARY)]
            for name in names:
                if _join(directory, name) not in keep:
                    remove_stale(name, descriptor)


def remove_stale(path: str, above: int | None = None) -> bool:
    """Remove a temporary file that nobody holds a lock on; whether it was one. ``above``: descriptor of its directory,
    if ``path`` is its name there."""
    try:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, dir_fd=above)
    except OSError:
        return False  # gone, a directory, a link, not ours
    try:
        stale = stat.S_ISREG(os.fstat(descriptor).st_mode) and lock_temporary(descriptor, path, above)
        if stale:
            os.unlink(path, dir_fd=above)
        return stale
    finally:
        os.close(descriptor)


def lock_temporary(descriptor: int, path: str, above: int | None = None) -> bool:
    """Whether the file is ours alone: nobody else has it locked, and it still has this name. The lock ends with the
    descriptor, also by SIGKILL. On a file system without locks everything counts as somebody else's."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=above, follow_symlinks=False))
    except OSError:
        return False


def space_taken(target: Beneath, paths: Iterable[str]) -> int:
    """Bytes on disk of those that are there."""
    taken = 0
    for path in paths:
        directory, _, name = path.rpartition("/")
        with suppress(FileNotFoundError), target.opened(directory) as descriptor:
            taken += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
    return taken


def _has_locks(descriptor: int) -> bool:
    """Whether the file system knows locks at all."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return True


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def resumable(entry: FileEntry) -> str:
    """Where a large file is put together, below the target: the same for the same content, so that the next process
    finds it."""
    parent, _, name = entry.path.rpartition("/")
    content = xxhash.xxh3_64_hexdigest(f"{entry.size} {entry.crc32c} {entry.part_size} {entry.parts}".encode())
    # Shortened, so that the longest name that a file system takes (255 bytes) still fits.
    return _join(parent, f".{name[:40]}.{content}{TEMPORARY}")


class Landing:
    """One file on its way: a temporary file that becomes the target, or nothing, or is kept for the next process.

    ``drop`` may come while a worker thread is in any other method (its caller was cancelled): under the lock, that
    thread then neither makes the temporary file nor renames it.
    """

    def __init__(self, target: str | Beneath, entry: FileEntry) -> None:
        self.entry = entry
        self.has_parts = False
        """Whether the temporary file holds verified parts, which are worth to be kept."""
        self.is_in_place = False
        """Whether the file has its name; final after ``drop``, which may find a thread at that very step."""
        self._target = target if isinstance(target, Beneath) else Beneath(target)
        self._directory, _, self._name = entry.path.rpartition("/")
        self._temporary = ""
        """Its name in the same directory."""
        self._descriptor: int | None = None
        """Only holds the lock: who writes opens the file anew, so no thread ever writes to a reused descriptor."""
        self._lock = threading.Lock()
        self._dropped = False

    def create(self, *, resume: bool = False) -> bool:
        """Make the temporary file at its full size. With ``resume``, True if an earlier download left it: then any
        part of it may be right."""
        with self._lock:
            if self._dropped:
                return False
            with self._target.opened(self._directory) as above:
                name = resumable(self.entry).rpartition("/")[2]
                if not resume or not self._open(name, above, alone=True):
                    while not self._open(f".{os.urandom(8).hex()}{TEMPORARY}", above, alone=False):
                        continue
            assert self._descriptor is not None
            there = os.fstat(self._descriptor).st_size
            os.ftruncate(self._descriptor, self.entry.size)
            return 0 < there == self.entry.size

    def _open(self, name: str, above: int, *, alone: bool) -> bool:
        """``alone``: not without the lock. A random name is nobody else's, but a sweep may have been faster."""
        try:
            descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=above)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
        info = os.fstat(descriptor)
        if not lock_temporary(descriptor, name, above) and (alone or not info.st_nlink):
            if alone and not info.st_size and not _has_locks(descriptor):
                os.unlink(name, dir_fd=above)  # nobody could go on with it
            os.close(descriptor)
            return False
        self._temporary, self._descriptor = name, descriptor
        return True

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        with self._target.opened(self._directory) as above:
            descriptor = os.open(self._temporary, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=above)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def is_right(self, offset: int, size: int, crc: int) -> bool:
        """Whether the temporary file has these bytes already."""
        with self._opened(os.O_RDONLY) as descriptor:
            return _crc32c(descriptor, offset, size) == crc

    def write(self, offset: int, piece: bytes | memoryview, crc: int) -> int:
        """Write a piece and return ``crc`` extended by it: one visit to a worker thread does both."""
        with self._opened(os.O_WRONLY) as descriptor:
            view = memoryview(piece)
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        return crc32c_extend(crc, piece)

    def finish(self) -> None:
        """Mode, time, rename."""
        with self._lock:
            if not self._dropped:
                assert self._descriptor is not None
                _dress(self._descriptor, self.entry, self._target)
                with self._target.opened(self._directory) as above:
                    os.replace(self._temporary, self._name, src_dir_fd=above, dst_dir_fd=above)
                self.is_in_place = True
                self._close()

    def save(self, data: bytes) -> bool:
        """A small file in one visit; False, and nothing is written, if ``data`` is not what the entry says."""
        if len(data) != self.entry.size or int(google_crc32c.value(data)) != self.entry.crc32c:
            return False
        self.create()
        if data:
            self.write(0, data, 0)
        self.finish()
        return True

    def drop(self, *, keep: bool = False) -> None:
        """Remove the temporary file, if there is one, or ``keep`` it for the next download; whatever a thread still
        does comes to nothing."""
        with self._lock:
            self._dropped = True
            if self._descriptor is not None:
                if not keep:
                    # its directory may have been removed or moved meanwhile
                    with suppress(OSError), self._target.opened(self._directory) as above:
                        os.unlink(self._temporary, dir_fd=above)
                self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
