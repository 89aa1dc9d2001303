"""Records of trials and experiments. Each has one writer, which replaces it by conditional writes.

Plain data and its JSON form. :mod:`asyncsync.engine` writes records, :mod:`asyncsync.remote` reads them. Times are Unix
seconds, sizes bytes.
"""

from __future__ import annotations

import asyncio
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
from asyncsync.planning.retention import by_age
from asyncsync.runtime import Presence, wall_time
from asyncsync.sync.records.overdue import is_overdue

WRITER = "writer"
"""Key in a record: identifies the writer and counts its writes, so that no two writes are equal; see
:class:`asyncsync.sync.records.writer.RecordFile`. It carries no information about the trial or experiment."""
MARKED = "marked"
"""Key in a record: the pins and tags that other processes have set, by checkpoint, until its writer has taken them
over; see :mod:`asyncsync.sync.records.marks`."""
TRIALS_PER_SLICE = 2000
"""Trials of an experiment's record that are encoded in one turn of the event loop."""
_HEAD = ("format", "kind", "by", WRITER, MARKED)
_NO_MARKS = (False, ())
"""Shared by all checkpoints without marks."""
Json = bytes
Check = Callable[[str, Any], Any]
"""Returns the checked value of a field, or raises a ValueError that names the field."""


@dataclass(slots=True)
class _Fields:
    """A dataclass whose fields are those of a JSON object. Each is checked by its annotation, see CHECKS, or by the
    ``check`` in its metadata. Other fields of the object are kept in ``extra`` and written back."""

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

    def as_object(self, *, without: str = "") -> dict[str, Any]:
        """The fields as a JSON object, ``without`` one of them."""
        names = (name for name in _checks(type(self)) if name != without)  # type: ignore[arg-type]
        return {**self.extra, **{name: _plain(getattr(self, name)) for name in names}}


@cache
def _checks(kind: type[_Fields]) -> dict[str, Check]:
    """The check of each field of the class, by name."""
    known = [item for item in fields(kind) if item.name != "extra" and item.init]
    return {item.name: item.metadata.get("check") or CHECKS[str(item.type)] for item in known}


