"""The demo's display: a live table on a terminal, otherwise one line per trial."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from asyncsync import EventStream, SyncEngine
from asyncsync.cli.ls import short_metrics
from asyncsync.cli.output import Output
from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointFailed,
    CheckpointRetired,
    Event,
    SyncFailed,
    SyncFinished,
    SyncTimedOut,
)
from asyncsync.units import size_text

REFRESH = 0.1
"""Seconds between two updates of the table."""
RUNNING = "running"


class Board:
    """Counts the events of an engine and shows its status. Use it as a context manager."""

    def __init__(self, output: Output, trials: int) -> None:
        self._output, self._trials = output, trials
        self._live = Live(console=Console(), auto_refresh=False) if output.terminal else None
        self._counts: Counter[str] = Counter()
        self._durable: Counter[str] = Counter()
        self._retired: Counter[str] = Counter()
        self._bytes = 0
        self._finished: set[str] = set()
        self.failures: list[str] = []
        """The failures that the engine reported."""

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def totals(self) -> dict[str, int]:
        """The counts of events, and the bytes of durable checkpoints."""
        return {
            "trials": self._trials,
            "checkpoints_accepted": self._counts[CheckpointAccepted.__name__],
            "checkpoints_durable": self._counts[CheckpointDurable.__name__],
            "checkpoints_retired": self._counts[CheckpointRetired.__name__],
            "checkpoint_bytes": self._bytes,
            "syncs": self._counts[SyncFinished.__name__],
        }

    async def follow(self, events: EventStream) -> None:
        """Count every event until the engine ends."""
        async with aclosing(events):
            async for event in events:
                self._count(event)

    async def refresh(self, engine: SyncEngine) -> None:
        """Show the status until every trial has ended."""
        while len(self._finished) < self._trials:
            self._show(engine)
            await asyncio.sleep(REFRESH)
        self._show(engine)

    def _count(self, event: Event) -> None:
        self._counts[event.kind] += 1
        if isinstance(event, CheckpointDurable):
            self._durable[event.trial] += 1
            self._bytes += event.bytes_total
        elif isinstance(event, CheckpointRetired):
            self._retired[event.trial] += 1
        elif isinstance(event, CheckpointFailed | SyncFailed | SyncTimedOut):
            self.failures.append(f"{event.tree}: {event.error}")

    def _show(self, engine: SyncEngine) -> None:
        status = engine.status()
        for name, trial in status.trials.items():
            if trial.status != RUNNING and name not in self._finished and not trial.pending_checkpoints:
                self._finished.add(name)
                if self._live is None:
                    metrics = short_metrics(trial.metrics)
                    self._output.line(f"{name} {trial.status}: {metrics}; {self._durable[name]} checkpoints durable")
        if self._live is not None:
            self._live.update(self._table(engine, status), refresh=True)

    def _table(self, engine: SyncEngine, status: Any) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
        for column in ("trial", "status", "last metrics", "durable", "retired", "at risk", "lag"):
            table.add_column(column)
        for name, trial in sorted(status.trials.items()):
            table.add_row(
                name,
                trial.status,
                short_metrics(trial.metrics),
                str(self._durable[name]),
                str(self._retired[name]),
                size_text(trial.bytes_at_risk),
                f"{trial.durability_lag:.1f} s",
                style={"failed": "red", "finished": "green"}.get(trial.status),
            )
        table.caption = (
            f"{status.syncs_running} syncs running, {status.requests_running} requests in flight, "
            f"{size_text(status.bytes_at_risk)} at risk, {size_text(self._bytes)} of checkpoints durable"
        )
        return table
