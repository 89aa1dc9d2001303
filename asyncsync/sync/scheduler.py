"""The scheduler coroutine: starts what is due, at most one sync a tree, each within ``sync_timeout``.

It never transfers anything itself, and an idle tree costs it a heap entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
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
AT_ONCE = 64
"""Syncs under way at once; their requests share one budget, so more would only cost memory."""
INBOX = 1024


class Member(Protocol):
    """What can be scheduled."""

    key: str

    async def sync_once(self) -> SyncReport:
        """One attempt."""

    def progress(self) -> str:
        """How much is done and what is missing, for the time-out's message."""


def foreseen(error: Exception, what: str) -> Exception:
    """The error that tells why ``what`` failed.

    Where one tree's work ends is where an error that nobody foresaw (ValueError, RecursionError, KeyError) stops: it
    costs this attempt, and is logged with its traceback and told as every failure is, while other trees go on. What is
    wrong in the engine itself, which starts and counts such work, still ends the engine.
    """
    if isinstance(error, AsyncsyncError | OSError):
        return error
    log.error("%s failed in a way that nobody foresaw", what, exc_info=error)
    text = f"{what} failed in a way that nobody foresaw: {type(error).__name__}: {error}; please report it"
    failed = SyncFailedError(text, {what: error})
    failed.__cause__ = error
    return failed


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Please sync this tree; ``done`` is told of the first sync that starts after this."""

    key: str
    force: bool
    done: asyncio.Future[SyncReport] | None


class Inbox:
    """A bounded ``asyncio.Queue`` that refuses at once when nobody will ever read it again."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[object] = asyncio.Queue(INBOX)
        self._closed = False

    async def put(self, item: object) -> None:
        """Wait for room; EngineClosedError if the engine is not running, or stops meanwhile."""
        self._check()
        await self._queue.put(item)
        self._check()

    def nudge(self) -> None:
        """Make the reader look at the clock again."""
        if self._queue.empty():
            self._queue.put_nowait(None)

    async def get(self) -> object:
        """The next item."""
        return await self._queue.get()

    def qsize(self) -> int:
        """Items that wait."""
        return self._queue.qsize()

    def close(self) -> list[object]:
        """No more items; returns those that nobody has read."""
        self._closed = True
        left = []
        while not self._queue.empty():  # also wakes those who wait for room, and they see that it is closed
            left.append(self._queue.get_nowait())
        return left

    def _check(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is not running: use it inside its 'async with' block")


class Scheduler:
    """Give :meth:`run` to a task group that outlives every use. Time is the event loop's clock, so a virtual-time
    loop replaces it."""

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
        """Syncs under way."""
        return len(self._running)

    def add(self, member: Member, *, periodic: bool = True) -> None:
        """Take a tree in; a periodic one is synced at once and then every period."""
        self._members[member.key] = member
        self._schedule.add(member.key, self._loop.time(), period=self._config.period, periodic=periodic)
        self.inbox.nudge()

    def remove(self, key: str) -> None:
        """Take a tree out of the schedule; a running sync goes on."""
        self._schedule.remove(key)
        self._members.pop(key, None)

    def has(self, key: str) -> bool:
        """Whether the tree is in the schedule."""
        return key in self._members

    async def sync(self, key: str, *, force: bool = True) -> SyncReport:
        """Ask for a sync and wait for it: the one that starts after this call, never one that was already running."""
        done: asyncio.Future[SyncReport] = self._loop.create_future()
        await self.inbox.put(SyncRequest(key, force, done))
        return await done

    async def ask(self, key: str, *, force: bool = False) -> None:
        """Ask for a sync and do not wait; its failure goes to ``on_failure``."""
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
                item = await self.inbox.get()
                if isinstance(item, SyncRequest):
                    self._request(item)
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Refuse new work and tell those who wait; running syncs are the task group's to end."""
        for item in self.inbox.close():
            if isinstance(item, SyncRequest) and item.done is not None:
                self._waiting.setdefault(item.key, []).append(item.done)
        self._paused = False
        for futures in self._waiting.values():
            _tell(futures, EngineClosedError("the engine stopped before this sync could start"))
        self._waiting.clear()

    def pause(self) -> None:
        """Interrupt what is running and start nothing: something more important needs the line."""
        self._paused = True
        self.cancel_running()

    def go_on(self) -> None:
        """What was interrupted starts again, with those who waited for it."""
        self._paused = False
        self.inbox.nudge()

    def hurry(self) -> None:
        """The store is back: trees that wait out a failure are tried soon, and not all at once."""
        now = self._loop.time()
        for key in self._schedule.forgive():
            self._schedule.hasten(key, now + dice().uniform(0, RETURN_SPREAD))
        self.inbox.nudge()

    def cancel_running(self) -> None:
        """End the running syncs."""
        for task in self._running.values():
            task.cancel()

    def _request(self, request: SyncRequest) -> None:
        if request.key not in self._members:
            if request.done is not None:
                _tell([request.done], EngineClosedError(f"{request.key!r} is no longer synced"))
            return
        if request.done is not None:
            self._waiting.setdefault(request.key, []).append(request.done)
        self._schedule.request(request.key, self._loop.time(), force=request.force)

    def _arm(self, timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
        if timer is not None:
            timer.cancel()
        when = self._schedule.next_time()
        full = len(self._running) >= AT_ONCE or self._paused
        return None if when is None or full else self._loop.call_at(when, self.inbox.nudge)

    def _start_due(self) -> None:
        while len(self._running) < AT_ONCE and not self._paused:
            due = self._schedule.pop_due(self._loop.time())
            if due is None:
                return
            key, forced = due
            waiters = self._waiting.pop(key, [])
            self._running[key] = self._group.create_task(
                self._sync(self._members[key], waiters, forced=forced), name=f"sync {key or '.'}"
            )

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
                text = f"the engine stopped while {member.key or 'the tree'} was being synced"
                _tell(waiters, EngineClosedError(text))
            raise
        except Exception as error:  # noqa: BLE001  # what nobody foresaw costs this tree's attempt, see foreseen
            self._ended(member.key, ok=False)
            self._failed(member.key, foreseen(error, f"the sync of {member.key or 'the tree'}"), waiters)
        except BaseException as error:
            _tell(waiters, error)
            raise
        else:
            self._ended(member.key, ok=True)
            self._succeeded(member.key, report, waiters)

    def _ended(self, key: str, *, ok: bool) -> None:
        self._running.pop(key, None)
        self._schedule.finished(key, self._loop.time(), ok=ok)
        self.inbox.nudge()

    def _failed(self, key: str, error: Exception, waiters: list[asyncio.Future[SyncReport]]) -> None:
        if isinstance(error, SyncTimeoutError):
            self._emit(SyncTimedOut(tree=key, error=str(error), timeout=self._config.timeout or 0.0))
        else:
            retry_in = self._schedule.backoff(key) if key in self._schedule else None
            self._emit(SyncFailed(tree=key, error=str(error), retry_in=retry_in))
        told = _tell(waiters, error)
        if not told and self._on_failure is not None:
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


def _tell(waiters: list[asyncio.Future[SyncReport]], error: BaseException) -> bool:
    """Give ``error`` to those who still wait; whether anybody did."""
    told = False
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            told = True
    return told
