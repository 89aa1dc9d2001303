"""Files that this process, or one that it started, writes through memory: their mtime does not show when they changed.

Writing to a page of a shared mapping sets the file's time once, when the page becomes dirty, and not again before the
kernel has written it back (mmap(2); on tmpfs never). Such a file is therefore read again at every sync, and once more
after its last mapping is removed. Mappings of processes that were not started by this one are not seen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache

REUSE_SECONDS = 1.0
"""Seconds for which a result is reused: a thousand trees that sync together read the mappings once."""

SETS_TIME = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs"})
"""File systems that set a file's time with the first write through each new mapping (page_mkwrite in their sources)."""


PROCMAP_QUERY = 0xC0686611
"""The request of ioctl(2) for a file ``/proc/PID/maps``, linux/fs.h."""
SHARED_AND_WRITABLE = 0x02 | 0x08 | 0x10 | 0x20
"""It finds the next mapping that is writable, shared and of a file."""
_QUERY = struct.Struct("=QQQ8xQ40xIxxxxQ8x")
"""``struct procmap_query``: its size, the flags and the address; the end of the mapping; the size of the buffer for the
name, and its address."""
NAME_BYTES = 4200
"""Room for the longest path (4,096 bytes) and `` (deleted)``."""

NO_FILES = frozenset[str]()
"""Shared by all trees without mapped files."""

SHARED_FILE = re.compile(rb"^\S+ .w.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
"""A line of ``/proc/PID/maps`` for a file whose mapping is shared and writable, proc(5)."""


class _MappedFiles:
    """The mapped files of all processes, by real path."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Also called in a forked child: a thread that it has not may have held the lock."""
        self._lock = threading.Lock()
        self._paths: frozenset[str] = frozenset()
        self._at = float("-inf")
        self._looked = 0

    def paths(self, *, fresh: bool) -> tuple[frozenset[str], int]:
        with self._lock:
            if fresh or time.monotonic() - self._at > REUSE_SECONDS:
                self._at, self._looked = time.monotonic(), time.time_ns()
                self._paths = frozenset(path for pid in _family() for path in _shared(pid))
            return self._paths, self._looked


_mapped_files = _MappedFiles()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mapped_files.forget)


def mapped_below(root: str, *, fresh: bool = False) -> frozenset[str]:
    """Paths, relative to ``root``, of files below it that are mapped writable. Empty where there is no ``/proc``.
    Blocking. ``fresh``: do not reuse a result."""
    return mapped_and_when(root, fresh=fresh)[0]


def mapped_since(root: str) -> frozenset[str]:
    """The same for mappings that were made after an earlier look, as far as the time of their files does not show them.
    Blocking."""
    return NO_FILES if _sets_time(root) else mapped_below(root, fresh=True)


def mapped_and_when(root: str, *, fresh: bool = False) -> tuple[frozenset[str], int]:
    """The same, and the wall-clock time (ns) at which the mappings were read. A file written later may have been mapped
    meanwhile, and be unmapped by now."""
    paths, looked = _mapped_files.paths(fresh=fresh)
    if not paths:
        return NO_FILES, looked
    start = os.path.realpath(root) + "/"
    return frozenset(path[len(start) :] for path in paths if path.startswith(start)) or NO_FILES, looked


def _sets_time(path: str) -> bool:
    try:
        return _file_system(os.stat(path).st_dev) in SETS_TIME
    except OSError:
        return False


@lru_cache(maxsize=64)
def _file_system(device: int) -> str:
    """The type of the file system on a device; empty if it is not known (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        fields = [line.split() for line in mounts]
    return next((line[line.index("-") + 1] for line in fields if line[2] == number), "")


def _family() -> Iterator[str]:
    """This process, those that it started, and so on."""
    if not _has_children():
        yield "self"
        return
    left, known = ["self"], {"self"}
    while left:
        pid = left.pop()
        yield pid
        for child in _children(pid):
            if child not in known:
                known.add(child)
                left.append(child)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children(pid: str) -> Iterator[str]:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                yield from file.read().split()
    except OSError:
        return  # it has just ended, or the kernel does not list children


def _shared(pid: str) -> Iterable[str]:
    """Files of one process's mappings that are shared and writable."""
    try:
        with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
            found = _asked(file.fileno())
            return _parsed(file.read()) if found is None else found
    except OSError:
        return ()  # it has just ended, or is not readable for us


def _parsed(mappings: bytes) -> list[str]:
    if b"w-s " not in mappings and b"wxs " not in mappings:
        return []
    return [os.fsdecode(path).replace("\\012", "\n") for path in SHARED_FILE.findall(mappings)]


def _asked(maps: int) -> list[str] | None:
    """The same from the kernel (Linux 6.11 and later), which looks through the mappings without writing a line for each
    of hundreds: 5 us instead of 230 us. None if it cannot say."""
    name = array("B", bytes(NAME_BYTES))
    address, found, start = name.buffer_info()[0], list[str](), 0
    while True:
        query = bytearray(_QUERY.pack(_QUERY.size, SHARED_AND_WRITABLE, start, 0, NAME_BYTES, address))
        try:
            fcntl.ioctl(maps, PROCMAP_QUERY, query)
        except OSError as error:
            return found if error.errno == errno.ENOENT else None  # no more; or an older kernel, or a longer name
        *_, start, size, _ = _QUERY.unpack(query)
        path = os.fsdecode(name[: size - 1].tobytes())
        found += [path] if path.startswith("/") else []
