"""System calls that fail: a library in C that a child process preloads, and its controls.

``open``, ``read``, ``pwrite``, ``fsync``, ``close`` and 25 more fail below one directory, whoever calls them: Python,
SQLite or the C library. They fail as a disk does that is broken (EIO), full (ENOSPC, EDQUOT) or read-only (EROFS).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("failing_calls.c")
WRITING = "write,pwrite,copy_file_range,mkdir,fsync,ftruncate"
"""The calls that fail on a full disk."""
_MODES = {"once": 1, "always": 2, "short": 3}


def build(directory: Path) -> Path | None:
    """Compile the library into ``directory``; None where there is no C compiler, or another system than Linux."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "failing_calls.so"
    command = [compiler, "-O1", "-fPIC", "-shared", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    return library if built.returncode == 0 else None


@dataclass(frozen=True)
class Plan:
    """Which calls fail. ``how``: ``once``, ``always`` (from then on), or ``short`` (they move half of the bytes)."""

    how: str
    error: str = "EIO"
    calls: str = ""
    """Names, separated by commas; empty: all."""


class FailingCalls:
    """The library, preloaded into this process."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.failing_calls_disarm.restype = ctypes.c_long
        self._library.failing_calls_last.restype = ctypes.c_char_p

    def arm(self, plan: Plan, below: Path, n: int) -> None:
        """Make the ``n``-th call (from 1) on a file below a directory fail."""
        number = getattr(errno, plan.error)
        self._library.failing_calls_arm(
            plan.calls.encode(), str(below).encode(), ctypes.c_long(n), number, _MODES[plan.how]
        )

    def disarm(self) -> tuple[int, str]:
        """How many calls were counted, and what the ``n``-th was."""
        return self._library.failing_calls_disarm(), self._library.failing_calls_last().decode(errors="replace")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory for the files of a sweep, in memory where that is possible: a sweep syncs them thousands of times."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
