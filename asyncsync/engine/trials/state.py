"""Private: one trial while its engine runs: its record, its tree of artifacts, its checkpoints on their way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from asyncsync.aio.retry import RetryHooks, is_transient
from asyncsync.aio.threads import in_thread
from asyncsync.config import UploadMode
from asyncsync.disk.results import OWN_FILES, as_json, last_rows, write_params
from asyncsync.disk.scan import Rules
from asyncsync.engine.trials.checkpoint import CheckpointHandle
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.job import CheckpointJob, Left
from asyncsync.engine.trials.resume import NUMBERED, adopt_checkpoints, continued, restore_files
from asyncsync.errors import ConcurrentWriterError, SyncError, SyncFailedError
from asyncsync.report import SyncReport
from asyncsync.runtime import lease_time, wall_time
from asyncsync.stores.base import MISSING, Lane, Store
from asyncsync.stores.guard.fenced import OUTLIVED
from asyncsync.sync.records.manifests import get_record
from asyncsync.sync.records.model import TRIAL_RECORD, TrialRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.tree import Tree, TreeOptions

TOLERATED = 300.0
"""How long (s) background syncs may keep failing with transient errors before the trial's next report() raises."""

NONE = frozenset[str]()
"""Shared: an empty set of its own would be a twentieth of what an idle trial takes."""


