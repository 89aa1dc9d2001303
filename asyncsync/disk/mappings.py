"""Files that this process, or one that it started, writes through memory: their mtime does not say when they changed.

Writing to a page of a shared mapping sets the file's time once, when the page becomes dirty, and not again before the
kernel has written it back (mmap(2); on tmpfs never). Such a file is therefore read again at every sync, and once more
after its last mapping is removed. Mappings of processes that were not started by this one are not seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

REUSE_SECONDS = 1.0
"""Seconds for which a result is reused: a thousand trees that sync together read the mappings once."""


NO_FILES = frozenset[str]()
"""Shared by all trees without mapped files."""


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


def mapped_and_when(root: str, *, fresh: bool = False) -> tuple[frozenset[str], int]:
    """The same, and the wall-clock time (ns) at which the mappings were read. A file written later may have been mapped
    meanwhile, and be unmapped by now."""
    start = os.path.realpath(root) + "/"
    paths, looked = _mapped_files.paths(fresh=fresh)
    return frozenset(path[len(start) :] for path in paths if path.startswith(start)) or NO_FILES, looked


def _family() -> Iterator[str]:
    """This process, those that it started, and so on."""
    left, known = ["self"], {"self"}
    while left:
        pid = left.pop()
        yield pid
        for child in _children(pid):
            if child not in known:
                known.add(child)
                left.append(child)


def _children(pid: str) -> Iterator[str]:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                yield from file.read().split()
    except OSError:
        return  # it has just ended, or the kernel does not list children


def _shared(pid: str) -> Iterator[str]:
    """Files of one process's mappings that are shared and writable (proc(5): ``rw-s``)."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) == 6 and fields[1][1] == "w" and fields[1][3] == "s" and fields[5].startswith("/"):
                    yield fields[5].replace("\\012", "\n")
    except OSError:
        return  # it has just ended, or is not readable for us
