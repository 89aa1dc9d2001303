"""Private: worker threads, and how coroutines use them.

Each process has two executors, one for disk work and one for processor work. ``loop.run_in_executor`` costs 90 us per
call where ``anyio.to_thread`` costs 120-190 us (CPython 3.11, 2 cores), and a virtual-time loop can count the calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import ParamSpec, TypeVar

from asyncsync.aio.descriptors import within_descriptors

log = logging.getLogger("asyncsync")
P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16
"""Threads for disk work, unless ``worker_threads`` is given a count."""
HASHERS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""Threads for work that uses the processor more than the disk: hashing, comparing, reading many small files, copying
into sockets. They compete with the event loop for cores and for the interpreter's lock. With 16 of them, a loop that
sends 5,000 small files in 50 trees was 26 ms late (p99, 2 cores); with 2 it is 8 ms late, and the files cost a fifth
less. One thread hashes 4 GB/s, or sends 2 GB/s."""
WORKER_NICENESS = 5
"""Niceness of worker threads: a loop that sends 2 GiB is 6 ms late instead of 8 (p99, 2 cores), in the same time."""


def lower_priority() -> None:
    """Give the calling thread a lower priority than the other threads of the process. Only Linux can do that for one
    thread, and a sandbox may forbid it; elsewhere all threads stay equal."""
    if sys.platform == "linux":
        with suppress(PermissionError):
            os.nice(WORKER_NICENESS)


class _Threads:
    """One executor of the process, created on first use. It ends when its last holder releases it."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._executor: ThreadPoolExecutor | None = None
        self._holders = 0
        self.forks = 0
        """How often this process was forked from another one, seen from the child."""
        self._lock = threading.Lock()  # engines may run on several loops, each in a thread of its own

    def get(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                count = within_descriptors(self._count)
                self._executor = ThreadPoolExecutor(count, self._name, lower_priority)
            return self._executor

    def hold(self, count: int | None = None) -> None:
        with self._lock:
            if count is not None and not self._holders and count != self._count:
                self._count = count
                self._end(wait=False)  # a caller that does not hold them has created them already
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= self._holders > 0  # holders from before a fork hold them in the parent
            if self._holders == 0:
                self._end(wait=False)  # idle threads end at once; one that hangs in a file system must not block us

    def forget(self) -> None:
        """Called in a forked child: the child has none of the threads, and no thread that would release the lock."""
        self._executor, self._holders, self._lock = None, 0, threading.Lock()
        self.forks += 1

    def replace(self) -> None:
        """Leave the threads to themselves; the next call gets new ones."""
        with self._lock:
            self._end(wait=False)

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
    """Hold the worker threads during disk work; they end when nobody holds them. ``count``: how many there are, unless
    somebody holds them already."""
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
    """Run ``func`` in a worker thread and return only once it has ended, for work whose result must be known. A cancel
    is not raised but returned, for the caller to raise after acting on the result. An exception of ``func`` is raised,
    or the cancel if there was one."""
    future = begin_in_thread(func, *args, **kwargs)
    cancelled = await _wait_through_cancels(_threads, future)
    if cancelled is not None and future.exception() is not None:
        raise cancelled
    return future.result(), cancelled


def begin_in_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start ``func`` in a worker thread now, for several waiters. It runs to its end whichever of them is cancelled."""
    return asyncio.get_running_loop().run_in_executor(_threads.get(), partial(func, *args, **kwargs))


async def in_hasher(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``func`` in a worker thread for processor work, otherwise as :func:`in_thread`."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_hashers.get(), partial(func, *args, **kwargs))


async def in_thread_stoppable(func: Callable[[threading.Event], T]) -> T:
    """Run ``func`` in a worker thread and never leave it behind: for work that changes something.

    If the caller is cancelled, the event is set. ``func`` checks it between pieces and cleans up. The cancel is raised
    once ``func`` has returned, or is given up after STUCK_SECONDS; its result or exception is dropped then.
    """
    return await _stoppable(_threads, func)


async def in_sender(func: Callable[[], T]) -> T:
    """The same, for work that fills a socket and then returns: more processor than disk."""
    return await _stoppable(_hashers, lambda _: func())


async def _stoppable(threads: _Threads, func: Callable[[threading.Event], T]) -> T:
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(threads.get(), func, stop)
    cancelled = await _wait_through_cancels(threads, future, stop.set, STUCK_SECONDS)
    if cancelled is not None:
        future.exception()  # retrieved, so that the loop does not log it
        raise cancelled
    return future.result()


async def _wait_through_cancels(
    threads: _Threads,
    future: asyncio.Future[T],
    on_cancel: Callable[[], None] = lambda: None,
    limit: float | None = None,
) -> asyncio.CancelledError | None:
    """Wait until ``future`` is done, through all cancels; returns the last cancel. It is raised at once if
    the thread is given up as stuck: ``limit`` seconds after the first cancel, or by :func:`giving_up_stuck_threads`."""
    cancelled, forks = None, threads.forks
    loop, timer = asyncio.get_running_loop(), None
    given_up = loop.create_future()
    try:
        while not future.done():
            try:
                await asyncio.wait([future, given_up], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:
                if forks != threads.forks:
                    raise  # the thread is the parent's
                on_cancel()
                if cancelled is None and limit is not None:
                    timer = loop.call_later(limit, _give_up, given_up, threads)
                cancelled = error
                _cancelled_waits[given_up] = threads
            if cancelled is not None and given_up.done() and not future.done():
                future.cancel()  # its result is dropped
                raise cancelled
    finally:
        _cancelled_waits.pop(given_up, None)
        if timer is not None:
            timer.cancel()
    return cancelled


def _give_up(given_up: asyncio.Future[None], threads: _Threads) -> None:
    if not given_up.done():
        log.warning("a thread is stuck in a call of the file system; it is left behind")
        given_up.set_result(None)
        threads.replace()


_cancelled_waits: dict[asyncio.Future[None], _Threads] = {}
"""Waits for threads whose waiter is cancelled; completing the future ends the wait."""
STUCK_SECONDS = 20.0
"""How long (s) a cancelled caller waits for its thread. Longer than a lease, so that a thread that wakes later writes
nothing more."""
STUCK_MARGIN = 2.0
"""Seconds after its limit that :func:`giving_up_stuck_threads` waits for threads to notice that they must stop."""
_STUCK_CHECK = 0.5


@contextmanager
def giving_up_stuck_threads(seconds: float | None) -> Iterator[None]:
    """Around work that ends within ``seconds``: from then on, no cancelled caller waits for its thread any more. A file
    system that does not respond (a dead NFS server) keeps a thread inside one system call, for which nothing helps.

    Whenever such a thread wakes, it finds its event set, and its lease expired. Later work gets new threads.
    """
    loop, timer = asyncio.get_running_loop(), None

    def look() -> None:
        nonlocal timer
        for given_up, threads in list(_cancelled_waits.items()):
            if given_up.get_loop() is loop:
                _give_up(given_up, threads)
        timer = loop.call_later(_STUCK_CHECK, look)

    if seconds is not None:
        timer = loop.call_later(seconds + STUCK_MARGIN, look)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def stop_threads() -> None:
    """End the idle worker threads; the next call creates new ones."""
    _threads.shutdown()
    _hashers.shutdown()
