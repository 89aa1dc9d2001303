"""The status of a running engine and its trials, as data. Times are Unix seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The result of ``flush``. It names checkpoints (``trial/checkpoint_000001``) and trees (``trial``; ``""`` is the
    experiment's own files)."""

    durable: tuple[str, ...]
    """Everything that is in the store."""
    not_durable: tuple[str, ...]
    """Everything that did not reach the store before the deadline."""


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """The status of one trial."""

    name: str
    status: str
    """``running``, ``finished``, ``failed``, or the status given to ``Trial.finish``."""
    last_durable: int | None
    """Number of the newest durable checkpoint, or None."""
    last_durable_time: float | None
    """When it became durable, Unix seconds, or None."""
    durability_lag: float
    """Age of the oldest report or checkpoint that is not in the store, seconds; 0: everything is in the store."""
    bytes_at_risk: int
    """Size of the accepted checkpoints that are not durable, bytes."""
    pending_checkpoints: int
    """Number of these checkpoints."""
    metrics: dict[str, Any]
    """Metrics of the last report."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The status of the engine."""

    trials: dict[str, TrialStatus]
    """By name."""
    durability_lag: float
    """The largest lag of all trials, seconds."""
    bytes_at_risk: int
    """Size of all accepted checkpoints that are not durable, bytes."""
    syncs_running: int
    inbox: int
    """Number of sync requests that wait for the scheduler."""
    requests_running: int
    """Number of requests to the store in flight."""
    requests_waiting: int
    """Number of requests that wait for a slot."""
    request_limit: int
    """Maximum number of requests in flight that the engine allows now."""
    store_healthy: bool
    """False: requests keep failing, and only one at a time tests whether the store is back."""
    conditional_writes: bool
    """False: the store cannot stop two processes that write the same record; make sure that only one does."""
    checks: str
    """How damage in transit to the store is detected: ``crc32c``, the store refuses it; ``etag``, the MD5 in the
    response shows it; ``none``, it shows when the file is read back. A directory has ``none``: nothing is sent over a
    network."""
    not_kept: tuple[str, ...] = ()
    """Promises that this kind of store cannot keep, one sentence each; empty for all but file systems of fsspec."""
