"""How an engine starts: which part of the experiment it is, and whose record it takes over."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from asyncsync.config import RunConfig
from asyncsync.disk.results import as_json
from asyncsync.engine.presence import Presence
from asyncsync.engine.trials.role import Role
from asyncsync.errors import ConfigError, EngineClosedError, ExperimentExistsError, NotFoundError
from asyncsync.events import Event, SyncWarning
from asyncsync.planning.manifest import META_DIR
from asyncsync.runtime import need_asyncio, token, wall_time
from asyncsync.stores.base import MISSING, Store
from asyncsync.sync.records.manifests import find_record, get_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, ExperimentRecord, TrialRecord
from asyncsync.sync.records.writer import RecordFile

log = logging.getLogger("asyncsync")


class Home:
    """The process and the event loop that an engine was entered in: it cannot be used from others."""

    def __init__(self) -> None:
        need_asyncio()
        self._process, self._loop = os.getpid(), asyncio.get_running_loop()

    @property
    def forked(self) -> bool:
        """Whether this is a child of that process."""
        return os.getpid() != self._process

    def check(self) -> None:
        """EngineClosedError in a child, ConfigError on another loop or outside any."""
        if self.forked:
            raise EngineClosedError(
                f"the engine was entered in process {self._process}, which this one was forked from, and runs there: "
                "make a SyncEngine of your own here"
            )
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001  None instead of an exception
            raise ConfigError(
                "the engine belongs to another event loop or thread: call it on the loop that entered it "
                "(asyncio.run_coroutine_threadsafe from elsewhere), or use SyncEngine.blocking in any thread"
            )


def as_seconds(name: str, value: object) -> float:
    """ConfigError unless it is a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise ConfigError(f"SyncEngine({name}={value!r}) is not usable: it must be seconds, 0 or more")
    return float(value)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """Who wrote a record before us."""

    runner: str = ""
    running: bool = False
    """Whether it has not said that it was done."""

    def may_still_write(self) -> bool:
        """Whether requests of it may be on their way, until its lease has run out."""
        return self.running and not Presence.has_ended(self.runner)


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


def new_record(run: RunConfig, role: Role, runner: str, name: str, params: Mapping[str, Any] | None) -> TrialRecord:
    """The record of a trial that starts now."""
    now, params = wall_time(), as_json(params or {})
    return TrialRecord(
        name, str(run.name), params=params, world_size=role.world_size, started=now, updated=now, nonce=token(),
        runner=runner,
    )  # fmt: skip


def take_over(record: TrialRecord, role: Role, runner: str, params: Mapping[str, Any] | None) -> Predecessor:
    """The record of a trial that goes on: whoever had it, which is returned, loses it when this is written."""
    before = Predecessor(record.runner, record.status == "running")
    record.epoch += 1
    record.nonce, record.runner = record.nonce or token(), runner
    record.world_size = role.world_size
    record.status, record.error, record.updated = "running", None, wall_time()
    if params is not None:
        record.params = as_json(params)
    return before


def make_directory(local_dir: Path, trial: str, role: Role) -> None:
    """The trial's directory, marked before there is any file in it: so the driver, or one which shares ``local_dir``,
    does not take it for files of its own, though a scan that is under way has not heard of this trial."""
    os.makedirs(local_dir / trial / META_DIR, exist_ok=True)
    os.makedirs(local_dir / role.directory(trial), exist_ok=True)


def warn_of_limits(store: Store, emit: Callable[[Event], None]) -> None:
    """Say what the store cannot do and somebody might count on."""
    if not store.traits.conditional_writes:
        message = (
            f"{store.uri} has no conditional writes: asyncsync cannot stop two processes that write to the same trial "
            "or prefix; see to it that there is only one"
        )
        warn(emit, "", message)


def warn(emit: Callable[[Event], None], tree: str, message: str) -> None:
    """Say it to the listeners, and to who reads the log."""
    log.warning("%s", message)
    emit(SyncWarning(tree=tree, message=message))
