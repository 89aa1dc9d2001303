"""Counts the events of an engine, for its status and its metrics."""

from __future__ import annotations

import asyncio
from bisect import bisect_left

from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointEvent,
    CheckpointFailed,
    CheckpointRetired,
    Event,
    SyncFailed,
    SyncFinished,
    SyncTimedOut,
)
from asyncsync.status import DURABLE_BOUNDS, EngineTotals

MAX_ACCEPTED = 10_000
"""Accepted checkpoints whose time is remembered; of more, the oldest are forgotten and not in the histogram."""


class EventCounter:
    """Counts the events of one engine. Plain calls only."""

    def __init__(self) -> None:
        self.totals = EngineTotals()
        self.changed = asyncio.Event()
        """Set by every event and every report; the writer of the status file clears it."""
        self._accepted: dict[tuple[str, str], float] = {}

    def note(self, event: Event) -> None:
        """Count an event."""
        self.changed.set()
        if isinstance(event, SyncFinished):
            self.totals.syncs += 1
            self.totals.bytes_sent += event.bytes_sent
            self.totals.bytes_copied += event.bytes_copied
        elif isinstance(event, SyncFailed | SyncTimedOut):
            self.totals.syncs_failed += 1
            self._note_error(event, event.error)
        elif isinstance(event, CheckpointEvent):
            self._note_checkpoint(event)

    def _note_checkpoint(self, event: CheckpointEvent) -> None:
        totals, key = self.totals, (event.trial, event.checkpoint)
        if isinstance(event, CheckpointAccepted):
            self._accepted[key] = event.time
            if len(self._accepted) > MAX_ACCEPTED:
                del self._accepted[next(iter(self._accepted))]
        elif isinstance(event, CheckpointDurable):
            totals.checkpoints_durable += 1
            totals.bytes_sent += event.bytes_sent
            totals.bytes_copied += event.bytes_copied
            totals.bytes_saved += max(0, event.bytes_total - event.bytes_sent)
            self._note_durable(event.time - self._accepted.pop(key, event.time - event.seconds))
        elif isinstance(event, CheckpointFailed):
            totals.checkpoints_failed += 1
            self._accepted.pop(key, None)
            self._note_error(event, event.error)
        elif isinstance(event, CheckpointRetired):
            totals.checkpoints_retired += 1

    def _note_durable(self, seconds: float) -> None:
        self.totals.durable_counts[bisect_left(DURABLE_BOUNDS, seconds)] += 1
        self.totals.durable_seconds += seconds

    def _note_error(self, event: Event, error: str) -> None:
        self.totals.last_error, self.totals.last_error_time = error, event.time
