"""How an engine starts: which part of the experiment it is, and whose record it takes over."""

from __future__ import annotations

import logging
from dataclasses import asdict
from numbers import Real
from typing import Any

from asyncsync.config import RunConfig
from asyncsync.disk.results import as_json
from asyncsync.engine.trials.context import Role
from asyncsync.engine.trials.resume import Predecessor
from asyncsync.errors import ConfigError, ExperimentExistsError, NotFoundError
from asyncsync.runtime import token, wall_time
from asyncsync.stores.base import MISSING, Store
from asyncsync.sync.records.manifests import find_record, get_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, ExperimentRecord
from asyncsync.sync.records.writer import RecordFile

log = logging.getLogger("asyncsync")


def as_seconds(name: str, value: object) -> float:
    """ConfigError unless it is a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise ConfigError(f"invalid SyncEngine({name}={value!r}): must be a number of seconds, 0 or more")
    return float(value)


async def open_record(
    store: Store, run: RunConfig, role: Role, runner: str, *, resume: bool
) -> tuple[ExperimentRecord, RecordFile, Predecessor]:
    """Take the experiment's record over, or start a new one; only the driver's is ever written. DamagedError if the
    one that is there cannot be read: nobody but its owner can say what is to become of it."""
    before = Predecessor()
    now = wall_time()
    record = ExperimentRecord(str(run.name), config=_config(run), started=now, updated=now)
    version = MISSING
    if role.is_driver:
        record.nonce, record.runner = token(), runner
        try:
            await store.head(EXPERIMENT_RECORD)
            there = await get_record(store, EXPERIMENT_RECORD, ExperimentRecord) if resume else None
        except NotFoundError:
            pass
        else:
            if not resume:
                raise ExperimentExistsError(
                    f"{run.uri} holds an experiment already: pass resume=True to continue it, or another name"
                )
            if there is not None:
                record, version = there
                before = Predecessor(record.runner, record.status == "running")
                record.epoch += 1
                record.status, record.updated = "running", now
                record.nonce, record.runner = record.nonce or token(), runner
    elif resume:
        driver = await find_record(store, EXPERIMENT_RECORD, ExperimentRecord)
        record.nonce = driver.nonce if driver is not None else ""
    return record, RecordFile(EXPERIMENT_RECORD, record.to_bytes, version), before


def _config(run: RunConfig) -> dict[str, Any]:
    return as_json({"sync": asdict(run.sync_config), "checkpoint": asdict(run.checkpoint_config)})


def write_safety_warning(store: Store) -> str:
    """What the store cannot do and somebody might count on; empty: nothing."""
    if store.traits.conditional_writes:
        return ""
    return (
        f"{store.uri} has no conditional writes: asyncsync cannot stop two processes that write to the same trial or "
        "prefix; see to it that there is only one"
    )
