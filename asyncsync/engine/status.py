"""Private: reads an engine's status from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.state import TrialState
from asyncsync.status import EngineStatus, TrialStatus
from asyncsync.sync.session import session_status


def trial_status(trial: TrialState, now: float) -> TrialStatus:
    """Status of one trial. ``now``: the event loop's clock."""
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
        metrics=trial.record.metrics,
    )


def engine_status(context: EngineContext, trials: Mapping[str, TrialState]) -> EngineStatus:
    """Status of an engine. Synchronous: it reads only memory."""
    now, totals = asyncio.get_running_loop().time(), context.event_counter.totals
    found = {name: trial_status(trial, now) for name, trial in trials.items()}
    return replace(
        session_status(context.session),
        trials=found,
        durability_lag=max((trial.durability_lag for trial in found.values()), default=0.0),
        bytes_at_risk=sum(trial.bytes_at_risk for trial in found.values()),
        syncs_running=context.scheduler.running,
        inbox=context.scheduler.inbox.qsize(),
        pending_checkpoints=sum(trial.pending_checkpoints for trial in found.values()),
        totals=replace(totals, durable_counts=list(totals.durable_counts)),
    )
