"""Locks of trees: only one process of a machine works on a directory and prefix."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync.config import state_dir
from asyncsync.disk.files import close_descriptor
from asyncsync.errors import ConcurrentWriterError
from asyncsync.runtime import tree_locks

log = logging.getLogger("asyncsync")

FLOCK_LAYOUT = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi", 0, 4)
"""Layout of ``struct flock`` of fcntl(2), and the indices of the lock's type and of its holder's process ID."""
SPARE_ENTRIES = 4096
"""Entries of a claim file that may be outdated before it is written again."""
ENTRY = 8
"""Bytes of an entry."""


class _ClaimFile:
    """The trees that this process holds, in a file that every process can read: one entry for each tree that was
    taken, and its complement when it was released.

    The file is locked for as long as the process lives. A claim file without a lock does not count: its process has
    ended, also by SIGKILL, or it is a forked child, which inherits no lock. At most 32 KiB more than 8 bytes for each
    tree.
    """

    def __init__(self, directory: Path, held: Collection[int]) -> None:
        self.name = os.urandom(8).hex()
        self._path, unlocked = str(directory / self.name), str(directory / f"{self.name}.new")
        self._descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._entries = 0
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            self.add(held)
            os.rename(unlocked, self._path)  # nobody sees it without its lock
        except BaseException:
            self.close(unlocked)
            raise

    def add(self, entries: Collection[int]) -> None:
        """Append entries; all of them or none."""
        before = self._entries * ENTRY
        if os.write(self._descriptor, array("q", entries)) < len(entries) * ENTRY:
            os.truncate(self._descriptor, before)
            raise OSError("the disk is full")
        self._entries += len(entries)

    def remove(self, places: Collection[int]) -> None:
        """Release trees. On a full disk they stay claimed until the process ends."""
        try:
            self.add([~place for place in places])
        except OSError as error:
            log.warning("%d trees stay locked until this process ends, %s: %s", len(places), self._path, error)

    def is_long(self, held: int) -> bool:
        """Whether most entries are outdated."""
        return self._entries > 2 * held + SPARE_ENTRIES

    def close(self, path: str = "") -> None:
        """Release all trees. If the file cannot be removed, the next process does: its lock ends here."""
        try:
            os.unlink(path or self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("cannot remove the claims of this process, another one will: %s", error)
        self.forget()

    def forget(self) -> None:
        """The file belongs to the parent process."""
        close_descriptor(self._descriptor)


@dataclass(slots=True)
class _OtherClaims:
    """The claims of another process, as far as they were read."""

    path: str
    read: int = 0
    """Bytes."""
    places: set[int] = field(default_factory=set)

    def holder(self, place: int) -> int | None:
        """The process, if it holds the tree and is alive; 0: one whose ID is not known here. FileNotFoundError if it
        has removed its file."""
        first = not self.read
        if not first and place not in self.places and os.stat(self.path).st_size < self.read + ENTRY:
            return None
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._read_on(descriptor)
            if place not in self.places and not first:
                return None
            pid = _holder(descriptor, 0)
        finally:
            close_descriptor(descriptor)
        if pid is None:
            os.unlink(self.path)  # it was killed
        return pid if place in self.places else None

    def _read_on(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size // ENTRY * ENTRY
        if size > self.read:
            entries = array("q", os.pread(descriptor, size - self.read, self.read))
            self.read += len(entries) * ENTRY
            for entry in entries:
                if entry >= 0:
                    self.places.add(entry)
                else:
                    self.places.discard(~entry)


class _LockFiles:
    """The locks of this process: a claim file, and the byte of a tree in a file of all processes, which is locked only
    while a process looks whether another one has claimed the tree, and claims it.

    The system's record locks (fcntl(2)) alone would do, but the system walks through all locks of a file for each new
    one: 20,000 trials took 3 s. With claims each tree costs the same. The system still names the holder, and a hundred
    thousand trees cost two descriptors. A process holds each lock only once: users inside the process are counted.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._deciding: int | None = None
        """Descriptor of the file of all processes. It has one byte for each claim file that was ever made."""
        self._begun = -1
        """Bytes of it when the directory of claim files was listed."""
        self._own: _ClaimFile | None = None
        self._directory = Path()
        self._others: dict[str, _OtherClaims] = {}
        self._held: Counter[int] = Counter()

    def take(self, tree: str, *, alone: bool) -> int:
        """Hold a tree once more. ConcurrentWriterError if another process holds it, or with ``alone`` another user in
        this process."""
        place = _place(tree)
        with self._guard:
            if place not in self._held:
                self._claim(place, tree)
            elif alone:
                raise _taken(tree, os.getpid())
            self._held[place] += 1
        return place

    def release(self, places: Collection[int]) -> None:
        """Hold these trees once less."""
        with self._guard:
            free = [place for place in places if self._leave(place)]
            if not self._close_if_idle() and free and self._own is not None:
                self._own.remove(free)

    def forget(self) -> None:
        """Called in a forked child, which holds nothing."""
        if self._deciding is not None:
            close_descriptor(self._deciding)
        if self._own is not None:
            self._own.forget()
        self._guard, self._deciding, self._own = threading.Lock(), None, None
        self._begun, self._others, self._held = -1, {}, Counter()

    def _leave(self, place: int) -> bool:
        """One user less; whether it was the last one. A forked child had none."""
        if place not in self._held:
            return False
        self._held[place] -= 1
        if self._held[place]:
            return False
        del self._held[place]
        return True

    def _claim(self, place: int, tree: str) -> None:
        try:
            own = self._open()
            with self._decision(place, tree):
                pid = self._holder(place)
                if pid is not None:
                    raise _taken(tree, pid)
                own.add([place])
        except BaseException:
            self._close_if_idle()
            raise

    @contextmanager
    def _decision(self, place: int, tree: str) -> Iterator[None]:
        """Only one process decides about a tree at a time; another one is refused, without waiting."""
        descriptor = self._deciding
        assert descriptor is not None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN or EACCES, the standard allows both
                raise _taken(tree, _holder(descriptor, place)) from error
            raise
        try:
            yield
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)

    def _holder(self, place: int) -> int | None:
        """The other process that has claimed the tree; 0: one whose ID is not known here."""
        assert self._deciding is not None
        while True:
            begun = os.fstat(self._deciding).st_size
            if begun != self._begun:
                self._find_others()
                self._begun = begun
            pid = self._look(place)
            if pid is not None or os.fstat(self._deciding).st_size == begun:
                return pid
            # a process has replaced its claim file meanwhile: its trees are in the new one

    def _look(self, place: int) -> int | None:
        for name, other in list(self._others.items()):
            try:
                pid = other.holder(place)
            except FileNotFoundError:
                del self._others[name]
                continue
            if pid is not None:
                return pid
        return None

    def _find_others(self) -> None:
        assert self._own is not None
        names = [name for name in os.listdir(self._directory) if name != self._own.name and "." not in name]
        self._others = {name: self._others.get(name) or _OtherClaims(f"{self._directory}/{name}") for name in names}

    def _open(self) -> _ClaimFile:
        if self._deciding is None:
            self._directory = state_dir() / "claims"
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = state_dir() / "trees.lock"
            self._deciding = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        before = self._own
        if before is None or before.is_long(len(self._held)):
            self._own = _ClaimFile(self._directory, self._held)
            os.write(self._deciding, b".")
            if before is not None:
                before.close()
        assert self._own is not None
        return self._own

    def _close_if_idle(self) -> bool:
        if self._held:
            return False
        if self._own is not None:
            self._own.close()
        if self._deciding is not None:
            close_descriptor(self._deciding)
        self._own = self._deciding = None
        self._begun = -1
        return True


