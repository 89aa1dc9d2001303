"""Running engines as their status files show them, without an engine."""

from __future__ import annotations

from typing import Any

from asyncsync import EngineStatus, RunningEngine, TrialStatus

NOW = 1000.0
"""When the status file was written, Unix seconds."""


def running_engine(
    uri: str = "s3://b/e",
    *,
    alive: bool = True,
    written: float = NOW,
    trials: tuple[TrialStatus, ...] = (),
    lag: float = 0.0,
    size: int = 0,
    **more: Any,
) -> RunningEngine:
    """``lag``, ``size``: seconds and bytes at risk of the whole engine. ``more``: other fields of its status."""
    fields = {
        "syncs_running": 0,
        "inbox": 0,
        "requests_running": 0,
        "requests_waiting": 0,
        "request_limit": 64,
        "store_healthy": True,
        "conditional_writes": True,
        "checks": "crc32c",
        **more,
    }
    status = EngineStatus({trial.name: trial for trial in trials}, durability_lag=lag, bytes_at_risk=size, **fields)
    return RunningEngine(uri, "/local/e", "driver", 0, 7, 10.0, written, alive, status, 1)
