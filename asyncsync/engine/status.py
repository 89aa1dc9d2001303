"""Private: reads an engine's status from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.state import TrialState
from asyncsync.status import EngineStatus, TrialStatus


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
    session, now = context.session, asyncio.get_running_loop().time()
    meter, totals = session.store.core.meter, context.event_counter.totals
    found = {name: trial_status(trial, now) for name, trial in trials.items()}
    return EngineStatus(
        trials=found,
        durability_lag=max((trial.durability_lag for trial in found.values()), default=0.0),
        bytes_at_risk=sum(trial.bytes_at_risk for trial in found.values()),
        syncs_running=context.scheduler.running,
        inbox=context.scheduler.inbox.qsize(),
        requests_running=session.budget.in_use,
        requests_waiting=session.budget.waiting,
        request_limit=session.budget.limit,
        store_healthy=session.store.healthy,
        conditional_writes=session.store.traits.conditional_writes,
        checks=session.store.traits.checks,
        not_kept=session.store.traits.not_kept,
        operations={name: replace(item) for name, item in meter.operations.items()},
        errors=dict(meter.errors),
        retries=meter.retries,
        bytes_per_second=meter.rate(),
        waiting_for=_waiting_for(context),
        pending_checkpoints=sum(trial.pending_checkpoints for trial in found.values()),
        totals=replace(totals, durable_counts=list(totals.durable_counts)),
    )


def _waiting_for(context: EngineContext) -> str:
    """The reason why requests or syncs wait now; empty if nothing waits."""
    session = context.session
    breaker, budget = session.breaker, session.budget
    if breaker.open:
        seconds = asyncio.get_running_loop().time() - breaker.since
        return f"the store, unavailable for {seconds:.0f} s: {breaker.last_error}"
    if budget.waiting:
        return f"{budget.waiting} requests for a slot ({budget.in_use} of {budget.limit} in flight)"
    return f"{budget.in_use} requests for the store" if budget.in_use else ""
