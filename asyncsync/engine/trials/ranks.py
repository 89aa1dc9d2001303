"""A trial that several processes train: its ranks agree through the store alone.

Each rank counts its checkpoints by itself and sends at once, under the number that it expects; the training step in the
parts tells whether all mean the same. Where they do not, the number is given up by all: who reported an earlier step
than another rank gets the error, who reported the later one goes on under the next number, and so do the others with
their next report. So every rank passes every number, and all are in step again whatever they skipped.

Rank 0 keeps the trial's record, and its epoch is the generation of all: checkpoints are counted from the record's
``first_checkpoint`` on, and only parts of one generation make a checkpoint. Every other rank has a small record that
says who it is. A rank that comes back alone goes on in the same generation, behind the newest whole checkpoint, which
cannot change without its own part; when rank 0 comes back a new generation begins, and the others come back too. Who
comes back first cannot tell which of the two it is: its part only counts for a rank 0 that is alive, and if a new
generation begins instead it joins that.
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
from asyncsync.planning.ranks import (
    NONCE,
    RETURNED,
    Generation,
    SameFileError,
    claim_name,
    part_name,
)
from asyncsync.report import SyncReport
from asyncsync.runtime import dice, wall_time
from asyncsync.stores.base import Lane, Store
from asyncsync.stores.read import list_directories
from asyncsync.sync.records.manifests import find_manifest, find_record, get_record
from asyncsync.sync.records.model import TRIAL_RECORD, FailureRecord, RankRecord, TrialRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.upload.create_only import CollisionError

log = logging.getLogger("asyncsync")

FIRST_POLL, LONGEST_POLL = 0.1, 5.0
"""Seconds between two looks at whether the others are there: at first, and at most."""
LEADER_WAIT = 5.0
"""Seconds for which a rank that came back first waits for rank 0 before it sends: most often all come back, and what it
sent to the old number would be for nothing."""


@dataclass(slots=True)
class WaitBudget:
    """Seconds for which one checkpoint may still wait for other ranks; what it sends is not counted."""

    seconds_left: float


class Ranks:
    """One rank's share in a trial."""

    def __init__(self, context: EngineContext, name: str, *, resumed: bool) -> None:
        role = context.role
        self.rank, self.world_size = role.rank, role.world_size
        self.record = RankRecord(name, role.rank, role.world_size, updated=wall_time())
        self.file = RecordFile(f"{name}/{claim_name(role.rank)}", self.record.to_bytes)
        self._context, self._name = context, name
        self._resumed = self._may_join = resumed
        """Who has just come back may join the generation that rank 0 begins, until a checkpoint is whole."""
        self._returned = False
        """Whether we came to a generation that had begun, and have not seen that its rank 0 is alive: one that we have
        not seen before may be over, too."""
        self._check_before_sending = resumed
        """Whether something may be there already under the next number: it is looked up before anything is sent."""
        self._earlier_failures: frozenset[tuple[str, str]] = frozenset()
        """Failures that were there when we came back: whoever told them may be gone with rank 0."""
        self._generation_begun = False
        """Whether rank 0 has begun a generation: seen by a rank that does not lead."""
        self._generation_found = self._waited_for_leader = False
        self._first_number = 0
        self._matching_parts: set[tuple[str, str]] = set()
        """Parts that are known to be of the step that we are at."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that keeps the trial's record."""
        return self.rank == 0

    # taking part

    async def join(self, trial: TrialState) -> None:
        """Before the first report of a rank that does not lead: become this rank, and find where to count on.

        ConcurrentWriterError if another process is, or was, this rank and we were not told to resume.
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
        there = await get_record(store, self.file.key, RankRecord)
        if not self._resumed and (there is not None or (leader is not None and leader.epoch > 1)):
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank {self.rank} is, or was, another process. Start all ranks "
                "with resume=True to go on with the trial"
            )
        if there is not None:
            earlier, self.file.version = there
            self.record.epoch, self.record.extra = earlier.epoch + 1, earlier.extra
            self._set_generation(Generation(earlier.generation, earlier.nonce))
        before = self._generation()
        self._set_generation(_generation_of(leader) if leader is not None else Generation(1))
        known = before in (self._generation(), Generation(self.record.generation))
        self._returned = self._resumed and leader is not None
        self._waited_for_leader = (
            there is None or not known
        )  # a first start, or rank 0 was faster: nothing to be patient for

    async def _find_next_number(self, store: Store, trial: TrialState, leader: TrialRecord | None) -> None:
        """The next number: behind the newest whole checkpoint, which is the same for every rank that asks."""
        first = leader.first_checkpoint if leader is not None else 0
        names = await list_directories(store, f"{self._name}/")
        numbers = [int(match[1]) for match in map(NUMBERED.fullmatch, names) if match is not None]
        newest = -1
        for number in sorted(numbers, reverse=True):
            manifest = await find_manifest(store, f"{self._name}/{checkpoint_name(number)}/")
            ours = ("", leader.nonce if leader is not None else "")
            if manifest is not None and manifest.info.get(NONCE, "") in ours:  # else of a trial that was deleted
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
            self._set_generation(_generation_of(record))  # it begins now, or a version without nonces began it
        self._generation_begun = self._generation_begun or record is not None
        return record

    async def check(self, store: Store) -> None:
        """ConcurrentWriterError if rank 0 has begun a new generation that we do not belong to."""
        await self._newer_generation(store)

    async def _newer_generation(self, store: Store) -> TrialRecord | None:
        """Rank 0's record if it has begun a generation that we are to join."""
        leader = await self._read_leader(store)
        if leader is None or _generation_of(leader) == self._generation():
            return None
        if not self._may_join:
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank 0 was started again (epoch {leader.epoch}) while rank "
                f"{self.rank} was running (epoch {self.record.generation}); start this rank again too, with resume=True"
            )
        return leader

    async def _join_new_generation(self, trial: TrialState) -> bool:
        """Join rank 0's new generation, if there is one: what is on its way is counted anew."""
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
        """Send our part, and wait for the others. The report is of the whole checkpoint for rank 0, of our part else.

        CheckpointIncompleteError names the ranks that have not come within ``commit_timeout``, the one that failed
        and why, or those that reported another step.
        """
        try:
            await self._wait_for_rank_0(trial, job, hooks)
            report = await self._take_part(trial, job, hooks)
        except (AsyncsyncError, OSError) as error:
            self._check_before_sending = True
            if isinstance(error, ConcurrentWriterError) and not isinstance(error, LostError | CollisionError):
                raise  # it is no longer ours to write, or each rank sees by itself what is wrong
            if not await self._give_up(trial, job, error):
                raise
            report = SyncReport()
        self._may_join = self._returned = self._check_before_sending = False
        return await self._shared(trial, job.name, job).report(report) if self.leads else report

    async def give_up(self, trial: TrialState, job: CheckpointJob, reason: str) -> None:
        """Give up a checkpoint that was reported: the others are told now, whoever waits for it here when its runner
        looks next."""
        job.given_up = reason
        if trial.jobs[0] is job and (self.leads or self._generation_begun):
            await self._shared(trial, job.name, job).give_up(self._give_up_reason(job), _step(job))

    async def _wait_for_rank_0(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> None:
        """Nothing is sent before there is a generation; nor, a while, by who came back and may see a new one begin."""
        loop = asyncio.get_running_loop()
        began, limit = loop.time(), self._context.run.checkpoint_config.commit_seconds
        while not self.leads and not self._generation_begun:
            await retry_transient(partial(self._read_leader, self._store()), hooks)
            if not self._generation_begun and loop.time() - began >= limit:
                raise CheckpointIncompleteError(str(self._timeout_error(job, [0])))  # there is no generation to tell
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
            seen = await self._inspect_before_sending(trial, job, hooks)
            if seen.failure is None and self.rank in seen.missing:
                report, seen = await self._send(trial, job, hooks, budget)
            verdict = seen if self._is_final(job, seen) else await self._wait(trial, job, hooks, budget)
            if verdict is None:  # rank 0 has begun a new generation
                budget.seconds_left = self._commit_seconds
            elif verdict.failure is None or await self._is_complete_after_all(trial, job, verdict.failure, hooks):
                return report

    async def _inspect_before_sending(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> CommitView:
        self._check_given_up(job)
        if not self._check_before_sending:
            return CommitView([self.rank])
        return await retry_transient(
            partial(self._shared(trial, job.name, job).inspect_before_sending, resumed=self._may_join), hooks
        )

    def _is_final(self, job: CheckpointJob, seen: CommitView) -> bool:
        """Whether it is whole; or lost for good: for a step that is past, or in the words of somebody who is alive."""
        return seen.complete or (seen.failure is not None and (seen.certain or seen.failure.step < _step(job)))

    async def _is_complete_after_all(
        self, trial: TrialState, job: CheckpointJob, failure: FailureRecord, hooks: RetryHooks
    ) -> bool:
        """This number is lost: leave it to our step's own, the next. LostError if our step is lost, too; True if it was
        committed all the same."""
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
        message = f"{job.handle.uri} is not whole: {stands.reason}; step {job.step} gets the next number"
        self._context.warn(trial.key, message)
        self._take_next_number(trial, job)
        return False

    @staticmethod
    def _is_step_lost(trial: TrialState, job: CheckpointJob, failure: FailureRecord) -> bool:
        """Whether our step is lost, and not only the number; so it is where the next one is whole already, or where the
        user chose the name."""
        return failure.step >= _step(job) or job.user_named or (trial.last_durable or 0) > job.number

    def _take_next_number(self, trial: TrialState, job: CheckpointJob) -> None:
        trial.shift_numbers(job.number, 1)
        self._check_before_sending = True

    async def _send(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget
    ) -> tuple[SyncReport, CommitView]:
        """Send our part. If it fails where another rank has sent another step, that is what counts: its files may be
        in the way of ours."""
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
            seen = await self._shared(trial, job.name, job).inspect(every=True)
            if seen.failure is None or self._is_step_lost(trial, job, seen.failure):
                raise
            return SyncReport(), seen
        return report, CommitView()

    async def _resolve_collision(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget, error: CollisionError
    ) -> CommitView:
        """Whose file is where ours should be: of a rank at another step, or at the same one, which its part will tell;
        else of a process that is gone, and then all ranks take the next number."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + budget.seconds_left, FIRST_POLL
        path = error.key.removeprefix(f"{self._name}/{job.name}/")
        while True:
            shared = self._shared(trial, job.name, job)
            seen = await retry_transient(partial(shared.inspect, every=True), hooks)
            if seen.complete:  # of whatever step
                return await retry_transient(partial(shared.inspect_before_sending, resumed=self._may_join), hooks)
            if seen.failure is not None:
                return seen
            owner = await retry_transient(partial(shared.owner_of, path), hooks)
            if owner is not None:
                both = SameFileError(path, (min(owner, self.rank), max(owner, self.rank)))
                raise self._lost_error(job, self._failure_record(str(both), _step(job), conflict=True))
            if self._may_join or set(seen.missing) <= {self.rank}:
                reason = f"rank {self.rank} found {path!r} of a process that is gone in the way of its own"
                return CommitView(failure=self._failure_record(reason, _step(job) - 1))
            budget.seconds_left = left = deadline - loop.time()
            if left <= 0:
                raise error
            await asyncio.sleep(min(left, dice().uniform(pause / 2, pause)))
            pause = min(pause * 1.5, LONGEST_POLL)

    async def _wait(
        self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks, budget: WaitBudget
    ) -> CommitView | None:
        """Until it is whole or lost. None: rank 0 has begun a new generation, and the job has another number now."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + budget.seconds_left, FIRST_POLL
        while True:
            seen = await retry_transient(self._shared(trial, job.name, job).inspect, hooks)
            if seen.complete:
                return seen
            if self.leads:
                await retry_transient(partial(trial.confirm, self._store()), hooks)
            elif await retry_transient(partial(self._join_new_generation, trial), hooks):
                return None
            self._check_given_up(job)
            budget.seconds_left = left = deadline - loop.time()
            if self._is_final(job, seen):
                return seen
            if left <= 0:
                self._earlier_failures = frozenset()  # nobody has begun a new generation: the others are alive
                if seen.failure is not None:
                    raise self._lost_error(job, seen.failure)
                raise self._timeout_error(job, seen.missing)
            await asyncio.sleep(min(left, dice().uniform(pause / 2, pause)))  # spreads the looks of all
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
        ours = "" if failure.step == job.step else f"; rank {self.rank} came with step {job.step}"
        kind = ConflictError if failure.conflict else LostError
        return kind(job.handle.uri, self.world_size, failure.reason, failure.step, ours)

    def _timeout_error(self, job: CheckpointJob, missing: Sequence[int]) -> LostError:
        limit, names = self._commit_seconds, ", ".join(map(str, missing))
        reason = f"rank(s) {names} did not send their part of step {job.step} within commit_timeout={limit:g} s"
        if job.previous_failure:
            reason = f"{job.previous_failure}; then {reason}"
        return self._lost_error(job, self._failure_record(reason, _step(job)))

    async def _give_up(self, trial: TrialState, job: CheckpointJob, error: Exception) -> bool:
        """Tell the others, if there is a generation to tell. True: it just became whole all the same.

        A number that was given up for an earlier step only is not where the others look for ours: then it is the next.
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
        except AsyncsyncError as take_failures:
            if job.given_up:
                raise  # who gives it up waits for just this
            log.warning("the other ranks are not told that %s will not be whole: %s", job.handle.uri, take_failures)
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
        """With a trial: writes only for who still is this rank."""
        fence = trial.confirm if trial is not None else None
        return self._context.session.view(Lane.RECORD, self._name, fence)


def _generation_of(leader: TrialRecord) -> Generation:
    return Generation(leader.epoch, leader.nonce)


def _step(job: CheckpointJob) -> int:
    return -1 if job.step is None else job.step
