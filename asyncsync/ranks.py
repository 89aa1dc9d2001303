"""A trial that several processes train: its ranks agree through the store alone.

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
from functools import partial
from typing import TYPE_CHECKING

from asyncsync.checkpoints import Again, CheckpointJob, checkpoint_name, persist, upload
from asyncsync.errors import (
    AsyncsyncError,
    ConcurrentWriterError,
)
from asyncsync.injected import dice, wall_time
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.ranks import (
    GENERATION,
    RETURNED,
    claim_name,
    part_name,
)
from asyncsync.recordfile import RecordFile
from asyncsync.records import TRIAL_RECORD, RankRecord, TrialRecord
from asyncsync.report import SyncReport
from asyncsync.resume import NUMBERED, sub_prefixes
from asyncsync.scheduler import within
from asyncsync.shared import LostError, SharedCheckpoint
from asyncsync.stores.base import Store
from asyncsync.stores.waiting import Lane
from asyncsync.transfer.reader import exists, find_record, get_record

if TYPE_CHECKING:
    from asyncsync.engine import SyncEngine
    from asyncsync.trial import Trial

log = logging.getLogger("asyncsync")

FIRST_LOOK, MOST_BETWEEN = 0.1, 5.0
"""Seconds between two looks at whether the others are there: at first, and at most."""
PATIENCE = 5.0
"""Seconds for which a rank that came back first waits for rank 0 before it sends: most often all come back, and what it
sent to the old number would be for nothing."""


class Ranks:
    """One rank's share in a trial."""

    def __init__(self, engine: SyncEngine, name: str, *, resumed: bool) -> None:
        role = engine.role
        self.rank, self.world_size = role.rank, role.world_size
        self.claim = RankRecord(name, role.rank, role.world_size, updated=wall_time())
        self.file = RecordFile(f"{name}/{claim_name(role.rank)}", self.claim.to_bytes)
        self._engine, self._name = engine, name
        self._resumed = self._may_follow = resumed
        """Who has just come back may join the generation that rank 0 begins, until a checkpoint is whole."""
        self._returned = False
        """Whether we came back in the midst of a generation, and have not seen that rank 0 is alive."""
        self._before_us: frozenset[str] = frozenset()
        """Failures that were there when we came back: whoever told them may be gone with rank 0."""
        self._begun = False
        """Whether rank 0 has begun a generation: seen by a rank that does not lead."""
        self._looked = self._waited = False
        self._base = 0

    @property
    def leads(self) -> bool:
        """Whether this is the rank that keeps the trial's record."""
        return self.rank == 0

    # taking part

    async def take(self, trial: Trial) -> None:
        """Before the first report of a rank that does not lead: become this rank, and find where to count on.

        ConcurrentWriterError if another process is, or was, this rank and we were not told to resume.
        """
        store = self._store()
        if not self._looked:
            await self._look_up(store)
            self._looked = True
        await self.file.save(store)
        if self._resumed:
            await self._count_on(store, trial, await self._leader(store))

    async def _look_up(self, store: Store) -> None:
        leader = await self._leader(store)
        there = await get_record(store, self.file.key, RankRecord)
        if not self._resumed and (there is not None or (leader is not None and leader.epoch > 1)):
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank {self.rank} is, or was, another process. Start all ranks "
                "with resume=True to go on with the trial"
            )
        if there is not None:
            earlier, self.file.version = there
            self.claim.epoch, self.claim.generation = earlier.epoch + 1, earlier.generation
            self.claim.extra = earlier.extra
        before, self.claim.generation = self.claim.generation, leader.epoch if leader is not None else 1
        self._returned = self._resumed and leader is not None and (there is None or before == self.claim.generation)
        self._waited = there is None  # most likely a first start: nothing to be patient for

    async def _count_on(self, store: Store, trial: Trial, leader: TrialRecord | None) -> None:
        """The next number: behind the newest whole checkpoint, which is the same for every rank that asks."""
        first = leader.first_checkpoint if leader is not None else 0
        names = await sub_prefixes(store, f"{self._name}/")
        numbers = [int(match[1]) for match in map(NUMBERED.fullmatch, names) if match is not None]
        newest = -1
        for number in sorted(numbers, reverse=True):
            if await exists(store, f"{self._name}/{checkpoint_name(number)}/{MANIFEST}"):
                newest = number
                break
        trial.last_durable = newest if newest >= 0 else None
        self._base = max(first, newest + 1)
        trial.record.next_checkpoint = self._base
        if self._returned:
            later = [self._shared(trial, checkpoint_name(number)) for number in numbers if number >= self._base]
            self._before_us = frozenset([key for shared in later for key in await shared.failures()])

    async def _leader(self, store: Store) -> TrialRecord | None:
        record = await find_record(store, f"{self._name}/{TRIAL_RECORD}", TrialRecord)
        self._begun = self._begun or record is not None
        return record

    async def check(self, store: Store) -> None:
        """ConcurrentWriterError if rank 0 has begun a new generation that we do not belong to."""
        await self._moved(store)

    async def _moved(self, store: Store) -> TrialRecord | None:
        """Rank 0's record if it has begun a generation that we are to join."""
        leader = await self._leader(store)
        if leader is None or leader.epoch == self.claim.generation:
            return None
        if not self._may_follow:
            raise ConcurrentWriterError(
                f"{store.uri.rstrip('/')}/{self._name}: rank 0 was started again (epoch {leader.epoch}) while rank "
                f"{self.rank} was running (epoch {self.claim.generation}); start this rank again too, with resume=True"
            )
        return leader

    async def _follow(self, trial: Trial) -> bool:
        """Join rank 0's new generation, if there is one: what is on its way is counted anew."""
        store = self._store()
        leader = await self._moved(store)
        if leader is None:
            return False
        before, following = self._base, trial.record.next_checkpoint
        await self._count_on(store, trial, leader)
        shift = self._base - before
        trial.record.next_checkpoint = following + shift
        for job in trial.jobs:
            job.number, job.tree = job.number + shift, None
            job.handle.name = checkpoint_name(job.number)
            job.handle.uri = f"{trial.uri}/{job.handle.name}"
        self.claim.generation, self.claim.updated = leader.epoch, wall_time()
        self._returned = False
        await self.file.save(store)
        return True

    # one checkpoint

    async def make_durable(self, trial: Trial, job: CheckpointJob, again: Again) -> SyncReport:
        """Send our part, and wait for the others. The report is of the whole checkpoint for rank 0, of our part else.

        CheckpointIncompleteError names the ranks that have not come within ``commit_timeout``, or the one that failed
        and why.
        """
        try:
            await self._wait_for_rank_0(trial, job, again)
            report = await self._take_part(trial, job, again)
        except ConcurrentWriterError:
            raise  # it is no longer ours to write, or each rank sees by itself what is wrong
        except (AsyncsyncError, OSError) as error:
            if not await self._give_up(trial, job, error):
                raise
            report = SyncReport()
        self._may_follow = self._returned = False
        return await self._shared(trial, job.name).report(report) if self.leads else report

    async def _wait_for_rank_0(self, trial: Trial, job: CheckpointJob, again: Again) -> None:
        """Nothing is sent before there is a generation; nor, a while, by who came back and may see a new one begin."""
        loop = asyncio.get_running_loop()
        began, limit = loop.time(), self._engine.run.checkpoint_config.commit_seconds
        while not self.leads and not self._begun:
            await persist(partial(self._leader, self._store()), again)
            if not self._begun and loop.time() - began >= limit:
                raise self._late(job, [0])
            await asyncio.sleep(PATIENCE / 20)
        while self._returned and not self._waited and loop.time() - began < PATIENCE:
            if not await persist(partial(self._follow, trial), again):
                await asyncio.sleep(PATIENCE / 20)
        self._waited = True

    async def _take_part(self, trial: Trial, job: CheckpointJob, again: Again) -> SyncReport:
        while True:
            if not self.leads:
                await persist(partial(self._follow, trial), again)
            sending = self._send(trial, job, again)
            report = await within(self._engine.run.sync_config.timeout, sending, lambda: self._progress(job))
            if await self._wait(trial, job, again):
                return report

    @staticmethod
    def _progress(job: CheckpointJob) -> str:
        return job.tree.progress() if job.tree is not None else f"{job.handle.uri}: nothing was sent yet"

    async def _send(self, trial: Trial, job: CheckpointJob, again: Again) -> SyncReport:
        if self._resumed and await persist(self._shared(trial, job.name).was_sent, again):
            return SyncReport()
        more = {"rank": self.rank, "world_size": self.world_size, GENERATION: self._generation(trial)}
        if self._returned:
            more[RETURNED] = True
        return await upload(
            self._engine.session, f"{self._name}/", job, again, trial.confirm,
            record=part_name(self.rank, self.world_size), more=more,
        )  # fmt: skip

    async def _wait(self, trial: Trial, job: CheckpointJob, again: Again) -> bool:
        """True: it is whole. False: rank 0 has begun a new generation, and the job has another number now."""
        loop = asyncio.get_running_loop()
        limit = self._engine.run.checkpoint_config.commit_seconds
        deadline, pause = loop.time() + limit, FIRST_LOOK
        while True:
            seen = await persist(self._shared(trial, job.name).look, again)
            if seen.whole:
                return True
            if self.leads:
                await persist(partial(trial.confirm, self._store()), again)
            elif await persist(partial(self._follow, trial), again):
                return False
            left = deadline - loop.time()
            if seen.given_up and (seen.certain or left <= 0):
                raise LostError(job.handle.uri, self.world_size, seen.given_up)
            if left <= 0:
                raise self._late(job, seen.missing)
            await asyncio.sleep(min(left, dice().uniform(pause / 2, pause)))  # spreads the looks of all
            pause = min(pause * 1.5, MOST_BETWEEN)

    def _late(self, job: CheckpointJob, missing: Sequence[int]) -> LostError:
        limit, names = self._engine.run.checkpoint_config.commit_seconds, ", ".join(map(str, missing))
        reason = f"rank(s) {names} did not send their part within commit_timeout={limit:g} s"
        return LostError(job.handle.uri, self.world_size, reason)

    async def _give_up(self, trial: Trial, job: CheckpointJob, error: Exception) -> bool:
        """Tell the others, if there is a generation to tell. True: it just became whole all the same."""
        if not self._engine.session.store.healthy or not (self.leads or self._begun):
            return False
        reason = error.reason if isinstance(error, LostError) else f"rank {self.rank} failed: {error}"
        try:
            return await self._shared(trial, job.name).give_up(reason)
        except AsyncsyncError as untold:
            log.warning("the other ranks are not told that %s will not be whole: %s", job.handle.uri, untold)
            return False

    def _shared(self, trial: Trial, checkpoint: str) -> SharedCheckpoint:
        return SharedCheckpoint(
            self._store(trial), f"{self._name}/{checkpoint}/", self.rank, self.world_size, self._generation(trial),
            self._returned, self._before_us,
        )  # fmt: skip

    def _generation(self, trial: Trial) -> int:
        return trial.record.epoch if self.leads else self.claim.generation

    def _store(self, trial: Trial | None = None) -> Store:
        """With a trial: writes only for who still is this rank."""
        fence = trial.confirm if trial is not None else None
        return self._engine.session.view(Lane.RECORD, self._name, fence)
