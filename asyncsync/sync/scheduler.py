"""The scheduler coroutine: starts the syncs that are due, at most one per tree, each limited by ``sync_timeout``.

It transfers nothing itself, and an idle tree costs it one heap entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from asyncsync.aio.tasks import within
from asyncsync.config import SyncConfig
from asyncsync.errors import AsyncsyncError, EngineClosedError, SyncFailedError, SyncTimeoutError
from asyncsync.events import Event, SyncFailed, SyncFinished, SyncStarted, SyncTimedOut, SyncWarning
from asyncsync.planning.schedule import Schedule
from asyncsync.report import SyncReport
from asyncsync.runtime import dice
from asyncsync.stores.guard.breaker import RETURN_SPREAD

log = logging.getLogger("asyncsync")

T = TypeVar("T")
RUNNING_SYNCS = 64
"""Most syncs that run at once. Their requests share one budget, so more would only cost memory."""
FORGIVEN_AT_ONCE = 500
"""Trees that are scheduled anew in one turn of the event loop when the store is back."""
SKIPPED_AT_ONCE = 20
"""Trees with nothing to sync that are looked at in one turn of the event loop."""
INBOX_REQUESTS = 1024
"""Most sync requests that wait for the scheduler; further callers wait."""


class Member(Protocol):
    """A tree that can be scheduled."""

    key: str

    async def sync_once(self) -> SyncReport:
        """One attempt."""

    def progress(self) -> str:
        """How much is done and what is missing, for the timeout's message."""

    def has_nothing_to_sync(self) -> bool:
        """Whether it is known without a look at the disk that a sync would find nothing."""


def reportable(error: Exception, what: str) -> Exception:
    """The error to report when ``what`` failed: ``error`` itself, or a SyncFailedError for an unexpected exception.

    An unexpected exception (ValueError, RecursionError, KeyError) in the work of one tree fails this attempt only. It
    is logged with its traceback and reported like any other failure, and other trees continue. A bug in the engine
    itself, which starts and counts such work, still ends the engine.
    """
    if isinstance(error, AsyncsyncError | OSError):
        return error
    log.error("%s failed with an unexpected error", what, exc_info=error)
    text = f"{what} failed with an unexpected {type(error).__name__}: {error}; please report this bug"
    failed = SyncFailedError(text, {what: error})
    failed.__cause__ = error
    return failed


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """A request to sync one tree. ``done`` receives the result of the first sync that starts after the request."""

    key: str
    force: bool
    done: asyncio.Future[SyncReport] | None


