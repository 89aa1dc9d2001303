"""Where downloads land: checked paths, temporary files beside the target, one rename. Blocking: for worker threads.

Nothing is synced to disk before the rename: restored data is still in the store, so a power cut costs a second
download, never data.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence

import google_crc32c

from asyncsync.disk.hashing import file_crc32c
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


class Landing:
    """One file on its way: a temporary file that becomes the target, or nothing.

    ``drop`` may come while a worker thread is in any other method (its caller was cancelled): under the lock, that
    thread then neither makes the temporary file nor renames it.
    """

    def __init__(self, target: str, entry: FileEntry) -> None:
        self.entry = entry
        self._path = f"{target}/{entry.path}"
        parent, _, name = self._path.rpartition("/")
        # Shortened, so that the longest name that a file system takes (255 bytes) still fits.
        self._temporary = f"{parent}/.{name[:40]}.{os.urandom(4).hex()}{TEMPORARY}"
        self._lock = threading.Lock()
        self._dropped = False

    def create(self) -> None:
        """Make the temporary file at its full size."""
        with self._lock:
            if self._dropped:
                return
            descriptor = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, self.entry.size)
            finally:
                os.close(descriptor)

    def write(self, offset: int, piece: bytes, crc: int) -> int:
        """Write a piece and return ``crc`` extended by it: one visit to a worker thread does both."""
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CLOEXEC)
        try:
            view = memoryview(piece)
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        finally:
            os.close(descriptor)
        return int(google_crc32c.extend(crc, piece))

    def finish(self) -> None:
        """Mode, time, rename."""
        with self._lock:
            if not self._dropped:
                _dress(self._temporary, self.entry)
                os.replace(self._temporary, self._path)

    def save(self, data: bytes) -> bool:
        """A small file in one visit; False, and nothing is written, if ``data`` is not what the entry says."""
        if len(data) != self.entry.size or int(google_crc32c.value(data)) != self.entry.crc32c:
            return False
        self.create()
        if data:
            self.write(0, data, 0)
        self.finish()
        return True

    def drop(self) -> None:
        """Remove the temporary file, if there is one; whatever a thread still does comes to nothing."""
        with self._lock:
            self._dropped = True
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                return
