"""Private: reads an engine's status from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from heapq import nlargest
from itertools import islice

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


class Statuses:
    """Reads the statuses of an engine's trials. One that is durable is read again only after it has changed, so that a
    call costs a copy, and the trials at work."""

    def __init__(self, context: EngineContext, trials: Mapping[str, TrialState]) -> None:
        self._context, self._trials = context, trials
        self._all: dict[str, TrialStatus] | None = None
        """Of every trial, from the first time on that somebody asks for all of them."""

    def take(self) -> EngineStatus:
        """The status of the engine with all its trials. Synchronous: it reads only memory."""
        at_work = self._refresh()
        if self._all is None:
            now = asyncio.get_running_loop().time()
            self._all = {name: trial_status(trial, now) for name, trial in self._trials.items()}
        return _engine_status(self._context, at_work, dict(self._all))

    def take_worst(self, most: int) -> tuple[EngineStatus, int]:
        """The same with at most so many trials, those with the largest lag first; and the number of all trials."""
        at_work, now = self._refresh(), asyncio.get_running_loop().time()
        shown = nlargest(most, at_work.values(), key=lambda trial: trial.durability_lag)
        others = (trial for name, trial in self._trials.items() if name not in at_work)
        shown += [trial_status(trial, now) for trial in islice(others, most - len(shown))]
        return _engine_status(self._context, at_work, {trial.name: trial for trial in shown}), len(self._trials)

    def _refresh(self) -> dict[str, TrialStatus]:
        """The trials that have changed since the last call, or are not durable."""
        now, unsettled, trials = asyncio.get_running_loop().time(), self._context.unsettled, self._trials
        found = {name: trial_status(trials[name], now) for name in unsettled}
        if self._all is not None:
            self._all.update(found)
        for name in found:
            if trials[name].is_durable:
                del unsettled[name]
        return found


def _engine_status(
    context: EngineContext, at_work: Mapping[str, TrialStatus], trials: dict[str, TrialStatus]
) -> EngineStatus:
    totals = context.event_counter.totals
    return replace(
        session_status(context.session),
        trials=trials,
        durability_lag=max((trial.durability_lag for trial in at_work.values()), default=0.0),
        bytes_at_risk=sum(trial.bytes_at_risk for trial in at_work.values()),
        syncs_running=context.scheduler.running,
        inbox=context.scheduler.inbox.qsize(),
        pending_checkpoints=sum(trial.pending_checkpoints for trial in at_work.values()),
        totals=replace(totals, durable_counts=list(totals.durable_counts)),
    )
