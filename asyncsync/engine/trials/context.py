"""Private: settings, services and life cycle that the parts of one engine share. They receive it instead of the
engine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from asyncsync.config import RunConfig
from asyncsync.disk.results import OWN_FILES
from asyncsync.errors import ConfigError, EngineClosedError
from asyncsync.events import CheckpointDurable, Event, SyncWarning
from asyncsync.planning.rank_agreement import rank_name
from asyncsync.runtime import need_asyncio, wall_time
from asyncsync.stores.base import Store
from asyncsync.sync.event_counter import EventCounter
from asyncsync.sync.event_log import log_event
from asyncsync.sync.event_stream import Emitter
from asyncsync.sync.janitor import Janitor
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.scheduler import Scheduler
from asyncsync.sync.session import Session
from asyncsync.sync.tree import pair
from asyncsync.sync.upload.tree_upload import Tally, progress_event

log = logging.getLogger("asyncsync")

EXPERIMENT_KEY = ""
"""Key of the experiment's own tree."""
NOT_RUNNING = "the engine is not running: use it inside its 'async with' block"
MAX_RANKS = 99_999
"""Ranks have five digits in names."""


@dataclass(frozen=True, slots=True)
class Role:
    """The part of a process in an experiment: driver, or worker that only runs trials; and its rank."""

    name: str = "driver"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("driver", "worker"):
            raise ConfigError(f'invalid SyncEngine(role={self.name!r}): must be "driver" or "worker"')
        if not _whole(self.world_size) or not 1 <= self.world_size <= MAX_RANKS:
            raise ConfigError(f"invalid SyncEngine(world_size={self.world_size!r}): must be 1 to {MAX_RANKS}")
        if not _whole(self.rank) or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"invalid SyncEngine(rank={self.rank!r}, world_size={self.world_size}): rank must be 0 to "
                f"{self.world_size - 1}"
            )
        if self.rank and self.is_driver:
            raise ConfigError(
                f'invalid SyncEngine(rank={self.rank}, role="driver"): only rank 0 may be the driver, give '
                'role="worker"'
            )

    @property
    def is_driver(self) -> bool:
        """Whether this process keeps the experiment's record and own files."""
        return self.name == "driver"

    @property
    def leads(self) -> bool:
        """Whether this process keeps the records and directories of its trials: rank 0."""
        return self.rank == 0

    def directory(self, trial: str) -> str:
        """Directory of this rank's artifacts of a trial, relative to the experiment."""
        return trial if self.leads else f"{trial}/{rank_name(self.rank)}"

    def others(self) -> frozenset[str]:
        """Directories below a trial's that belong to other ranks."""
        return frozenset(rank_name(rank) for rank in range(1, self.world_size)) if self.leads else frozenset()


class OwningLoop:
    """The process and the event loop that entered an engine. No other may use it."""

    def __init__(self) -> None:
        need_asyncio()
        self._process, self._loop = os.getpid(), asyncio.get_running_loop()

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child of the one that entered."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Raise EngineClosedError in a forked child, ConfigError on another loop or outside any."""
        if self.forked:
            raise EngineClosedError(
                f"the engine belongs to process {self._process}, which this one was forked from. Make a new "
                "SyncEngine in this process"
            )
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001  None instead of an exception
            raise ConfigError(
                "the engine belongs to another event loop or thread: call it on the loop that entered it "
                "(asyncio.run_coroutine_threadsafe from elsewhere), or use SyncEngine.blocking in any thread"
            )


class ReportGate:
    """Reports wait here during a flush with a deadline."""

    def __init__(self) -> None:
        self._shut = 0
        self._open = asyncio.Event()

    @contextmanager
    def closed(self, shut: bool) -> Iterator[None]:
        """Within this block reports wait, if ``shut``."""
        self._shut += shut
        self._open.clear()
        try:
            yield
        finally:
            self._shut -= shut
            self._open.set()

    async def wait_open(self) -> None:
        """Wait until no flush keeps reports waiting."""
        while self._shut:
            await self._open.wait()


class DurableCalls(Protocol):
    """The user's ``on_durable``, see :mod:`asyncsync.engine.durable_callback`."""

    def submit(self, event: CheckpointDurable) -> None:
        """Call it soon."""


@dataclass(frozen=True, slots=True)
class DirectoryInUse:
    """The directory, or the one file, of a pending checkpoint. ``owned``: it is deleted once durable."""

    path: str
    name: str
    owned: bool


