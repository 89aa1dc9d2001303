"""An experiment as its records tell it: look at its trials, pick a checkpoint, get it back.

Nothing here is open between calls, so nothing needs closing. Nothing depends on where the experiment was written: a
moved, copied or renamed one reads the same.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointRetiredError,
    ConfigError,
    DamagedError,
    SyncError,
)
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.retention import by_age, score
from asyncsync.remote.access import reading
from asyncsync.remote.catalog import Catalog, read_catalog
from asyncsync.remote.consistent_download import Selection, download_exactly
from asyncsync.remote.restore import Candidates, RestoreReport, is_not_whole, restore_newest
from asyncsync.remote.verify import verify
from asyncsync.report import VerifyReport
from asyncsync.sync.download.exact_target import remove_files
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.records.manifests import find_record, read_manifest
from asyncsync.sync.records.model import TRIAL_RECORD, CheckpointRecord, TrialRecord

DEFAULT = TransferConfig()


@dataclass(frozen=True)
class Access:
    """How to reach the store again."""

    options: Mapping[str, object] = field(default_factory=dict, repr=False)
    transfer: TransferConfig = DEFAULT


@dataclass(frozen=True)
class CheckpointView:
    """A committed checkpoint."""

    name: str
    trial: str
    """Name of its trial."""
    uri: str
    number: int
    metrics: dict[str, Any]
    """As reported with it."""
    metadata: dict[str, Any]
    files: int
    """How many; :meth:`manifest` names them."""
    bytes: int
    time: float
    """Unix seconds of when it became durable."""
    access: Access = field(default_factory=Access, repr=False, compare=False)

    async def manifest(self) -> Manifest:
        """Every file with its size and checksums; CheckpointRetiredError or CheckpointIncompleteError if it is gone,
        DamagedError if it cannot be read."""
        async with self._told_if_retired(), reading(self.uri, self.access.transfer, self.access.options) as store:
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
        """Fetch it into the directory ``target``, every byte checked; files that are there and right stay.

        Args:
            target: a directory; it need not exist.
            include: only files that match one of these gitignore patterns (a path is one too).
            exact: when everything is in place, remove from ``target`` all other files and links, then directories that
                are empty. Links are not followed.
            on_progress: is called on the event loop, at most five times a second.
            landed: is filled with the paths that were written, also if it fails.

        The report can be used as the path. No file is ever half written, and all are of this checkpoint.

        Raises:
            CheckpointRetiredError: its trial has retired it since; the error names the newest one. What was fetched of
                it is removed.
            CheckpointIncompleteError: its manifest or data is missing for another reason.
            IntegrityError: it is damaged.
            ConfigError: ``include`` matches no file, or came with ``exact``; or ``target`` is not to be made exact: the
                root, a home directory, one that holds the working directory, or that asyncsync keeps in step.
            SyncFailedError: anything else.
        """
        selection, transfer = Selection.of(include, exact=exact), self.access.transfer
        put: list[str] = [] if landed is None else landed
        try:
            async with self._told_if_retired(), reading(self.uri, transfer, self.access.options) as store:
                return await download_exactly(
                    store, "", target, selection, concurrency=transfer.max_concurrency, on_progress=on_progress,
                    landed=put,
                )  # fmt: skip
        except CheckpointRetiredError:
            await in_thread(remove_files, os.fspath(target), put)  # it will never be whole
            raise

    async def verify(self, *, deep: bool = True) -> VerifyReport:
        """Whether the store has what its manifest names; ``deep`` reads every byte. CheckpointRetiredError."""
        access = self.access
        async with self._told_if_retired():
            report = await verify(self.uri, deep=deep, storage_options=access.options, transfer=access.transfer)
        if not report.ok and (retired := await self._retired()) is not None:
            raise retired
        return report

    @asynccontextmanager
    async def _told_if_retired(self) -> AsyncIterator[None]:
        """What is not whole because its trial has retired it is no damage."""
        try:
            yield
        except AsyncsyncError as error:
            if not is_not_whole(error) or (retired := await self._retired()) is None:
                raise
            raise retired from error

    async def _retired(self) -> CheckpointRetiredError | None:
        """The error that says so, if the record of its trial does not name it now."""
        access = self.access
        try:
            async with reading(self.uri.removesuffix(f"/{self.name}"), access.transfer, access.options) as store:
                record = await find_record(store, TRIAL_RECORD, TrialRecord)
        except AsyncsyncError:
            return None  # nobody knows; the error that we have says what is wrong
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


@dataclass(frozen=True)
class TrialView:
    """A trial, as its record tells it."""

    name: str
    uri: str
    status: str
    """running, finished, failed, or what ``Trial.finish`` was given; ``unreadable``: its record is damaged."""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the last report."""
    checkpoints: list[CheckpointView] = field(default_factory=list)
    """By number, oldest first."""
    error: str | None = None
    reports: int = 0
    started: float = 0.0
    """Unix seconds."""
    updated: float = 0.0
    """Unix seconds of the last change of the record."""


