"""Locks of trees: only one process of a machine works on a directory and prefix."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import sys
import threading
from collections import Counter

from asyncsync.config import state_dir
from asyncsync.errors import ConcurrentWriterError
from asyncsync.runtime import tree_locks

log = logging.getLogger("asyncsync")

FLOCK_LAYOUT = ("qqihh", 2) if sys.platform == "darwin" else ("hhqqi", 4)
"""Layout of ``struct flock`` of fcntl(2), and the index of the holder's process ID."""


class _LockFile:
    """One file for all trees, one byte for each: the locks of ten thousand trials cost one descriptor.

    These are record locks (fcntl(2)): they end with their process, also by SIGKILL, a forked child has none of them,
    and the system names the holder. A process holds each lock only once, so users inside the process are counted.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._descriptor: int | None = None
        self._held: Counter[int] = Counter()

    def take(self, tree: str, *, alone: bool) -> int:
        place = _place(tree)
        with self._guard:
            if place not in self._held:
                self._lock(place, tree)
            elif alone:
                raise _taken(tree, os.getpid())
            self._held[place] += 1
        return place

    def release(self, place: int) -> None:
        with self._guard:
            self._held[place] -= 1
            if not self._held[place] and self._descriptor is not None:
                del self._held[place]
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)
                self._close_if_idle()

    def forget(self) -> None:
        """Called in a forked child, which holds nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._guard, self._descriptor, self._held = threading.Lock(), None, Counter()

    def _lock(self, place: int, tree: str) -> None:
        descriptor = self._open()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            pid = _holder(descriptor, place)
            self._close_if_idle()
            if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN or EACCES, the standard allows both
                raise _taken(tree, pid) from error
            raise

    def _open(self) -> int:
        if self._descriptor is None:
            path = state_dir() / "trees.lock"
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._descriptor

    def _close_if_idle(self) -> None:
        if not self._held and self._descriptor is not None:
            os.close(self._descriptor)  # this would end every lock of this process on the file: there are none
            self._descriptor = None


def _place(tree: str) -> int:
    """The offset of a tree's byte; the file need not be that long to lock it."""
    return int.from_bytes(hashlib.sha256(tree.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 2


def _taken(tree: str, pid: int | None) -> ConcurrentWriterError:
    who = f"process {pid}" if pid else "another process"
    return ConcurrentWriterError(f"{tree} is already being synced by {who}; stop that one or use another directory")


def _holder(descriptor: int, place: int) -> int | None:
    layout, field = FLOCK_LAYOUT
    request = {"hhqqi": (fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0), "qqihh": (place, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)}
    try:
        response = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *request[layout]))
    except OSError:
        return None
    return int(struct.unpack(layout, response)[field]) or None


_file = _LockFile()
os.register_at_fork(after_in_child=_file.forget)


class TreeLocks:
    """The trees that one owner works on; ``close`` frees them all. Blocks, but only for microseconds.

    A lock keeps out other processes of this machine and ends with its holder, also by SIGKILL. If there is no writable
    directory, or the file system has no locks, a warning is logged: the store's conditional writes still notice a
    second writer.
    """

    def __init__(self) -> None:
        self._file = tree_locks() or _file
        self._places: list[int] = []
        self._warned = False

    def take(self, tree: str, *, alone: bool = False) -> None:
        """ConcurrentWriterError, which names the process, if another one works on ``tree``; with ``alone`` also if
        another owner in this process does."""
        try:
            place = self._file.take(tree, alone=alone)
        except OSError as error:
            if not self._warned:
                log.warning("cannot lock %s (%s): a second process on it would not be noticed", tree, error)
            self._warned = True
        else:
            self._places.append(place)

    def close(self) -> None:
        """Free all locks."""
        while self._places:
            self._file.release(self._places.pop())
