"""Finding the trials of an experiment: one listing, then every record at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncsync.errors import IntegrityError, NotFoundError
from asyncsync.records import EXPERIMENT_RECORD, TRIAL_RECORD, ExperimentRecord, TrialRecord
from asyncsync.stores.base import Store
from asyncsync.stores.together import for_each
from asyncsync.transfer.listing import list_directories
from asyncsync.transfer.reader import find

READERS = 128
"""Records that are read at once; the budget may allow fewer."""


@dataclass(slots=True)
class Catalog:
    """What a store knows of an experiment. Keys are the names of directories, whatever the records say."""

    experiment: ExperimentRecord | None = None
    """None where only workers have written, or where the store holds one trial."""
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Trial -> what is wrong with its record."""


async def read_catalog(store: Store) -> Catalog:
    """Read the driver's record and those of all trials, in parallel. Requests: one a trial and two more, and one
    listing a thousand trials. NotFoundError if there are none of them."""
    catalog = Catalog()
    catalog.experiment = await _experiment(store)
    names = set(await list_directories(store, ""))

    async def read(name: str) -> None:
        try:
            record = await find(store, f"{name}/{TRIAL_RECORD}")
            if record is not None:
                catalog.trials[name] = TrialRecord.from_bytes(record)
        except (ValueError, TypeError, KeyError, IntegrityError) as error:
            catalog.unreadable[name] = str(error)

    await for_each(sorted(names - {".asyncsync"}), read, min(READERS, max(1, len(names))))
    if catalog.experiment is None and not catalog.trials and not catalog.unreadable:
        raise NotFoundError(await _nothing(store))
    return catalog


def parse_trial(store: Store, prefix: str, data: bytes) -> TrialRecord:
    """A trial's record; ValueError that says where it is."""
    try:
        return TrialRecord.from_bytes(data)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{store.uri.rstrip('/')}/{prefix}{TRIAL_RECORD}: {error}") from error


async def read_trial(store: Store, prefix: str) -> TrialRecord | None:
    """The record of the trial at ``prefix`` as it is now, or None; ValueError or IntegrityError if it is damaged."""
    data = await find(store, prefix + TRIAL_RECORD)
    return None if data is None else parse_trial(store, prefix, data)


async def _experiment(store: Store) -> ExperimentRecord | None:
    """None for a record that cannot be read: everything in it is in the trials' records too, except their order."""
    try:
        data = await find(store, EXPERIMENT_RECORD)
        return None if data is None else ExperimentRecord.from_bytes(data)
    except (ValueError, TypeError, IntegrityError):
        return None


async def _nothing(store: Store) -> str:
    text = f"no experiment at {store.uri}: neither {EXPERIMENT_RECORD} nor a directory with {TRIAL_RECORD} is there"
    if await find(store, TRIAL_RECORD) is not None:
        return f"{text}; it is a trial: open the directory above it, or pull it"
    return f"{text}; look at the address, or use pull for a tree that was pushed"
