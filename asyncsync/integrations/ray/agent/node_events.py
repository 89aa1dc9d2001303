"""The events of a node's agent, kept for listeners on other machines, which request the new ones."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from typing import Any

from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointFailed,
    Event,
    SyncFailed,
    SyncFinished,
    SyncStarted,
)
from asyncsync.integrations.ray.agent import operations
from asyncsync.integrations.ray.agent.calls import Call
from asyncsync.report import SyncReport
from asyncsync.status import DURABLE_BOUNDS, EngineTotals

KEPT = 1024
"""Events that are kept for listeners; a listener that asks too seldom loses older ones."""


class NodeEvents:
    """Numbers events from 0. ``tree`` and ``trial`` of an event are relative to the storage path."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._next = 0
        self._news = asyncio.Event()
        self.totals = EngineTotals()

    def emit(self, event: Event) -> None:
        """Keep an event and wake the listeners that wait for one."""
        self._kept.append(event)
        self._next += 1
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, number: int, patience: float) -> tuple[list[Event], int]:
        """The events from ``number`` on, and the number to ask for next; none after ``patience`` seconds."""
        if number >= self._next:
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                return [], self._next
        first = self._next - len(self._kept)
        return list(self._kept)[max(0, number - first) :], self._next

    def started(self, call: Call) -> None:
        """A call begins."""
        if call.work is operations.push:
            self.emit(SyncStarted(tree=call.arguments[1]))
        elif call.work is operations.push_checkpoint:
            self.emit(CheckpointAccepted(**_names(call)))

    def failed(self, call: Call, error: Exception) -> None:
        """A call has failed."""
        self.totals.last_error, self.totals.last_error_time = str(error), time.time()
        if call.work is operations.push:
            self.totals.syncs_failed += 1
            self.emit(SyncFailed(tree=call.arguments[1], error=str(error)))
        elif call.work in (operations.push_checkpoint, operations.commit):
            self.totals.checkpoints_failed += 1
            self.emit(CheckpointFailed(**_names(call), error=str(error)))

    def finished(self, call: Call, result: Any, seconds: float) -> None:
        """A call has succeeded. The part of a rank is a sync; its checkpoint is durable with the commit."""
        if isinstance(result, SyncReport):
            self.totals.bytes_sent += result.bytes_sent
            self.totals.bytes_copied += result.bytes_copied
        alone = call.work is operations.push_checkpoint and call.arguments[3]
        if alone or (call.work is operations.commit and result):
            report = result if alone else SyncReport(seconds=seconds)
            self._count_durable(report)
            self.emit(CheckpointDurable(**_names(call), **_numbers(report, "bytes_total", "bytes_sent")))
        elif call.work in (operations.push, operations.push_checkpoint):
            self.totals.syncs += 1
            numbers = _numbers(result, "files_sent", "bytes_total", "bytes_sent")
            self.emit(SyncFinished(tree=call.arguments[1], **numbers))

    def _count_durable(self, report: SyncReport) -> None:
        self.totals.checkpoints_durable += 1
        self.totals.bytes_saved += report.bytes_total - report.bytes_sent
        self.totals.durable_counts[bisect_left(DURABLE_BOUNDS, report.seconds)] += 1
        self.totals.durable_seconds += report.seconds


def _names(call: Call) -> dict[str, Any]:
    key = call.arguments[0] if call.work is operations.commit else call.arguments[1]
    trial, _, name = key.rpartition("/")
    return {"tree": key, "trial": trial, "checkpoint": name}


def _numbers(report: SyncReport, *names: str) -> dict[str, Any]:
    return {name: getattr(report, name) for name in (*names, "bytes_copied", "requests", "seconds")}
