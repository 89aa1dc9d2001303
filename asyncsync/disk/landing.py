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
from collections.abc import Iterable, Sequence, Set

import google_crc32c
import xxhash

from asyncsync.disk.files import FileRange
from asyncsync.disk.hashing import crc32c_extend, file_crc32c
from asyncsync.disk.scan import TEMPORARY
from asyncsync.errors import SyncError
from asyncsync.planning.manifest import META_DIR, FileEntry


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


def already_right(target: str, entries: Sequence[FileEntry]) -> list[bool]:
    """For each entry, whether the file is there with the same bytes; its mode and time are then set too."""
    return [_is_right(f"{target}/{entry.path}", entry) for entry in entries]


def _is_right(path: str, entry: FileEntry) -> bool:
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    regular = (info.st_mode & 0o170000) == 0o100000
    if not regular or info.st_size != entry.size:
        return False
    try:
        if file_crc32c(path) != entry.crc32c:
            return False
        _dress(path, entry)
    except PermissionError:
        return False  # replaced by a file of our own
    return True


def make_directories(target: str, directories: Iterable[str]) -> None:
    """Make ``target`` and what is below it."""
    os.makedirs(target, exist_ok=True)
    for directory in sorted(directories):
        os.makedirs(f"{target}/{directory}", exist_ok=True)


def check_space(target: str, size: int) -> None:
    """OSError (ENOSPC) if ``size`` bytes cannot fit, before any of them travels."""
    info = os.statvfs(target)
    free = info.f_bavail * info.f_frsize
    if info.f_blocks and size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed and {free:,} are free", target)


def _dress(path: str, entry: FileEntry) -> None:
    """Permission bits and time; never set-user-id and the like, which a store has no business to give."""
    os.chmod(path, entry.mode & 0o777)
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def sweep(target: str, directories: Iterable[str], keep: Set[str]) -> None:
    """Remove the temporary files that a killed download left in these directories, except ``keep``, with which this one
    goes on. A living download holds a lock on each of its own."""
    for directory in {target, *(f"{target}/{directory}" for directory in directories)}:
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries if entry.name[:1] == "." and entry.name.endswith(TEMPORARY)]
        for path in names:
            if path not in keep:
                remove_stale(path)


def remove_stale(path: str) -> bool:
    """Remove a temporary file that nobody holds a lock on; whether it was one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # gone, a directory, a link, not ours
    try:
        stale = stat.S_ISREG(os.fstat(descriptor).st_mode) and lock_temporary(descriptor, path)
        if stale:
            os.unlink(path)
        return stale
    finally:
        os.close(descriptor)


def lock_temporary(descriptor: int, path: str) -> bool:
    """Whether the file is ours alone: nobody else has it locked, and it still has this name. The lock ends with the
    descriptor, also by SIGKILL. On a file system without locks everything counts as somebody else's."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def space_taken(paths: Iterable[str]) -> int:
    """Bytes on disk of those that are there."""
    found = (os.stat(path) for path in paths if os.path.exists(path))
    return sum(info.st_blocks * 512 for info in found)


def resumable(target: str, entry: FileEntry) -> str:
    """Where a large file is put together: the same for the same content, so that the next process finds it."""
    parent, _, name = f"{target}/{entry.path}".rpartition("/")
    content = xxhash.xxh3_64_hexdigest(f"{entry.size} {entry.crc32c} {entry.part_size} {entry.parts}".encode())
    # Shortened, so that the longest name that a file system takes (255 bytes) still fits.
    return f"{parent}/.{name[:40]}.{content}{TEMPORARY}"


class Landing:
    """One file on its way: a temporary file that becomes the target, or nothing, or is kept for the next process.

    ``drop`` may come while a worker thread is in any other method (its caller was cancelled): under the lock, that
    thread then neither makes the temporary file nor renames it.
    """

    def __init__(self, target: str, entry: FileEntry) -> None:
        self.entry = entry
        self.has_parts = False
        """Whether the temporary file holds verified parts, which are worth to be kept."""
        self.is_in_place = False
        """Whether the file has its name; final after ``drop``, which may find a thread at that very step."""
        self._target, self._path = target, f"{target}/{entry.path}"
        self._temporary = ""
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
            if not resume or not self._open(resumable(self._target, self.entry), alone=True):
                parent = self._path.rpartition("/")[0]
                while not self._open(f"{parent}/.{os.urandom(8).hex()}{TEMPORARY}", alone=False):
                    continue
            assert self._descriptor is not None
            there = os.fstat(self._descriptor).st_size
            os.ftruncate(self._descriptor, self.entry.size)
            return 0 < there == self.entry.size

    def _open(self, path: str, *, alone: bool) -> bool:
        """``alone``: not without the lock. A random name is nobody else's, but a sweep may have been faster."""
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
        if not lock_temporary(descriptor, path) and (alone or not os.fstat(descriptor).st_nlink):
            os.close(descriptor)
            return False
        self._temporary, self._descriptor = path, descriptor
        return True

    def is_right(self, offset: int, size: int, crc: int) -> bool:
        """Whether the temporary file has these bytes already."""
        found = 0
        for piece in FileRange(self._temporary, offset, size).pieces():
            found = google_crc32c.extend(found, piece)
        return int(found) == crc

    def write(self, offset: int, piece: bytes | memoryview, crc: int) -> int:
        """Write a piece and return ``crc`` extended by it: one visit to a worker thread does both."""
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CLOEXEC)
        try:
            view = memoryview(piece)
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        finally:
            os.close(descriptor)
        return crc32c_extend(crc, piece)

    def finish(self) -> None:
        """Mode, time, rename."""
        with self._lock:
            if not self._dropped:
                _dress(self._temporary, self.entry)
                os.replace(self._temporary, self._path)
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
                    os.unlink(self._temporary)
                self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
