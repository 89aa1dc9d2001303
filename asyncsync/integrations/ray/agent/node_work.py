"""The calls of the worker processes of a node, on one storage. Nothing here imports Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asyncsync.errors import AsyncsyncError, ConcurrentWriterError
from asyncsync.events import SyncWarning
from asyncsync.integrations.ray.agent.calls import Call, NotServedError
from asyncsync.integrations.ray.agent.node_events import NodeEvents
from asyncsync.integrations.ray.agent.process_watch import ProcessWatch
from asyncsync.runtime import Presence
from asyncsync.status import EngineStatus
from asyncsync.status_file import Owner, StatusFile

if TYPE_CHECKING:
    from asyncsync import Storage  # a worker that starts the agent does not need it

log = logging.getLogger("asyncsync")

DRAIN_INTERVAL = 1.0
"""Seconds between two questions whether the node is being drained, while something runs."""
STATUS_PERIOD = 60.0
"""Most seconds between two writes of the status file; it is written once a second while calls begin and end."""


@dataclass(frozen=True, slots=True)
class _Running:
    call: Call
    began: float
    """By the monotonic clock."""


class NodeWork:
    """Runs calls, on the event loop of the storage.

    ``draining`` says whether the node is about to be taken away. It blocks, and is asked only while something runs.
    """

    def __init__(self, storage: Storage, draining: Callable[[], bool] = lambda: False) -> None:
        self._storage, self._draining = storage, draining
        self._running: dict[asyncio.Task[Any], _Running] = {}
        """In the order in which they began."""
        self._ending: set[asyncio.Task[Any]] = set()
        """Those that are cancelled and still run."""
        self._watch = ProcessWatch(self._process_ended)
        self._busy, self._to_clean = asyncio.Event(), asyncio.Event()
        self.changed = asyncio.Event()
        """Set when a call begins or ends."""
        self._drained = False
        self._idle_since = time.monotonic()
        self.events = NodeEvents()

    @property
    def idle(self) -> float:
        """Seconds for which nothing has run and no process has lived that had asked for something; 0 if one does."""
        return 0.0 if self._running or len(self._watch) else time.monotonic() - self._idle_since

    async def run(self, call: Call) -> Any:
        """Do what is asked. CancelledError if the caller is killed meanwhile, or if a later attempt takes its place.
        NotServedError before anything is done, ConcurrentWriterError if a later attempt is uploading the checkpoint."""
        if not self._watch.add(call.caller) or (call.place is not None and not call.place.is_here()):
            raise NotServedError(f"the agent of this node does not see what {call.caller} sees: it may be a container")
        await self._end_earlier_attempts(call)
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = _Running(call, time.monotonic())
        self._busy.set()
        self.changed.set()
        if self._drained:
            self._put_in_order()
        try:
            return await self._run(call)
        finally:
            self._has_ended(task)

    def status(self) -> EngineStatus:
        """As the status of an engine: its uploads are the pending checkpoints, the age of the oldest is the lag."""
        now = time.monotonic()
        pending = [item.began for item in self._running.values() if item.call.target]
        return replace(
            self._storage.status(),
            durability_lag=max((now - began for began in pending), default=0.0),
            pending_checkpoints=len(pending),
            syncs_running=len(self._running),
            totals=replace(self.events.totals, durable_counts=list(self.events.totals.durable_counts)),
        )

    async def live(self, idle_seconds: float) -> None:
        """Clean up after killed processes and follow a drain, until it has been idle for so long."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._clean_up(), name="asyncsync agent clean-up"),
                    group.create_task(self._follow_drain(), name="asyncsync agent drain"),
                ]
                while (rest := idle_seconds - self.idle) > 0:
                    await asyncio.sleep(rest)
                for task in tasks:
                    task.cancel()
        finally:
            self._watch.close()

    async def _run(self, call: Call) -> Any:
        began = time.monotonic()
        self.events.started(call)
        try:
            result = await call.work(self._storage, *call.arguments)
        except Exception as error:
            self.events.failed(call, error)
            raise
        self.events.finished(call, result, time.monotonic() - began)
        return result

    def _has_ended(self, task: asyncio.Task[Any]) -> None:
        del self._running[task]
        self._ending.discard(task)
        self._idle_since = time.monotonic()
        self.changed.set()
        if not self._running:
            self._busy.clear()

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task in self._ending:
            return
        self._ending.add(task)
        task.cancel()
        self._to_clean.set()

    async def _end_earlier_attempts(self, call: Call) -> None:
        """Of an earlier attempt's upload to the same checkpoint nothing runs any more when this returns.

        The earlier one of two live processes is the one that has asked for something first; it cannot end the upload of
        the later one: it was taken for dead, and Ray knows the later one."""
        while replaced := [task for task, item in self._running.items() if call.replaces(item.call)]:
            if any(self._watch.is_later(self._running[task].call.caller, call.caller) for task in replaced):
                raise ConcurrentWriterError(f"{call.target} is being written by a later process: end this one")
            for task in replaced:
                self._cancel(task)
            await asyncio.wait(replaced)

    def _process_ended(self, name: str) -> None:
        self._idle_since = time.monotonic()
        for task, item in list(self._running.items()):
            if item.call.caller == name and (self._drained or not item.call.outlives):
                self._cancel(task)

    async def _clean_up(self) -> None:
        """Abort the uploads of what was cancelled, once it has stopped."""
        while True:
            await self._to_clean.wait()
            self._to_clean.clear()
            if self._ending:
                await asyncio.wait(self._ending)
            try:
                await self._storage.clean_up()
            except AsyncsyncError as error:
                log.warning(
                    "cleaning up %s after a killed process failed, it remains due: %s", self._storage.uri, error
                )

    async def _follow_drain(self) -> None:
        while not self._drained:
            await self._busy.wait()
            if await asyncio.to_thread(self._draining):
                self._drain()
            else:
                await asyncio.sleep(DRAIN_INTERVAL)

    def _drain(self) -> None:
        """The node is about to be taken away. The newest checkpoints go first; the rest is cancelled."""
        self._drained = True
        self.events.emit(SyncWarning(tree="", message="the node is drained: the newest checkpoints are sent first"))
        for task, item in list(self._running.items()):
            if Presence.has_ended(item.call.caller):
                self._cancel(task)
        self._put_in_order()

    def _put_in_order(self) -> None:
        calls = [item.call for item in self._running.values()]
        self._storage.prefer(urgency([(call.caller, f"{call.target}/") for call in calls if call.target]))


async def live_visibly(work: NodeWork, owner: Owner, idle_seconds: float) -> None:
    """:meth:`NodeWork.live`, with a status file for ``asyncsync status``."""
    file = StatusFile(owner, lambda _: (work.status(), 0), work.changed)
    try:
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(file.run(STATUS_PERIOD), name="asyncsync status")
            await work.live(idle_seconds)
            writing.cancel()
    finally:
        file.remove()


def urgency(uploads: Sequence[tuple[str, str]]) -> list[str]:
    """In which order checkpoints are sent when time is short. ``uploads``: process and checkpoint, oldest first.

    The newest first; but those of one process in their own order, because Ray registers them in that order: a later one
    is of no use without the earlier one.
    """
    order: list[str] = []
    for caller in dict.fromkeys(caller for caller, _ in reversed(uploads)):
        order.extend(dict.fromkeys(target for other, target in uploads if other == caller))
    return list(dict.fromkeys(order))