@dataclass(slots=True)
class Record(_Fields):
    """A record that is a document of its own."""

    KIND: ClassVar[str]
    LONG: ClassVar[str] = ""
    """The field that may become long. It is the last of the document."""

    def to_bytes(self, stamp: str = "") -> bytes:
        """The record as JSON; ``stamp`` is its WRITER."""
        head = {"format": FORMAT, "kind": self.KIND, "by": f"asyncsync {__version__}"}
        if stamp:
            head[WRITER] = stamp
        document = _dumps({**head, **self.as_object(without=self.LONG)})
        if self.LONG:
            return b"".join((document[:-1].encode(), f',"{self.LONG}":'.encode(), self.long_text(), b"}\n"))
        return document.encode() + b"\n"

    def encode(self, stamp: str) -> bytes:
        """See :class:`asyncsync.sync.records.writer.Encoding`."""
        return self.to_bytes(stamp) if stamp else self.fingerprint()

    def fingerprint(self) -> bytes:
        """Differs if the record differs."""
        return self.to_bytes()

    def adopt(self, stored: bytes) -> None:
        """See :class:`asyncsync.sync.records.writer.Encoding`: only records of trials are marked."""

    def long_text(self) -> bytes:
        """The JSON of the LONG field, of which a record that is stored often should not encode all again."""
        return _dumps(_plain(getattr(self, self.LONG))).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse; DocumentError describes the damage."""
        with parsing(f"{cls.KIND} record"):
            raw = loads(data)
            check_format(raw)
            if raw["kind"] != cls.KIND:
                raise ValueError(f"its kind is {shown(raw['kind'])}")
            return cls.of({name: value for name, value in raw.items() if name not in _HEAD})


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [item.as_object() if isinstance(item, _Fields) else item for item in value]


def _name(field_name: str, value: Any) -> str:
    return check_name(field_name, value)


def _statuses(name: str, value: Any) -> dict[str, str]:
    """Status of each trial, by name."""
    for trial, status in mapping(name, value).items():
        check_name("the trial name", trial)
        text(name, status)
    return dict(value)


def _checkpoints(name: str, value: Any) -> list[CheckpointRecord]:
    """A list of checkpoints in which every name is unique."""
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
    """Training step of the report, if it had one."""
    pinned: bool = False
    """Whether retention leaves it alone, see ``Trial.pin``."""
    tags: list[str] = field(default_factory=list)
    """Names that users gave it, see :func:`asyncsync.tag`. Retention leaves a tagged checkpoint alone, too."""
    text: Json = field(default=b"", init=False, repr=False, compare=False)
    """Its JSON, made for an earlier write. Only the marks change after a checkpoint is recorded."""
    text_marks: tuple[bool, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    """The marks in the text; None without one."""

    @property
    def marks(self) -> tuple[bool, tuple[str, ...]]:
        """Whether it is pinned, and its tags."""
        return (self.pinned, tuple(self.tags)) if self.pinned or self.tags else _NO_MARKS

    def as_text(self) -> Json:
        """Its JSON, and keep that."""
        self.text, self.text_marks = _dumps(self.as_object()).encode(), self.marks
        return self.text


@dataclass(slots=True)
class TrialRecord(Record):
    """The record of a trial. ``status``: running, finished, failed, or the argument of ``Trial.finish``."""

    KIND = "trial"
    LONG = "checkpoints"

    name: str
    experiment: str = ""
    status: str = "running"
    error: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last report."""
    reports: int = 0
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    next_checkpoint: int = 0
    epoch: int = 1
    """Increased by every process that takes the trial over."""
    world_size: int = 1
    """Number of ranks that train it; this record is rank 0's."""
    first_checkpoint: int = 0
    """First checkpoint number of this epoch; the other ranks read it here."""
    nonce: str = ""
    """Distinguishes the trial from an earlier one of the same name in the same place."""
    given_up: list[str] = field(default_factory=list)
    """Names of checkpoints whose data is deleted or going to be: retired ones, and incomplete ones that will never be
    committed. The names are never used again, and only checkpoints listed here are deleted."""
    runner: str = ""
    """The process that runs it, see :class:`asyncsync.runtime.Presence`."""
    started: float = 0.0
    updated: float = 0.0

    def lists(self, name: str) -> bool:
        """Whether a checkpoint has this name."""
        return name in [item.name for item in self.checkpoints]

    def add(self, checkpoint: CheckpointRecord) -> None:
        """List a checkpoint, in the order of age."""
        newest = self.checkpoints[-1] if self.checkpoints else None
        self.checkpoints.append(checkpoint)
        if newest is not None and by_age(newest) > by_age(checkpoint):
            self.checkpoints.sort(key=by_age)  # a newer one was uploaded first

    def fingerprint(self) -> bytes:
        """Of a checkpoint only the marks change after it is recorded, and no name is used twice."""
        names = [item.name for item in self.checkpoints]
        marked = [(item.name, *item.marks) for item in self.checkpoints if item.marks is not _NO_MARKS]
        return _dumps([self.as_object(without=self.LONG), ",".join(names), marked]).encode()

    def long_text(self) -> bytes:
        """The checkpoints, each from the text that was made for an earlier write."""
        texts = [item.text if item.marks == item.text_marks else item.as_text() for item in self.checkpoints]
        return b"[%b]" % b",".join(texts)


@dataclass(slots=True)
class RankRecord(Record):
    """The process that is one rank of a trial. Rank 0 is the writer of the trial's record."""

    KIND = "rank"

    name: str
    """Name of the trial."""
    rank: int
    world_size: int
    epoch: int = 1
    """Increased by every process that takes the rank over."""
    generation: int = 1
    """Epoch of the trial's record that this rank takes part in."""
    updated: float = 0.0
    nonce: str = ""
    """Nonce of the trial's record."""


