"""A stored trial, as its record describes it: its reports, and its row in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.disk.results import RESULTS, parse_results
from asyncsync.errors import DamagedError
from asyncsync.planning.retention import by_age
from asyncsync.remote.access import StoreAccess, open_for_reading
from asyncsync.remote.trial_index import TrialIndex
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.stores.read import find
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord


@dataclass(frozen=True, repr=False)
class TrialView:
    """A trial, as its record describes it."""

    name: str
    uri: str
    status: str
    """``running``, ``finished``, ``failed``, or the status that ``Trial.finish`` was given; ``unreadable``: the record
    is damaged."""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last report."""
    checkpoints: list[CheckpointView] = field(default_factory=list)
    """Sorted by number, oldest first."""
    error: str | None = None
    """Why the trial failed, or why its record cannot be read."""
    reports: int = 0
    """Number of reports."""
    started: float = 0.0
    """Unix seconds."""
    updated: float = 0.0
    """Last change of the record, Unix seconds."""
    lost: bool = False
    """The status is ``running``, but the process that ran it has ended, or its experiment is lost."""
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)

    async def history(self) -> list[dict[str, Any]]:
        """The reports of the trial, oldest first, as its ``result.json`` in the store has them; empty if there is none.

        It is as new as the last sync of the trial. DamagedError if a line is not a JSON object.
        """
        async with open_for_reading(self.uri, self._access.transfer, self._access.options) as store:
            data = await find(store, RESULTS)
        try:
            return await in_thread(parse_results, data or b"")
        except ValueError as error:
            uri = f"{self.uri}/{RESULTS}"
            raise DamagedError(f"{uri} is damaged: {error}", uri=uri) from error

    def __repr__(self) -> str:
        status = "lost" if self.lost else self.status
        return f"<TrialView {self.uri} {status}, {self.reports} reports, {len(self.checkpoints)} checkpoints>"


def trial_row(trial: TrialView) -> dict[str, Any]:
    """The trial as one row of a table; a metric named like a field is ``metrics.NAME``."""
    row = {"status": "lost" if trial.lost else trial.status, "reports": trial.reports}
    row |= {"checkpoints": len(trial.checkpoints), **{f"params.{name}": value for name, value in trial.params.items()}}
    return row | {f"metrics.{name}" if name in row else name: value for name, value in trial.metrics.items()}


def trial_of(
    name: str, base: str, index: TrialIndex, access: StoreAccess, is_lost: Callable[[TrialRecord], bool]
) -> TrialView:
    if index.own is not None and name not in index.trials:
        return view_of(name, base, index.own, access, lost=is_lost(index.own))
    uri = f"{base}/{name}"
    record = index.trials.get(name)
    if record is None:
        if name in index.unreadable:
            return TrialView(name, uri, "unreadable", error=str(index.unreadable[name]))
        status = index.experiment.trials[name] if index.experiment is not None else "unknown"
        return TrialView(name, uri, status)  # started; the store has nothing of it yet
    return view_of(name, uri, record, access, lost=is_lost(record))


def view_of(name: str, uri: str, record: TrialRecord, access: StoreAccess, *, lost: bool = False) -> TrialView:
    """A trial as its record describes it."""
    records = sorted(record.checkpoints, key=by_age)
    checkpoints = [_checkpoint(name, uri, item, access) for item in records]
    return TrialView(
        name,
        uri,
        record.status,
        record.params,
        record.metrics,
        checkpoints,
        record.error,
        record.reports,
        record.started,
        record.updated,
        lost=lost,
        _access=access,
    )


def _checkpoint(trial: str, uri: str, item: CheckpointRecord, access: StoreAccess) -> CheckpointView:
    return CheckpointView(
        item.name,
        trial,
        f"{uri}/{item.name}",
        item.number,
        item.metrics,
        item.metadata,
        item.files,
        item.bytes,
        item.time,
        item.step,
        item.pinned,
        access,
    )
