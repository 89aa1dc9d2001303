"""Finding the trials of an experiment: one listing, then every record at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import DamagedError, NotFoundError
from asyncsync.stores.base import Store
from asyncsync.stores.read import find, list_directories
from asyncsync.sync.records.manifests import find_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, TRIAL_RECORD, ExperimentRecord, TrialRecord

log = logging.getLogger("asyncsync")

READERS = 128
"""Records that are read at once; the budget may allow fewer."""


@dataclass(slots=True)
class Catalog:
    """What a store knows of an experiment. Keys are the names of directories, whatever the records say."""

    experiment: ExperimentRecord | None = None
    """None where only workers have written, or where the store holds one trial."""
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    unreadable: dict[str, DamagedError] = field(default_factory=dict)
    """Trial -> what is wrong with its record."""


async def read_catalog(store: Store) -> Catalog:
    """Read the driver's record and those of all trials, in parallel. Requests: one a trial and two more, and one
    listing a thousand trials. NotFoundError if there are none of them; DamagedError if there is nothing but a driver's
    record that cannot be read."""
    catalog, damage = Catalog(), None
    try:
        catalog.experiment = await find_record(store, EXPERIMENT_RECORD, ExperimentRecord)
    except DamagedError as error:  # everything in it is in the trials' records too, except their order
        log.warning("%s: the trials are read without the experiment's record", error)
        damage = error
    names = set(await list_directories(store, ""))

    async def read(name: str) -> None:
        try:
            record = await find_record(store, f"{name}/{TRIAL_RECORD}", TrialRecord)
        except DamagedError as error:
            catalog.unreadable[name] = error
            return
        if record is not None:
            catalog.trials[name] = record

    await for_each_limited(sorted(names - {".asyncsync"}), read, min(READERS, max(1, len(names))))
    if catalog.experiment is None and not catalog.trials and not catalog.unreadable:
        raise damage or NotFoundError(await _nothing(store))
    return catalog


async def _nothing(store: Store) -> str:
    text = f"no experiment at {store.uri}: neither {EXPERIMENT_RECORD} nor a directory with {TRIAL_RECORD} is there"
    if await find(store, TRIAL_RECORD) is not None:
        return f"{text}; it is a trial: open the directory above it, or pull it"
    return f"{text}; look at the address, or use pull for a tree that was pushed"
