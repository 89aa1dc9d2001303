"""Records of trials and experiments that another framework runs, so that everything that reads an experiment sees
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncsync.aio.tasks import for_each_limited
from asyncsync.config import check_name
from asyncsync.errors import ConfigError
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import Manifest
from asyncsync.runtime import wall_time
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.records.model import CheckpointRecord, ExperimentRecord, TrialRecord

MANIFEST_READERS = 16
MOST_KNOWN = 10_000
"""Checkpoints whose sizes are remembered."""


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint of a trial. ``number``: its place in the order of the checkpoints, from 0."""

    name: str
    number: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialSummary:
    """The state of a trial, for its record. ``started``: Unix seconds."""

    name: str
    status: str = "running"
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reports: int = 0
    checkpoints: Sequence[CheckpointSummary] = ()
    error: str | None = None
    started: float = 0.0


class SummaryWriter:
    """Writes the records below one storage path; the caller is their only writer. A record without a change costs no
    request. Memory: about 200 bytes for each checkpoint that was ever recorded, at most MOST_KNOWN of them."""

    def __init__(self) -> None:
        self._written: dict[str, bytes] = {}
        """Key -> content of the last record, apart from its time."""
        self._sizes: dict[str, tuple[int, int, float]] = {}
        """Prefix of a committed checkpoint -> files, bytes, time of its manifest."""
        self._missing: dict[str, Mapping[str, Any]] = {}
        """Prefix of a checkpoint that has no manifest -> the metrics with which it was named."""

    async def save_trial(self, store: Store, prefix: str, trial: TrialSummary, experiment: str) -> None:
        """Write the record of a trial. Checkpoints without a manifest are left out, and those with several levels."""
        await self._measure(store, {f"{prefix}{item.name}/": item.metrics for item in trial.checkpoints})
        record = TrialRecord(
            trial.name,
            experiment,
            trial.status,
            trial.error,
            dict(trial.params),
            dict(trial.metrics),
            trial.reports,
            self._records(prefix, trial.checkpoints),
            next_checkpoint=max((item.number + 1 for item in trial.checkpoints), default=0),
            started=trial.started,
        )
        await self._save(store, prefix + TRIAL_RECORD, record)

    async def save_experiment(
        self, store: Store, prefix: str, name: str, status: str, trials: Mapping[str, str], started: float
    ) -> None:
        """Write the record of an experiment. ``trials``: name -> status."""
        record = ExperimentRecord(name, dict(trials), status=status, started=started)
        await self._save(store, prefix + EXPERIMENT_RECORD, record)

    def forget(self, prefix: str) -> None:
        """A checkpoint is going to be deleted, or replaced."""
        self._sizes.pop(prefix, None)
        self._missing.pop(prefix, None)

    def _records(self, prefix: str, checkpoints: Sequence[CheckpointSummary]) -> list[CheckpointRecord]:
        found = []
        for item in checkpoints:
            sizes = self._sizes.get(f"{prefix}{item.name}/")
            if sizes is not None and _can_be_recorded(item.name):
                record = CheckpointRecord(item.name, item.number, dict(item.metrics))
                record.files, record.bytes, record.time = sizes
                found.append(record)
        return found

    async def _measure(self, store: Store, named: Mapping[str, Mapping[str, Any]]) -> None:
        """Read the manifests that are not known. One that was missing is looked for again when its checkpoint is
        reported again."""

        async def read(prefix: str) -> None:
            manifest = await find_manifest(store, prefix)
            if manifest is not None:
                self.remember(prefix, manifest)
            else:
                self._missing[prefix] = named[prefix]

        unknown = [item for item in named if item not in self._sizes and self._missing.get(item) != named[item]]
        await for_each_limited(unknown, read, MANIFEST_READERS)

    def remember(self, prefix: str, manifest: Manifest) -> None:
        """The manifest of a committed checkpoint, which need not be read then."""
        self._missing.pop(prefix, None)
        if len(self._sizes) >= MOST_KNOWN:
            self._sizes.pop(next(iter(self._sizes)))
        self._sizes[prefix] = (len(manifest.files), manifest.bytes_total, float(manifest.info.get("time", 0.0)))

    async def _save(self, store: Store, key: str, record: TrialRecord | ExperimentRecord) -> None:
        content = record.to_bytes()
        if self._written.get(key) == content:
            return
        record.updated = wall_time()
        await store.put(key, record.to_bytes())
        self._written[key] = content


def _can_be_recorded(name: str) -> bool:
    """Whether a record can name the checkpoint: other frameworks allow several levels."""
    try:
        check_name("checkpoint", name)
    except ConfigError:
        return False
    return True
