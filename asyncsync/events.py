"""What happens inside the engine, as data; see ``SyncEngine.events()``.

Times are Unix seconds (``time.time()``), durations seconds, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncsync.runtime import wall_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events. ``tree`` is the prefix below the experiment, ``""`` for the experiment itself."""

    tree: str
    time: float = field(default_factory=wall_time)

    @property
    def kind(self) -> str:
        """The event's name, such as ``"SyncFinished"``."""
        return type(self).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStarted(Event):
    """A sync of a tree begins. ``forced``: it did not wait for its period."""

    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFinished(Event):
    """A sync ended well; the numbers are those of its :class:`asyncsync.SyncReport`."""

    files_sent: int
    bytes_total: int
    bytes_sent: int
    bytes_copied: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFailed(Event):
    """A sync failed; it is retried with backoff. ``error`` says why."""

    error: str
    retry_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncTimedOut(Event):
    """A sync was ended by ``sync_timeout``."""

    error: str
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncWarning(Event):
    """Something was left out of a sync: a socket, a link that leaves the tree, a file that vanished; or out of a
    resume: a trial, or a checkpoint, whose record or manifest cannot be read."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvent(Event):
    """Base of the checkpoint events. ``checkpoint`` is its name, such as ``"checkpoint_000003"``."""

    trial: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAccepted(CheckpointEvent):
    """``report`` took a checkpoint over; it is not durable yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDurable(CheckpointEvent):
    """Every byte and the manifest are acknowledged, and the trial's record names the checkpoint. The numbers are those
    of what was sent by this process; ``requests`` counts those for its files and its manifest."""

    bytes_total: int
    bytes_sent: int
    bytes_copied: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(CheckpointEvent):
    """The checkpoint did not become durable."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRetired(CheckpointEvent):
    """Retention took the checkpoint out of the record; its data is being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """How far a transfer is; at most a few each second per tree."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
