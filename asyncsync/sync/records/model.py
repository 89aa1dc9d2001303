"""Records: what is known of a trial, or of an experiment. One writer each, replaced by conditional writes.

Plain data and its JSON form; :mod:`asyncsync.engine.engine` writes them, :mod:`asyncsync.remote` reads them.
Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Self

from asyncsync.config import check_name
from asyncsync.planning.document import (
    FORMAT,
    __version__,
    check_format,
    loads,
    mapping,
    parsing,
    seconds,
    shown,
    text,
    whole,
)

EXPERIMENT_RECORD = ".asyncsync/experiment.json"
TRIAL_RECORD = ".asyncsync/trial.json"
WRITER = "writer"
"""Key in a record: which writer's how-manieth write this was, so that no two writes are equal, see
:class:`asyncsync.sync.records.writer.RecordFile`. It says nothing of what the record is about."""
_HEAD = ("format", "kind", "by", WRITER)
Check = Callable[[str, Any], Any]
"""Gives the value of a field, or raises a ValueError that names the field."""


@dataclass(slots=True)
class _Fields:
    """A dataclass whose fields are those of a JSON object. Each is checked by its annotation, see CHECKS, or by the
    ``check`` in its metadata. What else is in the object is kept in ``extra`` and is written back."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From a parsed object. KeyError or ValueError if a field is missing or wrong."""
        known = _checks(cls)  # type: ignore[arg-type]
        values = {name: check(name, raw[name]) for name, check in known.items() if name in raw}
        try:
            return cls(**values, extra={name: value for name, value in raw.items() if name not in known})
        except TypeError as error:
            raise KeyError(next(name for name in known if name not in raw)) from error

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.extra, **{name: _plain(getattr(self, name)) for name in _checks(type(self))}}  # type: ignore[arg-type]


@cache
def _checks(kind: type[_Fields]) -> dict[str, Check]:
    """How each field of the class is checked, by name."""
    known = [item for item in fields(kind) if item.name != "extra"]
    return {item.name: item.metadata.get("check") or CHECKS[str(item.type)] for item in known}


@dataclass(slots=True)
class Record(_Fields):
    """A document of its own."""

    KIND: ClassVar[str]

    def to_bytes(self, stamp: str = "") -> bytes:
        """The record as JSON; ``stamp`` is its WRITER."""
        head = {"format": FORMAT, "kind": self.KIND, "by": f"asyncsync {__version__}"}
        if stamp:
            head[WRITER] = stamp
        return json.dumps({**head, **self.as_object()}, separators=(",", ":"), default=str).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse; DocumentError says what is wrong."""
        with parsing(f"{cls.KIND} record"):
            raw = loads(data)
            check_format(raw)
            if raw["kind"] != cls.KIND:
                raise ValueError(f"its kind is {shown(raw['kind'])}")
            return cls.of({name: value for name, value in raw.items() if name not in _HEAD})


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [item.as_object() if isinstance(item, _Fields) else item for item in value]


def _name(field_name: str, value: Any) -> str:
    return check_name(field_name, value)


def _statuses(name: str, value: Any) -> dict[str, str]:
    """Of trials, by name."""
    for trial, status in mapping(name, value).items():
        check_name("the trial name", trial)
        text(name, status)
    return dict(value)


def _checkpoints(name: str, value: Any) -> list[CheckpointRecord]:
    """Each name once."""
    if not isinstance(value, list):
        raise TypeError(f"{name!r} is {shown(value)}, not a list")
    found = [CheckpointRecord.of(mapping(name, item)) for item in value]
    if len({item.name for item in found}) < len(found):
        raise ValueError(f"{name!r} has two of one name")
    return found


def _names(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{name!r} is {shown(value)}, not a list")
    return [check_name(name, item) for item in value]


def _from_minus_one(name: str, value: Any) -> int:
    return -1 if type(value) is int and value == -1 else whole(name, value)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name!r} is {shown(value)}, neither true nor false")
    return value


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


@dataclass(slots=True)
class CheckpointRecord(_Fields):
    """One committed checkpoint, as its trial's record names it."""

    name: str = field(metadata={"check": _name})
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
class TrialRecord(Record):
    """What is known of a trial. ``status``: running, finished, failed, or what ``Trial.finish`` was given."""

    KIND = "trial"

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
    """The process that runs it, see :class:`asyncsync.runtime.Presence`."""
    started: float = 0.0
    updated: float = 0.0


@dataclass(slots=True)
class RankRecord(Record):
    """Who is one rank of a trial; rank 0 is who writes the trial's record."""

    KIND = "rank"

    name: str
    """Of the trial."""
    rank: int
    world_size: int
    epoch: int = 1
    """Raised by every process that takes the rank over."""
    generation: int = 1
    """Epoch of the trial's record that this rank takes part in."""
    updated: float = 0.0
    nonce: str = ""
    """Nonce of that record."""


@dataclass(slots=True)
class FailureRecord(Record):
    """Why a checkpoint of several ranks will never be whole, as one of them says."""

    KIND = "failure"

    rank: int
    generation: int
    """Epoch of the trial's record that this was part of; in another one it says nothing."""
    reason: str
    step: int = field(default=-1, metadata={"check": _from_minus_one})
    """The latest training step that is given up: who reports a later one goes on under the next number. -1: written by
    a version without steps."""
    conflict: bool = False
    """Whether two ranks have written one file with different content."""
    nonce: str = ""
    """Of the trial, beside the generation."""


@dataclass(slots=True)
class OutcomeRecord(Record):
    """Whether a checkpoint of several ranks is committed or given up: created once, by the first rank that knows."""

    KIND = "outcome"

    rank: int = field(metadata={"check": _from_minus_one})
    """Who wrote it; -1 if it is committed, so that all who may write it write the same bytes."""
    generation: int
    step: int = field(metadata={"check": _from_minus_one})
    """Committed: its training step. Given up: as in :class:`FailureRecord`."""
    committed: bool
    reason: str = ""
    conflict: bool = False
    nonce: str = ""
    """These two as in :class:`FailureRecord`."""


@dataclass(slots=True)
class ExperimentRecord(Record):
    """The driver's record: configuration, the trials that it started and their status."""

    KIND = "experiment"

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
    """The driver, see :class:`asyncsync.runtime.Presence`."""


CHECKS: dict[str, Check] = {
    "str": text,
    "str | None": _optional(text),
    "int": whole,
    "bool": _truth,
    "int | None": _optional(whole),
    "float": seconds,
    "dict[str, Any]": mapping,
    "dict[str, str]": _statuses,
    "list[str]": _names,
    "list[CheckpointRecord]": _checkpoints,
}
"""By annotation: a new field with a default is one line in its class."""
