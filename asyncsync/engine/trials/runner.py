"""Checkpoints on their way: one runner a trial while it has any, so that they take effect in the order of reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from asyncsync.aio.retry import RetryHooks, is_transient, retry_transient
from asyncsync.aio.tasks import within
from asyncsync.aio.threads import in_thread
from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import SHOWN, Accepted
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import MAX_STALLED_ATTEMPTS, CheckpointJob, record_of
from asyncsync.engine.trials.pending_checkpoints import find_committed
from asyncsync.engine.trials.registry import Registry
from asyncsync.engine.trials.resume import first_difference
from asyncsync.engine.trials.state import RankShare, TrialState
from asyncsync.engine.trials.upload import LAST_ATTEMPTS, upload_checkpoint
from asyncsync.errors import EngineClosedError, SyncTimeoutError
from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointFailed,
    CheckpointRetired,
    SyncFailed,
    SyncWarning,
)
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.retention import by_age, to_retire
from asyncsync.report import SyncReport
from asyncsync.stores.base import Lane
from asyncsync.sync.records.manifests import read_manifest
from asyncsync.sync.scheduler import foreseen
from asyncsync.sync.session import Session
from asyncsync.sync.tree import ID
from asyncsync.sync.upload.copy_sources import recall
from asyncsync.sync.upload.create_only import CollisionError

log = logging.getLogger("asyncsync")

RECALL_MIN_SIZE = 1 << 20
"""Bytes of a checkpoint that are worth the request for an earlier one's manifest."""