@dataclass(slots=True)
class FailureRecord(Record):
    """The reason why one rank gave up a checkpoint of several ranks: the checkpoint will never be complete."""

    KIND = "failure"

    rank: int
    generation: int
    """Epoch of the trial's record at that time; for another epoch this record has no meaning."""
    reason: str
    step: int = field(default=-1, metadata={"check": _from_minus_one})
    """The latest training step that is given up: a rank that reports a later one continues with the next number. -1:
    written by a version without steps."""
    conflict: bool = False
    """Whether two ranks wrote one file with different content."""
    nonce: str = ""
    """Nonce of the trial's record, beside the generation."""


@dataclass(slots=True)
class OutcomeRecord(Record):
    """Whether a checkpoint of several ranks is committed or given up. Created once, by the first rank that knows."""

    KIND = "outcome"

    rank: int = field(metadata={"check": _from_minus_one})
    """The rank that wrote it; -1 if the checkpoint is committed, so that every rank writes the same bytes."""
    generation: int
    step: int = field(metadata={"check": _from_minus_one})
    """If committed: its training step. If given up: as in :class:`FailureRecord`."""
    committed: bool
    reason: str = ""
    conflict: bool = False
    nonce: str = ""
    """``conflict`` and ``nonce`` as in :class:`FailureRecord`."""


@dataclass(slots=True)
class ExperimentRecord(Record):
    """The driver's record: the configuration, and the trials that it started with their status."""

    KIND = "experiment"
    LONG = "trials"

    name: str
    trials: dict[str, str] = field(default_factory=dict)
    """Trial name -> status; changed by :meth:`set_status`."""
    changes: int = field(default=0, init=False, compare=False)
    """Number of changes of a status."""
    trials_text: bytes = field(default=b"", init=False, repr=False, compare=False)
    """The JSON of ``trials`` for the next write, if they are many."""
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    epoch: int = 1
    started: float = 0.0
    updated: float = 0.0
    nonce: str = ""
    """Distinguishes the experiment from an earlier one of the same name in the same place."""
    runner: str = ""
    """The driver, see :class:`asyncsync.runtime.Presence`."""
    heartbeat: float = 0.0
    """When the driver last wrote this record; 0: written by a version without heartbeats."""
    heartbeat_period: float = 0.0
    """Longest time between two heartbeats, seconds; 0: none are promised."""

    def set_status(self, trial: str, status: str) -> bool:
        """Whether the status is another one than before."""
        if self.trials.get(trial) == status:
            return False
        self.trials[trial] = status
        self.changes += 1
        return True

    def encode(self, stamp: str) -> bytes:
        """The document to store. With a ``stamp`` it is written now, and carries the time; without one it is only
        compared, and the time makes no difference."""
        if stamp:
            self.heartbeat = wall_time()
            return self.to_bytes(stamp)
        return self.fingerprint()

    def fingerprint(self) -> bytes:
        """Without the time of the heartbeat."""
        return _dumps([{**self.as_object(without=self.LONG), "heartbeat": 0}, self.changes]).encode()

    async def make_text(self) -> None:
        """Encode many trials in slices, between which the event loop runs: 100,000 at once would stop it for 20 ms.

        A status that changes meanwhile is in the text or in that of the next write.
        """
        names, texts = list(self.trials), []
        if len(names) <= TRIALS_PER_SLICE:
            return
        for first in range(0, len(names), TRIALS_PER_SLICE):
            page = {name: self.trials[name] for name in names[first : first + TRIALS_PER_SLICE]}
            texts.append(_dumps(page)[1:-1].encode())
            await asyncio.sleep(0)
        self.trials_text = b"{%b}" % b",".join(texts)

    def long_text(self) -> bytes:
        """From the text that was made for this write, if there is one."""
        text, self.trials_text = self.trials_text, b""
        return text or _dumps(self.trials).encode()

    def is_lost(self, now: float) -> bool:
        """Whether the driver ended and did not record it: its process has ended on this machine, or its heartbeat is
        overdue. ``now``: Unix seconds."""
        if self.status != "running":
            return False
        if Presence.has_ended(self.runner):
            return True
        return is_overdue(self.heartbeat, self.heartbeat_period, now)


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
"""Checks by annotation: a new field with a default is one line in its class."""
