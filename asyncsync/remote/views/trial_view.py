"""A stored trial, as its record describes it: its reports, and its row in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.errors import DamagedError
from asyncsync.planning.retention import by_age, lookup
from asyncsync.remote.access import StoreAccess, open_for_reading
from asyncsync.remote.trial_index import TrialIndex
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.remote.views.html_view import (
    ROWS_SHOWN,
    Point,
    as_number,
    cell,
    curve_svg,
    first_metric,
    pairs,
    table_html,
)
from asyncsync.stores.read import find
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord
from asyncsync.units import size_text


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
    unfinished: bool = False
    """The status is ``running``, but the driver has left its engine and did not finish the trial."""
    given_up: list[str] = field(default_factory=list)
    """Names of its checkpoints that do not exist any more: retired ones, and incomplete ones that were given up."""
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)
    _reports: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)
    """The last result of :meth:`history`, for the curve in a notebook."""

    async def history(self) -> list[dict[str, Any]]:
        """The reports of the trial, oldest first, as its ``result.json`` in the store has them; empty if there is none.

        It is as new as the last sync of the trial. DamagedError if a line is not a JSON object.
        """
        from asyncsync.disk.results import RESULTS, parse_results

        async with open_for_reading(self.uri, self._access.transfer, self._access.options) as store:
            data = await find(store, RESULTS)
        try:
            self._reports[:] = await in_thread(parse_results, data or b"")
        except ValueError as error:
            uri = f"{self.uri}/{RESULTS}"
            raise DamagedError(f"{uri} is damaged: {error}", uri=uri) from error
        return list(self._reports)

    @property
    def shown_status(self) -> str:
        """The status for people: ``lost`` or ``unfinished`` instead of a ``running`` that is not true."""
        return "lost" if self.lost else "unfinished" if self.unfinished else self.status

    def curve(self, metric: str) -> list[Point]:
        """The metric over the training steps: of the reports, once :meth:`history` has read them, else of the
        checkpoints. Values that are not finite numbers are left out."""
        rows = [(row.get("training_iteration"), row) for row in self._reports] or [
            (item.number if item.step is None else item.step, item.metrics) for item in self.checkpoints
        ]
        found = [(as_number(x), as_number(lookup(metrics, metric))) for x, metrics in rows]
        return [(x, y) for x, y in found if x is not None and y is not None]

    def _repr_html_(self) -> str:
        """For notebooks: its checkpoints and a curve. No request is sent: :meth:`history` reads all reports."""
        metric = first_metric(self.metrics)
        error = f"; {self.error}" if self.error else ""
        caption = f"{self.name}: {self.shown_status}, {self.reports:,} reports{error}"
        curve = "" if metric is None else curve_svg(self.curve(metric), metric)
        rows = [
            (cell(item.name), cell(item.step), pairs(item.metrics), cell(size_text(item.bytes)), "pinned" * item.pinned)
            for item in self.checkpoints[-ROWS_SHOWN:]
        ]
        table = table_html(
            caption, ("checkpoint", "step", "metrics", "size", ""), rows, len(self.checkpoints) - len(rows)
        )
        legend = f"<div>{curve} {cell(metric)}={cell(self.metrics[metric])}</div>" if curve and metric else ""
        return f"<div>{legend}{table}<div>{pairs(self.params, 12)}</div></div>"

    def __repr__(self) -> str:
        return (
            f"<TrialView {self.uri} {self.shown_status}, {self.reports} reports, {len(self.checkpoints)} checkpoints>"
        )


def trial_row(trial: TrialView) -> dict[str, Any]:
    """The trial as one row of a table; a metric named like a field is ``metrics.NAME``."""
    row = {"status": trial.shown_status, "reports": trial.reports}
    row |= {"checkpoints": len(trial.checkpoints), **{f"params.{name}": value for name, value in trial.params.items()}}
    return row | {f"metrics.{name}" if name in row else name: value for name, value in trial.metrics.items()}


HTML_COLUMNS = ("trial", "status", "reports", "checkpoints", "curve", "last metrics", "params")


def html_row(trial: TrialView) -> tuple[str, ...]:
    """The trial as a row of a table in a notebook, by HTML_COLUMNS."""
    metric = first_metric(trial.metrics)
    curve = "" if metric is None else curve_svg(trial.curve(metric), metric)
    numbers = (cell(trial.reports), cell(len(trial.checkpoints)))
    return (cell(trial.name), cell(trial.shown_status), *numbers, curve, pairs(trial.metrics), pairs(trial.params))


def trial_of(
    name: str, base: str, index: TrialIndex, access: StoreAccess, is_lost: Callable[[TrialRecord], bool]
) -> TrialView:
    """One trial of an index."""
    uri, record = f"{base}/{name}", index.trials.get(name)
    if record is None and index.own is not None:
        uri, record = base, index.own
    if record is not None:
        unfinished = index.is_unfinished(record)
        return view_of(name, uri, record, access, lost=is_lost(record), unfinished=unfinished)
    if name in index.unreadable:
        return TrialView(name, uri, "unreadable", error=str(index.unreadable[name]))
    driver = index.experiment
    known = TrialRecord(name) if driver is None else TrialRecord(name, status=driver.trials[name], runner=driver.runner)
    # Started; the store has nothing of it yet.
    return TrialView(name, uri, known.status, lost=is_lost(known), unfinished=index.is_unfinished(known))


def view_of(
    name: str, uri: str, record: TrialRecord, access: StoreAccess, *, lost: bool = False, unfinished: bool = False
) -> TrialView:
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
        unfinished=unfinished,
        given_up=record.given_up,
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
        item.tags,
        access,
    )
