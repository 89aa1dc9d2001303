"""An experiment as its records tell it: look at its trials, pick a checkpoint, get it back.

Nothing here is open between calls, so nothing needs closing. Nothing depends on where the experiment was written: a
moved, copied or renamed one reads the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError, SyncError
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.retention import score
from asyncsync.records import CheckpointRecord, TrialRecord
from asyncsync.report import VerifyReport
from asyncsync.restoring import RestoreReport, restore_newest
from asyncsync.transfer.catalog import Catalog, read_catalog
from asyncsync.transfer.download import DownloadReport, download_tree
from asyncsync.transfer.reader import read_manifest, reading
from asyncsync.verifying import verify

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
        """Every file with its size and checksums; CheckpointIncompleteError if it is gone, DamagedError if it
        cannot be read."""
        async with reading(self.uri, self.access.transfer, self.access.options) as store:
            return await read_manifest(store, "")

    async def download(
        self,
        target: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        landed: list[str] | None = None,
    ) -> DownloadReport:
        """Fetch it into the directory ``target``, every byte checked; files that are there and right stay.

        The report can be used as the path. CheckpointIncompleteError if its manifest or data is gone, IntegrityError
        if it is damaged, SyncFailedError for anything else; no file is ever half written. ``landed`` is filled with
        the paths that were written, also if it fails.
        """
        async with reading(self.uri, self.access.transfer, self.access.options) as store:
            manifest = await read_manifest(store, "")
            return await download_tree(
                store, "", manifest, target, concurrency=self.access.transfer.max_concurrency,
                on_progress=on_progress, landed=landed,
            )  # fmt: skip

    async def verify(self, *, deep: bool = True) -> VerifyReport:
        """Whether the store has what its manifest names; ``deep`` reads every byte."""
        return await verify(self.uri, deep=deep, storage_options=self.access.options, transfer=self.access.transfer)


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
    """Oldest first."""
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
        return cls(name, base, record.status if record is not None else "unknown", trials)

    @property
    def checkpoints(self) -> list[CheckpointView]:
        """All of them, newest first."""
        return newest_first(item for trial in self.trials for item in trial.checkpoints)

    def trial(self, name: str) -> TrialView:
        """One trial; ConfigError names those that exist."""
        for trial in self.trials:
            if trial.name == name:
                return trial
        known = ", ".join(trial.name for trial in self.trials[:10]) or "none"
        raise ConfigError(f"{self.uri} has no trial {name!r}; it has {len(self.trials)}: {known}")

    def latest_checkpoint(self, trial: str | TrialView | None = None) -> CheckpointView | None:
        """The newest checkpoint of the experiment or of one trial; None if there is none."""
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
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RestoreReport[CheckpointView]:
        """Fetch the newest checkpoint whose every byte checks out; the report says which were passed over and why.

        What a damaged one had left in ``target`` is removed before an older one is tried. NotFoundError if there is no
        checkpoint, CheckpointIncompleteError if none is whole. A store that fails or a full disk is an error at once,
        never a reason to fall back.
        """
        where = self.uri if trial is None else f"{self.uri}/{trial if isinstance(trial, str) else trial.name}"
        trials = self.trials if trial is None else [self.trial(trial if isinstance(trial, str) else trial.name)]
        lost = [(item.name, item.error or "") for item in trials if item.status == "unreadable"]
        return await restore_newest(self._of(trial), Path(target), where, on_progress, lost)

    def _of(self, trial: str | TrialView | None) -> list[CheckpointView]:
        if trial is None:
            return self.checkpoints
        return newest_first(self.trial(trial if isinstance(trial, str) else trial.name).checkpoints)


def newest_first(checkpoints: Iterable[CheckpointView]) -> list[CheckpointView]:
    """By time, then number."""
    return sorted(checkpoints, key=lambda item: (item.time, item.number), reverse=True)


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
    checkpoints = [_checkpoint(name, uri, item, access) for item in record.checkpoints]
    return TrialView(
        name, uri, record.status, record.params, record.metrics, checkpoints, record.error, record.reports,
        record.started, record.updated,
    )  # fmt: skip


def _checkpoint(trial: str, uri: str, item: CheckpointRecord, access: Access) -> CheckpointView:
    return CheckpointView(
        item.name, trial, f"{uri}/{item.name}", item.number, item.metrics, item.metadata, item.files, item.bytes,
        item.time, access,
    )  # fmt: skip
