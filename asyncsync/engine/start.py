"""How an engine starts: it opens or takes over the experiment's record."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from numbers import Real
from typing import Any

from asyncsync.config import RunConfig
from asyncsync.disk.results import as_json
from asyncsync.engine.trials.context import Role
from asyncsync.engine.trials.resume import Predecessor
from asyncsync.errors import ConfigError, ExperimentExistsError, NotFoundError
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.runtime import token, wall_time
from asyncsync.stores.base import MISSING, Store
from asyncsync.sync.records.manifests import find_record, get_record
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.sync.records.writer import RecordFile

log = logging.getLogger("asyncsync")


def as_seconds(name: str, value: object) -> float:
    """The value as seconds. Raises ConfigError unless it is a number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise ConfigError(f"invalid SyncEngine({name}={value!r}): must be a number of seconds, 0 or more")
    return float(value)


async def open_record(
    store: Store, run: RunConfig, role: Role, runner: str, *, resume: bool
) -> tuple[ExperimentRecord, RecordFile, Predecessor]:
    """Take the experiment's record over, or create one. Only the driver's record is ever written.

    Raises ExperimentExistsError without ``resume``, and DamagedError if the stored record cannot be read: only its
    owner can decide about it.
    """
    now = wall_time()
    record = ExperimentRecord(str(run.name), config=_config(run), started=now, updated=now)
    version, predecessor = MISSING, Predecessor()
    if role.is_driver:
        record.nonce, record.runner = token(), runner
        stored = await _find_stored(store, run, resume=resume)
        if stored is not None:
            record, version = stored
            predecessor = Predecessor(record.runner, record.status == "running")
            record.epoch += 1
            record.status, record.updated = "running", now
            record.nonce, record.runner = record.nonce or token(), runner
        record.heartbeat_period = run.sync_config.heartbeat_seconds or 0.0
    else:  # what it leaves behind names the experiment, so that it is not taken for a later one's of the same name
        driver = await find_record(store, EXPERIMENT_RECORD, ExperimentRecord)
        record.nonce = driver.nonce if driver is not None else ""
    return record, RecordFile(EXPERIMENT_RECORD, record, version, prepare=record.make_text), predecessor


async def _find_stored(store: Store, run: RunConfig, *, resume: bool) -> tuple[ExperimentRecord, str] | None:
    """The stored record and its version, if there is one. Raises ExperimentExistsError then, without ``resume``."""
    try:
        await store.head(EXPERIMENT_RECORD)
        if resume:
            return await get_record(store, EXPERIMENT_RECORD, ExperimentRecord)
    except NotFoundError:
        return None
    raise ExperimentExistsError(
        f"{run.uri} already holds an experiment: pass resume=True to continue it, or choose another name"
    )


def check_role(run: RunConfig, role: Role) -> None:
    """ConfigError for settings that do not go together with several ranks."""
    if role.world_size > 1 and run.checkpoint_config.when_full == "replace":
        raise ConfigError(
            f'invalid CheckpointConfig.when_full="replace" with world_size={role.world_size}: each rank would replace '
            'another step, and no checkpoint would become complete; use "wait"'
        )


def _config(run: RunConfig) -> dict[str, Any]:
    checkpoint = asdict(replace(run.checkpoint_config, on_durable=None))  # a function cannot be stored
    return as_json({"sync": asdict(run.sync_config), "checkpoint": checkpoint})


def write_safety_warning(store: Store) -> str:
    """A warning if the store lacks conditional writes or keeps other promises not; empty if it keeps them all."""
    if store.traits.not_kept:
        return f"{store.uri} does not keep all promises: {'; '.join(store.traits.not_kept)}"
    if store.traits.conditional_writes:
        return ""
    return (
        f"{store.uri} has no conditional writes: asyncsync cannot stop two processes that write to the same trial or "
        "prefix. Make sure that only one process writes"
    )
