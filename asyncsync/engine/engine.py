"""SyncEngine: syncs an experiment's trials with the store while they run. All tasks belong to it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asyncsync.aio.tasks import leave_group, run_all
from asyncsync.aio.threads import giving_up_stuck_threads
from asyncsync.config import RunConfig, check_apart, state_dir
from asyncsync.disk.files import local_disk
from asyncsync.engine import never_left
from asyncsync.engine.drain import EXPERIMENT_FILES, Drain, raise_failures, run_within, sync_all
from asyncsync.engine.durable_callback import DurableCallback
from asyncsync.engine.heartbeat import beat
from asyncsync.engine.own_files import OwnFiles
from asyncsync.engine.signals import Signals, as_signals, cancelling, check_thread
from asyncsync.engine.start import as_seconds, check_role, open_record, write_safety_warning
from asyncsync.engine.status import Statuses
from asyncsync.engine.trial import Trial, check_checkpoint
from asyncsync.engine.trials.acceptance import ReportAcceptance
from asyncsync.engine.trials.context import EXPERIMENT_KEY, NOT_RUNNING, EngineContext, OwningLoop, Role
from asyncsync.engine.trials.pending_checkpoints import find_left_behind
from asyncsync.engine.trials.registry import Registry
from asyncsync.engine.trials.resume import TAKEOVER_ATTEMPTS, restore_files
from asyncsync.engine.trials.runner import CheckpointRunner
from asyncsync.errors import ConcurrentWriterError, EngineClosedError, SyncError
from asyncsync.events import RequestEnded
from asyncsync.remote.trial_index import read_trials
from asyncsync.runtime import Presence, wall_time
from asyncsync.status import EngineStatus, FlushReport
from asyncsync.status_file import Owner, StatusFile
from asyncsync.stores.base import Lane, Store
from asyncsync.sync.event_stream import EventStream
from asyncsync.sync.janitor import Janitor
from asyncsync.sync.scheduler import Scheduler
from asyncsync.sync.session import Session
from asyncsync.sync.tree import pair

if TYPE_CHECKING:
    from asyncsync.blocking import BlockingEngine

log = logging.getLogger("asyncsync")

MAY_END = ("asyncsync heartbeat", "asyncsync status")
"""Tasks that may end before the engine is left."""


class LeftWithinError(EngineClosedError):
    """Passed to ``__aexit__`` to leave an engine within ``grace`` seconds. The engine fills ``failures``: the error of
    each item that is not durable then, by name."""

    def __init__(self, message: str, grace: float) -> None:
        super().__init__(message)
        self.grace = grace
        self.failures: dict[str, BaseException] = {}


class SyncEngine:
    """Syncs one experiment. Use it as ``async with SyncEngine(run) as engine``.

    Leaving the block normally syncs everything once more, and raises if anything is not durable. Leaving it by an
    exception tries the same for ``exit_grace`` seconds, and adds a note to that exception that lists what is not
    durable.

    Args:
        run: name, location and settings of the experiment.
        local_dir: parent of the trial directories, ``{local_dir}/{run.name}/{trial}``. Default: ``runs`` in asyncsync's
            state directory.
        resume: continue the experiment if it exists. False: raise ExperimentExistsError if it exists.
        role: ``driver`` also keeps the experiment's record and own files; ``worker`` only runs trials.
        rank: rank of this process among those that train each trial. Rank 0 keeps the trial's record and directory.
        world_size: number of ranks; they write into shared checkpoints and communicate only through the store.
        leave_timeout: limit in seconds for the last sync when the block is left normally; None: no limit. If the store
            refuses every request, the last sync ends after 120 s, whatever the number of trials. SyncFailedError names
            what is not durable then.
        exit_grace: seconds for the last sync when the block is left by an exception or a cancel.
        handle_signals: signals that cancel the task which runs the block, so that the block is left within
            ``exit_grace``. True means SIGTERM; or give a set of SIGTERM, SIGUSR1, SIGUSR2 and SIGINT. Repeated signals
            are ignored during the grace. A handler that was installed before is called too, and restored afterwards.
            Only in the main thread (ConfigError elsewhere).

    Raises ConfigError for an invalid option. An engine can be entered once; entering it again raises EngineClosedError.
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
        place = Path(os.path.abspath(local_dir or state_dir() / "runs")) / str(run.name)
        check_checkpoint(run.checkpoint_config.latest_file, where="CheckpointConfig(latest_file=...)")
        self._context = EngineContext(run, Role(role, rank, world_size), place)
        check_role(run, self._context.role)
        self._resume, self._exit_grace = resume, as_seconds("exit_grace", exit_grace)
        self._leave_timeout = None if leave_timeout is None else as_seconds("leave_timeout", leave_timeout)
        self._wanted_signals = as_signals(handle_signals)
        self._signals: Signals | None = None
        self._entered = False
        self._exit = _ExitHook(self, self._context)
        self._registry: Registry | None = None
        self._statuses: Statuses | None = None
        self._own_files: OwnFiles | None = None
        self._callback: DurableCallback | None = None
        self._trials: dict[str, Trial] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @staticmethod
    def blocking(run: RunConfig, **options: Any) -> BlockingEngine:
        """The same engine for training loops that are not async: ``with SyncEngine.blocking(run) as engine:``."""
        from asyncsync.blocking import BlockingEngine

        return BlockingEngine(run, **options)

    def __repr__(self) -> str:
        state = "running" if self._context.running else "not running"
        trials = 0 if self._registry is None else len(self._registry.trials)
        return f"<SyncEngine {self.uri} {state}, {trials} trials>"

    @property
    def local_dir(self) -> Path:
        """The experiment's directory on this machine."""
        return self._context.local_dir

    @property
    def uri(self) -> str:
        """URI of the experiment in the store."""
        return self._context.uri

    # entering

    async def __aenter__(self) -> SyncEngine:
        if self._entered:
            raise EngineClosedError("an engine is entered once, and this one was entered before. Make a new SyncEngine")
        check_apart(self.local_dir, self.uri)
        check_thread(self._wanted_signals)
        self._context.owning_loop = OwningLoop()
        self._entered = True
        try:
            await self._enter()
        except BaseException:
            self._entered = False  # nothing was started: the caller may retry
            raise
        never_left.entered(self._exit)
        return self

    async def _enter(self) -> None:
        self._presence = Presence()
        run = self._context.run
        try:
            session = await Session.open(self.uri, run.transfer, run.storage_options)
            self._context.open_session(session)
            await self._start_services(session)
        except BaseException:
            await self._abort_entering()
            raise
        if self._wanted_signals:
            task = asyncio.current_task()
            assert task is not None
            self._signals = Signals(self._wanted_signals, cancelling(task), self._exit_grace)

    async def _abort_entering(self) -> None:
        """Entering failed: end all that was started."""
        self._presence.leave()
        session = self._context.close_session()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await self._group.__aexit__(None, None, None)
        finally:
            if session is not None:
                await session.close()

    async def _start_services(self, session: Session) -> None:
        context, role = self._context, self._context.role
        store = session.view(Lane.RECORD, EXPERIMENT_KEY)
        await run_all((session.probe_write(), self._open_record(store)), "start")
        if role.is_driver:
            session.locks.take(pair(str(self.local_dir), self.uri, ""))
        await run_all((session.probe_read(), self._take_over(store)), "take over")
        if limits := write_safety_warning(session.store):
            context.warn(EXPERIMENT_KEY, limits)
        before = self._predecessor
        registry = self._registry = Registry(context, self._presence.name, before, resume=self._resume)
        statuses = self._statuses = Statuses(context, registry.trials)
        if self._resume and role.leads:
            registry.add_stored(*await read_trials(store))
        if self._resume and role.is_driver:
            await restore_files(store, "", self.local_dir, partial(context.warn, EXPERIMENT_KEY))
        alone = role.world_size == 1
        left = await find_left_behind(session, role.name) if self._resume and alone else []
        with local_disk(f"the engine's directory {self.local_dir} was not made"):
            self.local_dir.mkdir(parents=True, exist_ok=True)
        await self._begin_tasks(session, registry)
        if role.is_driver:
            self._own_files = OwnFiles(context, registry.rules, predecessor_may_write=before.may_still_write())
            context.scheduler.add(self._own_files)
            if period := context.run.sync_config.heartbeat_seconds:
                self._tasks.append(self._group.create_task(beat(context, period), name="asyncsync heartbeat"))
        for job in registry.resume_checkpoints(left):
            self._runner.submit(job)
        context.janitor.kick()
        owner = Owner(self._presence.name, context.uri, str(context.local_dir), role.name, role.rank)
        self._status_file = StatusFile(owner, statuses.take_worst, context.event_counter.changed)
        status = self._status_file.run(context.run.sync_config.heartbeat_seconds)
        self._tasks.append(self._group.create_task(status, name="asyncsync status"))
        log.info("%s: the engine runs as %s, %s", context.uri, role.name, self.local_dir)

    async def _take_over(self, store: Store) -> None:
        """Take the experiment's record over, as a driver. A replaced driver starts no more writes from then on.

        A write that the replaced driver had in flight may land between our read and our write. Then we read again.
        """
        for attempts_left in reversed(range(TAKEOVER_ATTEMPTS if self._context.role.is_driver else 0)):
            replaced = self._predecessor.runner
            try:
                await self._context.record_file.save(store)
            except ConcurrentWriterError:
                if not (attempts_left and replaced and self._resume):
                    raise
                await self._open_record(store)
                if self._predecessor.runner != replaced:
                    raise  # a third process took over in between
            else:
                return

    async def _begin_tasks(self, session: Session, registry: Registry) -> None:
        context = self._context
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        context.janitor = Janitor(session)
        self._runner = CheckpointRunner(context, registry, self._group)
        self._acceptance = ReportAcceptance(context, registry, self._runner.submit)
        sync_config = context.run.sync_config
        context.scheduler = Scheduler(sync_config, self._group, context.emit, on_failure=registry.note_sync_failure)
        session.on_deleted, session.on_warning = registry.note_deleted, partial(context.warn, EXPERIMENT_KEY)
        session.fence_of, session.fence_of_given_up = registry.fence_of, registry.fence_of_given_up
        session.nonce = session.uploads.nonce = context.record.nonce
        self._tasks = [
            self._group.create_task(context.scheduler.run(), name="asyncsync scheduler"),
            self._group.create_task(context.janitor.run(), name="asyncsync janitor"),
            self._group.create_task(self._runner.run(), name="asyncsync checkpoints"),
            self._group.create_task(session.watch(), name="asyncsync watch"),
        ]
        on_durable = context.run.checkpoint_config.on_durable
        if on_durable is not None:
            self._callback = context.callback = DurableCallback(on_durable, context.emit)
            self._tasks.append(self._group.create_task(self._callback.run(), name="asyncsync on_durable"))
        session.breaker.on_back |= dict.fromkeys((context.scheduler.hurry, context.janitor.kick))
        context.running = True

    async def _open_record(self, store: Store) -> None:
        context = self._context
        context.record, context.record_file, self._predecessor = await open_record(
            store, context.run, context.role, self._presence.name, resume=self._resume
        )

    # public methods

    def trial(self, name: str, *, params: Mapping[str, Any] | None = None) -> Trial:
        """The trial of this name; the first call creates it and starts its sync. ``params`` are kept in params.json.

        Its directory exists when this returns. A lock and a ``mkdir`` are the only disk work on the event loop.

        Raises ConfigError for an invalid name, EngineClosedError outside the block, ConcurrentWriterError if another
        process of this machine runs the trial in the same directory, and DamagedError if a resumed trial's record
        cannot be read.
        """
        self._context.check_open()
        state = self._open_registry.open(name, params)
        face = self._trials.get(name)
        if face is None:
            face = self._trials[name] = Trial(self._context, state, self._acceptance)
        return face

    def events(self) -> EventStream:
        """Events from now on: ``async for event in engine.events()``.

        The stream ends when the engine does. A task that listens belongs outside the block, or must be cancelled inside
        it.
        """
        if self._context.running:
            self._context.owning_loop.check()
        return self._context.emitter.listen()

    @contextmanager
    def on_request(self, listener: Callable[[RequestEnded], None]) -> Iterator[None]:
        """Call ``listener`` after each attempted request to the store while the block runs, on the event loop. It must
        be quick: it runs between two requests. One that raises is not called again."""
        listeners = self._context.session.store.core.meter.listeners
        listeners.append(listener)
        try:
            yield
        finally:
            if listener in listeners:
                listeners.remove(listener)

    def status(self) -> EngineStatus:
        """The current state: durability lag (seconds) and bytes at risk of each trial, and the queues. Raises
        EngineClosedError outside the block."""
        if self._statuses is None:
            raise EngineClosedError(NOT_RUNNING)
        return self._statuses.take()

    async def sync(self) -> None:
        """Sync the experiment and every trial now, and wait for the end. Raises SyncFailedError, which names the trees
        that failed; a single failure is raised as it is."""
        self._context.check_open()
        raise_failures(await sync_all(self._context.scheduler, self._open_registry.tree_keys()))

    async def flush(self, deadline: float | None = None) -> FlushReport:
        """Make as much durable as possible within ``deadline`` seconds, and report the items that are durable and those
        that are not.

        With a deadline, as before a preemption, reports wait until the flush ends. The newest checkpoint of every trial
        goes first, then records, then artifacts and older checkpoints. Unfinished uploads are not lost: they resume
        afterwards, or in the next process. Raises EngineClosedError outside the block.
        """
        self._context.check_open()
        drain = self._new_drain()
        with self._context.gate.closed(deadline is not None):
            await self._drain(drain, deadline)
        return drain.report()

    # leaving

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context.owning_loop.forked:
            return  # the engine, its connections and its threads belong to the parent process
        self._context.owning_loop.check()
        never_left.left(self._exit)
        limit = self._leave_timeout if error is None else self._grace_of(error)
        with giving_up_stuck_threads(limit):
            await self._leave_and_stop(error)

    async def _leave_and_stop(self, error: BaseException | None) -> None:
        failures: dict[str, BaseException] = {}
        if self._signals is not None and error is not None:
            self._signals.begin_grace()
        try:
            if self._tasks_alive():
                failures = await self._leave_in_time(error)
            if failures and error is not None:
                error.add_note(_not_durable(failures))  # before the end of the task group raises it again
            if isinstance(error, LeftWithinError):
                error.failures = failures
        finally:
            try:
                await self._stop(error)
            finally:
                if self._signals is not None:
                    self._signals.restore()
        if error is None:
            raise_failures(failures)

    @property
    def _open_registry(self) -> Registry:
        if self._registry is None:
            raise EngineClosedError(NOT_RUNNING)
        return self._registry

    def _tasks_alive(self) -> bool:
        return not any(task.done() for task in self._tasks if task.get_name() not in MAY_END)

    async def _leave_in_time(self, error: BaseException | None) -> dict[str, BaseException]:
        """A cancel while the block is left ends the wait, not the grace."""
        try:
            return await self._leave(error)
        except asyncio.CancelledError as cancelled:
            if error is not None:
                raise
            failures = await self._leave(cancelled)
            if failures:
                cancelled.add_note(_not_durable(failures))
            raise

    async def _leave(self, error: BaseException | None) -> dict[str, BaseException]:
        context = self._context
        context.running = False
        context.record.status = "finished" if error is None else "interrupted"
        context.record.updated = wall_time()
        if error is None:
            self._open_registry.give_up_suspended()
        context.leaving_normally = error is None
        drain = self._new_drain()
        grace = None if error is None else self._grace_of(error)
        why = await self._drain(drain, grace, self._leave_timeout, callback=self._callback)
        if not why:
            return drain.failures
        limit = "leave_timeout" if error is None else "exit_grace"
        reason = f"{why} (see {limit})"
        missing = {key or EXPERIMENT_FILES: SyncError(reason) for key in drain.report().not_durable}
        return {**missing, **drain.failures}

    def _grace_of(self, error: BaseException) -> float:
        return error.grace if isinstance(error, LeftWithinError) else self._exit_grace

    def _new_drain(self) -> Drain:
        return Drain(self._context, self._open_registry, self._own_files, self._runner)

    async def _drain(
        self,
        drain: Drain,
        deadline: float | None,
        most: float | None = None,
        *,
        callback: DurableCallback | None = None,
    ) -> str:
        """Run ``drain`` and return why it was cut short; empty if it was complete. Wait for the ``callback``, too.

        Without a ``deadline`` everything goes in order, within ``most`` seconds.
        """
        breaker = self._context.session.breaker
        if deadline is not None:
            return await run_within(self._drained(drain, deadline, callback), deadline, None)
        return await run_within(self._drained(drain, None, callback), most, breaker)

    async def _drained(self, drain: Drain, deadline: float | None, callback: DurableCallback | None) -> None:
        if self._context.recording:
            await asyncio.wait(self._context.recording)
        await drain.run(deadline)
        if callback is not None:
            await callback.wait_idle()
        if self._context.session.store.healthy:
            await self._context.janitor.clean_up()

    async def _stop(self, error: BaseException | None) -> None:
        context = self._context
        session = context.close_session()
        try:
            context.scheduler.close()
            context.scheduler.cancel_running()
            self._runner.cancel()
            for task in self._tasks:
                task.cancel()
            await leave_group(self._group, error)
        finally:
            self._presence.leave()
            self._status_file.remove()
            context.emitter.close()
            log.info("%s: the engine has ended", context.uri)
            if session is not None:
                await session.close()


class _ExitHook:
    """How the end of the interpreter leaves an engine: apart, so that the engine has no names for it."""

    def __init__(self, engine: SyncEngine, context: EngineContext) -> None:
        self._engine, self._context = engine, context

    @property
    def uri(self) -> str:
        return self._context.uri

    @property
    def grace(self) -> float:
        return self._engine._exit_grace  # noqa: SLF001  same module

    async def leave_at_exit(self) -> dict[str, BaseException]:
        leaving = LeftWithinError("the interpreter ended before the engine was left", self.grace)
        await self._engine.__aexit__(LeftWithinError, leaving, None)
        return dict(leaving.failures)

    def open_items(self) -> list[str]:
        return not_durable(self._engine)


def not_durable(engine: SyncEngine) -> list[str]:
    """Names of the engine's items that are not durable. Callable from any thread."""
    registry = engine._registry  # noqa: SLF001  a function of this module
    return sorted(key or EXPERIMENT_FILES for key in registry.not_durable()) if registry is not None else []


def _not_durable(failures: Mapping[str, BaseException]) -> str:
    return "asyncsync: not durable: " + "; ".join(f"{key}: {why}" for key, why in failures.items())
