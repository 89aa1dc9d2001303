"""Private: one trial while its engine runs: its record, its tree of artifacts, and its pending checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from asyncsync.aio.lazy import LazyLock
from asyncsync.aio.retry import RetryHooks
from asyncsync.aio.threads import in_thread
from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import existing_directories
from asyncsync.disk.results import as_json, last_rows, write_params
from asyncsync.engine.trials.checkpoint import TrialFailures
from asyncsync.engine.trials.context import DirectoryInUse, EngineContext
from asyncsync.engine.trials.job import CheckpointJob, LeftBehind
from asyncsync.engine.trials.pending_checkpoints import add_to_journal
from asyncsync.engine.trials.record_keeper import NO_NAMES, RecordKeeper
from asyncsync.engine.trials.resume import adopt_checkpoints, restore_files, skip_used_numbers
from asyncsync.planning.patterns import Rules
from asyncsync.report import SyncReport
from asyncsync.runtime import lease_time, wall_time
from asyncsync.stores.base import MISSING, Lane, Store
from asyncsync.stores.guard.fenced import LEASE_OUTLIVED
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.tree import Tree, TreeOptions
from asyncsync.sync.tree_manifest import Packed


class RankShare(Protocol):
    """One rank's share in a trial that several processes train, see :mod:`asyncsync.engine.trials.ranks`."""

    file: RecordFile
    """The record of this rank."""

    @property
    def leads(self) -> bool:
        """Whether this rank keeps the trial's record."""

    async def join(self, trial: TrialState) -> None:
        """Become this rank. Called before the first report."""

    async def check(self, store: Store) -> float:
        """When the store was asked. ConcurrentWriterError if rank 0 began a new generation without this rank."""

    async def make_durable(self, trial: TrialState, job: CheckpointJob, hooks: RetryHooks) -> SyncReport:
        """Upload this rank's part and wait for the other ranks."""

    async def give_up(self, trial: TrialState, job: CheckpointJob, reason: str) -> None:
        """Report to the other ranks that this one gives a checkpoint up."""


