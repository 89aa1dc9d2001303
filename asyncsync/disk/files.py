"""The only door to the local disk.

Disk work never runs on the event loop. One call in a worker thread opens, reads or writes, and closes, so a
cancelled task can never leave a thread that writes to a descriptor which somebody else owns by now.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

PIECE = 1 << 20
"""Bytes read, hashed or written in one go: large enough that a thread hop (0.1 ms) is small beside it."""


class Lease(Protocol):
    """The right to write, for a while: see :mod:`asyncsync.stores.guard.fenced`."""

    def check(self) -> None:
        """LeaseExpiredError if nobody has confirmed it for too long. Plain, from any thread: a body is checked before
        its first byte is handed to the socket, and again before its last piece."""

    async def keep(self) -> None:
        """Have it confirmed again in good time, by a body that takes long. Raises what the fence raises."""


class LeasedBytes(bytes):
    """A body in memory that is only sent under a lease."""

    lease: Lease


class LeasedKey(str):
    """The key that a copy is made under, only under a lease."""

    __slots__ = ("lease",)
    lease: Lease


class LeasedKeys(tuple[str, ...]):  # noqa: SLOT001  a tuple cannot have slots of its own
    """Keys that are deleted only under a lease."""

    lease: Lease


def lease_of(written: object) -> Lease | None:
    """The lease under which a body is to be sent, an upload completed, a copy made, or keys deleted."""
    return getattr(written, "lease", None)


def check_lease(lease: Lease | None) -> None:
    """LeaseExpiredError if there is one and it has expired."""
    if lease is not None:
        lease.check()


@dataclass(slots=True)
class Progress:
    """What lets a body that broke off go on where the store has it, by another process too. ``token``: of an earlier
    attempt; ``keep`` is called with that of this one, before a byte of it is sent."""

    token: str | None
    keep: Callable[[str], None]
    there: int = 0
    """Bytes that the store turned out to have of it: they are not sent again."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """``size`` bytes of a file from ``offset``: a body that is never in memory as a whole."""

    path: str
    offset: int
    size: int
    pace: Callable[[int], Awaitable[None]] | None = field(default=None, compare=False, repr=False)
    """Awaited with the size of each step before it is sent, by stores with the trait ``paced``."""
    progress: Progress | None = field(default=None, compare=False, repr=False)
    """For stores with the trait ``resumable_puts``."""
    lease: Lease | None = field(default=None, compare=False, repr=False)
    """Under which it is sent."""

    @property
    def there(self) -> int:
        """Bytes of it that the store had of an earlier attempt."""
        return 0 if self.progress is None else self.progress.there

    def read(self, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start`` (relative to this range). Blocking: for worker threads."""
        want = min(length, self.size - start)
        with open(self.path, "rb", buffering=0, opener=never_waiting) as file:
            return os.pread(file.fileno(), want, self.offset + start)

    def read_into(self, start: int, buffer: bytearray) -> int:
        """Fill ``buffer`` from ``start`` on; the bytes read. Blocking: for worker threads.

        Memory that a thread allocates stays with that thread when it is freed (glibc's arenas: 8 MiB a thread here),
        so bulk bodies bring theirs along.
        """
        with open(self.path, "rb", buffering=0, opener=never_waiting) as file:
            file.seek(self.offset + start)
            return file.readinto(memoryview(buffer)[: self.size - start])

    def send_to(self, start: int, most: int, descriptor: int) -> tuple[int, bool]:
        """Give up to ``most`` bytes from ``start`` on to a socket that does not block, without copying them through
        our memory; how many it took, and whether it would have blocked. Blocking on the disk: for worker threads.
        """
        end = start + min(most, self.size - start)
        at = start
        with open(self.path, "rb", buffering=0, opener=never_waiting) as file:
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
        """All of it in pieces of at most PIECE bytes. Blocking. Stops early if the file has become shorter."""
        with open(self.path, "rb", buffering=0, opener=never_waiting) as file:
            done = 0
            while done < self.size:
                data = os.pread(file.fileno(), min(PIECE, self.size - done), self.offset + done)
                if not data:
                    return
                done += len(data)
                yield data


def never_waiting(path: str, flags: int) -> int:
    """An opener for ``open``: a pipe that has come in a file's place would hold a thread until somebody writes to it,
    and no cancel ends that."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
