"""Private: the index of an experiment's trials: one listing, then every trial's record, in parallel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import DamagedError, NotFoundError
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.runtime import Presence
from asyncsync.stores.base import Store
from asyncsync.stores.read import find, list_directories
from asyncsync.sync.records.manifests import find_record, get_record
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord

log = logging.getLogger("asyncsync")

TRIAL_RECORD_READERS = 128
"""Records read in parallel; the budget may allow fewer requests."""
PARTIAL_EVERY = 2500
"""Records after which a partial index is shown: making the views of ten thousand trials takes a tenth of a second."""

OnPartial = Callable[["TrialIndex"], None]


@dataclass(slots=True)
class TrialIndex:
    """The trials that a store holds, by the name of their directory, even if a record has another name."""

    experiment: ExperimentRecord | None = None
    """None if only workers have written, or if the store holds a single trial."""
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    unreadable: dict[str, DamagedError] = field(default_factory=dict)
    """Trial -> why its record cannot be read."""
    own: TrialRecord | None = None
    """The record of an experiment that is its own only trial."""

    def is_lost(self, now: float) -> bool:
        """Whether the driver ended and did not record it, see :meth:`ExperimentRecord.is_lost`."""
        return self.experiment is not None and self.experiment.is_lost(now)

    def lost_test(self, now: float) -> Callable[[TrialRecord], bool]:
        """A function that decides whether a trial is lost: its status is ``running``, and its driver is lost, or
        the worker that ran it has ended. Each process is looked up once."""
        ended, driver, driver_lost = cache(Presence.has_ended), self.experiment, self.is_lost(now)

        def test(record: TrialRecord) -> bool:
            of_driver = driver is not None and record.runner == driver.runner
            return record.status == "running" and (driver_lost if of_driver else ended(record.runner))

        return test

    def is_unfinished(self, record: TrialRecord) -> bool:
        """Whether the driver left its engine before this trial of it was finished."""
        driver = self.experiment
        if driver is None or driver.status == "running" or record.status != "running":
            return False
        return record.runner == driver.runner

    def missing(self) -> list[str]:
        """The trials that have ended, according to the experiment's record, and have no record of their own."""
        return [name for name in ended_trials(self.experiment) if name not in self.trials | self.unreadable]

    def growing(self, on_partial: OnPartial) -> Callable[[TrialRecord], None]:
        """A function that adds a record, and calls ``on_partial`` after every PARTIAL_EVERY of them."""

        def add(record: TrialRecord) -> None:
            self.trials[record.name] = record
            if len(self.trials) % PARTIAL_EVERY == 0:
                on_partial(self)

        return add

    def names(self) -> set[str]:
        """All trials, also those that the driver has started and whose record is not in the store yet."""
        started = self.experiment.trials if self.experiment is not None else {}
        return self.trials.keys() | self.unreadable.keys() | started.keys()


def ended_trials(experiment: ExperimentRecord | None) -> list[str]:
    """The trials of an experiment that have ended. An engine stores the record of a trial before the experiment's says
    that it has ended, so each of them has one. Records without a nonce are of another framework: they may not."""
    if experiment is None or not experiment.nonce:
        return []
    return [name for name, status in experiment.trials.items() if status != "running"]


async def read_trial_index(store: Store, on_partial: OnPartial | None = None) -> TrialIndex:
    """Read the driver's record and the records of all trials.

    ``on_partial``: called after the driver's record, and after every PARTIAL_EVERY trials.

    Requests: one for each trial, two or three more, and one listing for each thousand trials.

    Raises:
        NotFoundError: the store holds no record at all.
        DamagedError: the store holds only a driver's record, and that cannot be read.
    """
    experiment, damage = None, None
    try:
        experiment = await find_record(store, EXPERIMENT_RECORD, ExperimentRecord)
    except DamagedError as error:  # the trials' records hold the same facts, except the order of the trials
        log.warning("%s: the trials are read without the experiment's record", error)
        damage = error
    partial = TrialIndex(experiment)
    if on_partial is not None and experiment is not None:
        on_partial(partial)
    found, unreadable = await read_trials(store, None if on_partial is None else partial.growing(on_partial))
    if experiment is None and not found and not unreadable:
        raise damage or NotFoundError(await _no_experiment(store))
    own = None if experiment is None or found else await find_record(store, TRIAL_RECORD, TrialRecord)
    return TrialIndex(experiment, {name: record for name, (record, _) in found.items()}, unreadable, own)


async def read_trials(
    store: Store, on_record: Callable[[TrialRecord], None] | None = None
) -> tuple[dict[str, tuple[TrialRecord, str]], dict[str, DamagedError]]:
    """Read the record of every trial, in parallel. Returns two maps by trial: record and version, and the reason why a
    record cannot be read. ``on_record``: called with each record."""
    names = await list_directories(store, "")
    found: dict[str, tuple[TrialRecord, str]] = {}
    unreadable: dict[str, DamagedError] = {}

    async def read(name: str) -> None:
        try:
            stored = await get_record(store, f"{name}/{TRIAL_RECORD}", TrialRecord)
        except DamagedError as error:
            unreadable[name] = error
            return
        if stored is not None:
            stored[0].name = name  # the directory's name decides: the trial may have been copied or renamed
            found[name] = stored
            if on_record is not None:
                on_record(stored[0])

    await for_each_limited(names, read, min(TRIAL_RECORD_READERS, max(1, len(names))))
    return found, unreadable


async def _no_experiment(store: Store) -> str:
    text = f"no experiment at {store.uri}: neither {EXPERIMENT_RECORD} nor a directory with {TRIAL_RECORD} is there"
    if await find(store, TRIAL_RECORD) is not None:
        return f"{text}; it is a trial: open the directory above it, or pull it"
    return f"{text}; check the address, or pull it if it is a pushed directory"