def _place(tree: str) -> int:
    """The offset of a tree's byte; the file need not be that long to lock it."""
    return int.from_bytes(hashlib.sha256(tree.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 2


def _taken(tree: str, pid: int | None) -> ConcurrentWriterError:
    who = f"process {pid}" if pid else "another process"
    return ConcurrentWriterError(f"{tree} is already being synced by {who}; stop that one or use another directory")


def _holder(descriptor: int, place: int) -> int | None:
    """The process that has locked this byte; None: nobody; 0: one whose ID is not known here, such as one in another
    container."""
    layout, kind, process = FLOCK_LAYOUT
    request = {"hhqqi": (fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0), "qqihh": (place, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)}
    try:
        response = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *request[layout]))
    except OSError:
        return 0
    found = struct.unpack(layout, response)
    return None if found[kind] == fcntl.F_UNLCK else max(int(found[process]), 0)


_files = _LockFiles()
os.register_at_fork(after_in_child=_files.forget)


class TreeLocks:
    """The trees that one owner works on; ``close`` frees them all. Blocks, but for less than a millisecond.

    A lock keeps out other processes of this machine and ends with its holder, also by SIGKILL. If there is no writable
    directory, or the file system has no locks, a warning is logged: the store's conditional writes still notice a
    second writer.
    """

    def __init__(self) -> None:
        self._files = tree_locks() or _files
        self._places: list[int] = []
        self._warned = False

    def take(self, tree: str, *, alone: bool = False) -> None:
        """ConcurrentWriterError, which names the process, if another one works on ``tree``; with ``alone`` also if
        another owner in this process does."""
        try:
            place = self._files.take(tree, alone=alone)
        except OSError as error:
            if not self._warned:
                log.warning("cannot lock %s (%s): a second process on it would not be noticed", tree, error)
            self._warned = True
        else:
            self._places.append(place)

    def close(self) -> None:
        """Free all locks."""
        places, self._places = self._places, []
        self._files.release(places)
