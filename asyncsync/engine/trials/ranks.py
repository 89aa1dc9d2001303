"""Private: a trial that several processes train. Its ranks agree through the store alone.

Each rank counts its checkpoints by itself, and uploads at once under the number that it expects. The training step in
the parts shows whether all ranks mean the same checkpoint. Where they do not, all ranks give the number up: a rank that
reported an earlier step than another raises the error; a rank that reported the later step moves to the next number,
and so do the others with their next report. So every rank uses every number, and all ranks agree again whatever they
skipped.

Rank 0 keeps the trial's record. The record's epoch is the generation of all ranks: checkpoints are counted from the
record's ``first_checkpoint`` on, and only parts of one generation form a checkpoint. Every other rank has a small
record of its own.

A rank that returns alone continues in the same generation, after the newest complete checkpoint, which cannot change
without its own part. When rank 0 returns, a new generation begins, and the other ranks return too. The first rank to
return cannot tell the two cases apart: its part counts only if rank 0 is alive, and if a new generation begins it joins
that one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from asyncsync.aio.retry import RetryHooks, retry_transient
from asyncsync.aio.tasks import within
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import CheckpointJob, checkpoint_name
from asyncsync.engine.trials.rank_commit import CommitView, ConflictError, LostError, SharedCheckpoint
from asyncsync.engine.trials.resume import NUMBERED
from asyncsync.engine.trials.state import TrialState
from asyncsync.engine.trials.upload import upload_checkpoint
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    SyncFailedError,
)
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.rank_agreement import (
    NONCE,
    RETURNED,
    Generation,
    SameFileError,
    claim_name,
    part_name,
)
from asyncsync.report import SyncReport
from asyncsync.runtime import dice, lease_time, wall_time
from asyncsync.stores.base import Lane, Store
from asyncsync.stores.read import list_directories
from asyncsync.sync.records.manifests import find_manifest, find_record, get_record
from asyncsync.sync.records.model import FailureRecord, RankRecord, TrialRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.upload.create_only import CollisionError

log = logging.getLogger("asyncsync")

FIRST_POLL, LONGEST_POLL = 0.1, 5.0
"""Seconds between two polls for the parts of the other ranks: at first, and at most."""
LEADER_WAIT = 5.0
"""How long (s) a rank that returned first waits for rank 0 before it uploads. Most often all ranks return, and an
upload under the old number would be lost."""


@dataclass(slots=True)
class WaitBudget:
    """How long (s) one checkpoint may still wait for other ranks. Time spent on uploading does not count."""

    seconds_left: float


class Ranks:
    """One rank's share in a trial."""

    def __init__(self, context: EngineContext, name: str, *, resumed: bool) -> None:
        role = context.role
        self.rank, self.world_size = role.rank, role.world_size
        self.record = RankRecord(name, role.rank, role.world_size, updated=wall_time())
        self.file = RecordFile(f"{name}/{claim_name(role.rank)}", self.record)
        self._context, self._name = context, name
        self._resumed = self._may_join = resumed
        """Whether this rank may join a generation that rank 0 begins: from its return until a checkpoint is
        complete."""
        self._returned = False
        """Whether this rank returned to a generation and has not seen that its rank 0 is alive. The generation may be
        over."""
        self._check_before_sending = resumed
        """Whether the next number may already be in use in the store. Then it is checked before the upload."""
        self._earlier_failures: frozenset[tuple[str, str]] = frozenset()
        """Failures that were recorded before this rank returned. The ranks that recorded them may have ended with rank
        0."""
        self._generation_begun = False
        """Whether rank 0 has begun a generation, as seen by another rank."""
        self._generation_found = self._waited_for_leader = False
        self._first_number = 0
        self._matching_parts: set[tuple[str, str]] = set()
        """Parts of other ranks that are known to be of the present step."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that keeps the trial's record."""
        return self.rank == 0

    # joining

    async def join(self, trial: TrialState) -> None:
        """Become this rank, and find the next number. Called before the first report of a rank other than 0.

        Raises ConcurrentWriterError if another process is, or was, this rank and the engine was entered without
        resume=True.
        """
        store = self._store()
        if not self._generation_found:
            await self._find_generation(store)
            self._generation_found = True
        await self.file.save(store)
        if self._resumed:
            await self._find_next_number(store, trial, await self._read_leader(store))

    async def _find_generation(self, store: Store) -> None:
        leader = await self._read_leader(store)
        stored = await get_record(store, self.file.key, RankRecord)
        if not self._resumed and (stored is not None or (leader is not None and leader.epoch > 1)):
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank {self.rank} is, or was, another process. Start all ranks "
                "with resume=True to continue the trial"
            )
        if stored is not None:
            earlier, self.file.version = stored
            self.record.epoch, self.record.extra = earlier.epoch + 1, earlier.extra
            self._set_generation(Generation(earlier.generation, earlier.nonce))
        before = self._generation()
        self._set_generation(_generation_of(leader) if leader is not None else Generation(1))
        known = before in (self._generation(), Generation(self.record.generation))
        self._returned = self._resumed and leader is not None
        # no need to wait on a first start, or if rank 0 returned first
        self._waited_for_leader = stored is None or not known

    async def _find_next_number(self, store: Store, trial: TrialState, leader: TrialRecord | None) -> None:
        """Set the next number: after the newest complete checkpoint, which every rank finds alike."""
        first = leader.first_checkpoint if leader is not None else 0
        names = await list_directories(store, f"{self._name}/")
        numbers = [int(match[1]) for match in map(NUMBERED.fullmatch, names) if match is not None]
        newest = -1
        for number in sorted(numbers, reverse=True):
            manifest = await find_manifest(store, f"{self._name}/{checkpoint_name(number)}/")
            ours = ("", leader.nonce if leader is not None else "")
            if manifest is not None and manifest.info.get(NONCE, "") in ours:  # otherwise it belongs to a deleted trial
                newest = number
                break
        trial.last_durable = newest if newest >= 0 else None
        self._first_number = max(first, newest + 1)
        trial.record.next_checkpoint = self._first_number
        if self._returned:
            later = [self._shared(trial, checkpoint_name(number)) for number in numbers if number >= self._first_number]
            self._earlier_failures = frozenset([item for shared in later for item in await shared.failure_versions()])

    async def _read_leader(self, store: Store) -> TrialRecord | None:
        record = await find_record(store, f"{self._name}/{TRIAL_RECORD}", TrialRecord)
        if (
            record is not None
            and not self._generation_begun
            and self.record.generation == record.epoch
            and not self.record.nonce
        ):
            self._set_generation(_generation_of(record))  # a new generation, or one of a version without nonces
        self._generation_begun = self._generation_begun or record is not None
        return record

    async def check(self, store: Store) -> float:
        """Raise ConcurrentWriterError if rank 0 began a new generation that this rank does not belong to. Returns when
        the store was asked, on the lease's clock."""
        asked = lease_time()
        await self._newer_generation(store)
        return asked

    async def _newer_generation(self, store: Store) -> TrialRecord | None:
        """Rank 0's record if it began a new generation that this rank has to join."""
        leader = await self._read_leader(store)
        if leader is None or _generation_of(leader) == self._generation():
            return None
        if not self._may_join:
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank 0 was started again (epoch {leader.epoch}) while rank "
                f"{self.rank} was running (epoch {self.record.generation}). Now start this rank again, with resume=True"
            )
        return leader

    async def _join_new_generation(self, trial: TrialState) -> bool:
        """Join rank 0's new generation, if there is one, and renumber the pending checkpoints. Returns whether it
        did."""
        store = self._store()
        leader = await self._newer_generation(store)
        if leader is None:
            return False
        following, first = trial.record.next_checkpoint, min(job.number for job in trial.jobs)
        await self._find_next_number(store, trial, leader)
        trial.record.next_checkpoint = following
        trial.shift_numbers(first, self._first_number - first)
        self._set_generation(_generation_of(leader))
        self.record.updated = wall_time()
        self._returned = False
        await self.file.save(store)
        return True

    # one checkpoint

    async def make_durable(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        """Upload our part and wait for the others. The report is of the whole checkpoint on rank 0, and of our part
        elsewhere.

        Raises CheckpointIncompleteError, which names the ranks that did not report within ``commit_timeout``, the rank
        that failed and why, or the ranks that reported another step.
        """
        try:
            await self._wait_for_rank_0(trial, job, hooks)
            report = await self._take_part(trial, job, hooks)
        except (AsyncsyncError, OSError) as error:
            self._check_before_sending = True
            if isinstance(error, ConcurrentWriterError) and not isinstance(error, LostError | CollisionError):
                raise  # another process is this rank now, or each rank finds the conflict by itself
            if not await self._give_up(trial, job, error):
                raise
            report = SyncReport()
        self._may_join = self._returned = self._check_before_sending = False
        return await self._shared(trial, job.name, job).report(report) if self.leads else report

    async def give_up(self, trial: TrialState, job: CheckpointJob, reason: str) -> None:
        """Give up a reported checkpoint. The other ranks can see it now; local callers see it at the runner's next
        poll."""
        job.given_up = reason
        if trial.jobs[0] is job and (self.leads or self._generation_begun):
            await self._shared(trial, job.name, job).give_up(self._give_up_reason(job), _step(job))

    async def _wait_for_rank_0(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> None:
        """Wait until rank 0 has begun a generation. A rank that returned also waits up to LEADER_WAIT for a new one."""
        loop = asyncio.get_running_loop()
        began, limit = loop.time(), self._context.run.checkpoint_config.commit_seconds
        while not self.leads and not self._generation_begun:
            await retry_transient(partial(self._read_leader, self._store()), hooks)
            if not self._generation_begun and loop.time() - began >= limit:
                raise CheckpointIncompleteError(str(self._timeout_error(job, [0])))  # no generation to report it to
            await asyncio.sleep(LEADER_WAIT / 20)
        while self._returned and not self._waited_for_leader and loop.time() - began < LEADER_WAIT:
            if not await retry_transient(partial(self._join_new_generation, trial), hooks):
                await asyncio.sleep(LEADER_WAIT / 20)
        self._waited_for_leader = True

    async def _take_part(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        budget, report = WaitBudget(self._commit_seconds), SyncReport()
        while True:
            self._matching_parts.clear()
            if not self.leads:
                await retry_transient(partial(self._join_new_generation, trial), hooks)
            view = await self._inspect_before_sending(trial, job, hooks)
            if view.failure is None and self.rank in view.missing:
                report, view = await self._send(trial, job, hooks, budget)
            result = view if self._is_final(job, view) else await self._wait(trial, job, hooks, budget)
            if result is None:  # rank 0 began a new generation
                budget.seconds_left = self._commit_seconds
            elif result.failure is None or await self._is_complete_after_all(trial, job, result.failure, hooks):
                return report

    async def _inspect_before_sending(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> CommitView:
        self._check_given_up(job)
        if not self._check_before_sending:
            return CommitView([self.rank])
        return await retry_transient(
            partial(self._shared(trial, job.name, job).inspect_before_sending, resumed=self._may_join), hooks
        )

    def _is_final(self, job: CheckpointJob, view: CommitView) -> bool:
        """Whether the result is final: complete; or lost, for an earlier step or according to a rank that is alive."""
        return view.complete or (view.failure is not None and (view.certain or view.failure.step < _step(job)))

    async def _is_complete_after_all(
        self, trial: TrialState, job: CheckpointJob, failure: FailureRecord, hooks: RetryHooks
    ) -> bool:
        """Handle a lost number: move to the next number, and return False.

        Raises LostError if our step is lost too. Returns True if the checkpoint was committed after all.
        """
        stands: FailureRecord | None = failure
        if not self._is_step_lost(trial, job, failure):
            shared = self._shared(trial, job.name, job)
            stands = await retry_transient(
                partial(shared.give_up, failure.reason, failure.step, conflict=failure.conflict), hooks
            )
        if stands is None:
            return True
        if self._is_step_lost(trial, job, stands):
            raise self._lost_error(job, stands)
        job.previous_failure = stands.reason
        message = f"{job.handle.uri} is incomplete: {stands.reason}; step {job.step} gets the next number"
        self._context.warn(trial.key, message)
        self._take_next_number(trial, job)
        return False

    @staticmethod
    def _is_step_lost(trial: TrialState, job: CheckpointJob, failure: FailureRecord) -> bool:
        """Whether our step is lost, not only the number. It is, too, if the user chose the name or a later checkpoint
        is complete."""
        return failure.step >= _step(job) or job.user_named or (trial.last_durable or 0) > job.number

    def _take_next_number(self, trial: TrialState, job: CheckpointJob) -> None:
        trial.shift_numbers(job.number, 1)
        self._check_before_sending = True

    async def _send(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget
    ) -> tuple[SyncReport, CommitView]:
        """Upload our part. If that fails and another rank uploaded another step, the difference is the result: that
        rank's files may be in the way of ours."""
        more = {"rank": self.rank, "world_size": self.world_size, **self._generation(trial).info}
        if self._returned:
            more[RETURNED] = True
        sending = upload_checkpoint(
            self._context.session,
            f"{self._name}/",
            job,
            hooks,
            trial.confirm,
            record=part_name(self.rank, self.world_size),
            more=more,
        )
        try:
            report = await within(self._context.run.sync_config.timeout, sending, job.progress)
        except CollisionError as error:
            return SyncReport(), await self._resolve_collision(trial, job, hooks, budget, error)
        except SyncFailedError:
            view = await self._shared(trial, job.name, job).inspect(every=True)
            if view.failure is None or self._is_step_lost(trial, job, view.failure):
                raise
            return SyncReport(), view
        return report, CommitView()

    async def _resolve_collision(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget, error: CollisionError
    ) -> CommitView:
        """Another file has the name of one of ours. It belongs to a rank at another step; or to one at the same step,
        as its part will show; or else to a process that has ended, and then all ranks take the next number."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + budget.seconds_left, FIRST_POLL
        path = error.key.removeprefix(f"{self._name}/{job.name}/")
        while True:
            shared = self._shared(trial, job.name, job)
            view = await retry_transient(partial(shared.inspect, every=True), hooks)
            if view.complete:  # of any step
                return await retry_transient(partial(shared.inspect_before_sending, resumed=self._may_join), hooks)
            if view.failure is not None:
                return view
            owner = await retry_transient(partial(shared.owner_of, path), hooks)
            if owner is not None:
                both = SameFileError(path, (min(owner, self.rank), max(owner, self.rank)))
                raise self._lost_error(job, self._failure_record(str(both), _step(job), conflict=True))
            if self._may_join or set(view.missing) <= {self.rank}:
                reason = f"rank {self.rank} found {path!r} of an ended process in place of its own file"
                return CommitView(failure=self._failure_record(reason, _step(job) - 1))
            budget.seconds_left = left = deadline - loop.time()
            if left <= 0:
                raise error
            await asyncio.sleep(min(left, dice().uniform(pause / 2, pause)))
            pause = min(pause * 1.5, LONGEST_POLL)

    async def _wait(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget
    ) -> CommitView | None:
        """Wait until the checkpoint is complete or lost. None: rank 0 began a new generation, and the job has another
        number."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + budget.seconds_left, FIRST_POLL
        while True:
            view = await retry_transient(self._shared(trial, job.name, job).inspect, hooks)
            if view.complete:
                return view
            if self.leads:
                await retry_transient(partial(trial.confirm, self._store()), hooks)
            elif await retry_transient(partial(self._join_new_generation, trial), hooks):
                return None
            self._check_given_up(job)
            budget.seconds_left = left = deadline - loop.time()
            if self._is_final(job, view):
                return view
            if left <= 0:
                self._earlier_failures = frozenset()  # no new generation began: the other ranks are alive
                if view.failure is not None:
                    raise self._lost_error(job, view.failure)
                raise self._timeout_error(job, view.missing)
            await asyncio.sleep(min(left, dice().uniform(pause / 2, pause)))  # spreads the polls of all ranks
            pause = min(pause * 1.5, LONGEST_POLL)

    @property
    def _commit_seconds(self) -> float:
        return self._context.run.checkpoint_config.commit_seconds

    def _check_given_up(self, job: CheckpointJob) -> None:
        if job.given_up:
            raise self._lost_error(job, self._failure_record(self._give_up_reason(job), _step(job)))

    def _give_up_reason(self, job: CheckpointJob) -> str:
        return f"rank {self.rank} {job.given_up}"

    def _failure_record(self, reason: str, step: int, *, conflict: bool = False) -> FailureRecord:
        return FailureRecord(self.rank, self.record.generation, reason, step, conflict, self.record.nonce)

    def _lost_error(self, job: CheckpointJob, failure: FailureRecord) -> LostError:
        ours = "" if failure.step == job.step else f"; rank {self.rank} reported step {job.step}"
        kind = ConflictError if failure.conflict else LostError
        return kind(job.handle.uri, self.world_size, failure.reason, failure.step, ours)

    def _timeout_error(self, job: CheckpointJob, missing: Sequence[int]) -> LostError:
        limit, names = self._commit_seconds, ", ".join(map(str, missing))
        reason = f"rank(s) {names} did not send their part of step {job.step} within commit_timeout={limit:g} s"
        if job.previous_failure:
            reason = f"{job.previous_failure}; then {reason}"
        return self._lost_error(job, self._failure_record(reason, _step(job)))

    async def _give_up(self, trial: TrialState, job: CheckpointJob, error: Exception) -> bool:
        """Report the failure to the other ranks, if a generation exists. Returns True if the checkpoint became complete
        after all.

        If this number was given up only for an earlier step, the others look for our step at the next number: then that
        one is given up, too.
        """
        if not (self.leads or self._generation_begun) or not (job.given_up or self._context.session.store.healthy):
            return False
        reason, step, conflict = f"rank {self.rank} failed: {error}", _step(job), isinstance(error, ConflictError)
        if isinstance(error, LostError):
            reason, step = error.reason, error.step
        try:
            while True:
                stands = await self._shared(trial, job.name, job).give_up(reason, step, conflict=conflict)
                if stands is None:
                    return True
                if self._is_step_lost(trial, job, stands):
                    return False
                self._take_next_number(trial, job)
        except AsyncsyncError as unreported:
            if job.given_up:
                raise  # the caller of give_up waits for exactly this
            log.warning("cannot report to the other ranks that %s is given up: %s", job.handle.uri, unreported)
            return False

    def _shared(self, trial: TrialState, checkpoint: str, job: CheckpointJob | None = None) -> SharedCheckpoint:
        return SharedCheckpoint(
            self._store(trial),
            f"{self._name}/{checkpoint}/",
            self.rank,
            self.world_size,
            self._generation(trial),
            _step(job) if job is not None else -1,
            self._returned,
            self._earlier_failures,
            job.token if job is not None else "",
            job.source if job is not None else None,
            self._matching_parts,
        )

    def _generation(self, trial: TrialState | None = None) -> Generation:
        if self.leads and trial is not None:
            return _generation_of(trial.record)
        return Generation(self.record.generation, self.record.nonce)

    def _set_generation(self, generation: Generation) -> None:
        self.record.generation, self.record.nonce = generation.epoch, generation.nonce

    def _store(self, trial: TrialState | None = None) -> Store:
        """The store. With a trial, writes are fenced: only the process that is this rank may write."""
        fence = trial.confirm if trial is not None else None
        return self._context.session.view(Lane.RECORD, self._name, fence)


def _generation_of(leader: TrialRecord) -> Generation:
    return Generation(leader.epoch, leader.nonce)


def _step(job: CheckpointJob) -> int:
    return -1 if job.step is None else job.step
