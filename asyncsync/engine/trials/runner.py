"""Private: makes accepted checkpoints durable: one task per trial while it has any, so that they take effect in the
order of reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from asyncsync.aio.retry import RetryHooks, is_transient, retry_transient
from asyncsync.aio.tasks import within
from asyncsync.config import UploadMode
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import MAX_STALLED_ATTEMPTS, CheckpointJob, record_of, remove_local
from asyncsync.engine.trials.pending_checkpoints import find_committed
from asyncsync.engine.trials.registry import Registry
from asyncsync.engine.trials.resume import EXPERIMENT_NONCE, first_difference
from asyncsync.engine.trials.state import RankShare, TrialState
from asyncsync.engine.trials.upload import LAST_ATTEMPTS, upload_checkpoint
from asyncsync.errors import EngineClosedError, SyncTimeoutError
from asyncsync.events import (
    CheckpointAccepted,
    CheckpointDurable,
    CheckpointFailed,
    CheckpointRetired,
    SyncFailed,
)
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.rank_agreement import NONCE
from asyncsync.planning.retention import to_retire
from asyncsync.report import SyncReport
from asyncsync.stores.base import Lane
from asyncsync.sync.records.manifests import read_manifest
from asyncsync.sync.scheduler import reportable
from asyncsync.sync.session import Session
from asyncsync.sync.tree_manifest import ID
from asyncsync.sync.upload.copy_sources import recall
from asyncsync.sync.upload.create_only import CollisionError

log = logging.getLogger("asyncsync")

RECALL_MIN_SIZE = 1 << 20
"""Below this size (bytes), fetching the previous manifest to find copyable parts is not worth a request."""


class CheckpointRunner:
    """Makes jobs from its inbox durable: first the files, then the manifest, then the record, then retirement."""

    def __init__(self, context: EngineContext, registry: Registry, group: asyncio.TaskGroup) -> None:
        self.inbox: asyncio.Queue[CheckpointJob] = asyncio.Queue()
        """Accepted checkpoints. Bounded per trial by ``max_pending_checkpoints`` plus the waiting reports."""
        self._context, self._registry, self._group = context, registry, group
        self._running: dict[str, asyncio.Task[None]] = {}
        self._only: Mapping[str, CheckpointJob] | None = None
        self._sending: dict[str, CheckpointJob] = {}
        """The job that each trial is uploading. Only uploads are interrupted; the steps after them are short."""
        self._interrupted: set[str] = set()
        """Trials whose task is being interrupted, to start again."""
        self._recalled_trials: set[str] = set()

    def submit(self, job: CheckpointJob) -> None:
        """Accept a job. Synchronous."""
        self.inbox.put_nowait(job)

    async def run(self) -> None:
        """Start accepted jobs; ends only by a cancel."""
        while True:
            job = await self.inbox.get()
            self._context.emit(CheckpointAccepted(tree=job.trial, trial=job.trial, checkpoint=job.name))
            self._start(self._registry.trials[job.trial])

    def restrict_to(self, jobs: Mapping[str, CheckpointJob]) -> None:
        """Time is short: upload only this job of each trial, and interrupt the others."""
        self._only = jobs
        for key, sending in self._sending.items():
            if sending is not jobs.get(key):
                self._interrupted.add(key)
                self._running[key].cancel()
        for key in jobs:
            self._start(self._registry.trials[key])

    def lift_restriction(self) -> None:
        """Resume all jobs, in the order of reports."""
        self._only = None
        for trial in self._registry.trials.values():
            self._start(trial)

    def cancel(self) -> None:
        """End all jobs; the engine is stopping."""
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
            task = self._group.create_task(self._run(trial), name=f"checkpoints {trial.key}")
            self._running[trial.key] = task
            task.add_done_callback(partial(self._end_unbegun, trial))

    def _end_unbegun(self, trial: TrialState, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first line runs no ``finally``."""
        if self._running.get(trial.key) is task:
            del self._running[trial.key]
            self._end_if_stopped(trial)

    def _end_if_stopped(self, trial: TrialState) -> None:
        if self._context.stopped:
            for job in list(trial.jobs):
                trial.job_ended(job, stopped_error(job))

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
            self._end_if_stopped(trial)
            if trial.key in self._interrupted:
                self._interrupted.discard(trial.key)
                self._start(trial)

    async def _process(self, trial: TrialState, job: CheckpointJob) -> None:
        started, job.begun = asyncio.get_running_loop().time(), True
        try:
            report = await self._make_durable_in_time(trial, job)
        except asyncio.CancelledError:
            if trial.key not in self._interrupted:
                trial.job_ended(job, stopped_error(job))
            raise
        except Exception as error:  # noqa: BLE001  # an unforeseen error fails only this checkpoint, see foreseen
            if not (job.registered and job.name in trial.keeper.stored_names):
                await self._end_failed(trial, job, error)
                return
            report = SyncReport(bytes_total=job.size)  # another save of the record came before the timeout
        self._emit_durable(trial, job, report, asyncio.get_running_loop().time() - started)
        await self._end_durable(trial, job)

    def _emit_durable(self, trial: TrialState, job: CheckpointJob, report: SyncReport, seconds: float) -> None:
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
                uri=job.handle.uri,
                step=job.step,
            )
        )

    async def _end_durable(self, trial: TrialState, job: CheckpointJob) -> None:
        await remove_local(self._context, job)
        job.remove_from_journal(self._context.session)
        if job.resumes_by_itself:
            # before a later checkpoint can retire this one: the journal must not bring it back
            await self._context.session.journal.flush()
        await trial.write_latest()
        trial.job_ended(job)
        config, pointer = self._context.run.sync_config, self._context.run.checkpoint_config.latest_file
        if pointer is not None or (config.sync_artifacts and config.sync_artifacts_on_checkpoint):
            await self._context.scheduler.ask(trial.key, force=True)

    async def _end_failed(self, trial: TrialState, job: CheckpointJob, error: Exception) -> None:
        if self._context.stopped:  # result unknown: the cancel came together with the response
            trial.job_ended(job, stopped_error(job))
        else:
            await self._handle_failure(trial, job, reportable(error, f"checkpoint {job.handle.uri}"))

    async def _make_durable_in_time(self, trial: TrialState, job: CheckpointJob) -> SyncReport:
        """Make a checkpoint durable within ``sync_timeout``, which limits our upload and not the wait for other ranks.

        After a timeout, an upload that made progress resumes: here if no caller waits for it, otherwise with the next
        report of the directory.
        """
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
        attempts_left = LAST_ATTEMPTS

        def may_retry(error: str) -> bool:
            nonlocal attempts_left
            self._context.emit(SyncFailed(tree=f"{trial.key}/{job.name}", error=error))
            attempts_left -= self._context.leaving and not self._context.waits_for_store
            return attempts_left > 0

        hooks = RetryHooks(may_retry, session.breaker.wait_to_retry)
        self._sending[trial.key] = job
        try:
            report = await self._send(session, trial, job, hooks)
        finally:
            del self._sending[trial.key]
        await self._register(trial, job, report, hooks)
        return report

    async def _send(self, session: Session, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        done = await self._begin(trial, job, hooks)
        while job.name in trial.record.given_up:  # by a late record of the process before, which is part of ours now
            done = await self._begin(trial, job, hooks)
        if trial.ranks is not None:
            return await self._make_durable_with_ranks(trial, trial.ranks, job, hooks)
        if done is not None:
            return done
        await self._add_copy_sources(trial, job)
        while True:
            try:
                return await upload_checkpoint(
                    session, f"{trial.key}/", job, hooks, trial.confirm, more=self._nonces(trial)
                )
            except CollisionError as error:
                if job.user_named:
                    raise
                self._take_new_name(trial, job, error)

    def _nonces(self, trial: TrialState) -> dict[str, str]:
        """The nonces that distinguish this trial from one of the same name in a deleted experiment."""
        return {NONCE: trial.record.nonce, EXPERIMENT_NONCE: self._context.record.nonce}

    async def _begin(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport | None:
        """Choose a free name and take the trial over. The report of a checkpoint that is stored already, else None."""
        done = None
        await self._ensure_name_is_free(trial, job, hooks)
        if job.may_be_stored and job.tree is None:
            done = await retry_transient(partial(self._find_committed, trial, job), hooks)
        await retry_transient(trial.take_ownership, hooks)
        return done

    async def _find_committed(self, trial: TrialState, job: CheckpointJob) -> SyncReport | None:
        await trial.prepare()
        return await find_committed(self._context.session.view(Lane.CHECKPOINT, trial.key), job)

    async def _ensure_name_is_free(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> None:
        """Ensure that no data is being deleted under the job's name. A numbered checkpoint takes another name; one with
        a name that the user chose waits."""
        if job.name in trial.record.given_up:
            await retry_transient(trial.prepare, hooks)
            await retry_transient(trial.take_ownership, hooks)
            if not job.user_named:
                self._take_new_name(trial, job, "its data is being deleted")
                return
            await trial.keeper.wait_deleted(job.name)
        if job.name in trial.keeper.freed_names:
            await retry_transient(trial.keeper.save, hooks)
        if job.user_named:
            await trial.keeper.wait_for_other_deletions(job.name)

    @staticmethod
    def _take_new_name(trial: TrialState, job: CheckpointJob, why: object) -> None:
        log.warning("%s gets another name, another checkpoint has this one: %s", job.handle.uri, why)
        trial.take_new_name(job)

    async def _add_copy_sources(self, trial: TrialState, job: CheckpointJob) -> None:
        """Make an earlier process' checkpoint available as a copy source; once per process and trial."""
        if trial.key in self._recalled_trials or job.size < RECALL_MIN_SIZE:
            return
        self._recalled_trials.add(trial.key)
        session = self._context.session
        await recall(session.view(Lane.CHECKPOINT, trial.key), session.copy_sources, self._registry.copy_origins(trial))

    async def _make_durable_with_ranks(
        self, trial: TrialState, ranks: RankShare, job: CheckpointJob, hooks: RetryHooks
    ) -> SyncReport:
        report = await ranks.make_durable(trial, job, hooks)
        if ranks.leads:
            await self._register(trial, job, report, hooks)
        else:
            trial.record.checkpoints = [record_of(job, report)]  # only for status(): rank 0 keeps the list
        return report

    async def _register(self, trial: TrialState, job: CheckpointJob, report: SyncReport, hooks: RetryHooks) -> None:
        """List the checkpoint in the record, and leave out those that it retires in the same write. Once that is
        stored, they leave our memory and their data is deleted."""
        record, keep = trial.record, self._context.run.checkpoint_config
        if not record.lists(job.name):
            record.add(record_of(job, report))
        job.registered = True
        score = keep.checkpoint_score_attribute, keep.checkpoint_score_order
        periodic, pinned = keep.keep_every, keep.keep_pinned
        retired = to_retire(record.checkpoints, keep.num_to_keep, *score, keep_every=periodic, keep_pinned=pinned)
        if retired and not self._context.session.store.traits.conditional_writes:
            await retry_transient(partial(self._verify_stored, trial, job), hooks)
        trial.keeper.retiring |= frozenset(retired)
        try:
            await retry_transient(trial.keeper.save, hooks)
        finally:
            trial.keeper.retiring -= frozenset(retired)
        for name in sorted(frozenset(retired) - {item.name for item in record.checkpoints}):  # not one pinned meanwhile
            self._context.session.copy_sources.forget(f"{trial.key}/{name}/")
            self._context.emit(CheckpointRetired(tree=trial.key, trial=trial.key, checkpoint=name))

    async def _verify_stored(self, trial: TrialState, job: CheckpointJob) -> None:
        """Check that the newest checkpoint is complete before an older one is deleted. Needed where the store cannot
        exclude a second writer."""
        store, prefix = self._context.session.view(Lane.RECORD, trial.key), f"{trial.key}/{job.name}/"
        manifest = await read_manifest(store, prefix)
        if manifest.info.get(ID) != job.token or (wrong := await first_difference(store, prefix, manifest)):
            raise CollisionError(f"{job.handle.uri} was overwritten by another process: {wrong or MANIFEST}")

    async def _handle_failure(self, trial: TrialState, job: CheckpointJob, error: Exception) -> None:
        """A checkpoint failed: give it up and delete its data.

        Two kinds are kept: one that the next process resumes because the error is transient, and one that made progress
        before its timeout, which the next report of the directory resumes.
        """
        waits = isinstance(error, SyncTimeoutError) and job.mode is UploadMode.SYNC and trial.ranks is None
        if isinstance(error, SyncTimeoutError):
            error = SyncTimeoutError(f"checkpoint {job.handle.uri} is not durable: {error}")
        trial.unregister(job)
        if waits and job.tree is not None and job.tree.moves and job.stalled_attempts < MAX_STALLED_ATTEMPTS:
            trial.suspend(job)
            error.add_note("report the same unchanged directory again to resume the upload")
        elif not (job.resumes_by_itself and is_transient(error)):
            trial.give_up(job)
        self._context.emit(CheckpointFailed(tree=trial.key, trial=trial.key, checkpoint=job.name, error=str(error)))
        trial.job_ended(job, error)  # waiting callers do not wait for the record
        await self._save_given_up(trial)

    async def _save_given_up(self, trial: TrialState) -> None:
        """Save a record that gives checkpoints up, so that their data can be deleted. If this fails, the next sync
        retries it."""
        if not self._context.session.store.healthy or not trial.record.given_up:
            return
        try:
            await trial.keeper.save()
        except Exception as error:  # noqa: BLE001  # the next sync reports it
            log.warning(
                "data of a failed checkpoint of %s stays in the store until the next sync: %s", trial.uri, error
            )


def stopped_error(job: CheckpointJob) -> EngineClosedError:
    """The error of a checkpoint that was pending when the engine stopped."""
    return EngineClosedError(f"the engine stopped before {job.handle.uri} was durable")
