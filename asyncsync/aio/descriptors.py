"""File descriptors: how many users fit into the limit of the process."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

with suppress(ImportError):  # Windows
    import resource

_SPARE_DESCRIPTORS = 16
"""File descriptors for the program itself, and for files that are open for a moment."""
_MANY_DESCRIPTORS = 16384
"""A limit of so many needs no count of those in use."""


def within_descriptors(wanted: int, each: int = 3) -> int:
    """``wanted``, or fewer so that as many users of ``each`` file descriptors leave some to the rest of the process; at
    least 2. The limit is the soft one (RLIMIT_NOFILE, ``ulimit -n``)."""
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY or limit >= _MANY_DESCRIPTORS:
            return wanted
        used = len(os.listdir("/dev/fd"))
    except (NameError, OSError):
        return wanted  # Windows, or no descriptor is left to look with
    return min(wanted, max(2, (limit - used - _SPARE_DESCRIPTORS) // each))


def out_of_descriptors(error: BaseException | None) -> bool:
    """Whether an error means that the process, or the machine, has no free file descriptor. It passes, and it says
    nothing about a store or a disk."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