@dataclass(frozen=True)
class Experiment:
    """An experiment as it was when it was opened: ``await Experiment.open(uri)``."""

    name: str
    uri: str
    status: str
    trials: list[TrialView]
    """By name."""
    access: Access = field(default_factory=Access, repr=False, compare=False)

    @classmethod
    async def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig = DEFAULT,
    ) -> Experiment:
        """Read the records of all trials, in parallel; no manifest and no data.

        NotFoundError if there is no experiment at ``uri``; ConfigError for a URI that is not known.
        """
        access = Access(dict(storage_options or {}), transfer)
        async with reading(uri, transfer, storage_options) as store:
            catalog = await read_catalog(store)
        base = os.fspath(uri).rstrip("/")
        trials = [_trial(name, base, catalog, access) for name in sorted(_names(catalog))]
        record = catalog.experiment
        name = record.name if record is not None else base.rpartition("/")[2]
        return cls(name, base, record.status if record is not None else "unknown", trials, access)

    @property
    def checkpoints(self) -> list[CheckpointView]:
        """All of them, newest first. Within a trial the number decides, never a clock; between trials the time."""
        return newest_first(self.trials)

    def trial(self, name: str) -> TrialView:
        """One trial; ConfigError names those that exist."""
        for trial in self.trials:
            if trial.name == name:
                return trial
        known = ", ".join(trial.name for trial in self.trials[:10]) or "none"
        raise ConfigError(f"{self.uri} has no trial {name!r}; it has {len(self.trials)}: {known}")

    def latest_checkpoint(self, trial: str | TrialView | None = None) -> CheckpointView | None:
        """The newest checkpoint of the experiment or of one trial; None if there is none.

        That of a trial has the highest number, whatever clocks said; of several trials' the one that became durable
        last, by the clocks of their machines.
        """
        return next(iter(self._of(trial)), None)

    def best_checkpoint(
        self, metric: str, order: Literal["max", "min"] = "max", trial: str | TrialView | None = None
    ) -> CheckpointView | None:
        """The checkpoint with the largest (or smallest) ``metric``, the newest among equals.

        ``metric`` may be nested, ``"eval/loss"``. NaN, missing and what is no number are never best. None if there
        are no checkpoints at all; SyncError if none of them has the metric, naming those that they have.
        """
        if order not in ("max", "min"):
            raise ConfigError(f'best_checkpoint(order={order!r}) is not usable: it must be "max" or "min"')
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
        """Fetch the newest checkpoint whose every byte checks out; the report says which were passed over and why.

        Where one was retired since the experiment was opened, the records are read again and the newest one of now is
        taken. What a damaged or retired one had left in ``target`` is removed before another is tried. ``include`` and
        ``exact`` as for :meth:`CheckpointView.download`. NotFoundError if there is no checkpoint,
        CheckpointIncompleteError if the records of now name none that is whole. A store that fails or a full disk is an
        error at once, never a reason to fall back.
        """
        Selection.of(include, exact=exact)
        name = trial.name if isinstance(trial, TrialView) else trial
        if name is not None:
            self.trial(name)

        async def look() -> Candidates[CheckpointView]:
            return _candidates(await self._now(name), name)

        async def fetch(item: CheckpointView, landed: list[str]) -> DownloadReport:
            return await item.download(target, include=include, exact=exact, on_progress=on_progress, landed=landed)

        where = self.uri if name is None else f"{self.uri}/{name}"
        return await restore_newest(_candidates(self.trials, name), look, Path(target), where, fetch)

    async def _now(self, trial: str | None) -> list[TrialView]:
        """The trials as their records tell them now; of one trial only its own is read."""
        access = self.access
        if trial is None:
            now = await Experiment.open(self.uri, storage_options=access.options, transfer=access.transfer)
            return now.trials
        uri = f"{self.uri}/{trial}"
        async with reading(uri, access.transfer, access.options) as store:
            try:
                record = await find_record(store, TRIAL_RECORD, TrialRecord)
            except DamagedError as error:
                return [TrialView(trial, uri, "unreadable", error=str(error))]
        return [] if record is None else [_view(trial, uri, record, access)]

    def _of(self, trial: str | TrialView | None) -> list[CheckpointView]:
        if trial is None:
            return self.checkpoints
        return newest_first([self.trial(trial if isinstance(trial, str) else trial.name)])


def _candidates(trials: Iterable[TrialView], name: str | None) -> Candidates[CheckpointView]:
    """What can be restored of one trial, or of all."""
    wanted = [item for item in trials if name in (None, item.name)]
    lost = [(item.name, item.error or "") for item in wanted if item.status == "unreadable"]
    return Candidates(newest_first(wanted), lost)


def newest_first(trials: Iterable[TrialView]) -> list[CheckpointView]:
    """The newest first: always the highest number that is left of a trial, and of several trials' the latest one."""
    lines = [trial.checkpoints[::-1] for trial in trials]
    return list(heapq.merge(*lines, key=lambda item: (-item.time, -item.number)))


def _names(catalog: Catalog) -> set[str]:
    started = catalog.experiment.trials if catalog.experiment is not None else {}
    return catalog.trials.keys() | catalog.unreadable.keys() | started.keys()


def _trial(name: str, base: str, catalog: Catalog, access: Access) -> TrialView:
    uri = f"{base}/{name}"
    record = catalog.trials.get(name)
    if record is None:
        if name in catalog.unreadable:
            return TrialView(name, uri, "unreadable", error=str(catalog.unreadable[name]))
        status = catalog.experiment.trials[name] if catalog.experiment is not None else "unknown"
        return TrialView(name, uri, status)  # started, and nothing of it has reached the store yet
    return _view(name, uri, record, access)


def _view(name: str, uri: str, record: TrialRecord, access: Access) -> TrialView:
    records = sorted(record.checkpoints, key=by_age)
    checkpoints = [_checkpoint(name, uri, item, access) for item in records]
    return TrialView(
        name, uri, record.status, record.params, record.metrics, checkpoints, record.error, record.reports,
        record.started, record.updated,
    )  # fmt: skip


def _checkpoint(trial: str, uri: str, item: CheckpointRecord, access: Access) -> CheckpointView:
    return CheckpointView(
        item.name, trial, f"{uri}/{item.name}", item.number, item.metrics, item.metadata, item.files, item.bytes,
        item.time, access,
    )  # fmt: skip
