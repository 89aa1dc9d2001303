"""The only door to the local disk.

Disk work never runs on the event loop. One call in a worker thread opens, reads or writes, and closes, so a
cancelled task can never leave a thread that writes to a descriptor which somebody else owns by now.

Threads come from two executors a process, one for the disk and one for the processor: ``loop.run_in_executor`` costs 90
us a hop where ``anyio.to_thread`` costs 120-190 us (CPython 3.11, 2 cores), and a virtual-time loop can count it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 1 << 20
"""Bytes read, hashed or written in one go: large enough that a thread hop (0.1 ms) is small beside it."""
THREADS = 16
HASHERS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""Threads for what uses the processor more than the disk: hashing, comparing, reading many small files, copying into
sockets. They take cores and the interpreter's lock from the event loop, which waits for all that want it: with 16 of
them a loop that sends 5,000 small files in 50 trees was 26 ms late (p99, 2 cores), with 2 it is 8 ms late, and the
files cost a fifth less. One of them hashes 4 GB/s, or sends 2 GB/s."""
GIVES_WAY = 5
"""How much nicer (as ``nice`` means it) worker threads are than the rest: a loop that sends 2 GiB is 6 ms late instead
of 8 (p99, 2 cores), in the same time."""


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
    """Awaited with the size of each step before it is sent, by stores with the trait ``paces``."""
    progress: Progress | None = field(default=None, compare=False, repr=False)
    """For stores with the trait ``goes_on``."""
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


def give_way() -> None:
    """The calling thread goes behind the others where cores are scarce. Elsewhere than on Linux this is not to be had
    for one thread, and a sandbox may forbid it: then they are all alike."""
    if sys.platform == "linux":
        with suppress(PermissionError):
            os.nice(GIVES_WAY)


class _Threads:
    """An executor of the process, made on first use; it ends with the last of those who hold it."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._executor: ThreadPoolExecutor | None = None
        self._holders = 0
        self.forks = 0
        """How often this process has become another one."""
        self._lock = threading.Lock()  # engines may run on several loops, each in a thread of its own

    def get(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._count, self._name, give_way)
            return self._executor

    def hold(self, count: int | None = None) -> None:
        with self._lock:
            if count is not None and not self._holders and count != self._count:
                self._count = count
                self._end(wait=False)  # somebody who does not hold them has made them already
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= self._holders > 0  # those who held them before a fork hold them in the parent
            if self._holders == 0:
                self._end(wait=False)  # idle threads end at once; one that a file system holds must not hold us

    def forget(self) -> None:
        """In a forked child, which has none of the threads, and nobody who would give the lock back."""
        self._executor, self._holders, self._lock = None, 0, threading.Lock()
        self.forks += 1

    def shutdown(self) -> None:
        with self._lock:
            self._end(wait=True)

    def _end(self, *, wait: bool) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=wait)
            self._executor = None


_threads = _Threads(THREADS, "asyncsync-disk")
_hashers = _Threads(HASHERS, "asyncsync-hash")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.forget)
    os.register_at_fork(after_in_child=_hashers.forget)


@contextmanager
def worker_threads(count: int | None = None) -> Iterator[None]:
    """Whoever does disk work holds the threads meanwhile; when nobody does, they end. ``count``: how many there are,
    unless somebody holds them already."""
    _threads.hold(count)
    _hashers.hold()
    try:
        yield
    finally:
        _hashers.release()
        _threads.release()


async def in_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``func`` in a worker thread. If the caller is cancelled, ``func`` runs to its end unobserved."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads.get(), partial(func, *args, **kwargs))


async def in_thread_to_its_end(
    func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> tuple[T, asyncio.CancelledError | None]:
    """The same for what must be known to have been done: a cancel waits until ``func`` has returned, and is handed to
    the caller, who raises it once the consequences are drawn. What ``func`` raises is raised, or a cancel before it."""
    future, cancelled, forks = begin_in_thread(func, *args, **kwargs), None, _threads.forks
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            if forks != _threads.forks:
                raise  # the thread is the parent's
            cancelled = error
    if cancelled is not None and future.exception() is not None:
        raise cancelled
    return future.result(), cancelled


def begin_in_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """The same for several who wait, none of whom may end it: it begins now, and runs to its end."""
    return asyncio.get_running_loop().run_in_executor(_threads.get(), partial(func, *args, **kwargs))


async def in_hasher(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for work that costs more processor than disk."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_hashers.get(), partial(func, *args, **kwargs))


async def in_thread_stoppable(func: Callable[[threading.Event], T]) -> T:
    """Run ``func`` in a worker thread and never leave it behind: for work that changes something.

    If the caller is cancelled the event is set, ``func`` looks at it between pieces and cleans up, and only when it
    has returned does the cancel go on; what ``func`` returns or raises is dropped then.
    """
    return await _stoppable(_threads, func)


async def in_sender(func: Callable[[], T]) -> T:
    """The same for what fills a socket and then returns: more processor than disk."""
    return await _stoppable(_hashers, lambda _: func())


async def _stoppable(threads: _Threads, func: Callable[[threading.Event], T]) -> T:
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(threads.get(), func, stop)
    cancelled, forks = None, threads.forks
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            if forks != threads.forks:
                raise  # the thread is the parent's
            stop.set()
            cancelled = error
    if cancelled is not None:
        future.exception()  # seen, so that the loop does not report it as lost
        raise cancelled
    return future.result()


def stop_threads() -> None:
    """End the idle worker threads; the next call makes new ones."""
    _threads.shutdown()
    _hashers.shutdown()
