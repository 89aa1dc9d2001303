"""How things stand in an engine, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    metrics: dict[str, Any]
    """Those of the last report."""


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
