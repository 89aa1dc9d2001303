"""How things stand in an engine, as data."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncsync.engine.engine import SyncEngine
    from asyncsync.engine.trial import Trial


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What ``flush`` achieved: names of checkpoints (``trial/checkpoint_000001``) and trees (``trial``; ``""`` is the
    experiment's own files)."""

    durable: tuple[str, ...]
    not_durable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """One trial. Times are Unix seconds, sizes bytes."""

    name: str
    status: str
    last_durable: int | None
    """Number of the newest checkpoint that is durable."""
    last_durable_time: float | None
    durability_lag: float
    """Seconds since the oldest report or checkpoint that is not in the store yet; 0: everything is."""
    bytes_at_risk: int
    """Bytes of checkpoints that were accepted and are not durable."""
    pending_checkpoints: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine. ``durability_lag`` is the worst of its trials."""

    trials: dict[str, TrialStatus]
    durability_lag: float
    bytes_at_risk: int
    syncs_running: int
    inbox: int
    """Requests that wait for the scheduler."""
    requests_running: int
    requests_waiting: int
    request_limit: int
    """How many requests at once the engine allows itself now."""
    store_healthy: bool
    conditional_writes: bool
    """False: the store cannot keep two processes from writing the same record; see that there is only one."""
    checks: str
    """How damage on the way to the store is found: ``crc32c``, the store refuses it; ``etag``, the MD5 that it answers
    tells; ``none``, it shows when the file is read back. Directories are ``none``: nothing travels."""


def trial_status(trial: Trial, now: float) -> TrialStatus:
    """``now`` is the event loop's clock."""
    since = [job.accepted for job in trial.jobs]
    if trial.dirty_since is not None:
        since.append(trial.dirty_since)
    return TrialStatus(
        name=trial.name,
        status=trial.record.status,
        last_durable=trial.last_durable,
        last_durable_time=trial.last_durable_time,
        durability_lag=now - min(since) if since else 0.0,
        bytes_at_risk=sum(job.size for job in trial.jobs),
        pending_checkpoints=len(trial.jobs),
    )


def engine_status(engine: SyncEngine) -> EngineStatus:
    """A plain call: reads what is in memory."""
    session, now = engine.session, asyncio.get_running_loop().time()
    trials = {name: trial_status(trial, now) for name, trial in engine.trials.items()}
    return EngineStatus(
        trials=trials,
        durability_lag=max((trial.durability_lag for trial in trials.values()), default=0.0),
        bytes_at_risk=sum(trial.bytes_at_risk for trial in trials.values()),
        syncs_running=engine.scheduler.running,
        inbox=engine.scheduler.inbox.qsize(),
        requests_running=session.budget.in_use,
        requests_waiting=session.budget.waiting,
        request_limit=session.budget.limit,
        store_healthy=session.store.healthy,
        conditional_writes=session.store.traits.conditional_writes,
        checks=session.store.traits.checks,
    )
