"""An experiment as its records describe it: list its trials, pick a checkpoint, download or restore it.

Nothing stays open between calls, so nothing needs closing. Nothing depends on the address under which the experiment
was written: a moved, copied or renamed experiment reads the same.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig, split_sas
from asyncsync.disk.results import RESULTS, parse_results
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointRetiredError,
    ConfigError,
    DamagedError,
    SyncError,
)
from asyncsync.events import Progress
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.retention import by_age, score
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.current_tree import download_selection
from asyncsync.remote.restore import Candidates, RestoreReport, is_incomplete_or_damaged, restore_newest
from asyncsync.remote.selection import Selection
from asyncsync.remote.trial_index import TrialIndex, read_trial_index
from asyncsync.remote.verify import verify
from asyncsync.report import VerifyReport
from asyncsync.runtime import wall_time
from asyncsync.stores.read import find
from asyncsync.sync.download.exact_target import remove_files
from asyncsync.sync.download.open_file import CheckpointFile, entry_of
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.records.manifests import find_record, read_manifest
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord


@dataclass(frozen=True)
class CheckpointView:
    """A committed checkpoint."""

    name: str
    trial: str
    """Name of its trial."""
    uri: str
    number: int
    metrics: dict[str, Any]
    """As reported with the checkpoint."""
    metadata: dict[str, Any]
    """As reported with the checkpoint."""
    files: int
    """Number of files; :meth:`manifest` names them."""
    bytes: int
    """Size of all files."""
    time: float
    """When the checkpoint became durable, Unix seconds."""
    step: int | None = None
    """Training step of the report, or None."""
    pinned: bool = False
    """Whether retention leaves it alone."""
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)

    async def manifest(self) -> Manifest:
        """Every file with its size and checksums.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint.
            CheckpointIncompleteError: the manifest is missing for another reason.
            DamagedError: the manifest cannot be read.
        """
        async with (
            self._retirement_reported(),
            open_for_reading(self.uri, self._access.transfer, self._access.options) as store,
        ):
            return await read_manifest(store, "")

    async def download(
        self,
        target: str | os.PathLike[str],
        *,
        include: str | Sequence[str] | None = None,
        exact: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        landed: list[str] | None = None,
    ) -> DownloadReport:
        """Download the checkpoint into the directory ``target`` and verify every byte.

        Files that are already correct are not transferred again. No file is ever half written, and all files belong to
        this checkpoint. The returned report can be used as the path of ``target``.

        Args:
            target: a directory; it need not exist.
            include: download only files that match one of these gitignore patterns (a path is a pattern too).
            exact: when everything is in place, remove all other files and links from ``target``, then empty
                directories. Links are not followed.
            on_progress: called on the event loop, at most five times a second.
            landed: filled with the paths of the files that were written, also if the download fails.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint; the error names the trial's newest one. The
                downloaded files are removed.
            CheckpointIncompleteError: the manifest or data is missing for another reason.
            IntegrityError: the data is damaged.
            ConfigError: ``include`` matches no file or was given together with ``exact``; or ``target`` must not be
                cleared: the root, a home directory, a parent of the working directory, a directory that asyncsync
                syncs.
            SyncFailedError: any other failure.
        """
        selection, transfer = Selection.of(include, exact=exact), self._access.transfer
        put: list[str] = [] if landed is None else landed
        try:
            async with self._retirement_reported(), open_for_reading(self.uri, transfer, self._access.options) as store:
                return await download_selection(
                    store,
                    "",
                    target,
                    selection,
                    concurrency=transfer.max_concurrency,
                    on_progress=on_progress,
                    landed=put,
                )
        except CheckpointRetiredError:
            await in_thread(remove_files, os.fspath(target), put)  # it can never be completed
            raise

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[CheckpointFile]:
        """Open one file of the checkpoint for reading: ``async with checkpoint.open("model.bin") as file``.

        Only the parts that are read are fetched, and each is verified.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint, now or while the file is read.
            CheckpointIncompleteError: the manifest or the file is missing for another reason.
            IntegrityError: the bytes are damaged.
            ConfigError: the checkpoint has no such file; the message names some that it has.
        """
        access = self._access
        async with self._retirement_reported(), open_for_reading(self.uri, access.transfer, access.options) as store:
            entry = entry_of(await read_manifest(store, ""), path, self.uri)
            async with CheckpointFile(store, "", entry) as file:
                yield file

    async def verify(self, *, deep: bool = True) -> VerifyReport:
        """Compare the store with the manifest; ``deep`` reads every byte. CheckpointRetiredError if the trial has
        retired the checkpoint."""
        access = self._access
        async with self._retirement_reported():
            report = await verify(self.uri, deep=deep, storage_options=access.options, transfer=access.transfer)
        if not report.ok and (retired := await self._retired()) is not None:
            raise retired
        return report

    @asynccontextmanager
    async def _retirement_reported(self) -> AsyncIterator[None]:
        """Report an incomplete checkpoint that the trial has retired as CheckpointRetiredError."""
        try:
            yield
        except AsyncsyncError as error:
            if not is_incomplete_or_damaged(error) or (retired := await self._retired()) is None:
                raise
            raise retired from error

    async def _retired(self) -> CheckpointRetiredError | None:
        """The error to raise if the trial's record no longer names the checkpoint."""
        access = self._access
        try:
            async with open_for_reading(
                self.uri.removesuffix(f"/{self.name}"), access.transfer, access.options
            ) as store:
                record = await find_record(store, TRIAL_RECORD, TrialRecord)
        except AsyncsyncError:
            return None  # unknown; the original error describes the failure
        if record is None or self.name in {item.name for item in record.checkpoints}:
            return None
        text = f"{self.uri} was retired by its trial since its record was read"
        if not record.checkpoints:
            return CheckpointRetiredError(f"{text}; the trial has no checkpoint now")
        newest = max(record.checkpoints, key=by_age).name
        newest_uri = f"{self.uri.removesuffix(self.name)}{newest}"
        return CheckpointRetiredError(
            f"{text}; its newest checkpoint is {newest_uri}: open the experiment again", newest_uri
        )


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
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)

    @classmethod
    async def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig = DEFAULT_TRANSFER,
    ) -> Experiment:
        """Read the records of all trials, in parallel; no manifest and no data.

        Raises:
            NotFoundError: there is no experiment at ``uri``.
            DamagedError: the driver's record cannot be read, and there are no trials.
            ConfigError: the URI or an option is unknown.
            StoreError: the store refused or failed a request.
        """
        address, options = split_sas(os.fspath(uri), storage_options)
        access = StoreAccess(options, transfer)
        async with open_for_reading(address, transfer, options) as store:
            index = await read_trial_index(store)
        base = address.rstrip("/")
        is_lost = index.lost_test(wall_time())
        trials = [_trial(name, base, index, access, is_lost) for name in sorted(index.names())]
        record = index.experiment
        name = record.name if record is not None else base.rpartition("/")[2]
        status = record.status if record is not None else "unknown"
        return cls(name, base, status, trials, index.is_lost(wall_time()), access)

    def __repr__(self) -> str:
        return f"<Experiment {self.uri} {'lost' if self.lost else self.status}, {len(self.trials)} trials>"

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
            known = ", ".join(sorted({name for item in candidates for name in item.metrics})) or "none"
            raise SyncError(
                f"no checkpoint of {self.uri} has a number as metric {metric!r}; metrics there are: {known}"
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


def trial_row(trial: TrialView) -> dict[str, Any]:
    """The trial as one row of a table; a metric named like a field is ``metrics.NAME``."""
    row = {"status": "lost" if trial.lost else trial.status, "reports": trial.reports}
    row |= {"checkpoints": len(trial.checkpoints), **{f"params.{name}": value for name, value in trial.params.items()}}
    return row | {f"metrics.{name}" if name in row else name: value for name, value in trial.metrics.items()}


def _candidates(trials: Iterable[TrialView], name: str | None) -> Candidates[CheckpointView]:
    """The checkpoints of one trial, or of all, that a restore may try."""
    wanted = [item for item in trials if name in (None, item.name)]
    unreadable = [(item.name, item.error or "") for item in wanted if item.status == "unreadable"]
    return Candidates(newest_first(wanted), unreadable)


def newest_first(trials: Iterable[TrialView]) -> list[CheckpointView]:
    """All checkpoints, newest first: by number within a trial, by time between trials."""
    lines = [trial.checkpoints[::-1] for trial in trials]
    return list(heapq.merge(*lines, key=lambda item: (-item.time, -item.number)))


def _trial(
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