class RankShare(Protocol):
    """The share of one rank in a trial that several processes train; :mod:`asyncsync.engine.trials.ranks` has it."""

    file: RecordFile
    """The record of this rank."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that keeps the trial's record."""

    async def take(self, trial: TrialState) -> None:
        """Become this rank, before the first report."""

    async def check(self, store: Store) -> None:
        """ConcurrentWriterError if rank 0 has begun a new generation that this rank does not belong to."""

    async def make_durable(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        """Send this rank's part and wait for the others."""

    async def give_up(self, trial: TrialState, job: CheckpointJob, reason: str) -> None:
        """Tell the other ranks that this one gives a checkpoint up."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that went wrong since the last report. ``handle``: of the checkpoint, if it is one."""

    key: str
    error: BaseException
    handle: CheckpointHandle | None = None


@dataclass(frozen=True, slots=True)
class _Named:
    """What a record says of checkpoints: those it names, and of those that it gives up which are still in memory."""

    names: frozenset[str]
    leaving: frozenset[str]
    given_up: tuple[str, ...]


_NOTHING_NAMED = _Named(NONE, NONE, ())


class TrialState:
    """One trial of an engine; :class:`asyncsync.Trial` is the face that users see."""

    __slots__ = (
        "_changed",
        "_changed_since",
        "_claimed",
        "_context",
        "_failing_since",
        "_failures",
        "_owed",
        "_prepared",
        "_preparing",
        "_reporting",
        "_saving",
        "_suspended",
        "_written",
        "dirty_since",
        "doubtful",
        "freed",
        "jobs",
        "key",
        "last_durable",
        "last_durable_time",
        "leaving",
        "left",
        "ranks",
        "recheck_at",
        "record",
        "record_file",
        "replaced",
        "reported_dirs",
        "resumed",
        "stored",
        "tree",
    )  # fmt: skip

    def __init__(
        self,
        context: EngineContext,
        record: TrialRecord,
        version: str = MISSING,
        *,
        resumed: bool = False,
        ranks: RankShare | None = None,
    ) -> None:
        self._context = context
        self.record = record
        self.key = record.name
        self.resumed = resumed
        self.ranks = ranks
        """Only for a trial that several processes train."""
        if self.ranks is None or self.ranks.leads:
            self.record_file = RecordFile(f"{record.name}/{TRIAL_RECORD}", self._encode, version)
        else:
            self.record_file = self.ranks.file
        where = context.role.directory(record.name)
        self.tree = Tree(
            context.session, f"{context.local_dir}/{where}", f"{where}/",
            TreeOptions(
                self._rules, Lane.ARTIFACT, delete=context.run.sync_config.delete, disown=True, fence=self.confirm,
                doubted=True, max_delete=context.run.sync_config.max_delete,
            ),
        )  # fmt: skip
        self.jobs: list[CheckpointJob] = []
        self.doubtful = False
        """Whether another process that ran it may not have ended."""
        self.replaced = NONE
        """Runners that this one replaced: their writes of the record may still land."""
        self.recheck_at: float | None = None
        """When the lease of that is over, on the lease's clock: then its artifacts are looked at."""
        self.leaving = NONE
        """Names of checkpoints that are being retired: the record without them is on its way."""
        self.stored: frozenset[str] = NONE
        """Names of the checkpoints in the record that was stored last."""
        self.freed = NONE
        """Names that the record in the store gives up though their data is gone: not used before it is written."""
        self._saving: asyncio.Lock | None = None
        self._written = _NOTHING_NAMED
        """What the record says that was written last, or is on its way."""
        self._owed = NONE
        """Names in the record's ``given_up`` whose deletion is owed to the store."""
        self.left: Sequence[Left] = ()
        """Checkpoints of an earlier process that are resumed if their directory is reported again."""
        self._suspended: CheckpointJob | None = None
        """Of a SYNC report that ended by its time-out while bytes moved."""
        self._failures: list[Failure] = []
        self.last_durable: int | None = record.checkpoints[-1].number if record.checkpoints else None
        self.last_durable_time: float | None = record.checkpoints[-1].time if record.checkpoints else None
        self.dirty_since: float | None = None
        self._changed_since: float | None = None
        """Since the last sync began."""
        self._failing_since: float | None = None
        """Since when background syncs fail, on the event loop's clock."""
        self._changed: asyncio.Event | None = None
        self._reporting: asyncio.Lock | None = None
        self._preparing: asyncio.Lock | None = None
        self._prepared = self._claimed = False
        self.reported_dirs: frozenset[str] = NONE

    @property
    def name(self) -> str:
        """The trial's name, unique in its experiment."""
        return self.record.name

    @property
    def dir(self) -> Path:
        """The trial's directory on this machine; write artifacts here. Ranks have one each."""
        return Path(self.tree.root)

    @property
    def uri(self) -> str:
        """Where the trial is stored."""
        return f"{self._context.uri.rstrip('/')}/{self.key}"

    # running it

    async def sync_once(self) -> SyncReport:
        """One attempt at files and record."""
        await self.prepare()
        await self.claim()
        if self.recheck_at is not None and lease_time() >= self.recheck_at:
            await self.tree.recheck()
            self.recheck_at = None
        self._changed_since = None
        if self.reported_dirs:
            self.reported_dirs = await in_thread(_existing, self.tree.root, self.reported_dirs)
        report = await self._sync_files()
        saved = await self.save()
        self.dirty_since = self._changed_since  # what was there when it began is durable
        self._failing_since = None
        if self._failures:
            self._failures = [failure for failure in self._failures if failure.key != self.key]
        return replace(report, requests=report.requests + 1) if saved else report

    async def _sync_files(self) -> SyncReport:
        if not self._context.role.leads and not self._context.run.sync_config.sync_artifacts:
            return SyncReport()  # result.json and its like are rank 0's
        return await self.tree.sync_once(self._context.progress_of(self.key))

    async def claim(self) -> None:
        """Write the record before anything else of the trial: who is not its one writer learns it here."""
        if not self._claimed:
            new = not self.record_file.exists
            if await self._take_record() and new and self.ranks is None:
                self.tree.expect_nothing()
            if self.doubtful:
                self.doubtful, self.recheck_at = False, lease_time() + OUTLIVED
            self._claimed = True

    async def _take_record(self) -> bool:
        """Save the record for the first time. A write that a replaced process had in flight may have landed since we
        read it: then its content is taken over, and replaced again."""
        try:
            return await self.save()
        except ConcurrentWriterError:
            if not await self._adopt_late_record():
                raise
        return await self.save()

    async def _adopt_late_record(self) -> bool:
        """Whether the record in the store is of a process that this one replaced; then ours continues it."""
        store = self._context.session.view(Lane.RECORD, self.key)
        found = await get_record(store, self.record_file.key, TrialRecord) if self._context.role.leads else None
        if found is None or found[0].runner not in self.replaced:
            return False
        late, version = found
        await adopt_checkpoints(store, late, partial(self._context.warn, self.key))
        self.record = continued(self.record, late)
        self.record_file.replace(version)
        return True

    async def save(self) -> bool:
        """Write the record if it has changed; whether it was written. ConcurrentWriterError. Only once it is written,
        what it retires leaves our memory, and what it gives up is deleted."""
        self._saving = lock = self._saving or asyncio.Lock()
        async with lock:
            saved = await self.record_file.save(
                self._context.session.view(Lane.RECORD, self.key, self._context.confirm)
            )
            if self._context.role.leads:
                self._stored(self._written if saved else self.named())
        return saved

    def named(self) -> _Named:
        leaving = self.leaving
        names = frozenset(item.name for item in self.record.checkpoints if item.name not in leaving) or NONE
        return _Named(names, leaving, (*self.record.given_up, *sorted(leaving)))

    def _stored(self, written: _Named) -> None:
        """Plain. If a checkpoint that the store names now has failed meanwhile, what it retires stays: the next record
        names that again."""
        record, self.stored = self.record, written.names
        self.freed = self.freed & frozenset(written.given_up) or NONE
        leaving = written.leaving if written.names <= {item.name for item in record.checkpoints} else NONE
        record.checkpoints = [item for item in record.checkpoints if item.name not in leaving]
        record.given_up += [name for name in sorted(leaving) if name not in record.given_up]
        given_up = [name for name in written.given_up if name in record.given_up and name not in self._owed]
        self._context.owe_deletion(self.key, given_up, record.nonce)
        self._owed = self._owed | frozenset(given_up) or NONE

    def deleted(self, name: str) -> None:
        """What was given up is gone from the store."""
        self._owed = self._owed - {name} or NONE
        if name in self.record.given_up:
            self.record.given_up.remove(name)
            self.freed |= {name}
            if self._changed is not None:
                self._changed.set()

    async def deletion(self, name: str) -> None:
        """Wait until what the record gives up under this name is gone."""
        while name in self.record.given_up:
            await self._change()

    def _encode(self, stamp: str) -> bytes:
        """The record as it is to be stored: what is being retired is not in it, but stays here until it is stored."""
        record = self.record
        if stamp:
            self._written = self.named()
        if self.leaving:
            kept = [item for item in record.checkpoints if item.name not in self.leaving]
            record = replace(record, checkpoints=kept, given_up=[*record.given_up, *sorted(self.leaving)])
        return record.to_bytes(stamp)

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if another process runs the trial, or the experiment. What the store was asked before
        ``since``, on the loop's clock, does not count; of a rank nothing does that it was not asked just for this."""
        since = float("inf") if self.ranks is not None else since
        asked = min(await self._context.confirm(store, since), await self.record_file.confirm(store, since))
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.check(store)
        return asked

    async def outlive(self) -> None:
        """Wait until nothing of the process that ran it before can be on its way any more."""
        if self.doubtful:
            await self.prepare()
            await self.claim()
        if self.recheck_at is not None:
            await asyncio.sleep(max(0.0, self.recheck_at - lease_time()))

    def progress(self) -> str:
        """How far the running or last sync is, for people."""
        return self.tree.progress()

    async def settled(self, most: int = 0) -> None:
        """Wait until at most ``most`` checkpoints are not durable."""
        while len(self.jobs) > most:
            await self._change()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

    def job_ended(self, job: CheckpointJob, error: BaseException | None = None) -> None:
        """A checkpoint is durable, or will never be."""
        self.jobs.remove(job)
        if self._changed is not None:
            self._changed.set()
        job.handle.settle(error)
        if error is not None and not job.handle.told and not job.given_up:
            self._failures.append(Failure(f"{self.key}/{job.name}", error, job.handle))
        if error is None:
            if self.last_durable is None or job.number > self.last_durable:
                self.last_durable, self.last_durable_time = job.number, wall_time()
            self.touch()

    def note_failure(self, error: BaseException) -> None:
        """A background sync failed and will be tried again. The next report raises it; a transient error only once it
        has lasted, because a short outage of the store must not end a training loop."""
        now = asyncio.get_running_loop().time()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if not is_transient(error) or now - self._failing_since >= TOLERATED:
            self._failures = [failure for failure in self._failures if failure.key != self.key]
            self._failures.append(Failure(self.key, error))

    def untold(self) -> dict[str, BaseException]:
        """Failures that nobody has been given yet; they count as told now."""
        found = {
            failure.key: failure.error
            for failure in self._failures
            if failure.handle is None or not failure.handle.told
        }
        self._failures.clear()
        return found

    def raise_failures(self) -> None:
        """Tell what went wrong since the last report."""
        found = self.untold()
        if not found:
            return
        if len(found) == 1:
            error = next(iter(found.values()))
            if isinstance(error, SyncError):
                raise error
        text = "; ".join(f"{name}: {error}" for name, error in found.items())
        raise SyncFailedError(f"since the last report of trial {self.key} this failed: {text}", found)

    async def prepare(self) -> None:
        """On first use: the directory and params.json, and what a resumed trial had."""
        if not self._prepared:
            self._preparing = lock = (
                self._preparing or asyncio.Lock()
            )  # not the reports': one may wait for a checkpoint
            async with lock:
                await self._prepare()
            self._preparing = None

    async def _prepare(self) -> None:
        if self._prepared:
            return
        if self.resumed:
            await self._restore()
            if self._context.role.leads:
                self._count_on(await in_thread(last_rows, self.dir))
                self.record.first_checkpoint = self.record.next_checkpoint
            self._abandon_uploads()
            self.resumed = False
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.take(self)
        elif self.record.params:
            await write_params(self.dir, self.record.params)
        self._prepared = True

    async def _restore(self) -> None:
        """What a resumed trial needs before its first report."""
        store, warn = self._context.session.view(Lane.RECORD, self.key), partial(self._context.warn, self.key)
        if self._context.role.leads:
            await adopt_checkpoints(store, self.record, warn)
        await restore_files(store, self.tree.prefix, self.dir, warn)

    def _abandon_uploads(self) -> None:
        """Abort the uploads that an earlier process left, except those of pending checkpoints."""
        if self._context.role.world_size > 1:
            return  # other ranks on this machine may be at it
        names = [*(item.name for item in self.left), *(job.name for job in self.jobs)]
        keep = tuple(f"{self.key}/{name}/" for name in names)
        self._context.session.uploads.abandon_below(f"{self.key}/checkpoint_", keep=keep)

    def _count_on(self, rows: list[dict[str, Any]]) -> None:
        """Neither an iteration nor a checkpoint's number is used twice, though the process that used it was killed
        before the store heard of it. Plain."""
        for row in rows:
            iteration, name = row.get("training_iteration"), row.get("checkpoint_dir_name")
            if isinstance(iteration, int):
                self.record.reports = max(self.record.reports, iteration)
            match = NUMBERED.fullmatch(name) if isinstance(name, str) else None
            if match is not None:
                self.record.next_checkpoint = max(self.record.next_checkpoint, int(match[1]) + 1)

    def set_params(self, params: Mapping[str, Any] | None) -> None:
        """For a trial that went on before it was asked for."""
        if params is not None and as_json(params) != self.record.params:
            self.record.params = as_json(params)
            self._prepared = False  # params.json is written again
            self.touch()

    def touch(self) -> None:
        """The record has changed, and is not stored yet."""
        self.record.updated, now = wall_time(), asyncio.get_running_loop().time()
        self.dirty_since = now if self.dirty_since is None else self.dirty_since
        self._changed_since = now if self._changed_since is None else self._changed_since

    def reporting(self) -> asyncio.Lock:
        """One report at a time; made on first use, an idle trial has none."""
        self._reporting = lock = self._reporting or asyncio.Lock()
        return lock

    def _rules(self) -> Rules:
        config = self._context.run.sync_config
        if not config.sync_artifacts:
            return Rules(only=OWN_FILES)
        return Rules(
            tuple(config.include), tuple(config.exclude), config.symlinks,
            self.reported_dirs | self.own_names() | self._context.role.others(), always=OWN_FILES, skip_numbered=True,
        )  # fmt: skip

    # its checkpoints

    def own_names(self) -> frozenset[str]:
        """Directories of the trial's prefix that are checkpoints, or what is left of some."""
        names = {item.name for item in self.record.checkpoints} | {job.name for job in self.jobs}
        names |= {item.name for item in self.left}
        names |= {self._suspended.name} if self._suspended is not None else set()
        return frozenset(names | set(self.record.given_up))

    def unregister(self, job: CheckpointJob) -> None:
        """Plain: the record is not going to name it. What it names of another process stays, whatever its name."""
        if job.registered:
            self.record.checkpoints = [item for item in self.record.checkpoints if item.name != job.name]
            job.registered = False

    def give_up(self, job: CheckpointJob) -> None:
        """It will never be durable. Plain; what is in the store of it is deleted once the record says so. Not what the
        record names: another process used the number, or this is in the store after all."""
        job.cross_out(self._context.session)
        self.unregister(job)
        if any(item.name == job.name for item in self.record.checkpoints):
            return
        if job.tree is None and not job.begun:
            return  # nothing was sent
        self._context.session.uploads.abandon_below(f"{self.key}/{job.name}/")
        if self.ranks is None and job.name not in self.record.given_up:  # other ranks may still be sending to it
            self.record.given_up.append(job.name)
            self.touch()

    def suspend(self, job: CheckpointJob) -> None:
        """A report of the same directory goes on with it. One at a time: of two that were cut short the later one."""
        self.give_up_suspended()
        self._suspended = job

    def give_up_suspended(self) -> None:
        """Nobody has gone on with it: nothing of it stays."""
        self._take_suspended()
        if self._suspended is not None:
            self.give_up(self._suspended)
            self._suspended = None

    def _take_suspended(self) -> None:
        """Those of an earlier process; only the last one can be resumed."""
        left, self.left = self.left, ()
        for item in left:
            if self._suspended is not None:
                self.give_up(self._suspended)
            self._suspended = self.take_over(item, UploadMode.SYNC)

    def suspended(self) -> CheckpointJob | None:
        """The checkpoint whose report ended by its time-out while bytes moved."""
        self._take_suspended()
        return self._suspended

    def forget_suspended(self) -> CheckpointJob | None:
        """The same; it is the caller's now."""
        found, self._suspended = self._suspended, None
        return found

    def take_over(self, left: Left, mode: UploadMode) -> CheckpointJob:
        """The job of a checkpoint that an earlier process accepted. Plain."""
        job = left.job(self.uri, mode)
        self.record.next_checkpoint = max(self.record.next_checkpoint, job.number + 1)
        return job

    def renumber(self, first: int, shift: int) -> None:
        """Checkpoints from number ``first`` on, and those that will be reported, get numbers higher by ``shift``; what
        was sent of them is of another generation or under another name. Plain."""
        self.record.next_checkpoint += shift
        for job in self.jobs:
            if job.number >= first:
                if job.named or not shift:
                    job.number += shift  # the user chose its name
                    job.begun, job.tree = job.begun or job.tree is not None, None
                else:
                    job.rename(job.number + shift, self.uri)


def _existing(root: str, names: frozenset[str]) -> frozenset[str]:
    """Those that still are there: so the set cannot grow for ever."""
    return frozenset(name for name in names if os.path.isdir(f"{root}/{name}"))
