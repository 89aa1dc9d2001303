"""What a session says of its store, as the status of an engine without trials."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from asyncsync.status import EngineStatus
from asyncsync.sync.session import Session


def session_status(session: Session) -> EngineStatus:
    """Status of an engine with this session that has no trials. Synchronous: it reads only memory."""
    meter, traits = session.store.core.meter, session.store.traits
    return EngineStatus(
        trials={},
        durability_lag=0.0,
        bytes_at_risk=0,
        syncs_running=0,
        inbox=0,
        requests_running=session.budget.in_use,
        requests_waiting=session.budget.waiting,
        request_limit=session.budget.limit,
        store_healthy=session.store.healthy,
        conditional_writes=traits.conditional_writes,
        checks=traits.checks,
        not_kept=traits.not_kept,
        operations={name: replace(item) for name, item in meter.operations.items()},
        errors=dict(meter.errors),
        retries=meter.retries,
        bytes_per_second=meter.rate(),
        waiting_for=_waiting_for(session),
    )


def _waiting_for(session: Session) -> str:
    """The reason why requests or syncs wait now; empty if nothing waits."""
    breaker, budget = session.breaker, session.budget
    if breaker.open:
        seconds = asyncio.get_running_loop().time() - breaker.since
        return f"the store, unavailable for {seconds:.0f} s: {breaker.last_error}"
    if budget.waiting:
        return f"{budget.waiting} requests for a slot ({budget.in_use} of {budget.limit} in flight)"
    return f"{budget.in_use} requests for the store" if budget.in_use else ""