class Inbox:
    """Sync requests for the scheduler, at most INBOX_REQUESTS, and its wake-ups. Refuses requests once it is closed."""

    def __init__(self) -> None:
        self._requests: deque[SyncRequest] = deque()
        self._wake_up = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    async def put(self, request: SyncRequest) -> None:
        """Add a request, once there is room. EngineClosedError if the engine is not running, or stops meanwhile."""
        self._check()
        while len(self._requests) >= INBOX_REQUESTS:
            self._room.clear()
            await self._room.wait()
            self._check()
        self._requests.append(request)
        self._wake_up.set()

    def wake_up(self) -> None:
        """Make the scheduler look at its clock again."""
        self._wake_up.set()

    async def wait(self) -> None:
        """Return once there is a request, or after :meth:`wake_up`."""
        await self._wake_up.wait()
        self._wake_up.clear()

    def take(self) -> Iterator[SyncRequest]:
        """Remove the requests one by one, oldest first."""
        while self._requests:
            yield self._requests.popleft()
        self._room.set()

    def qsize(self) -> int:
        """Requests that wait."""
        return len(self._requests)

    def close(self) -> list[SyncRequest]:
        """Refuse further requests; returns those that were not taken."""
        self._closed = True
        return list(self.take())  # also wakes callers that wait for room: they find it closed

    def _check(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is not running: use it inside its 'async with' block")


class Scheduler:
    """Pass :meth:`run` to a task group that outlives every use. Time is the event loop's clock, so a virtual-time loop
    replaces it."""

    def __init__(
        self,
        config: SyncConfig,
        group: asyncio.TaskGroup,
        emit: Callable[[Event], None],
        *,
        on_failure: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self.inbox = Inbox()
        self._config, self._group, self._emit = config, group, emit
        self._on_failure = on_failure
        self._schedule: Schedule[str] = Schedule()
        self._members: dict[str, Member] = {}
        self._waiting: dict[str, list[asyncio.Future[SyncReport]]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._paused = False
        self._loop = asyncio.get_running_loop()

    @property
    def running(self) -> int:
        """Number of running syncs."""
        return len(self._running)

    def add(self, member: Member, *, periodic: bool = True) -> None:
        """Add a tree. A periodic one is synced at once, then every period."""
        self._members[member.key] = member
        self._schedule.add(member.key, self._loop.time(), period=self._config.period, periodic=periodic)
        self.inbox.wake_up()

    def remove(self, key: str) -> None:
        """Remove a tree from the schedule; a running sync continues."""
        self._schedule.remove(key)
        self._members.pop(key, None)

    def has(self, key: str) -> bool:
        """Whether the tree is in the schedule."""
        return key in self._members

    async def sync(self, key: str, *, force: bool = True) -> SyncReport:
        """Request a sync and wait for it: the one that starts after this call, never one that was already running."""
        done: asyncio.Future[SyncReport] = self._loop.create_future()
        await self.inbox.put(SyncRequest(key, force, done))
        return await done

    async def submit(self, key: str) -> asyncio.Future[SyncReport] | None:
        """Request a sync; the future receives its result. None if a sync that has not started serves the request."""
        if self._waiting.get(key):
            return None
        done: asyncio.Future[SyncReport] = self._loop.create_future()
        await self.inbox.put(SyncRequest(key, force=True, done=done))
        return done

    async def ask(self, key: str, *, force: bool = False) -> None:
        """Request a sync without waiting; its failure goes to ``on_failure``."""
        await self.inbox.put(SyncRequest(key, force, None))

    async def idle(self) -> None:
        """Wait until no sync is running."""
        while self._running:
            await asyncio.wait(list(self._running.values()))

    async def run(self) -> None:
        """The scheduler coroutine; ends only by cancel."""
        timer: asyncio.TimerHandle | None = None
        try:
            while True:
                self._start_due()
                timer = self._arm(timer)
                await self.inbox.wait()
                for request in self.inbox.take():
                    self._request(request)
                    self._start_due()
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Refuse new requests and fail the waiting ones. The task group ends the running syncs."""
        for request in self.inbox.close():
            if request.done is not None:
                self._waiting.setdefault(request.key, []).append(request.done)
        self._paused = False
        for futures in self._waiting.values():
            _fail(futures, EngineClosedError("the engine stopped before this sync could start"))
        self._waiting.clear()

    def pause(self) -> None:
        """Cancel the running syncs and start no others: something more important needs the bandwidth."""
        self._paused = True
        self.cancel_running()

    def resume(self) -> None:
        """End a pause. Cancelled syncs start again, and their callers still wait for them."""
        self._paused = False
        self.inbox.wake_up()

    def hurry(self) -> None:
        """The store is reachable again: retry trees that back off soon, spread over RETURN_SPREAD seconds."""
        self._forgive(self._schedule.failed)

    def _forgive(self, left: int) -> None:
        now = self._loop.time()
        for key in self._schedule.forgive(min(left, FORGIVEN_AT_ONCE)):
            self._schedule.hasten(key, now + dice().uniform(0, RETURN_SPREAD))
        self.inbox.wake_up()
        if left > FORGIVEN_AT_ONCE:
            self._loop.call_soon(self._forgive, left - FORGIVEN_AT_ONCE)

    def cancel_running(self) -> None:
        """Cancel the running syncs."""
        for task in self._running.values():
            task.cancel()

    def _request(self, request: SyncRequest) -> None:
        if request.key not in self._members:
            if request.done is not None:
                _fail([request.done], EngineClosedError(f"{request.key!r} is no longer synced"))
            return
        if request.done is not None:
            self._waiting.setdefault(request.key, []).append(request.done)
        self._schedule.request(request.key, self._loop.time(), force=request.force)

    def _arm(self, timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
        if timer is not None:
            timer.cancel()
        when = self._schedule.next_time()
        full = len(self._running) >= RUNNING_SYNCS or self._paused
        return None if when is None or full else self._loop.call_at(when, self.inbox.wake_up)

    def _start_due(self) -> None:
        skipped = 0
        while len(self._running) < RUNNING_SYNCS and not self._paused:
            if skipped == SKIPPED_AT_ONCE:
                self._loop.call_soon(self.inbox.wake_up)
                return
            due = self._schedule.pop_due(self._loop.time())
            if due is None:
                return
            key, forced = due
            member, waiters = self._members[key], self._waiting.pop(key, [])
            if not (forced or waiters) and member.has_nothing_to_sync():
                skipped += 1
                self._skip(key)
                continue
            self._running[key] = self._group.create_task(
                self._sync(member, waiters, forced=forced), name=f"sync {key or '.'}"
            )

    def _skip(self, key: str) -> None:
        """End a sync with nothing to do before it begins: it costs neither a task nor a look at the disk."""
        self._emit(SyncStarted(tree=key, forced=False))
        self._schedule.finished(key, self._loop.time(), ok=True)
        self._succeeded(key, SyncReport(), [])

    async def _sync(self, member: Member, waiters: list[asyncio.Future[SyncReport]], *, forced: bool) -> None:
        self._emit(SyncStarted(tree=member.key, forced=forced))
        try:
            report = await within(self._config.timeout, member.sync_once(), member.progress)
        except asyncio.CancelledError:
            self._ended(member.key, ok=False)
            if self._paused and member.key in self._members:
                self._waiting[member.key] = waiters + self._waiting.get(member.key, [])
                self._schedule.request(member.key, self._loop.time(), force=True)
            else:
                text = f"the engine stopped while {member.key or 'the tree'} was synced"
                _fail(waiters, EngineClosedError(text))
            raise
        except Exception as error:  # noqa: BLE001  # an unexpected error fails this attempt only
            self._ended(member.key, ok=False)
            self._failed(member.key, reportable(error, f"the sync of {member.key or 'the tree'}"), waiters)
        except BaseException as error:
            _fail(waiters, error)
            raise
        else:
            self._ended(member.key, ok=True)
            self._succeeded(member.key, report, waiters)

    def _ended(self, key: str, *, ok: bool) -> None:
        self._running.pop(key, None)
        self._schedule.finished(key, self._loop.time(), ok=ok)
        self.inbox.wake_up()

    def _failed(self, key: str, error: Exception, waiters: list[asyncio.Future[SyncReport]]) -> None:
        if isinstance(error, SyncTimeoutError):
            self._emit(SyncTimedOut(tree=key, error=str(error), timeout=self._config.timeout or 0.0))
        else:
            retry_in = self._schedule.backoff(key) if key in self._schedule else None
            self._emit(SyncFailed(tree=key, error=str(error), retry_in=retry_in))
        reported = _fail(waiters, error)
        if not reported and self._on_failure is not None:
            self._on_failure(key, error)

    def _succeeded(self, key: str, report: SyncReport, waiters: list[asyncio.Future[SyncReport]]) -> None:
        for warning in report.warnings:
            self._emit(SyncWarning(tree=key, message=warning))
        self._emit(
            SyncFinished(
                tree=key,
                files_sent=report.files_sent,
                bytes_total=report.bytes_total,
                bytes_sent=report.bytes_sent,
                bytes_copied=report.bytes_copied,
                requests=report.requests,
                seconds=report.seconds,
            )
        )
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(report)


def _fail(waiters: list[asyncio.Future[SyncReport]], error: BaseException) -> bool:
    """Raise ``error`` in the callers that still wait; whether there was one."""
    raised = False
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            raised = True
    return raised