class TrialState:
    """One trial of an engine. Users see it through :class:`asyncsync.Trial`."""

    __slots__ = (
        "_changed_since",
        "_context",
        "_failures",
        "_owned",
        "_packed",
        "_prepared",
        "_preparing",
        "_reporting",
        "_suspended",
        "_synced",
        "_tree",
        "dirty_since",
        "jobs",
        "keeper",
        "key",
        "last_durable",
        "last_durable_time",
        "left_behind",
        "predecessor_may_write",
        "ranks",
        "recheck_at",
        "reported_dirs",
        "resumed",
    )

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
        self.key = record.name
        self.resumed = resumed
        self.ranks = ranks
        """Only for a trial that several processes train."""
        file = None if ranks is None or ranks.leads else ranks.file
        self.keeper = RecordKeeper(context, record, version, file=file)
        self._tree: Tree | None = None
        self._packed: Packed | None = None
        """The last manifest of the tree, packed, while the trial is idle and has no tree."""
        self.jobs: tuple[CheckpointJob, ...] = ()
        """Accepted checkpoints that are not durable yet, in the order of reports."""
        self.predecessor_may_write = False
        """Whether another process that ran this trial may still be running."""
        self.recheck_at: float | None = None
        """When its lease expires, on the lease's clock. Then the artifacts are compared with the store."""
        self.left_behind: Sequence[LeftBehind] = ()
        """Checkpoints of an earlier process that resume if their directory is reported again."""
        self._suspended: CheckpointJob | None = None
        """The checkpoint of a SYNC report that timed out while it made progress."""
        self._failures: TrialFailures | None = None
        self.last_durable: int | None = record.checkpoints[-1].number if record.checkpoints else None
        self.last_durable_time: float | None = record.checkpoints[-1].time if record.checkpoints else None
        self.dirty_since: float | None = None
        """When the first change that is not durable was made, on the event loop's clock."""
        self._changed_since: float | None = None
        """When the first change since the start of the last sync was made, on that clock."""
        self._reporting: Any = None
        self._preparing: Any = None  # not `_reporting`: a report may hold that while it waits for a checkpoint
        self._prepared = self._owned = self._synced = False
        self.reported_dirs: frozenset[str] = NO_NAMES
        """Directories in the trial's own that were reported as checkpoints: they are not artifacts."""

    @property
    def tree(self) -> Tree:
        """The directory with its prefix. It exists only while it is needed: a trial without work has none."""
        if self._tree is None:
            self._tree = self._make_tree()
        return self._tree

    def _make_tree(self) -> Tree:
        context = self._context
        options = TreeOptions(
            self._rules,
            Lane.ARTIFACT,
            delete=context.run.sync_config.delete,
            removed=frozenset if context.latest_file is None else self._removed_files,
            disown=True,
            fence=self.confirm,
            doubted=True,
            max_delete=context.run.sync_config.max_delete,
        )
        tree = Tree(context.session, self.root, f"{context.role.directory(self.key)}/", options)
        if self._packed is not None:
            tree.unpack(self._packed)
            self._packed = None
        return tree

    def _pack_tree(self) -> None:
        """The trial has no work: keep only what its tree knows."""
        if self._tree is not None and (packed := self._tree.packed()) is not None:
            self._tree, self._packed = None, packed

    def put_away(self) -> None:
        """The trial has ended: keep nothing of its tree, here and in the journal."""
        self.tree.forget()
        self._tree = None

    @property
    def record(self) -> TrialRecord:
        """The trial's record, as it will be stored next."""
        return self.keeper.record

    @property
    def reporting(self) -> LazyLock:
        """Held by one report at a time."""
        return LazyLock(self, "_reporting")

    @property
    def name(self) -> str:
        """The trial's name, unique in its experiment."""
        return self.key

    @property
    def root(self) -> str:
        """The trial's directory on this machine. Each rank has one of its own."""
        return f"{self._context.local_dir}/{self._context.role.directory(self.key)}"

    @property
    def dir(self) -> Path:
        """The same, as Path."""
        return Path(self.root)

    @property
    def is_durable(self) -> bool:
        """Whether everything that was reported is in the store."""
        return not self.jobs and self.dirty_since is None

    @property
    def uri(self) -> str:
        """Where the trial is stored."""
        return f"{self._context.uri.rstrip('/')}/{self.key}"

    def durable_checkpoints(self) -> list[CheckpointRecord]:
        """The checkpoints of the record, without one that no stored record lists yet."""
        return self.keeper.without_unstored(job.name for job in self.jobs if job.registered)

    async def write_latest(self) -> None:
        """Write ``latest_file``, if it is wanted. A failure, such as a full disk, is a warning."""
        if self._context.latest_file is not None:
            await self.keeper.write_latest(str(self.dir), self.durable_checkpoints())

    def _removed_files(self) -> Collection[str]:
        """The file of asyncsync that is deleted from the store when it names nothing any more."""
        return () if self.durable_checkpoints() else (str(self._context.latest_file),)

    # syncing

    async def sync_once(self) -> SyncReport:
        """Sync files and record; one attempt."""
        await self.prepare()
        await self.take_ownership()
        if self.recheck_at is not None and lease_time() >= self.recheck_at:
            await self.tree.recheck()
            self.recheck_at, self._synced = None, False  # what it finds is due until it is sent
        self._changed_since = None
        if self.reported_dirs:
            self.reported_dirs = await in_thread(existing_directories, self.root, self.reported_dirs)
        report = await self._sync_files()
        saved = await self.keeper.save()
        self._synced = True
        self.dirty_since = self._changed_since  # changes made before the sync began are durable
        if self._failures is not None:
            self._failures.sync_succeeded()
        if self.is_durable:
            self._pack_tree()
        return replace(report, requests=report.requests + 1) if saved else report

    async def _sync_files(self) -> SyncReport:
        if not self._context.role.leads and not self._context.run.sync_config.sync_artifacts:
            return SyncReport()  # only rank 0 writes result.json and the like
        return await self.tree.sync_once(self._context.progress_of(self.key))

    def progress(self) -> str:
        """The progress of the running or last sync, for people."""
        return self.tree.progress()

    def has_nothing_to_sync(self) -> bool:
        """Whether the trial is known to be in the store: without artifacts only asyncsync writes its files."""
        if self._context.run.sync_config.sync_artifacts or self.ranks is not None or not self._synced:
            return False
        return self.is_durable and self.recheck_at is None and self.keeper.file.is_current()

    def touch(self) -> None:
        """The record has changed and is not stored yet."""
        self.record.updated, now = wall_time(), asyncio.get_running_loop().time()
        self.dirty_since = now if self.dirty_since is None else self.dirty_since
        self._context.event_counter.changed.set()
        self._context.unsettled[self.key] = None
        self._changed_since = now if self._changed_since is None else self._changed_since

    def _rules(self) -> Rules:
        config = self._context.run.sync_config
        if not config.sync_artifacts:
            return Rules(only=self._context.own_files)
        return Rules(
            tuple(config.include),
            tuple(config.exclude),
            config.symlinks,
            self.reported_dirs | self.checkpoint_names() | self._context.role.others(),
            always=self._context.own_files,
            skip_numbered=True,
            ready=config.ready_rules,
        )

    async def take_ownership(self) -> None:
        """Write the record before anything else of the trial. Raises ConcurrentWriterError if another process runs the
        trial."""
        if self._owned:
            return
        new = self.ranks is None and not self.keeper.file.exists
        if await self.keeper.take() and new:
            self.tree.expect_nothing()
        if self.predecessor_may_write:
            self.predecessor_may_write, self.recheck_at = False, lease_time() + LEASE_OUTLIVED
        self._owned = True

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """The trial's fence. Returns when the store was asked, on the lease's clock.

        Confirmations from before ``since`` are not reused, and never by ranks. ConcurrentWriterError if another process
        runs the trial or the experiment.
        """
        since = float("inf") if self.ranks is not None else since
        more = [self.ranks.check] if self.ranks is not None and not self.ranks.leads else []
        return await self.keeper.confirm(store, since, more)

    async def wait_for_predecessor(self) -> None:
        """Wait until no request of the process that ran the trial before can be in flight."""
        if self.predecessor_may_write:
            await self.prepare()
            await self.take_ownership()
        if self.recheck_at is not None:
            await asyncio.sleep(max(0.0, self.recheck_at - lease_time()))

    # preparing

    async def prepare(self) -> None:
        """On first use: restore what a resumed trial needs, and write params.json."""
        if not self._prepared:
            async with LazyLock(self, "_preparing"):
                await self._prepare()

    async def _prepare(self) -> None:
        if self._prepared:
            return  # meanwhile
        params = self.record.params
        if self.resumed:
            await self._restore()
            if self._context.role.leads:
                skip_used_numbers(self.record, await in_thread(last_rows, self.dir))
                self.record.first_checkpoint = self.record.next_checkpoint
            self._abandon_uploads()
            self.resumed = False
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.join(self)
        else:
            if params:
                await write_params(self.dir, params)
            await self.write_latest()
        self._prepared = self.record.params is params  # else they were set meanwhile, and are written again

    async def _restore(self) -> None:
        store, warn = self._context.session.view(Lane.RECORD, self.key), partial(self._context.warn, self.key)
        if self._context.role.leads:
            await adopt_checkpoints(store, self.record, self.keeper.is_ours, warn)
        await restore_files(store, f"{self._context.role.directory(self.key)}/", self.dir, warn)

    def _abandon_uploads(self) -> None:
        """Abort the uploads of earlier processes, except those of pending checkpoints."""
        if self._context.role.world_size > 1:
            return  # they may belong to other ranks on this machine
        names = [*(item.name for item in self.left_behind), *(job.name for job in self.jobs)]
        keep = tuple(f"{self.key}/{name}/" for name in names)
        self._context.session.uploads.abandon_below(f"{self.key}/checkpoint_", keep=keep)

    def set_params(self, params: Mapping[str, Any] | None) -> None:
        """Set the parameters of a trial that was resumed before the user asked for it."""
        if params is not None and as_json(params) != self.record.params:
            self.record.params = as_json(params)
            self._prepared = False  # params.json is written again
            self.touch()

    # failures

    @property
    def failures(self) -> TrialFailures:
        """The failures since the last report."""
        self._failures = found = self._failures or TrialFailures(self.key)
        return found

    def take_failures(self) -> dict[str, BaseException]:
        """Failures that were not raised yet, by name. They count as raised from now on."""
        return {} if self._failures is None else self._failures.take()

    def raise_failures(self) -> None:
        """Raise the failures since the last report."""
        if self._failures is not None:
            self._failures.raise_all()

    # pending checkpoints

    async def wait_durable(self, at_most: int = 0) -> None:
        """Wait until at most so many checkpoints are pending."""
        while len(self.jobs) > at_most:
            await self.keeper.changed.wait()

    def add_job(self, job: CheckpointJob) -> None:
        """A checkpoint was accepted, by this process or an earlier one."""
        self.jobs = (*self.jobs, job)
        self._context.unsettled[self.key] = None
        if job.source is not None:
            used = DirectoryInUse(job.source.real_path, f"{self.key}/{job.name}", job.delete_local)
            self._context.directories.add_pending(job.token, used)

    def job_ended(self, job: CheckpointJob, error: BaseException | None = None) -> None:
        """A checkpoint is durable, or has failed for good with ``error``."""
        assert job in self.jobs
        self.jobs = tuple(other for other in self.jobs if other is not job)
        self._context.directories.drop_pending(job.token)
        self.keeper.changed.notify()
        job.handle.resolve(error)
        if error is not None and not job.handle.error_raised and not job.given_up:
            self.failures.note_checkpoint(job.name, error, job.handle)
        if error is None:
            if self.last_durable is None or job.number > self.last_durable:
                self.last_durable, self.last_durable_time = job.number, wall_time()
            self.touch()

    def checkpoint_names(self) -> frozenset[str]:
        """Directories below the trial's prefix that hold checkpoints or remains of them."""
        names = {item.name for item in self.record.checkpoints} | {job.name for job in self.jobs}
        names |= {item.name for item in self.left_behind}
        names |= {self._suspended.name} if self._suspended is not None else set()
        return frozenset(names | set(self.record.given_up))

    def unregister(self, job: CheckpointJob) -> None:
        """Remove the checkpoint from the record, unless another process registered that name. Synchronous."""
        if job.registered:
            self.record.checkpoints = [item for item in self.record.checkpoints if item.name != job.name]
            job.registered = False

    def give_up(self, job: CheckpointJob) -> None:
        """The checkpoint will never be durable. Its data is deleted once the record that gives it up is stored.

        Synchronous. A name in the record is not given up: another process used it, or the checkpoint is stored after
        all.
        """
        job.remove_from_journal(self._context.session)
        self.unregister(job)
        if any(item.name == job.name for item in self.record.checkpoints):
            return
        if job.tree is None and not job.may_be_stored:
            return  # nothing was uploaded
        self._context.session.uploads.abandon_below(f"{self.key}/{job.name}/")
        if self.ranks is None and job.name not in self.record.given_up:  # other ranks may still upload to it
            self.record.given_up.append(job.name)
            self.touch()

    # suspended checkpoints

    def suspend(self, job: CheckpointJob) -> None:
        """A report of the same directory will resume it. Only the last suspended checkpoint is kept."""
        self.give_up_suspended()
        self._suspended = job

    def give_up_suspended(self) -> None:
        """The suspended checkpoint was not reported again: give it up."""
        self._resume_left_behind()
        if self._suspended is not None:
            self.give_up(self._suspended)
            self._suspended = None

    def _resume_left_behind(self) -> None:
        """Suspend the last one of an earlier process, and give the others up."""
        left_behind, self.left_behind = self.left_behind, ()
        for item in left_behind:
            if self._suspended is not None:
                self.give_up(self._suspended)
            self._suspended = self.resume_job(item, UploadMode.SYNC)

    def suspended(self) -> CheckpointJob | None:
        """The checkpoint whose report timed out while it made progress."""
        self._resume_left_behind()
        return self._suspended

    def forget_suspended(self) -> CheckpointJob | None:
        """Hand the suspended checkpoint over to the caller."""
        found, self._suspended = self._suspended, None
        return found

    def resume_job(self, left_behind: LeftBehind, mode: UploadMode) -> CheckpointJob:
        """The job of a checkpoint that an earlier process accepted. Synchronous."""
        job = left_behind.job(self.uri, mode)
        self.record.next_checkpoint = max(self.record.next_checkpoint, job.number + 1)
        return job

    # numbers of checkpoints

    def shift_numbers(self, first: int, shift: int) -> None:
        """Add ``shift`` to the number of each pending checkpoint from ``first`` on, and to the next number.

        Synchronous. Data that was uploaded before belongs to another generation or another name. A name that the user
        chose stays.
        """
        self.record.next_checkpoint += shift
        for job in self.jobs:
            if job.number < first:
                continue
            if job.user_named or not shift:
                job.number += shift
                job.may_be_stored, job.tree = job.may_be_stored or job.tree is not None, None
            else:
                job.rename(job.number + shift, self.uri)

    def take_new_name(self, job: CheckpointJob) -> None:
        """Rename a checkpoint because another process uses its number. Synchronous.

        Checkpoints that were reported later are renamed too: with lower numbers they would count as older. A checkpoint
        that an earlier process accepted keeps its number and only gets another name: later checkpoints are newer.
        """
        later = self.jobs[self.jobs.index(job) + 1 :]
        others = [] if job.inherited else [other for other in later if not other.user_named and not other.registered]
        for renamed in [job, *others]:
            self._context.session.uploads.abandon_below(f"{self.key}/{renamed.name}/")
            renamed.remove_from_journal(self._context.session)
            number = renamed.number
            if not renamed.inherited:
                number = self.record.next_checkpoint
                self.record.next_checkpoint = number + 1
            renamed.rename(number, self.uri)
            add_to_journal(self._context, self.record, renamed)
