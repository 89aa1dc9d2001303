"""How an engine starts: which part of the experiment it is, and whose record it takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asyncsync.config import RunConfig
from asyncsync.disk.results import as_json
from asyncsync.errors import ConfigError, ExperimentExistsError, NotFoundError
from asyncsync.planning.manifest import META_DIR
from asyncsync.recordfile import RecordFile
from asyncsync.records import EXPERIMENT_RECORD, ExperimentRecord, TrialRecord
from asyncsync.stores.base import MISSING, Store


@dataclass(frozen=True, slots=True)
class Role:
    """Which part of the experiment a process is: the driver, or one that only runs trials; and which rank of them."""

    name: str = "driver"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("driver", "worker"):
            raise ConfigError(f'SyncEngine(role={self.name!r}) is not usable: it must be "driver" or "worker"')
        if (self.rank, self.world_size) != (0, 1):
            raise ConfigError(
                f"SyncEngine(rank={self.rank}, world_size={self.world_size}): only (0, 1) works in this version"
            )

    @property
    def is_driver(self) -> bool:
        """Whether it keeps the experiment's record and own files."""
        return self.name == "driver"


async def open_record(store: Store, run: RunConfig, role: Role, *, resume: bool) -> tuple[ExperimentRecord, RecordFile]:
    """Take the experiment's record over, or start a new one; only the driver's is ever written."""
    now = time.time()
    record, version = ExperimentRecord(str(run.name), config=_config(run), started=now, updated=now), MISSING
    if role.is_driver:
        try:
            await store.head(EXPERIMENT_RECORD)
            data, info = await store.get(EXPERIMENT_RECORD)
        except NotFoundError:
            pass
        else:
            if not resume:
                raise ExperimentExistsError(
                    f"{run.uri} holds an experiment already: pass resume=True to continue it, or another name"
                )
            record, version = ExperimentRecord.from_bytes(data), info.version
            record.epoch += 1
            record.status, record.updated = "running", now
    return record, RecordFile(EXPERIMENT_RECORD, record.to_bytes, version)


def _config(run: RunConfig) -> dict[str, Any]:
    return as_json({"sync": asdict(run.sync_config), "checkpoint": asdict(run.checkpoint_config)})


def new_record(run: RunConfig, name: str, params: Mapping[str, Any] | None) -> TrialRecord:
    """The record of a trial that starts now."""
    now = time.time()
    return TrialRecord(name, str(run.name), params=as_json(params or {}), started=now, updated=now)


def take_over(record: TrialRecord, params: Mapping[str, Any] | None) -> None:
    """The record of a trial that goes on: whoever had it loses it when this is written."""
    record.epoch += 1
    record.status, record.error, record.updated = "running", None, time.time()
    if params is not None:
        record.params = as_json(params)


def make_directory(root: str, role: Role) -> None:
    """The trial's directory. One that is not the driver's is marked, so that a driver which shares ``local_dir`` does
    not take it for files of its own."""
    os.makedirs(root if role.is_driver else f"{root}/{META_DIR}", exist_ok=True)


def watch_signal() -> None:
    """SIGTERM is the notice of a preemption: leave the block now, and sync within the grace."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")
