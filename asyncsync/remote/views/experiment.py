"""An experiment as its records describe it: list its trials, pick a checkpoint, download or restore it.

Nothing stays open between calls, so nothing needs closing. Nothing depends on the address under which the experiment
was written: a moved, copied or renamed experiment reads the same.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import (
    ConfigError,
    DamagedError,
    SyncError,
)
from asyncsync.events import Progress
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.retention import flatten, score
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.restore import Candidates, RestoreReport, restore_newest
from asyncsync.remote.selection import Selection
from asyncsync.remote.trial_index import TrialIndex, read_trial_index
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.remote.views.html_view import ROWS_SHOWN, table_html
from asyncsync.remote.views.trial_view import HTML_COLUMNS, TrialView, html_row, trial_of, trial_row, view_of
from asyncsync.runtime import wall_time
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.records.manifests import find_record
from asyncsync.sync.records.model import TrialRecord


@dataclass(frozen=True, repr=False)
class Experiment:
    """A snapshot of an experiment, made by ``await Experiment.open(uri)``."""

    name: str
    uri: str
    status: str
    trials: list[TrialView]
    """Sorted by name."""
    lost: bool = False
    """The status is ``running``, but the driver has ended, or has sent no heartbeat for three periods."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings of the driver: ``sync`` and ``checkpoint``, each with the fields of its class; empty if unknown."""
    started: float = 0.0
    """Unix seconds; 0: unknown."""
    heartbeat: float = 0.0
    """When the driver last wrote its record, Unix seconds; 0: unknown."""
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)

    @classmethod
    async def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig = DEFAULT_TRANSFER,
        on_partial: Callable[[Experiment], None] | None = None,
    ) -> Experiment:
        """Read the records of all trials, in parallel; no manifest and no data.

        ``on_partial``: called a few times with an incomplete experiment, before all records are read. Trials of which
        only the driver's record is known then have their name and status, and ``updated`` 0.

        Raises:
            NotFoundError: there is no experiment at ``uri``.
            DamagedError: the driver's record cannot be read, and there are no trials.
            ConfigError: the URI or an option is unknown.
            StoreError: the store refused or failed a request.
        """
        address, options = split_sas(os.fspath(uri), storage_options)
        access = StoreAccess(options, transfer)
        async with open_for_reading(address, transfer, options) as store:
            on_index = None if on_partial is None else lambda index: on_partial(cls._of_index(address, index, access))
            index = await read_trial_index(store, on_index)
        return cls._of_index(address, index, access)

    @classmethod
    def _of_index(cls, address: str, index: TrialIndex, access: StoreAccess) -> Experiment:
        base, now = address.rstrip("/"), wall_time()
        is_lost = index.lost_test(now)
        trials = [trial_of(name, base, index, access, is_lost) for name in sorted(index.names())]
        record = index.experiment
        if record is None:
            return cls(base.rpartition("/")[2], base, "unknown", trials, _access=access)
        return cls(
            record.name,
            base,
            record.status,
            trials,
            index.is_lost(now),
            record.config,
            record.started,
            record.heartbeat,
            access,
        )

    def __repr__(self) -> str:
        return f"<Experiment {self.uri} {'lost' if self.lost else self.status}, {len(self.trials)} trials>"

    def _repr_html_(self) -> str:
        """For notebooks: a row for each of the first trials, with a curve of its checkpoints. No request is sent."""
        status = "lost" if self.lost else self.status
        caption = f"{self.uri}: {status}, {len(self.trials):,} trials"
        rows = [html_row(trial) for trial in self.trials[:ROWS_SHOWN]]
        return table_html(caption, HTML_COLUMNS, rows, len(self.trials) - len(rows))

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row for each trial, by its name: ``status``, ``reports``, ``checkpoints``,
        ``params.NAME`` and the last metrics under their names. ConfigError without pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ConfigError("Experiment.to_frame needs pandas: pip install pandas") from error
        return pd.DataFrame([trial_row(trial) for trial in self.trials], index=[trial.name for trial in self.trials])

    @property
    def checkpoints(self) -> list[CheckpointView]:
        """All checkpoints, newest first: by number within a trial, never by a clock; by time between trials."""
        return newest_first(self.trials)

    def trial(self, name: str) -> TrialView:
        """One trial; ConfigError names those that exist."""
        for trial in self.trials:
            if trial.name == name:
                return trial
        known = ", ".join(trial.name for trial in self.trials[:10]) or "none"
        raise ConfigError(f"{self.uri} has no trial {name!r}; it has {len(self.trials)}: {known}")

    def checkpoint(self, trial: str | TrialView, *, step: int | None = None, name: str | None = None) -> CheckpointView:
        """The checkpoint of a trial with this training step or this name; of two with one step, the newest.

        ConfigError unless exactly one of the two is given, or if there is no such trial or checkpoint; the message
        lists those that exist.
        """
        if (step is None) == (name is None):
            raise ConfigError(f"invalid checkpoint(step={step!r}, name={name!r}): give either step or name")
        found = self._of(trial)
        for item in found:
            if item.name == name if step is None else item.step == step:
                return item
        wanted = f"step {step}" if name is None else f"the name {name!r}"
        known = ", ".join(f"{item.name} (step {item.step})" for item in found[:10]) or "none"
        raise ConfigError(f"{self.uri} has no checkpoint of trial {trial!r} with {wanted}; the newest are: {known}")

    def latest_checkpoint(self, trial: str | TrialView | None = None) -> CheckpointView | None:
        """The newest checkpoint of the experiment or of one trial; None if there is none.

        The newest checkpoint of a trial is the one with the highest number. Among several trials it is the one that
        became durable last, by the clocks of their machines.
        """
        return next(iter(self._of(trial)), None)

    def best_checkpoint(
        self, metric: str, order: Literal["max", "min"] = "max", trial: str | TrialView | None = None
    ) -> CheckpointView | None:
        """The checkpoint with the largest (or smallest) ``metric``, the newest among equals.

        ``metric`` may be nested, ``"eval/loss"``. NaN, missing and non-numeric values are never best. Returns None if
        there are no checkpoints. SyncError if no checkpoint has the metric; the error lists the metrics that exist.
        """
        if order not in ("max", "min"):
            raise ConfigError(f'invalid best_checkpoint(order={order!r}): must be "max" or "min"')
        candidates = self._of(trial)
        if not candidates:
            return None
        best, best_score = None, float("-inf")
        for item in candidates:
            value = score(item.metrics, metric, order)
            if value is not None and (best is None or value > best_score):
                best, best_score = item, value
        if best is None:
            known = sorted({name for item in candidates for name in flatten(item.metrics)})
            close = "".join(f", did you mean {name!r}?" for name in get_close_matches(metric, known, n=1))
            raise SyncError(
                f"no checkpoint of {self.uri} has a number as metric {metric!r}{close}; metrics there are: "
                f"{', '.join(known) or 'none'}"
            )
        return best

    async def restore(
        self,
        target: str | os.PathLike[str],
        trial: str | TrialView | None = None,
        *,
        include: str | Sequence[str] | None = None,
        exact: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RestoreReport[CheckpointView]:
        """Download the newest checkpoint that is complete and undamaged, and verify every byte.

        The report names the newer checkpoints that were passed over and why. If a checkpoint was retired since the
        experiment was opened, the records are read again and the newest checkpoint is tried next. Files of a damaged or
        retired checkpoint are removed from ``target`` before another one is tried. ``include`` and ``exact`` work as in
        :meth:`CheckpointView.download`.

        Raises:
            NotFoundError: there is no checkpoint.
            CheckpointIncompleteError: the current records name no checkpoint that is complete and undamaged.
            StoreError: the store failed. Like a full disk this raises at once: an older checkpoint would not help.
        """
        name = trial.name if isinstance(trial, TrialView) else trial
        if name is not None:
            self.trial(name)

        async def read_again() -> Candidates[CheckpointView]:
            return _candidates(await self._now(name), name)

        where = self.uri if name is None else f"{self.uri}/{name}"
        known = _candidates(self.trials, name)
        return await restore_checkpoint(known, read_again, target, where, include, exact=exact, on_progress=on_progress)

    async def _now(self, trial: str | None) -> list[TrialView]:
        """The trials as their current records describe them; for one trial only its own record is read."""
        access = self._access
        if trial is None:
            now = await Experiment.open(self.uri, storage_options=access.options, transfer=access.transfer)
            return now.trials
        uri = self.trial(trial).uri
        async with open_for_reading(uri, access.transfer, access.options) as store:
            try:
                record = await find_record(store, TRIAL_RECORD, TrialRecord)
            except DamagedError as error:
                return [TrialView(trial, uri, "unreadable", error=str(error))]
        return [] if record is None else [view_of(trial, uri, record, access)]

    def _of(self, trial: str | TrialView | None) -> list[CheckpointView]:
        if trial is None:
            return self.checkpoints
        return newest_first([self.trial(trial if isinstance(trial, str) else trial.name)])


async def restore_checkpoint(
    known: Candidates[CheckpointView],
    read_again: Callable[[], Awaitable[Candidates[CheckpointView]]],
    target: str | os.PathLike[str],
    where: str,
    include: str | Sequence[str] | None,
    *,
    exact: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> RestoreReport[CheckpointView]:
    """Download the first of the ``known`` checkpoints that is complete and undamaged, see :meth:`Experiment.restore`.
    ``read_again`` reads the records again."""
    Selection.of(include, exact=exact)

    async def fetch(item: CheckpointView, landed: list[str]) -> DownloadReport:
        return await item.download(target, include=include, exact=exact, on_progress=on_progress, landed=landed)

    return await restore_newest(known, read_again, Path(target), where, fetch)


def _candidates(trials: Iterable[TrialView], name: str | None) -> Candidates[CheckpointView]:
    """The checkpoints of one trial, or of all, that a restore may try."""
    wanted = [item for item in trials if name in (None, item.name)]
    unreadable = [(item.name, item.error or "") for item in wanted if item.status == "unreadable"]
    return Candidates(newest_first(wanted), unreadable)


def newest_first(trials: Iterable[TrialView]) -> list[CheckpointView]:
    """All checkpoints, newest first: by number within a trial, by time between trials."""
    lines = [trial.checkpoints[::-1] for trial in trials]
    return list(heapq.merge(*lines, key=lambda item: (-item.time, -item.number)))