class UsedDirectories:
    """Directories that no new checkpoint may be in, by their real paths: those that trials write to, and those of
    pending checkpoints. Reports look here from worker threads; each method is one step for the others."""

    def __init__(self) -> None:
        self._trials = set[str]()
        self._above: dict[str, str] = {}
        """A trial's directory for each directory that holds one."""
        self._pending: dict[object, DirectoryInUse] = {}
        self._parent = self._real_parent = ""
        """The directory that held the last trial, and its real path."""

    def add_trial(self, directory: str, *, is_new: bool = False) -> None:
        """``directory`` is written to by a trial, or by asyncsync itself, while the engine runs.

        ``is_new``: it was just made, so it is not a link.
        """
        place = real = self._real_path(directory, is_new=is_new)
        self._trials.add(real)
        while place not in self._above:
            self._above[place] = real
            place = os.path.dirname(place)

    def _real_path(self, directory: str, *, is_new: bool) -> str:
        """Trials share a parent, which is resolved once: a call of the system for each part of each path adds up."""
        parent, _, name = directory.rpartition("/")
        if not (parent and name) or (not is_new and os.path.islink(directory)):
            return os.path.realpath(directory)
        if parent != self._parent:
            self._parent, self._real_parent = parent, os.path.realpath(parent)
        return f"{self._real_parent.rstrip('/')}/{name}"

    def trial_within(self, real: str) -> str | None:
        """A trial's directory that is ``real`` or lies in it."""
        return self._above.get(real)

    def is_trial(self, real: str) -> bool:
        """Whether ``real`` is a trial's directory."""
        return real in self._trials

    def add_pending(self, key: object, directory: DirectoryInUse) -> None:
        """A checkpoint is being reported, or is pending."""
        self._pending[key] = directory

    def drop_pending(self, key: object) -> None:
        """It has ended."""
        self._pending.pop(key, None)

    def pending(self, *, but: object) -> list[DirectoryInUse]:
        """The directories of all pending checkpoints except this one."""
        return [directory for key, directory in list(self._pending.items()) if key != but]


class EngineContext:
    """Settings, services and life cycle of one engine. The engine sets the services when it is entered."""

    scheduler: Scheduler
    janitor: Janitor
    record: ExperimentRecord
    record_file: RecordFile
    """The experiment's record; only a driver writes it."""
    owning_loop: OwningLoop

    def __init__(self, run: RunConfig, role: Role, local_dir: Path) -> None:
        self.run, self.role, self.local_dir, self.uri = run, role, local_dir, run.uri
        latest = run.checkpoint_config.latest_file
        self.own_files = OWN_FILES if latest is None else (*OWN_FILES, latest)
        """Files that asyncsync writes in each trial's directory."""
        self.latest_file = latest if role.leads else None
        """The file among these that names the newest checkpoint, if this process writes one."""
        self.callback: DurableCalls | None = None
        """Calls the user's ``on_durable``."""
        self.gate = ReportGate()
        self.emitter = Emitter()
        self.event_counter = EventCounter()
        self.directories = UsedDirectories()
        self.recording: set[asyncio.Future[None]] = set()
        """Reports whose row is being written. The engine waits for them before it ends."""
        self.unsettled: dict[str, None] = {}
        """Names of the trials that may have changed since the last look at them, or are not durable."""
        self.running = False
        """True from the end of entering to the beginning of leaving."""
        self.leaving_normally = False
        """Whether the block is being left normally. Then an outage of the store uses up no attempts."""
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The session that the engine's trees share. Raises EngineClosedError if the engine is not running, or was
        entered in the parent process."""
        if self._session is None or self.owning_loop.forked:
            raise EngineClosedError(NOT_RUNNING)
        return self._session

    def open_session(self, session: Session) -> None:
        """The store can be used from now on."""
        self._session = session

    def close_session(self) -> Session | None:
        """The store cannot be used any more. Returns the session for the caller to close."""
        self.running = False
        session, self._session = self._session, None
        return session

    @property
    def stopped(self) -> bool:
        """Whether the store cannot be used, before or after the run."""
        return self._session is None

    @property
    def leaving(self) -> bool:
        """Whether the block is being left."""
        return not self.running

    def check_open(self) -> None:
        """Raise EngineClosedError unless the engine is running in this process, ConfigError on another event loop."""
        if not self.running:
            raise EngineClosedError(NOT_RUNNING)
        self.owning_loop.check()

    @property
    def waits_for_store(self) -> bool:
        """Whether the store as a whole fails while the block is left normally. Then ``leave_timeout`` limits the wait,
        not attempts."""
        return self.leaving_normally and self.session.breaker.failing

    def emit(self, event: Event) -> None:
        """Count and log an event, and send it to the listeners."""
        self.event_counter.note(event)
        log_event(event)
        self.emitter.emit(event)
        if self.callback is not None and isinstance(event, CheckpointDurable):
            self.callback.submit(event)

    def warn(self, tree: str, message: str) -> None:
        """Log a warning and send it to the listeners."""
        log.warning("%s", message)
        self.emit(SyncWarning(tree=tree, message=message))

    def progress_of(self, key: str) -> Callable[[Tally], None]:
        """A function that sends the progress of a tree to the listeners."""
        return lambda tally: self.emit(progress_event(key, tally))

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """The experiment's fence: raises ConcurrentWriterError if another driver took the experiment over. Returns when
        the store was asked, on the lease's clock."""
        return await self.record_file.confirm(store, since) if self.role.is_driver else float("inf")

    def note_status(self, trial: str, status: str) -> None:
        """Record a trial's status in the experiment's record, which is stored at its next sync."""
        if self.record.set_status(trial, status):
            self.record.updated = wall_time()

    def schedule_deletions(self, trial: str, names: Sequence[str], nonce: str) -> None:
        """Schedule the deletion of checkpoints that the trial's stored record gives up."""
        for name in names:
            self.session.owe_delete(trial, name, nonce)
        if names:
            self.janitor.kick()

    def lock_name(self, trial: str) -> str:
        """The name of the lock on a trial's directory on this machine."""
        name = pair(f"{self.local_dir}/{trial}", self.uri, f"{trial}/")
        return f"{name} rank {self.role.rank}" if self.role.rank else name


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
