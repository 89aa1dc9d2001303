"""Private: what the parts of one engine share. It is handed down to them in place of the engine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncsync.config import RunConfig
from asyncsync.errors import ConfigError, EngineClosedError
from asyncsync.events import Event, SyncWarning
from asyncsync.planning.ranks import rank_name
from asyncsync.runtime import need_asyncio, wall_time
from asyncsync.stores.base import Store
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
MOST_RANKS = 99_999
"""Ranks have five digits in names."""


@dataclass(frozen=True, slots=True)
class Role:
    """Which part of the experiment a process is: the driver, or one that only runs trials; and which rank of them."""

    name: str = "driver"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("driver", "worker"):
            raise ConfigError(f'invalid SyncEngine(role={self.name!r}): must be "driver" or "worker"')
        if not _whole(self.world_size) or not 1 <= self.world_size <= MOST_RANKS:
            raise ConfigError(f"invalid SyncEngine(world_size={self.world_size!r}): must be 1 to {MOST_RANKS}")
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
        """Whether it keeps the experiment's record and own files."""
        return self.name == "driver"

    @property
    def leads(self) -> bool:
        """Whether it keeps the records and directories of its trials: rank 0."""
        return self.rank == 0

    def directory(self, trial: str) -> str:
        """Where its artifacts of a trial are, below the experiment."""
        return trial if self.leads else f"{trial}/{rank_name(self.rank)}"

    def others(self) -> frozenset[str]:
        """Directories in a trial's that belong to other ranks."""
        return frozenset(rank_name(rank) for rank in range(1, self.world_size)) if self.leads else frozenset()


class OwningLoop:
    """The process and the event loop that entered an engine; no other may use it."""

    def __init__(self) -> None:
        need_asyncio()
        self._process, self._loop = os.getpid(), asyncio.get_running_loop()

    @property
    def forked(self) -> bool:
        """Whether this is a child of that process."""
        return os.getpid() != self._process

    def check(self) -> None:
        """EngineClosedError in a child, ConfigError on another loop or outside any."""
        if self.forked:
            raise EngineClosedError(
                f"the engine was entered in process {self._process}, which this one was forked from, and runs there: "
                "make a SyncEngine of your own here"
            )
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001  None instead of an exception
            raise ConfigError(
                "the engine belongs to another event loop or thread: call it on the loop that entered it "
                "(asyncio.run_coroutine_threadsafe from elsewhere), or use SyncEngine.blocking in any thread"
            )


class ReportGate:
    """Reports wait at it while a flush is under way."""

    def __init__(self) -> None:
        self._shut = 0
        self._open = asyncio.Event()

    @contextmanager
    def closed(self, shut: bool) -> Iterator[None]:
        """Nobody passes meanwhile, if ``shut``."""
        self._shut += shut
        self._open.clear()
        try:
            yield
        finally:
            self._shut -= shut
            self._open.set()

    async def wait_open(self) -> None:
        """Wait until it is open."""
        while self._shut:
            await self._open.wait()


class EngineContext:
    """One engine's settings, services and state of life. The engine sets the services when it is entered."""

    scheduler: Scheduler
    janitor: Janitor
    record: ExperimentRecord
    record_file: RecordFile
    """The experiment's; only a driver writes it."""
    owning_loop: OwningLoop

    def __init__(self, run: RunConfig, role: Role, local_dir: Path) -> None:
        self.run, self.role, self.local_dir, self.uri = run, role, local_dir, run.uri
        self.gate = ReportGate()
        self.emitter = Emitter()
        self.recording: set[asyncio.Future[None]] = set()
        """Reports whose row is being written now; what belongs to it follows before the engine ends."""
        self.running = False
        """Between the end of entering and the beginning of leaving."""
        self.leaving_normally = False
        """Whether the engine is being left normally, so that an outage of the store costs no attempts."""
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """Shared by the engine's trees; EngineClosedError if the engine is not running, or is that of a parent."""
        if self._session is None or self.owning_loop.forked:
            raise EngineClosedError(NOT_RUNNING)
        return self._session

    def open_session(self, session: Session) -> None:
        """There is a store to turn to."""
        self._session = session

    def close_session(self) -> Session | None:
        """There is no store to turn to any more; returns the session, to be closed."""
        self.running = False
        session, self._session = self._session, None
        return session

    @property
    def stopped(self) -> bool:
        """Whether there is no store to turn to any more."""
        return self._session is None

    @property
    def leaving(self) -> bool:
        """Whether the block has been left."""
        return not self.running

    def check_open(self) -> None:
        """EngineClosedError unless the engine is running, here: in this process, and on this event loop."""
        if not self.running:
            raise EngineClosedError(NOT_RUNNING)
        self.owning_loop.check()

    @property
    def waits_for_store(self) -> bool:
        """Whether the store itself fails now, and whoever is leaving the engine decides how long that may last."""
        return self.leaving_normally and self.session.breaker.failing

    def emit(self, event: Event) -> None:
        """Tell the listeners."""
        self.emitter.emit(event)

    def warn(self, tree: str, message: str) -> None:
        """Tell the listeners, and whoever reads the log."""
        log.warning("%s", message)
        self.emit(SyncWarning(tree=tree, message=message))

    def progress_of(self, key: str) -> Callable[[Tally], None]:
        """A function that tells the listeners how far a tree is."""
        return lambda tally: self.emit(progress_event(key, tally))

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """The experiment's fence: ConcurrentWriterError if another driver has taken the experiment over."""
        return await self.record_file.confirm(store, since) if self.role.is_driver else float("inf")

    def note_status(self, trial: str, status: str) -> None:
        """A trial is new or has another status: the experiment's record says so at its next sync."""
        if self.record.trials.get(trial) != status:
            self.record.trials[trial] = status
            self.record.updated = wall_time()

    def schedule_deletions(self, trial: str, names: Sequence[str], nonce: str) -> None:
        """Checkpoints that the trial's stored record gives up are to be deleted."""
        for name in names:
            self.session.owe_delete(trial, name, nonce)
        if names:
            self.janitor.kick()

    def lock_name(self, trial: str) -> str:
        """The name under which a trial's directory is locked on this machine."""
        name = pair(f"{self.local_dir}/{trial}", self.uri, f"{trial}/")
        return f"{name} rank {self.role.rank}" if self.role.rank else name


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
