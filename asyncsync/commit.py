"""Checkpoints on their way: one runner a trial while it has any, so that they take effect in the order of reports."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from asyncsync.checkpoints import LAST_TRIES, Again, CheckpointJob, may_pass, persist, record_of, upload
from asyncsync.disk.files import in_thread
from asyncsync.errors import AsyncsyncError, EngineClosedError, SyncTimeoutError
from asyncsync.events import CheckpointAccepted, CheckpointDurable, CheckpointFailed, CheckpointRetired, SyncFailed
from asyncsync.pending import cross_out, look_back
from asyncsync.planning.retention import to_retire
from asyncsync.ranks import Ranks
from asyncsync.report import SyncReport
from asyncsync.scheduler import within
from asyncsync.stores.waiting import Lane
from asyncsync.transfer.session import Session
from asyncsync.transfer.sources import recall

if TYPE_CHECKING:
    from asyncsync.engine import SyncEngine
    from asyncsync.trial import Trial

log = logging.getLogger("asyncsync")

RECALLED_FROM = 1 << 20
"""Bytes of a checkpoint that are worth the request for an earlier one's manifest."""


class CheckpointRunner:
    """Takes jobs from the engine's inbox. Files first, then the manifest, then the record, then retirement."""

    def __init__(self, engine: SyncEngine, group: asyncio.TaskGroup, owed: Callable[[], None]) -> None:
        self._engine, self._group, self._owed = engine, group, owed
        self._running: dict[str, asyncio.Task[None]] = {}
        self._only: Mapping[str, CheckpointJob] | None = None
        self._sending: dict[str, CheckpointJob] = {}
        """By trial; only then a runner may be interrupted, what follows is short."""
        self._yielding: set[str] = set()
        """Trials whose runner is being interrupted, to begin again."""
        self._recalled: set[str] = set()

    def accept(self, job: CheckpointJob) -> None:
        """A job has come out of the inbox."""
        self._engine.emit(CheckpointAccepted(tree=job.trial, trial=job.trial, checkpoint=job.name))
        self._start(self._engine.trials[job.trial])

    def only(self, jobs: Mapping[str, CheckpointJob]) -> None:
        """Time is short: of each trial just this one, now; what else is being sent is interrupted."""
        self._only = jobs
        for key, sending in self._sending.items():
            if sending is not jobs.get(key):
                self._yielding.add(key)
                self._running[key].cancel()
        for key in jobs:
            self._start(self._engine.trials[key])

    def all(self) -> None:
        """Everything again, in the order of reports."""
        self._only = None
        for trial in self._engine.trials.values():
            self._start(trial)

    def cancel(self) -> None:
        """End what is running; the engine is stopping."""
        self._only = {}
        self._yielding.clear()
        for task in self._running.values():
            task.cancel()

    def _start(self, trial: Trial) -> None:
        if trial.key not in self._running and self._next(trial) is not None:
            self._running[trial.key] = self._group.create_task(self._run(trial), name=f"checkpoints {trial.key}")

    def _next(self, trial: Trial) -> CheckpointJob | None:
        if self._only is None:
            return trial.jobs[0] if trial.jobs else None
        wanted = self._only.get(trial.key)
        return next((job for job in trial.jobs if job is wanted), None)

    async def _run(self, trial: Trial) -> None:
        try:
            while (job := self._next(trial)) is not None:
                await self._one(trial, job)
        finally:
            self._running.pop(trial.key, None)
            if trial.key in self._yielding:
                self._yielding.discard(trial.key)
                self._start(trial)

    async def _one(self, trial: Trial, job: CheckpointJob) -> None:
        started = asyncio.get_running_loop().time()
        try:
            report = await self._within(trial, job)
        except asyncio.CancelledError:
            if trial.key in self._yielding:
                raise
            trial.job_ended(job, EngineClosedError(f"the engine stopped before {job.handle.uri} was durable"))
            raise
        except (AsyncsyncError, OSError) as error:
            if self._engine.stopped:  # no verdict: the cancel came when the answer did
                trial.job_ended(job, EngineClosedError(f"the engine stopped before {job.handle.uri} was durable"))
            else:
                await self._failed(trial, job, error)
            return
        seconds = asyncio.get_running_loop().time() - started
        self._engine.emit(
            CheckpointDurable(
                tree=trial.key, trial=trial.key, checkpoint=job.name, bytes_total=report.bytes_total,
                bytes_sent=report.bytes_sent, bytes_copied=report.bytes_copied, requests=report.requests,
                seconds=seconds,
            )
        )  # fmt: skip
        if job.delete_local:
            await in_thread(shutil.rmtree, job.directory, ignore_errors=True)
        if job.token:
            cross_out(self._engine.session, job)
            await self._engine.session.journal.flush()  # before a later one can retire it: it must not come back then
        trial.job_ended(job)
        config = self._engine.run.sync_config
        if config.sync_artifacts and config.sync_artifacts_on_checkpoint:
            await self._engine.scheduler.ask(trial.key, force=True)

    async def _within(self, trial: Trial, job: CheckpointJob) -> SyncReport:
        """``sync_timeout`` bounds what we send, not how long other ranks take."""
        work = self._make_durable(trial, job)
        if trial.ranks is not None:
            return await work
        return await within(self._engine.run.sync_config.timeout, work, lambda: self._progress(job))

    @staticmethod
    def _progress(job: CheckpointJob) -> str:
        return job.tree.progress() if job.tree is not None else f"{job.handle.uri}: nothing was sent yet"

    async def _make_durable(self, trial: Trial, job: CheckpointJob) -> SyncReport:
        session = self._engine.session
        last_tries = LAST_TRIES

        def hiccup(error: str) -> bool:
            nonlocal last_tries
            self._engine.emit(SyncFailed(tree=f"{trial.key}/{job.name}", error=error))
            last_tries -= self._engine.leaving  # a store that is gone must not hold up the end of the program
            return last_tries > 0

        again = Again(hiccup, session.breaker.rest)
        self._sending[trial.key] = job
        try:
            report = await self._send(session, trial, job, again)
        finally:
            del self._sending[trial.key]
        await self._register(trial, job, report, again)
        return report

    async def _send(self, session: Session, trial: Trial, job: CheckpointJob, again: Again) -> SyncReport:
        done = None
        if job.written_as:
            store = session.view(Lane.CHECKPOINT, trial.key)
            done = await persist(lambda: look_back(store, trial, job), again)
        await persist(trial.claim, again)
        if trial.ranks is not None:
            return await self._with_the_others(trial, trial.ranks, job, again)
        config = self._engine.run.sync_config
        if done is None:
            await self._recall(trial, job)
        return done or await upload(session, f"{trial.key}/", job, config, again, trial.confirm)

    async def _recall(self, trial: Trial, job: CheckpointJob) -> None:
        """Once a process and trial: what an earlier process sent may be copied instead of sent."""
        if trial.key in self._recalled or job.size < RECALLED_FROM:
            return
        self._recalled.add(trial.key)
        session = self._engine.session
        await recall(session.view(Lane.CHECKPOINT, trial.key), session.catalogue, self._engine.origins(trial))

    async def _with_the_others(self, trial: Trial, ranks: Ranks, job: CheckpointJob, again: Again) -> SyncReport:
        report = await ranks.make_durable(trial, job, again)
        if ranks.leads:
            await self._register(trial, job, report, again)
        else:
            trial.record.checkpoints = [record_of(job, report)]  # rank 0 keeps the list: this is for status()
        return report

    async def _register(self, trial: Trial, job: CheckpointJob, report: SyncReport, again: Again) -> None:
        """Name it in the record, in the same write without those that it retires; only then their data goes."""
        record, keep = trial.record, self._engine.run.checkpoint_config
        if job.name not in {item.name for item in record.checkpoints}:
            record.checkpoints.append(record_of(job, report))
            record.checkpoints.sort(key=lambda item: item.number)  # the newest may have gone first
        retired = set(
            to_retire(
                record.checkpoints, keep.num_to_keep, keep.checkpoint_score_attribute, keep.checkpoint_score_order
            )
        )
        record.checkpoints = [item for item in record.checkpoints if item.name not in retired]
        await persist(trial.save, again)
        for name in sorted(retired):
            self._engine.session.owe_delete(f"{trial.key}/{name}/")
            self._engine.emit(CheckpointRetired(tree=trial.key, trial=trial.key, checkpoint=name))
        if retired:
            self._owed()

    async def _failed(self, trial: Trial, job: CheckpointJob, error: Exception) -> None:
        """It will never be durable: nothing of it is to stay in the store. Except one that is written down, if the
        reason may pass: the next process goes on with it."""
        goes_on = bool(job.token) and may_pass(error)
        if not goes_on:
            cross_out(self._engine.session, job)
        trial.record.checkpoints = [item for item in trial.record.checkpoints if item.name != job.name]
        if isinstance(error, SyncTimeoutError):
            error = SyncTimeoutError(f"checkpoint {job.handle.uri} is not durable: {error}")
        try:
            alone = trial.ranks is None  # other ranks may still be sending to it, and prune knows what nobody named
            if job.tree is not None and alone and not goes_on and await self._is_ours(trial):
                self._engine.session.owe_delete(f"{trial.key}/{job.name}/")
                self._owed()
        finally:  # whoever waits is told, also when the engine stops just now
            self._engine.emit(CheckpointFailed(tree=trial.key, trial=trial.key, checkpoint=job.name, error=str(error)))
            trial.job_ended(job, error)

    async def _is_ours(self, trial: Trial) -> bool:
        """Whether we still are the trial's one writer, and its record says that this checkpoint's number is used up.

        Only then may its directory be deleted: a successor may have given the same name to another checkpoint. If the
        store does not say, what was sent stays for ``prune``.
        """
        if not self._engine.session.store.healthy:
            return False
        store = self._engine.session.view(Lane.RECORD, trial.key)
        try:
            await trial.save()
            await trial.confirm(store)
        except AsyncsyncError as error:
            log.warning("what was sent of a failed checkpoint of %s stays in the store: %s", trial.uri, error)
            return False
        return True
