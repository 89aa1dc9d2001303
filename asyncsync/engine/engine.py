"""SyncEngine: keeps an experiment's trials in the store while they run. It owns every task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asyncsync.aio.retry import may_pass
from asyncsync.aio.tasks import together
from asyncsync.config import RunConfig, check_apart, check_name
from asyncsync.disk.journal import state_dir
from asyncsync.disk.scan import Rules
from asyncsync.engine.drain import OWN, Drain, Gate, bounded, raise_failures, sync_all
from asyncsync.engine.presence import Presence
from asyncsync.engine.resume import adopt_checkpoints, read_trials, restore_files
from asyncsync.engine.signals import Signals, as_signals, cancelling, check_thread
from asyncsync.engine.start import (
    Home,
    as_seconds,
    make_directory,
    new_record,
    open_record,
    take_over,
    warn,
    warn_of_limits,
)
from asyncsync.engine.trial import Trial
from asyncsync.engine.trials.job import CheckpointJob
from asyncsync.engine.trials.ownership import InUse
from asyncsync.engine.trials.pending import Left, forget_suspended, left_behind, take_up
from asyncsync.engine.trials.role import Role
from asyncsync.engine.trials.runner import CheckpointRunner
from asyncsync.errors import DamagedError, EngineClosedError, SyncError
from asyncsync.events import Event
from asyncsync.report import SyncReport
from asyncsync.runtime import lease_time, wall_time
from asyncsync.status import EngineStatus, FlushReport, engine_status
from asyncsync.stores.base import Lane, Store
from asyncsync.stores.guard.fenced import OUTLIVED, Fence
from asyncsync.sync.event_stream import Emitter, EventStream
from asyncsync.sync.janitor import Janitor
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.scheduler import Scheduler
from asyncsync.sync.session import Session
from asyncsync.sync.tree import Tree, TreeOptions, pair
from asyncsync.sync.upload.tree_upload import Tally, progress_event

if TYPE_CHECKING:
    from asyncsync.blocking import BlockingEngine

EXPERIMENT = ""
"""Key of the experiment's own tree."""
ORIGINS = 4
"""How many checkpoints of an earlier process are looked at for what a new trial may have in common with them."""
TOLERATED = 300.0
"""Seconds for which background syncs may fail for reasons that pass before the trial's next report raises."""


