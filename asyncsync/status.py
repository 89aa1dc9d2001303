"""The status of a running engine and its trials, as data. Times are Unix seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DURABLE_BOUNDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds (seconds) of the histogram's buckets in :attr:`EngineTotals.durable_counts`; a last one has none."""

AGENT = "agent of node "
"""Begin of the role of an agent, which does the uploads of the worker processes of a Ray node."""

RATE_VALID_SECONDS = 10.0
"""Age in seconds from which a rate in a status file is outdated."""


@dataclass(slots=True)
class OperationTotals:
    """The calls of one operation of a store so far."""

    requests: int = 0
    failures: int = 0
    """Those that raised, cancelled ones included."""
    bytes: int = 0
    """Bytes of bodies that the store acknowledged, or that the sinks of reads took."""
    seconds: float = 0.0
    """Event loop's clock, summed over requests that may run at the same time; the time of sinks included."""


@dataclass(slots=True)
class EngineTotals:
    """The work of an engine since it was entered, counted."""

    syncs: int = 0
    """Syncs of trees that succeeded."""
    syncs_failed: int = 0
    """Syncs and uploads of checkpoints that failed and are retried, or that timed out."""
    checkpoints_durable: int = 0
    checkpoints_failed: int = 0
    checkpoints_retired: int = 0
    bytes_sent: int = 0
    """Bytes of finished syncs and durable checkpoints that travelled to the store."""
    bytes_copied: int = 0
    """Bytes that the store copied itself."""
    bytes_saved: int = 0
    """Bytes of durable checkpoints that did not travel: the store copied or already had them."""
    durable_counts: list[int] = field(default_factory=lambda: [0] * (len(DURABLE_BOUNDS) + 1))
    """Number of checkpoints by the seconds from their report until they were durable, see DURABLE_BOUNDS."""
    durable_seconds: float = 0.0
    """Sum of these seconds."""
    last_error: str | None = None
    """The last failure of a sync or checkpoint."""
    last_error_time: float | None = None


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
    operations: dict[str, OperationTotals] = field(default_factory=dict)
    """Attempted requests to the store by operation: ``put``, ``put_part``, ``read``, ``head`` and so on."""
    errors: dict[str, int] = field(default_factory=dict)
    """Attempts that failed, by ``operation ErrorClass``, such as ``"put ThrottledError"``. A missing object and a
    precondition that does not hold are results, not errors."""
    retries: int = 0
    """Attempts beyond the first of their request."""
    bytes_per_second: float = 0.0
    """Bytes of bodies per second in both directions, over about the last 10 s."""
    waiting_for: str = ""
    """The reason why something waits now; empty: nothing waits."""
    totals: EngineTotals = field(default_factory=EngineTotals)
    pending_checkpoints: int = 0
    """Number of accepted checkpoints of all trials that are not durable."""

    @property
    def requests(self) -> int:
        """Attempted requests to the store since the engine was entered."""
        return sum(item.requests for item in self.operations.values())

    @property
    def is_safe(self) -> bool:
        """Whether everything that was reported is in the store."""
        return self.durability_lag == 0 and not self.bytes_at_risk


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine of this machine and user, as its status file describes it."""

    uri: str
    """URI of its experiment."""
    local_dir: str
    role: str
    """``driver``, ``worker``, or ``agent of node 4f8a2c91``: the agent of a Ray node, whose URI is a storage path."""
    rank: int
    pid: int
    started: float
    written: float
    """When the status was taken, Unix seconds."""
    alive: bool
    """False: the process has ended without leaving the engine, as after a kill."""
    status: EngineStatus
    """Ages are those of ``written``. ``trials`` holds at most 200: those with the largest lag."""
    trials: int
    """Number of all its trials."""

    def lag_at(self, now: float) -> float:
        """The durability lag (seconds) at this Unix time: it grows while the engine runs and writes no new status."""
        lag = self.status.durability_lag
        return lag + max(0.0, now - self.written) if lag and self.alive else lag

    def rate_at(self, now: float) -> float | None:
        """Bytes per second to the store at this Unix time. None if the status is older than RATE_VALID_SECONDS: it is
        written only when something happens."""
        return self.status.bytes_per_second if self.alive and now - self.written < RATE_VALID_SECONDS else None