class CheckpointRunner:
    """Takes jobs from its inbox. Files first, then the manifest, then the record, then retirement."""

    def __init__(self, context: EngineContext, registry: Registry, group: asyncio.TaskGroup) -> None:
        self.inbox: asyncio.Queue[CheckpointJob] = asyncio.Queue()
        """Accepted checkpoints. Bounded by ``max_pending_checkpoints`` and the reports that wait, in each trial."""
        self._context, self._registry, self._group = context, registry, group
        self._running: dict[str, asyncio.Task[None]] = {}
        self._only: Mapping[str, CheckpointJob] | None = None
        self._sending: dict[str, CheckpointJob] = {}
        """By trial; only then a runner may be interrupted, what follows is short."""
        self._interrupted: set[str] = set()
        """Trials whose runner is being interrupted, to begin again."""
        self._recalled_trials: set[str] = set()

    def submit(self, job: CheckpointJob) -> None:
        """Plain: a checkpoint is to become durable."""
        self.inbox.put_nowait(job)

    async def run(self) -> None:
        """Start what comes in; ends only by cancel."""
        while True:
            job = await self.inbox.get()
            self._context.emit(CheckpointAccepted(tree=job.trial, trial=job.trial, checkpoint=job.name))
            self._start(self._registry.trials[job.trial])

    def restrict_to(self, jobs: Mapping[str, CheckpointJob]) -> None:
        """Time is short: of each trial just this one, now; what else is being sent is interrupted."""
        self._only = jobs
        for key, sending in self._sending.items():
            if sending is not jobs.get(key):
                self._interrupted.add(key)
                self._running[key].cancel()
        for key in jobs:
            self._start(self._registry.trials[key])

    def lift_restriction(self) -> None:
        """Everything again, in the order of reports."""
        self._only = None
        for trial in self._registry.trials.values():
            self._start(trial)

    def cancel(self) -> None:
        """End what is running; the engine is stopping."""
        self._only = {}
        self._interrupted.clear()
        for task in self._running.values():
            task.cancel()
        for trial in self._registry.trials.values():
            if trial.key not in self._running:
                for job in list(trial.jobs):
                    trial.job_ended(job, stopped_error(job))

    def _start(self, trial: TrialState) -> None:
        if trial.key not in self._running and self._next(trial) is not None:
            self._running[trial.key] = self._group.create_task(self._run(trial), name=f"checkpoints {trial.key}")

    def _next(self, trial: TrialState) -> CheckpointJob | None:
        if self._only is None:
            return trial.jobs[0] if trial.jobs else None
        wanted = self._only.get(trial.key)
        return next((job for job in trial.jobs if job is wanted), None)

    async def _run(self, trial: TrialState) -> None:
        try:
            while (job := self._next(trial)) is not None:
                await self._process(trial, job)
        finally:
            self._running.pop(trial.key, None)
            if self._context.stopped:
                for job in list(trial.jobs):
                    trial.job_ended(job, stopped_error(job))
            if trial.key in self._interrupted:
                self._interrupted.discard(trial.key)
                self._start(trial)

    async def _process(self, trial: TrialState, job: CheckpointJob) -> None:
        started = asyncio.get_running_loop().time()
        try:
            report = await self._make_durable_in_time(trial, job)
        except asyncio.CancelledError:
            if trial.key in self._interrupted:
                raise
            trial.job_ended(job, stopped_error(job))
            raise
        except Exception as error:  # noqa: BLE001  # what nobody foresaw costs this checkpoint, see foreseen
            if job.registered and job.name in trial.keeper.stored_names:
                report = SyncReport(bytes_total=job.size)  # another save of the record was faster than the time-out
            elif self._context.stopped:  # no verdict: the cancel came when the answer did
                trial.job_ended(job, stopped_error(job))
                return
            else:
                await self._handle_failure(trial, job, foreseen(error, f"checkpoint {job.handle.uri}"))
                return
        seconds = asyncio.get_running_loop().time() - started
        self._context.emit(
            CheckpointDurable(
                tree=trial.key,
                trial=trial.key,
                checkpoint=job.name,
                bytes_total=report.bytes_total,
                bytes_sent=report.bytes_sent,
                bytes_copied=report.bytes_copied,
                requests=report.requests,
                seconds=seconds,
            )
        )
        if job.delete_local and job.source is not None:
            await self._remove_local(trial, job, job.source)
        job.remove_from_journal(self._context.session)
        if job.resumes_by_itself:
            await self._context.session.journal.flush()  # before a later one can retire it: it must not come back then
        trial.job_ended(job)
        config = self._context.run.sync_config
        if config.sync_artifacts and config.sync_artifacts_on_checkpoint:
            await self._context.scheduler.ask(trial.key, force=True)

    async def _remove_local(self, trial: TrialState, job: CheckpointJob, source: Accepted) -> None:
        """What is not as it was sent stays, and is told."""
        try:
            stayed = await in_thread(source.remove)
        except OSError as error:
            stayed = [f"the files ({error})"]
        if stayed:
            names = ", ".join(stayed[:SHOWN]) + (f" and {len(stayed) - SHOWN} more" if len(stayed) > SHOWN else "")
            message = f"{source.path}: {names} came or changed after {trial.key}/{job.name} was sent, and stayed"
            self._context.emit(SyncWarning(tree=trial.key, message=message))

    async def _make_durable_in_time(self, trial: TrialState, job: CheckpointJob) -> SyncReport:
        """``sync_timeout`` bounds what we send, not how long other ranks take. An attempt in which bytes moved is gone
        on with: by us if nobody waits for it, else by who reports the directory again."""
        timeout = self._context.run.sync_config.timeout
        while trial.ranks is None:
            try:
                return await within(timeout, self._make_durable(trial, job), job.progress)
            except SyncTimeoutError as error:
                if not job.note_timeout() or job.mode is UploadMode.SYNC:
                    raise
                self._context.emit(SyncFailed(tree=f"{trial.key}/{job.name}", error=str(error)))
        return await self._make_durable(trial, job)

    async def _make_durable(self, trial: TrialState, job: CheckpointJob) -> SyncReport:
        session = self._context.session
        last_tries = LAST_ATTEMPTS

        def hiccup(error: str) -> bool:
            nonlocal last_tries
            self._context.emit(SyncFailed(tree=f"{trial.key}/{job.name}", error=error))
            last_tries -= self._context.leaving and not self._context.waits_for_store
            return last_tries > 0

        hooks = RetryHooks(hiccup, session.breaker.wait_to_retry)
        self._sending[trial.key] = job
        try:
            report = await self._send(session, trial, job, hooks)
        finally:
            del self._sending[trial.key]
        await self._register(trial, job, report, hooks)
        return report

    async def _send(self, session: Session, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        done = None
        await self._ensure_name_is_free(trial, job, hooks)
        if job.may_be_stored and job.tree is None:
            done = await retry_transient(partial(self._find_committed, trial, job), hooks)
        await retry_transient(trial.take_ownership, hooks)
        if trial.ranks is not None:
            return await self._make_durable_with_ranks(trial, trial.ranks, job, hooks)
        if done is not None:
            return done
        await self._add_copy_sources(trial, job)
        while True:
            try:
                return await upload_checkpoint(session, f"{trial.key}/", job, hooks, trial.confirm)
            except CollisionError as error:
                if job.user_named:
                    raise
                self._take_new_name(trial, job, error)

    async def _find_committed(self, trial: TrialState, job: CheckpointJob) -> SyncReport | None:
        await trial.prepare()
        return await find_committed(self._context.session.view(Lane.CHECKPOINT, trial.key), job)

    async def _ensure_name_is_free(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> None:
        """What the record in the store gives up is deleted, whoever sends it now: a number is left alone then, and a
        name that the user chose is waited for."""
        if job.name in trial.record.given_up:
            await retry_transient(trial.prepare, hooks)
            await retry_transient(trial.take_ownership, hooks)
            if not job.user_named:
                self._take_new_name(trial, job, "its data is being deleted")
                return
            await trial.keeper.wait_deleted(job.name)
        if job.name in trial.keeper.freed_names:
            await retry_transient(trial.keeper.save, hooks)

    @staticmethod
    def _take_new_name(trial: TrialState, job: CheckpointJob, why: object) -> None:
        log.warning("%s gets another name, another checkpoint has this one: %s", job.handle.uri, why)
        trial.take_new_name(job)

    async def _add_copy_sources(self, trial: TrialState, job: CheckpointJob) -> None:
        """Once a process and trial: what an earlier process sent may be copied instead of sent."""
        if trial.key in self._recalled_trials or job.size < RECALL_MIN_SIZE:
            return
        self._recalled_trials.add(trial.key)
        session = self._context.session
        await recall(session.view(Lane.CHECKPOINT, trial.key), session.catalogue, self._registry.copy_origins(trial))

    async def _make_durable_with_ranks(
        self, trial: TrialState, ranks: RankShare, job: CheckpointJob, hooks: RetryHooks
    ) -> SyncReport:
        report = await ranks.make_durable(trial, job, hooks)
        if ranks.leads:
            await self._register(trial, job, report, hooks)
        else:
            trial.record.checkpoints = [record_of(job, report)]  # rank 0 keeps the list: this is for status()
        return report

    async def _register(self, trial: TrialState, job: CheckpointJob, report: SyncReport, hooks: RetryHooks) -> None:
        """Name it in the record, in the same write without those that it retires; only once that is stored they leave
        our memory, and their data goes."""
        record, keep = trial.record, self._context.run.checkpoint_config
        if job.name not in {item.name for item in record.checkpoints}:
            record.checkpoints.append(record_of(job, report))
            record.checkpoints.sort(key=by_age)  # the newest may have gone first
        job.registered = True
        retired = to_retire(
            record.checkpoints, keep.num_to_keep, keep.checkpoint_score_attribute, keep.checkpoint_score_order
        )
        if retired and not self._context.session.store.traits.conditional_writes:
            await retry_transient(partial(self._verify_stored, trial, job), hooks)
        trial.keeper.retiring |= frozenset(retired)
        try:
            await retry_transient(trial.keeper.save, hooks)
        finally:
            trial.keeper.retiring = frozenset()
        for name in sorted(retired):
            self._context.session.catalogue.forget(f"{trial.key}/{name}/")
            self._context.emit(CheckpointRetired(tree=trial.key, trial=trial.key, checkpoint=name))

    async def _verify_stored(self, trial: TrialState, job: CheckpointJob) -> None:
        """Where a store cannot keep two processes apart, the newest is looked at before an older one goes."""
        store, prefix = self._context.session.view(Lane.RECORD, trial.key), f"{trial.key}/{job.name}/"
        manifest = await read_manifest(store, prefix)
        if manifest.info.get(ID) != job.token or (wrong := await first_difference(store, prefix, manifest)):
            raise CollisionError(f"{job.handle.uri} was written over by another process: {wrong or MANIFEST}")

    async def _handle_failure(self, trial: TrialState, job: CheckpointJob, error: Exception) -> None:
        """It will never be durable: nothing of it is to stay in the store. Except one that the next process goes on
        with because the reason may pass, and one whose bytes moved: whoever reports it again goes on with that."""
        waits = isinstance(error, SyncTimeoutError) and job.mode is UploadMode.SYNC and trial.ranks is None
        if isinstance(error, SyncTimeoutError):
            error = SyncTimeoutError(f"checkpoint {job.handle.uri} is not durable: {error}")
        trial.unregister(job)
        if waits and job.tree is not None and job.tree.moves and job.stalled_attempts < MAX_STALLED_ATTEMPTS:
            trial.suspend(job)
            error.add_note("report the same directory again, unchanged: the upload goes on where it ended")
        elif not (job.resumes_by_itself and is_transient(error)):
            trial.give_up(job)
        self._context.emit(CheckpointFailed(tree=trial.key, trial=trial.key, checkpoint=job.name, error=str(error)))
        trial.job_ended(job, error)  # whoever waits is told at once, however long the record takes
        await self._save_given_up(trial)

    async def _save_given_up(self, trial: TrialState) -> None:
        """What it gives up is deleted once that is stored; if that does not work now, the next sync does it."""
        if not self._context.session.store.healthy or not trial.record.given_up:
            return
        try:
            await trial.keeper.save()
        except Exception as error:  # noqa: BLE001  # the next sync tells it
            log.warning("what was sent of a failed checkpoint of %s stays in the store for now: %s", trial.uri, error)


def stopped_error(job: CheckpointJob) -> EngineClosedError:
    """Why a checkpoint is not durable that the engine did not come to."""
    return EngineClosedError(f"the engine stopped before {job.handle.uri} was durable")