class SyncEngine:
    """Syncs one experiment; use it as ``async with SyncEngine(run) as engine``.

    Leaving the block normally syncs everything once more and raises if anything is not durable. Leaving it by an
    exception tries the same for ``exit_grace`` seconds and notes on that exception what is not durable.

    Args:
        run: name, place and settings of the experiment.
        local_dir: where trial directories are made: ``{local_dir}/{run.name}/{trial}``; default: below asyncsync's
            state directory.
        resume: continue the experiment if it exists. False: ExperimentExistsError if it exists.
        role: ``driver`` also keeps the experiment's record and own files; ``worker`` only runs trials of it.
        rank: which of the processes that train each trial this is. Rank 0 keeps the trial's record and directory.
        world_size: how many they are; all write into the same checkpoints, and reach nothing but the store.
        leave_timeout: most seconds for the last sync when the block is left normally; None: no limit. A store that
            refuses everything ends it after 120 s, however many trials there are. SyncFailedError names what is not
            durable then.
        exit_grace: seconds for the last sync when the block is left by an exception or a cancel.
        handle_signals: signals that cancel the task which runs the block, so that it is left within ``exit_grace``:
            True means SIGTERM, or give a set of SIGTERM, SIGUSR1, SIGUSR2 and SIGINT. Repeats are ignored within the
            grace; a handler that was there is called too, and is back afterwards. Only in the main thread
            (ConfigError elsewhere).

    An engine is entered once: EngineClosedError for another time.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        local_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        role: str = "driver",
        rank: int = 0,
        world_size: int = 1,
        exit_grace: float = 30.0,
        leave_timeout: float | None = 600.0,
        handle_signals: bool | Collection[int] = False,
    ) -> None:
        self.role = Role(role, rank, world_size)
        self.run = run
        self.local_dir = Path(os.path.abspath(local_dir or state_dir() / "runs")) / str(run.name)
        self.uri = run.uri
        self.resume, self.exit_grace = resume, as_seconds("exit_grace", exit_grace)
        self.leave_timeout = None if leave_timeout is None else as_seconds("leave_timeout", leave_timeout)
        self._patient = False
        self._wanted_signals = as_signals(handle_signals)
        self._signals: Signals | None = None
        self._entered = False
        self.trials: dict[str, Trial] = {}
        """The trials that this engine runs, by name."""
        self.not_done: dict[str, BaseException] = {}
        """What was not durable when the block was left, and why."""
        self.gate = Gate()
        self._emitter = Emitter()
        self._known: dict[str, tuple[TrialRecord, str]] = {}
        self._damaged: dict[str, DamagedError] = {}
        """Trials whose record cannot be read, and why: nobody writes to them."""
        self._taken_up: set[str] = set()
        """Trials that go on because of what they had pending, and that nobody has asked for yet."""
        self.recording: set[asyncio.Future[None]] = set()
        """Reports whose row is being written just now: what belongs to it follows before the engine ends."""
        self.being_reported: list[InUse] = []
        """What reports that are being accepted just now consist of, in all trials."""
        self.suspended: dict[str, list[Left]] = {}
        """By trial: checkpoints of an earlier process that go on if they are reported again."""
        self.recheck_at: float | None = None
        """When the lease of a driver that may not have ended is over, on the lease's clock: then its own files are
        compared with what the store has."""
        self._running = False
        self._tasks: list[asyncio.Task[None]] = []
        self._session: Session | None = None

    key = EXPERIMENT

    @staticmethod
    def blocking(run: RunConfig, **options: Any) -> BlockingEngine:
        """The same engine for training loops that are not async: ``with SyncEngine.blocking(run) as engine:``."""
        from asyncsync.blocking import BlockingEngine

        return BlockingEngine(run, **options)

    # entering

    async def __aenter__(self) -> SyncEngine:
        if self._entered:
            raise EngineClosedError("an engine is entered once, and this one was entered before: make a new SyncEngine")
        check_apart(self.local_dir, self.uri)
        check_thread(self._wanted_signals)
        self._home = Home()
        self._entered = True
        try:
            await self._enter()
        except BaseException:
            self._entered = False  # nothing has begun: it may be tried again
            raise
        return self

    async def _enter(self) -> None:
        self._presence = Presence()
        try:
            self._session = await Session.open(self.uri, self.run.transfer, self.run.storage_options)
            await self._start(self._session)
        except BaseException:
            await self._undo()
            raise
        if self._wanted_signals:
            task = asyncio.current_task()
            assert task is not None
            self._signals = Signals(self._wanted_signals, cancelling(task), self.exit_grace)

    async def _undo(self) -> None:
        """Entering failed: nothing of it stays."""
        self._running = False
        self._presence.leave()
        session, self._session = self._session, None
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await self._group.__aexit__(None, None, None)
        finally:
            if session is not None:
                await session.close()

    async def _start(self, session: Session) -> None:
        store = session.view(Lane.RECORD, EXPERIMENT)
        await together((session.probe(), self._open_record(store)), "start")
        warn_of_limits(session.store, self.emit)
        if self.role.is_driver:
            session.locks.take(pair(str(self.local_dir), self.uri, ""))
            await self.record_file.save(store)  # from here on who was replaced begins nothing new
        if self.resume and self.role.leads:
            self._known, self._damaged = await read_trials(store)
            for name, error in self._damaged.items():
                warn(
                    self.emit, name, f"trial {name!r} is not resumed, the others are: {error}. Nothing is written to "
                    "it; put an earlier version of that object back, or use another name",
                )  # fmt: skip
        if self.role.is_driver:
            if self._before.may_still_write():
                self.recheck_at = lease_time() + OUTLIVED
            if self.resume:
                await restore_files(store, "", self.local_dir, partial(warn, self.emit, ""))
        alone = self.role.world_size == 1
        left = await left_behind(session, self.role.name) if self.resume and alone else []
        self.local_dir.mkdir(parents=True, exist_ok=True)
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._janitor = Janitor(session)
        self._runner = CheckpointRunner(self, self._group)
        self.scheduler = Scheduler(self.run.sync_config, self._group, self.emit, on_failure=self._on_failure)
        session.on_deleted, session.on_warning = self._deleted, partial(warn, self.emit, "")
        session.fence_of = self._fence_of
        session.nonce = session.uploads.nonce = self.record.nonce
        self._tasks = [
            self._group.create_task(self.scheduler.run(), name="asyncsync scheduler"),
            self._group.create_task(self._janitor.run(), name="asyncsync janitor"),
            self._group.create_task(self._runner.run(), name="asyncsync checkpoints"),
            self._group.create_task(session.watch(), name="asyncsync watch"),
        ]
        session.breaker.on_back |= {self.scheduler.hurry, self._janitor.kick}
        self._running = True
        if self.role.is_driver:
            self._tree = Tree(
                session,
                str(self.local_dir),
                "",
                TreeOptions(self._rules, Lane.ARTIFACT, fence=self.confirm, doubted=True),
            )
            self.scheduler.add(self)
        for job in take_up(self, left):
            self._taken_up.add(job.trial)
            self.accept(job)
        self._janitor.kick()

    async def _open_record(self, store: Store) -> None:
        self.record, self.record_file, self._before = await open_record(
            store, self.run, self.role, self._presence.name, resume=self.resume
        )

    # what users call

    @property
    def session(self) -> Session:
        """Shared by the engine's trees; EngineClosedError if the engine is not running, or is that of a parent."""
        if self._session is None or self._home.forked:
            raise EngineClosedError("the engine is not running: use it inside its 'async with' block")
        return self._session

    def trial(self, name: str, *, params: Mapping[str, Any] | None = None) -> Trial:
        """The trial of this name, new on first use; its sync starts at once. ``params`` are kept in params.json.

        Its directory is there when this returns: a lock and a ``mkdir``, the only disk work on the event loop.
        ConcurrentWriterError if another process of this machine runs the trial in the same directory, DamagedError if
        the trial was to be resumed and its record cannot be read.
        """
        self.check_open()
        found = self.trials.get(name)
        if found is not None:
            if name in self._taken_up:
                self._taken_up.discard(name)
                found.set_params(params)
            return found
        check_name("the trial name", name)
        if name in self._damaged:
            raise copy(self._damaged[name]) from self._damaged[name]
        self.session.locks.take(self.lock_name(name))
        trial = self._new_trial(name, params)
        make_directory(self.local_dir, name, self.role)
        self.trials[name] = trial
        self.trial_changed(trial)
        self.scheduler.add(trial)
        return trial

    def events(self) -> EventStream:
        """What happens from now on: ``async for event in engine.events()``. Ends when the engine does, so a task that
        listens belongs outside the block, or is cancelled inside it."""
        if self._running:
            self._home.check()
        return self._emitter.listen()

    def status(self) -> EngineStatus:
        """How things stand: per trial the durability lag and what is at risk, and the queues."""
        return engine_status(self)

    async def sync(self) -> None:
        """Sync the experiment and every trial now, and wait for it. SyncFailedError names the trees that failed."""
        self.check_open()
        raise_failures(await sync_all(self.scheduler, self.member_keys()))

    async def flush(self, deadline: float | None = None) -> FlushReport:
        """Make everything durable that can be within ``deadline`` seconds, and say what is and what is not.

        With a deadline, as before a preemption: no report is taken meanwhile (it waits), the newest checkpoint of every
        trial goes first, then records, then artifacts and older checkpoints. Nothing is lost that is not done in time:
        it goes on afterwards, or in the next process.
        """
        self.check_open()
        drain = Drain(self, self._runner)
        with self.gate.closed(deadline is not None):
            await self._drain(drain, deadline)
        return drain.report()

    # leaving

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._home.forked:
            return  # the engine, its connections and its threads are the parent's
        self._home.check()
        failures: dict[str, BaseException] = {}
        if self._signals is not None and error is not None:
            self._signals.begin_grace()
        try:
            if self._alive():
                failures = self.not_done = await self._leave_in_time(error)
            if failures and error is not None:
                error.add_note(_not_durable(failures))  # before the end of our tasks raises it again
        finally:
            try:
                await self._stop(error)
            finally:
                if self._signals is not None:
                    self._signals.restore()
        if error is None:
            raise_failures(failures)

    def _alive(self) -> bool:
        return not any(task.done() for task in self._tasks)

    async def _leave_in_time(self, error: BaseException | None) -> dict[str, BaseException]:
        """A cancel while the block is left ends the waiting, not the grace."""
        try:
            return await self._leave(error)
        except asyncio.CancelledError as cancelled:
            if error is not None:
                raise
            failures = await self._leave(cancelled)
            self.not_done = failures
            if failures:
                cancelled.add_note(_not_durable(failures))
            raise

    async def _leave(self, error: BaseException | None) -> dict[str, BaseException]:
        self._running = False
        self.record.status = "finished" if error is None else "interrupted"
        self.record.updated = wall_time()
        if error is None:
            for trial in self.trials.values():
                trial.give_up_suspended()
            forget_suspended(self)
        self._patient = error is None
        drain = Drain(self, self._runner)
        why = await self._drain(drain, None if error is None else self.exit_grace, self.leave_timeout)
        if not why:
            return drain.failures
        limit = "leave_timeout" if error is None else "exit_grace"
        left = f"{why} (see {limit})"
        missing = {key or OWN: SyncError(left) for key in drain.report().not_durable}
        return {**missing, **drain.failures}

    def waits_for_store(self) -> bool:
        """Whether it is the store that fails just now, and somebody else decides how long that may last."""
        return self._patient and self.session.breaker.failing

    async def _drain(self, drain: Drain, deadline: float | None, most: float | None = None) -> str:
        """Why it was not through in time. Without a ``deadline`` everything comes in its order, within ``most``."""
        breaker = self.session.breaker
        if deadline is not None:
            return await bounded(self._drained(drain, deadline), deadline, None)
        return await bounded(self._drained(drain, None), most, breaker)

    async def _drained(self, drain: Drain, deadline: float | None) -> None:
        if self.recording:
            await asyncio.wait(self.recording)
        await drain.run(deadline)
        if self.session.store.healthy:
            await self._janitor.clean_up()

    async def _stop(self, error: BaseException | None) -> None:
        self._running = False
        session, self._session = self._session, None
        try:
            self.scheduler.close()
            self.scheduler.cancel_running()
            self._runner.cancel()
            for task in self._tasks:
                task.cancel()
            cancelled = error if isinstance(error, asyncio.CancelledError) else None
            await self._group.__aexit__(type(cancelled) if cancelled else None, cancelled, None)
        finally:
            self._presence.leave()
            self._emitter.close()
            if session is not None:
                await session.close()

    # what trials and the scheduler call

    async def sync_once(self) -> SyncReport:
        """One attempt at the experiment's own files and record; the scheduler's business."""
        if self.recheck_at is not None and lease_time() >= self.recheck_at:
            await self._tree.recheck()
            self.recheck_at = None
        report = await self._tree.sync_once(self.progress_of(EXPERIMENT))
        await self.record_file.save(self.session.view(Lane.RECORD, EXPERIMENT))
        return report

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if another driver has taken the experiment over: then this one is to write nothing."""
        return await self.record_file.confirm(store, since) if self.role.is_driver else float("inf")

    def progress(self) -> str:
        """How far the running or last sync of the experiment's own files is."""
        return self._tree.progress()

    def check_open(self) -> None:
        """EngineClosedError unless the engine is running, here: in this process, and on this event loop."""
        if not self._running:
            raise EngineClosedError("the engine is not running: use it inside its 'async with' block")
        self._home.check()

    @property
    def stopped(self) -> bool:
        """Whether there is no store to turn to any more."""
        return self._session is None

    @property
    def leaving(self) -> bool:
        """Whether the block has been left."""
        return not self._running

    def emit(self, event: Event) -> None:
        """Tell the listeners."""
        self._emitter.emit(event)

    def trial_changed(self, trial: Trial) -> None:
        """A trial is new or has another status: the driver's record says so at its next sync."""
        if self.record.trials.get(trial.name) != trial.record.status:
            self.record.trials[trial.name] = trial.record.status
            self.record.updated = wall_time()

    async def restore_trial(self, trial: Trial) -> None:
        """What a resumed trial needs before its first report."""
        store = self.session.view(Lane.RECORD, trial.key)
        if self.role.leads:
            await adopt_checkpoints(store, trial.record, partial(warn, self.emit, trial.key))
        await restore_files(store, trial.tree.prefix, trial.dir, partial(warn, self.emit, trial.key))

    def progress_of(self, key: str) -> Callable[[Tally], None]:
        """A function that tells the listeners how far a tree is."""
        return lambda tally: self.emit(progress_event(key, tally))

    def not_durable(self) -> set[str]:
        """Names of the trees and checkpoints that have something which is not in the store."""
        missing = {f"{trial.key}/{job.name}" for trial in self.trials.values() for job in trial.jobs}
        missing |= {trial.key for trial in self.trials.values() if trial.dirty_since is not None}
        if self.role.is_driver and not self.record_file.is_current():
            missing.add(EXPERIMENT)
        return missing

    # inside

    def member_keys(self) -> list[str]:
        """Trees in the schedule, the experiment last: its record tells what became of the trials."""
        keys = [key for key in self.trials if self.scheduler.has(key)]
        return [*keys, EXPERIMENT] if self.role.is_driver else keys

    def _new_trial(self, name: str, params: Mapping[str, Any] | None) -> Trial:
        known = self._known.pop(name, None)
        if known is None:
            return Trial(
                self, new_record(self.run, self.role, self._presence.name, name, params),
                resumed=self.resume and not self.role.leads,
            )  # fmt: skip
        record, version = known
        before = take_over(record, self.role, self._presence.name, params)
        if before.runner == self._before.runner:
            before = replace(before, running=before.running and self._before.running)  # it ended with its engine
        trial = Trial(self, record, version, resumed=True)
        trial.doubtful = before.may_still_write()
        return trial

    def lock_name(self, trial: str) -> str:
        """What a trial's directory is locked as."""
        name = pair(f"{self.local_dir}/{trial}", self.uri, f"{trial}/")
        return f"{name} rank {self.role.rank}" if self.role.rank else name

    def known_record(self, trial: str) -> TrialRecord | None:
        """What the store says of this trial, if it has a record of it."""
        if trial in self.trials:
            return self.trials[trial].record if self.trials[trial].record_file.exists else None
        return self._known[trial][0] if trial in self._known else None

    def directories(self) -> list[str]:
        """Where its trials write, and where asyncsync keeps its state."""
        return [*(trial.tree.root for trial in self.trials.values()), str(state_dir())]

    def accept(self, job: CheckpointJob) -> None:
        """Plain: a checkpoint is to become durable."""
        self._runner.inbox.put_nowait(job)

    def owe(self, trial: Trial, names: list[str]) -> None:
        """What the trial's record gives up is to be deleted: it stands there."""
        for name in names:
            self.session.owe_delete(trial.key, name, trial.record.nonce)
        if names:
            self._janitor.kick()

    def _deleted(self, trial: str, name: str) -> None:
        if trial in self.trials:
            self.trials[trial].deleted(name)

    def _fence_of(self, key: str) -> Fence | None:
        """Who may write below this key is asked there; None: not we."""
        trial = self.trials.get(key.partition("/")[0])
        if trial is not None:
            return trial.confirm
        return self.confirm if self.role.is_driver else None

    def is_damaged(self, trial: str) -> bool:
        """Whether the store has a record of this trial that cannot be read: it does not go on."""
        return trial in self._damaged

    def origins(self, trial: Trial) -> list[str]:
        """Prefixes of checkpoints of an earlier process that have much in common with the next one of ``trial``: its
        own last one; if it has none, those of trials that it may have been forked from, the newest first."""
        if trial.record.checkpoints:
            return [f"{trial.key}/{trial.record.checkpoints[-1].name}/"]
        records = [
            *(other.record for other in self.trials.values() if other.resumed),
            *(k[0] for k in self._known.values()),
        ]
        last = [(record.checkpoints[-1].time, f"{record.name}/{record.checkpoints[-1].name}/") for record in records
                if record.checkpoints]  # fmt: skip
        return [prefix for _, prefix in sorted(last, reverse=True)[:ORIGINS]]

    def _rules(self) -> Rules:
        config = self.run.sync_config
        skip = frozenset((*self.trials, *self._known, *self._damaged, *self.record.trials))
        return Rules(tuple(config.include), tuple(config.exclude), config.symlinks, skip, skip_marked=True)

    def _on_failure(self, key: str, error: BaseException) -> None:
        """A background sync failed; it is tried again. The trial is told at its next report, but of what may pass only
        once it has lasted: a store that is away for a minute must not end a training loop."""
        trial = self.trials.get(key)
        if trial is None:
            return
        now = asyncio.get_running_loop().time()
        trial.failing_since = now if trial.failing_since is None else trial.failing_since
        if not may_pass(error) or now - trial.failing_since >= TOLERATED:
            trial.failures = [item for item in trial.failures if item[0] != key]
            trial.failures.append((key, error, None))


def _not_durable(failures: Mapping[str, BaseException]) -> str:
    return "asyncsync: not durable: " + "; ".join(f"{key}: {why}" for key, why in failures.items())
