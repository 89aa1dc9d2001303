"""Private: the contents of any URL: experiments, one experiment, one trial, or the files of a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from asyncsync.aio.tasks import for_each_limited
from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import DamagedError, NotFoundError
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import Manifest
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.trial_index import TrialIndex
from asyncsync.remote.views.experiment import Experiment
from asyncsync.remote.views.trial_view import TrialView, view_of
from asyncsync.runtime import wall_time
from asyncsync.stores.base import Store
from asyncsync.stores.read import find, list_directories
from asyncsync.sync.records.manifests import find_manifest, find_record
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord

EXPERIMENT_RECORD_READERS = 64
"""Records read in parallel."""


@dataclass(frozen=True)
class ExperimentSummary:
    """An experiment below a storage path, as its record describes it."""

    name: str
    uri: str
    status: str
    """``running``, ``finished`` or ``failed``; ``unreadable``: the record is damaged."""
    trials: dict[str, int] = field(default_factory=dict)
    """Number of trials by their status."""
    started: float = 0.0
    """Unix seconds."""
    updated: float = 0.0
    """Last change of the record, Unix seconds."""
    error: str | None = None
    """Why the record cannot be read."""
    lost: bool = False
    """The status is ``running``, but the driver has ended, or has sent no heartbeat for three periods."""


Contents: TypeAlias = list[ExperimentSummary] | Experiment | TrialView | Manifest
"""The contents of a storage path, an experiment, a trial, or any other prefix that was synced."""


async def contents(
    uri: str | os.PathLike[str],
    *,
    files: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> Contents:
    """Read the contents of ``uri`` from its records and manifests. Everything in the result is durable.

    ``files``: the manifest of ``uri`` itself, also if it is an experiment or a trial. Experiments are sorted by name.

    Raises:
        NotFoundError: asyncsync has stored nothing there.
        DamagedError: the record of the trial, or the manifest, cannot be read.
        ConfigError: the URI or an option is unknown.
        StoreError: the store refused or failed a request.
    """
    address, options = split_sas(os.fspath(uri), storage_options)
    where = address.rstrip("/")
    async with open_for_reading(address, transfer, options) as store:
        is_experiment = not files and await find(store, EXPERIMENT_RECORD) is not None
        found = None if is_experiment else await _below(store, where, files=files)
    if is_experiment:
        return await Experiment.open(address, storage_options=options, transfer=transfer)
    if isinstance(found, TrialRecord):
        access = StoreAccess(options, transfer)
        index = await _index_above(found, where, transfer, options)
        lost, unfinished = index.lost_test(wall_time())(found), index.is_unfinished(found)
        return view_of(found.name, where, found, access, lost=lost, unfinished=unfinished)
    if found is None or found == []:
        above = where.rpartition("/")[0]
        hint = f": asyncsync ls {above} shows what is above it" if above and not above.endswith("/") else ""
        raise NotFoundError(
            f"{where} holds no experiment, no trial and no manifest: no sync has completed there. Check the URL{hint}"
        )
    return found


async def _index_above(
    trial: TrialRecord, uri: str, transfer: TransferConfig, storage_options: Mapping[str, object] | None
) -> TrialIndex:
    """The driver's record, which decides whether a trial that says that it runs does; read for such a trial only."""
    if trial.status != "running":
        return TrialIndex()
    async with open_for_reading(uri.rpartition("/")[0] or "/", transfer, storage_options) as store:
        try:
            return TrialIndex(await find_record(store, EXPERIMENT_RECORD, ExperimentRecord))
        except DamagedError:
            return TrialIndex()  # the trial's own process is all that is known then


async def _below(store: Store, uri: str, *, files: bool) -> list[ExperimentSummary] | TrialRecord | Manifest:
    trial = None if files else await find_record(store, TRIAL_RECORD, TrialRecord)
    if trial is not None:
        return trial
    manifest = await find_manifest(store, "")
    if manifest is not None:
        return manifest
    return [] if files else await _experiments(store, uri)


async def _experiments(store: Store, uri: str) -> list[ExperimentSummary]:
    """The experiments one level down."""
    found: list[ExperimentSummary] = []

    async def read(name: str) -> None:
        try:
            record = await find_record(store, f"{name}/{EXPERIMENT_RECORD}", ExperimentRecord)
        except DamagedError as error:
            found.append(ExperimentSummary(name, f"{uri}/{name}", "unreadable", error=str(error)))
            return
        if record is not None:
            found.append(_summary(name, f"{uri}/{name}", record))

    await for_each_limited(await list_directories(store, ""), read, EXPERIMENT_RECORD_READERS)
    return sorted(found, key=lambda each: each.name)


def _summary(name: str, uri: str, record: ExperimentRecord) -> ExperimentSummary:
    counts = dict(sorted(Counter(record.trials.values()).items()))
    lost = record.is_lost(wall_time())
    return ExperimentSummary(name, uri, record.status, counts, record.started, record.updated, lost=lost)
