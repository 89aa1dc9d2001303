"""Access to the local disk for all other packages.

Disk work never runs on the event loop. One call in a worker thread opens, reads or writes, and closes. A cancelled task
can therefore never leave a thread that writes to a descriptor reused by others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from asyncsync.errors import AsyncsyncError, LocalDiskError

PIECE = 1 << 20
"""Bytes that are read, hashed or written at once: large enough that a thread call (0.1 ms) costs little in
comparison."""
CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ENOTTY}
"""Errors of file systems that cannot share blocks, or copy in the kernel."""
_FICLONE = 0x40049409
"""Linux ioctl that shares the blocks of another file (``man 2 ioctl_ficlone``)."""


class Lease(Protocol):
    """The right to write, for a limited time: see :mod:`asyncsync.stores.guard.fenced`."""

    def check(self) -> None:
        """LeaseExpiredError if the lease was not confirmed for too long. Callable from any thread. A body is checked
        before its first byte is handed to the socket, and again before its last piece."""

    async def keep(self) -> None:
        """Renew the lease in time, during a body that takes long. Raises the errors of the fence."""


class LeasedBytes(bytes):
    """A body in memory that is only sent under a lease."""

    lease: Lease


class LeasedKey(str):
    """The key of a copy that is only made under a lease."""

    __slots__ = ("lease",)
    lease: Lease


class LeasedKeys(tuple[str, ...]):  # noqa: SLOT001  a tuple cannot have slots of its own
    """Keys that are deleted only under a lease."""

    lease: Lease


def lease_of(written: object) -> Lease | None:
    """The lease under which a body is sent, an upload completed, a copy made, or keys deleted."""
    return getattr(written, "lease", None)


def check_lease(lease: Lease | None) -> None:
    """LeaseExpiredError if ``lease`` has expired."""
    if lease is not None:
        lease.check()


@dataclass(slots=True)
class ResumeToken:
    """Resumes an interrupted body from the last acknowledged byte, also one of another process. ``token`` comes from an
    earlier attempt. ``keep`` is called with the token of this attempt before its first byte is sent."""

    token: str | None
    keep: Callable[[str], None]
    there: int = 0
    """Bytes that the store had already acknowledged: they are not sent again."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """``size`` bytes of a file from ``offset``: a body that is never in memory as a whole."""

    path: str
    offset: int
    size: int
    pace: Callable[[int], Awaitable[None]] | None = field(default=None, compare=False, repr=False)
    """Awaited with the size of each step before it is sent, in stores with the trait ``paced``."""
    progress: ResumeToken | None = field(default=None, compare=False, repr=False)
    """Used by stores with the trait ``resumable_puts``."""
    lease: Lease | None = field(default=None, compare=False, repr=False)
    """The lease under which it is sent."""
    crc64: int | None = field(default=None, compare=False, repr=False)
    """CRC64-NVME of the bytes whose CRC32C is given beside this range: for stores with the trait ``crc64``."""

    @property
    def there(self) -> int:
        """Bytes that the store had already acknowledged in an earlier attempt."""
        return 0 if self.progress is None else self.progress.there

    def read(self, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start`` (relative to this range). Blocking: for worker threads."""
        want = min(length, self.size - start)
        with open(self.path, "rb", buffering=0, opener=open_nonblocking) as file:
            return os.pread(file.fileno(), want, self.offset + start)

    def read_into(self, start: int, buffer: bytearray) -> int:
        """Fill ``buffer`` with the bytes from ``start``; returns their number. Blocking: for worker threads.

        Memory that a thread allocates stays with that thread when it is freed (glibc's arenas: 8 MiB per thread here),
        so callers provide the buffer for bulk bodies.
        """
        with open(self.path, "rb", buffering=0, opener=open_nonblocking) as file:
            file.seek(self.offset + start)
            return file.readinto(memoryview(buffer)[: self.size - start])

    def send_to(self, start: int, most: int, descriptor: int) -> tuple[int, bool]:
        """Send up to ``most`` bytes from ``start`` to a non-blocking socket, without copying them through our memory.
        Returns how many were sent, and whether the socket would have blocked. Blocks on the disk: for worker
        threads."""
        end = start + min(most, self.size - start)
        at = start
        with open(self.path, "rb", buffering=0, opener=open_nonblocking) as file:
            while at < end:
                if self.lease is not None:
                    self.lease.check()
                try:
                    count = os.sendfile(descriptor, file.fileno(), self.offset + at, end - at)
                except BlockingIOError:
                    return at - start, True
                if not count:
                    break  # the file ends here
                at += count
        return at - start, False

    def pieces(self) -> Iterator[bytes]:
        """The whole range in pieces of at most PIECE bytes. Blocking. Stops early if the file has become shorter."""
        with open(self.path, "rb", buffering=0, opener=open_nonblocking) as file:
            done = 0
            while done < self.size:
                data = os.pread(file.fileno(), min(PIECE, self.size - done), self.offset + done)
                if not data:
                    return
                done += len(data)
                yield data


@contextlib.contextmanager
def local_disk(what: str) -> Iterator[None]:
    """Raise errors of the system as LocalDiskError. ``what`` was not done, for its message."""
    try:
        yield
    except AsyncsyncError:
        raise  # some of them are OSErrors too
    except OSError as error:
        raise LocalDiskError(f"{what}: {error}; see to the disk, then do it again", error.errno) from error


def close_descriptor(descriptor: int) -> None:
    """Close a descriptor that wrote nothing, or whose writes are synced.

    An error is not raised. Linux has released the descriptor all the same (``man 2 close``); a caller that closes it
    again closes a file that another thread has opened meanwhile.
    """
    with contextlib.suppress(OSError):
        os.close(descriptor)


def open_nonblocking(path: str, flags: int) -> int:
    """An opener for ``open``. If a pipe has replaced the file, opening it would otherwise block a thread until somebody
    writes to it, and no cancel would end that."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def share_blocks(source: int, target: int) -> bool:
    """Make one open file a copy of another that shares its blocks. False if the file system cannot; OSError for any
    other failure."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in CANNOT_COPY:
            raise
        return False
    return True
