"""Files that this process, or one that it started, writes through memory: their mtime does not show when they changed.

Writing to a page of a shared mapping sets the file's time once, when the page becomes dirty, and not again before the
kernel has written it back (mmap(2); on tmpfs never). Such a file is therefore read again at every sync, and once more
after its last mapping is removed. Mappings of processes that were not started by this one are not seen.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from functools import lru_cache

REUSE_SECONDS = 1.0
"""Seconds for which a result is reused: a thousand trees that sync together read the mappings once."""

SETS_TIME = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs"})
"""File systems that set a file's time with the first write through each new mapping (page_mkwrite in their sources)."""


NO_FILES = frozenset[str]()
"""Shared by all trees without mapped files."""

SHARED_FILE = re.compile(rb"^\S+ .w.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
"""A line of ``/proc/PID/maps`` for a file whose mapping is shared and writable, proc(5)."""


class _MappedFiles:
    """The mapped files of all processes, by real path."""

    def __init__(self) -> None:
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
    start = os.path.realpath(root) + "/"
    paths, looked = _mapped_files.paths(fresh=fresh)
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


def _shared(pid: str) -> Iterator[str]:
    """Files of one process's mappings that are shared and writable."""
    try:
        with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
            mappings = file.read()
    except OSError:
        return  # it has just ended, or is not readable for us
    if b"w-s " in mappings or b"wxs " in mappings:
        yield from (os.fsdecode(path).replace("\\012", "\n") for path in SHARED_FILE.findall(mappings))
