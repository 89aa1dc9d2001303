"""The events of an engine, as data; ``SyncEngine.events()`` delivers them.

``time`` is in Unix seconds (``time.time()``), ``seconds``, ``timeout`` and ``retry_in`` are durations in seconds, and
``bytes_*`` are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncsync.runtime import wall_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base class of all events. ``tree``: the prefix below the experiment; ``""`` is the experiment itself."""

    tree: str
    time: float = field(default_factory=wall_time)

    @property
    def kind(self) -> str:
        """The name of the event, such as ``"SyncFinished"``."""
        return type(self).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStarted(Event):
    """A sync of a tree started. ``forced``: it did not wait for its period."""

    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFinished(Event):
    """A sync succeeded. The numbers are those of its :class:`asyncsync.SyncReport`."""

    files_sent: int
    bytes_total: int
    bytes_sent: int
    bytes_copied: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFailed(Event):
    """A sync failed. ``error``: why; ``retry_in``: seconds until the retry, or None if there is none."""

    error: str
    retry_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncTimedOut(Event):
    """A sync was cancelled after ``sync_timeout`` (``timeout``, in seconds)."""

    error: str
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncWarning(Event):
    """A sync left something out: a socket, a link that leaves the tree, a file that vanished. Or a resume left out a
    trial or a checkpoint whose record or manifest cannot be read."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvent(Event):
    """Base class of the checkpoint events. ``checkpoint``: its name, such as ``"checkpoint_000003"``."""

    trial: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAccepted(CheckpointEvent):
    """``report`` accepted a checkpoint; it is not durable yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDurable(CheckpointEvent):
    """The store has acknowledged every byte and the manifest, and the trial's record names the checkpoint.

    The numbers count the work of this process: ``requests`` for the files and the manifest, ``seconds`` since the
    upload started."""

    bytes_total: int
    bytes_sent: int
    bytes_copied: int
    requests: int
    seconds: float
    uri: str = ""
    """Address of the checkpoint."""
    step: int | None = None
    """Training step of its report, if it had one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackFailed(CheckpointEvent):
    """``CheckpointConfig.on_durable`` failed for this checkpoint, which is durable. ``error``: why."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReplaced(CheckpointEvent):
    """A newer checkpoint (``by``) took the place of this one before its upload began; see
    ``CheckpointConfig.when_full``. It will not be stored."""

    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(CheckpointEvent):
    """The checkpoint did not become durable."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRetired(CheckpointEvent):
    """Retention removed the checkpoint from the trial's record; its data is being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded:
    """One attempted request to the store has ended, see :meth:`asyncsync.SyncEngine.on_request`. These are far too many
    for ``events()``."""

    operation: str
    """Such as ``put``, ``put_part``, ``complete_multipart``, ``read``, ``list``."""
    key: str
    """Below the experiment; of a listing or a batch deletion its prefix or first key."""
    bytes: int
    """Bytes of the body that it moved, in either direction."""
    seconds: float
    error: str | None = None
    """Name of the error's class; None after a success."""
    time: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far one large file is."""

    path: str
    bytes_done: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """The progress of a transfer; at most a few events per second and tree."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    files: tuple[FileProgress, ...] = ()
    """Large files in flight, at most 8, those that began first."""
