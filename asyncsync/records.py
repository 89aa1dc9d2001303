"""Records: what is known of a trial, or of an experiment. One writer each, replaced by conditional writes.

Plain data and its JSON form; who reads and writes them is :mod:`asyncsync.engine` and :mod:`asyncsync.experiment`.
Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
EXPERIMENT_RECORD = ".asyncsync/experiment.json"
TRIAL_RECORD = ".asyncsync/trial.json"
WRITER = "writer"
"""Key in a record: which writer's how-manieth write this was, so that no two writes are equal, see
:class:`asyncsync.recordfile.RecordFile`."""


@dataclass(slots=True)
class CheckpointRecord:
    """One committed checkpoint, as its trial's record names it."""

    name: str
    number: int
    metrics: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    time: float = 0.0
    """When it became durable."""
    step: int | None = None
    """Of the training, if it was told."""


@dataclass(slots=True)
class TrialRecord:
    """What is known of a trial. ``status``: running, finished, failed, or what ``Trial.finish`` was given."""

    name: str
    experiment: str = ""
    status: str = "running"
    error: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the last report."""
    reports: int = 0
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    next_checkpoint: int = 0
    epoch: int = 1
    """Raised by every process that takes the trial over."""
    world_size: int = 1
    """How many ranks train it; this record is rank 0's."""
    first_checkpoint: int = 0
    """Number from which on this epoch counts; the other ranks take it from here."""
    nonce: str = ""
    """Tells it from an earlier trial of the same name in the same place."""
    given_up: list[str] = field(default_factory=list)
    """Names of checkpoints whose data is to go, or is going: retired ones, and such as were not to be. They do not come
    back, and only what stands here is deleted."""
    runner: str = ""
    """The process that runs it, see :mod:`asyncsync.disk.process`."""
    started: float = 0.0
    updated: float = 0.0

    def to_bytes(self, stamp: str = "") -> bytes:
        """The record as JSON."""
        return _encode("trial", {**asdict(self), WRITER: stamp})

    @classmethod
    def from_bytes(cls, data: bytes) -> TrialRecord:
        """Parse; ValueError if it is no trial record."""
        raw = _decode("trial", data)
        raw["checkpoints"] = [CheckpointRecord(**item) for item in raw.get("checkpoints", [])]
        return cls(**raw)


@dataclass(slots=True)
class RankRecord:
    """Who is one rank of a trial; rank 0 is who writes the trial's record."""

    name: str
    """Of the trial."""
    rank: int
    world_size: int
    epoch: int = 1
    """Raised by every process that takes the rank over."""
    generation: int = 1
    """Epoch of the trial's record that this rank takes part in."""
    updated: float = 0.0

    def to_bytes(self, stamp: str = "") -> bytes:
        """The record as JSON."""
        return _encode("rank", {**asdict(self), WRITER: stamp})

    @classmethod
    def from_bytes(cls, data: bytes) -> RankRecord:
        """Parse; ValueError if it is no rank's record."""
        return cls(**_decode("rank", data))


@dataclass(slots=True)
class FailureRecord:
    """Why a checkpoint of several ranks will never be whole, as one of them says."""

    rank: int
    generation: int
    """Epoch of the trial's record that this was part of; in another one it says nothing."""
    reason: str
    step: int = -1
    """The latest training step that is given up: who reports a later one goes on under the next number. -1: written by
    a version without steps."""
    conflict: bool = False
    """Whether two ranks have written one file with different content."""

    def to_bytes(self) -> bytes:
        """The record as JSON."""
        return _encode("failure", asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> FailureRecord:
        """Parse; ValueError if it is no failure's record."""
        return cls(**_decode("failure", data))


@dataclass(slots=True)
class OutcomeRecord:
    """Whether a checkpoint of several ranks is committed or given up: created once, by the first rank that knows."""

    rank: int
    """Who wrote it; -1 if it is committed, so that all who may write it write the same bytes."""
    generation: int
    step: int
    """Committed: its training step. Given up: as in :class:`FailureRecord`."""
    committed: bool
    reason: str = ""
    conflict: bool = False
    """As in :class:`FailureRecord`."""

    def to_bytes(self) -> bytes:
        """The record as JSON."""
        return _encode("outcome", asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> OutcomeRecord:
        """Parse; ValueError if it is no outcome."""
        return cls(**_decode("outcome", data))


@dataclass(slots=True)
class ExperimentRecord:
    """The driver's record: configuration, the trials that it started and their status."""

    name: str
    trials: dict[str, str] = field(default_factory=dict)
    """Trial name -> status."""
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    epoch: int = 1
    started: float = 0.0
    updated: float = 0.0
    nonce: str = ""
    """Tells it from an earlier experiment of the same name in the same place."""
    runner: str = ""
    """The driver, see :mod:`asyncsync.disk.process`."""

    def to_bytes(self, stamp: str = "") -> bytes:
        """The record as JSON."""
        return _encode("experiment", {**asdict(self), WRITER: stamp})

    @classmethod
    def from_bytes(cls, data: bytes) -> ExperimentRecord:
        """Parse; ValueError if it is no experiment record."""
        return cls(**_decode("experiment", data))


def _encode(kind: str, content: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, "kind": kind, **content}, separators=(",", ":"), default=str).encode() + b"\n"


def _decode(kind: str, data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise ValueError(f"not a {kind} record: {error}") from error
    if not isinstance(raw, dict) or raw.pop("kind", None) != kind:
        raise ValueError(f"not a {kind} record")
    raw.pop(WRITER, None)
    version = raw.pop("format", None)
    if version != FORMAT:
        raise ValueError(f"{kind} record of format {version} is not known to this version (knows {FORMAT})")
    return raw
