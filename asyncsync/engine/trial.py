"""Trial: one training run; what ``await trial.report(...)`` does."""

from __future__ import annotations

import asyncio
import operator
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncsync.aio.threads import in_thread, in_thread_to_its_end
from asyncsync.config import UploadMode, check_name
from asyncsync.disk.accepted_files import Accepted, absolute, accept, some
from asyncsync.disk.results import OWN_FILES, append_result, as_json, last_rows, write_params
from asyncsync.disk.scan import Rules, is_own_name
from asyncsync.engine.resume import NUMBERED
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.engine.trials.job import CheckpointJob, checkpoint_name
from asyncsync.engine.trials.ownership import InUse, refuse_directory
from asyncsync.engine.trials.pending import cross_out, forget_uploads, job_of, write_down
from asyncsync.engine.trials.rank_commit import LostError
from asyncsync.engine.trials.ranks import Ranks
from asyncsync.engine.trials.role import Role
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    ConfigError,
    EngineClosedError,
    SyncError,
    SyncFailedError,
)
from asyncsync.events import SyncWarning
from asyncsync.report import SyncReport
from asyncsync.runtime import lease_time, token, wall_time
from asyncsync.stores.base import MISSING, Lane, Store
from asyncsync.stores.guard.fenced import OUTLIVED
from asyncsync.sync.records.model import TRIAL_RECORD, TrialRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.sync.tree import Tree, TreeOptions, longest_path

if TYPE_CHECKING:
    from asyncsync.engine.engine import SyncEngine

CheckpointSource = str | os.PathLike[str] | Checkpoint
RESERVED = re.compile(r"checkpoint_\d|rank_\d")
"""Beginnings of names that asyncsync gives."""
NO_UPLOAD_NOTE = "it was reported with UploadMode.NO_UPLOAD: it stays where it is and nothing is sent"


@dataclass(frozen=True, slots=True)
class Report:
    """What one ``report`` did. ``checkpoint`` is None if none was given."""

    metrics: dict[str, Any]
    checkpoint: CheckpointHandle | None = None


NONE = frozenset[str]()
"""Shared: an empty set of its own would be a twentieth of what an idle trial takes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report asks for, checked."""

    metrics: dict[str, Any]
    metadata: dict[str, Any]
    mode: UploadMode
    delete_local: bool | None
    step: int | None
    name: str | None


@dataclass(frozen=True, slots=True)
class _Named:
    """What a record says of checkpoints: those it names, and of those that it gives up which are still in memory."""

    names: frozenset[str]
    leaving: frozenset[str]
    given_up: tuple[str, ...]


_NOTHING_NAMED = _Named(NONE, NONE, ())


class Trial:
    """One training run of an experiment; ``engine.trial(name)`` makes it."""

    __slots__ = (
        "_changed",
        "_changed_since",
        "_claimed",
        "_engine",
        "_lock",
        "_owed",
        "_prepared",
        "_preparing",
        "_reported_dirs",
        "_saving",
        "_suspended",
        "_written",
        "dirty_since",
        "doubtful",
        "failing_since",
        "failures",
        "freed",
        "jobs",
        "key",
        "last_durable",
        "last_durable_time",
        "leaving",
        "ranks",
        "recheck_at",
        "record",
        "record_file",
        "resumed",
        "stored",
        "tree",
    )  # fmt: skip

    def __init__(
        self, engine: SyncEngine, record: TrialRecord, version: str = MISSING, *, resumed: bool = False
    ) -> None:
        self._engine = engine
        self.record = record
        self.key = record.name
        self.resumed = resumed
        self.ranks = Ranks(engine, record.name, resumed=resumed) if engine.role.world_size > 1 else None
        """Only for a trial that several processes train."""
        if self.ranks is None or self.ranks.leads:
            self.record_file = RecordFile(f"{record.name}/{TRIAL_RECORD}", self._encode, version)
        else:
            self.record_file = self.ranks.file
        where = engine.role.directory(record.name)
        self.tree = Tree(
            engine.session, f"{engine.local_dir}/{where}", f"{where}/",
            TreeOptions(
                self._rules, Lane.ARTIFACT, delete=engine.run.sync_config.delete, disown=True, fence=self.confirm,
                doubted=True, max_delete=engine.run.sync_config.max_delete,
            ),
        )  # fmt: skip
        self.jobs: list[CheckpointJob] = []
        self.doubtful = False
        """Whether another process that ran it may not have ended."""
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
        self._suspended: CheckpointJob | None = None
        """Of a SYNC report that ended by its time-out while bytes moved."""
        self.failures: list[tuple[str, BaseException, CheckpointHandle | None]] = []
        self.last_durable: int | None = record.checkpoints[-1].number if record.checkpoints else None
        self.last_durable_time: float | None = record.checkpoints[-1].time if record.checkpoints else None
        self.dirty_since: float | None = None
        self._changed_since: float | None = None
        """Since the last sync began."""
        self.failing_since: float | None = None
        """Since when background syncs fail, on the event loop's clock."""
        self._changed: asyncio.Event | None = None
        self._lock: asyncio.Lock | None = None
        self._preparing: asyncio.Lock | None = None
        self._prepared = self._claimed = False
        self._reported_dirs: frozenset[str] = NONE

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
        return f"{self._engine.uri.rstrip('/')}/{self.key}"

    async def report(
        self,
        metrics: Mapping[str, Any],
        checkpoint: CheckpointSource | None = None,
        *,
        step: int | None = None,
        name: str | None = None,
        upload: UploadMode = UploadMode.SYNC,
        delete_local: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Report:
        """Record metrics, and make a checkpoint durable.

        Reports of a trial take effect in order, whatever their modes. A failure of an earlier ASYNC checkpoint or
        background sync that nobody waited for is raised here, before anything of this report is recorded. A report that
        is cancelled has been recorded with its checkpoint, or nothing of it has.

        All regular files that the directory holds when it is accepted are the checkpoint: no filter applies, links are
        followed. If one of them changes or vanishes before all are in the store, the checkpoint fails with
        SourceChangedError or CheckpointIncompleteError.

        Args:
            metrics: JSON values; nested mappings are fine. One line in ``result.json``, one row in ``progress.csv``.
            checkpoint: a directory or one file, or ``Checkpoint.take/lend/snapshot``. ConfigError if it holds the
                trial's own files; CheckpointIncompleteError if it is not there or holds no file.
            step: of the training, 0 or more; kept with the checkpoint. With several ranks it is required, and what they
                are matched by.
            name: of the checkpoint's directory in the store, instead of ``checkpoint_000000`` and up; new in the trial.
            upload: SYNC returns when it is durable, ASYNC when it is accepted (it waits while
                ``max_pending_checkpoints`` of this trial are not durable yet), NO_UPLOAD sends nothing. After a
                SyncTimeoutError of SYNC, reporting the same unchanged directory goes on where it ended.
            delete_local: delete the files once durable; default: only for ASYNC and a directory that asyncsync
                owns (``Checkpoint.take``). Refused for a directory that was only lent. What is not as it was sent
                stays, and a SyncWarning names it.
            metadata: JSON values kept with the checkpoint.
        """
        source = _as_checkpoint(checkpoint)
        _check_mode(upload, source, delete_local)
        number = check_step(step, self._engine.role, source)
        wanted = Wanted(as_json(metrics), as_json(metadata or {}), upload, delete_local, number, check_checkpoint(name))
        await self._engine.gate.passed()
        self._engine.check_open()
        if not self._engine.scheduler.has(self.key):
            raise EngineClosedError(f"trial {self.name!r} is finished: it takes no more reports")
        self.raise_failures()
        async with self._locked():
            await self.prepare()
            handle = await self._accept(wanted, source)
        if handle is not None and upload is UploadMode.SYNC:
            await handle.durable()
            config = self._engine.run.sync_config
            if config.sync_artifacts and config.sync_artifacts_on_checkpoint:
                await self.sync()
        return Report(dict(metrics), handle)

    async def skip(self, step: int, reason: str) -> None:
        """Tell the other ranks that this one makes no checkpoint of ``step``, instead of reporting it; or give up one
        that it has reported and that is not durable yet.

        Their reports of that step raise CheckpointIncompleteError with this rank and ``reason``, whether they come
        before or after this; the next step is for all of them again. Returns when they can know. Does nothing where
        one process trains the trial. Raises what keeps it from telling them.
        """
        number = as_step(step)
        await self._engine.gate.passed()
        self._engine.check_open()
        if self.ranks is None:
            return
        async with self._locked():
            await self.prepare()
            job = next((job for job in self.jobs if job.step == number), None)
            if job is None:
                job = self._nothing(number, f"gave up step {number}: {reason}")
        if not job.given_up:
            await self.ranks.give_up(self, job, f"gave up step {number}: {reason}")
        try:
            await job.handle.durable()
        except LostError:
            return

    async def sync(self) -> SyncReport:
        """Sync the trial's files and record now, and wait for it. Raises why it failed."""
        self._engine.check_open()
        return await self._engine.scheduler.sync(self.key)

    async def finish(self, status: str = "finished", error: object = None) -> None:
        """The trial is over: wait for its checkpoints, sync it once more, leave the schedule.

        ``error`` (a text or an exception) is kept in the record. Raises what is not durable.
        """
        self._engine.check_open()
        await self.prepare()
        self.record.status = status
        self.record.error = None if error is None else str(error) or type(error).__name__
        self._touch()
        await self.settled()
        await self.outlive()
        self.give_up_suspended()
        self._engine.trial_changed(self)
        await self.sync()
        self._engine.scheduler.remove(self.key)
        self.raise_failures()

    # what the engine calls

    async def sync_once(self) -> SyncReport:
        """One attempt at files and record."""
        await self.prepare()
        await self.claim()
        if self.recheck_at is not None and lease_time() >= self.recheck_at:
            await self.tree.recheck()
            self.recheck_at = None
        self._changed_since = None
        if self._reported_dirs:
            self._reported_dirs = await in_thread(_existing, self.tree.root, self._reported_dirs)
        report = await self._sync_files()
        saved = await self.save()
        self.dirty_since = self._changed_since  # what was there when it began is durable
        self.failing_since = None
        if self.failures:
            self.failures = [item for item in self.failures if item[0] != self.key]
        return replace(report, requests=report.requests + 1) if saved else report

    async def _sync_files(self) -> SyncReport:
        if not self._engine.role.leads and not self._engine.run.sync_config.sync_artifacts:
            return SyncReport()  # result.json and its like are rank 0's
        return await self.tree.sync_once(self._engine.progress_of(self.key))

    async def claim(self) -> None:
        """Write the record before anything else of the trial: who is not its one writer learns it here."""
        if not self._claimed:
            new = not self.record_file.exists
            if await self.save() and new and self.ranks is None:
                self.tree.expect_nothing()
            if self.doubtful:
                self.doubtful, self.recheck_at = False, lease_time() + OUTLIVED
            self._claimed = True

    async def save(self) -> bool:
        """Write the record if it has changed; whether it was written. ConcurrentWriterError. Only once it is written,
        what it retires leaves our memory, and what it gives up is deleted."""
        self._saving = lock = self._saving or asyncio.Lock()
        async with lock:
            saved = await self.record_file.save(self._engine.session.view(Lane.RECORD, self.key, self._engine.confirm))
            if self._engine.role.leads:
                self._stored(self._written if saved else self._named())
        return saved

    def _named(self) -> _Named:
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
        self._engine.owe(self, given_up)
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
            self._written = self._named()
        if self.leaving:
            kept = [item for item in record.checkpoints if item.name not in self.leaving]
            record = replace(record, checkpoints=kept, given_up=[*record.given_up, *sorted(self.leaving)])
        return record.to_bytes(stamp)

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if another process runs the trial, or the experiment. What the store was asked before
        ``since``, on the loop's clock, does not count; of a rank nothing does that it was not asked just for this."""
        since = float("inf") if self.ranks is not None else since
        asked = min(await self._engine.confirm(store, since), await self.record_file.confirm(store, since))
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
            self.failures.append((f"{self.key}/{job.name}", error, job.handle))
        if error is None:
            if self.last_durable is None or job.number > self.last_durable:
                self.last_durable, self.last_durable_time = job.number, wall_time()
            self._touch()

    def untold(self) -> dict[str, BaseException]:
        """Failures that nobody has been given yet; they count as told now."""
        found = {name: error for name, error, handle in self.failures if handle is None or not handle.told}
        self.failures.clear()
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

    def set_params(self, params: Mapping[str, Any] | None) -> None:
        """For a trial that went on before it was asked for."""
        if params is not None and as_json(params) != self.record.params:
            self.record.params = as_json(params)
            self._prepared = False  # params.json is written again
            self._touch()

    # inside

    def _locked(self) -> asyncio.Lock:
        """One report at a time; made on first use, an idle trial has none."""
        self._lock = lock = self._lock or asyncio.Lock()
        return lock

    async def _prepare(self) -> None:
        if self._prepared:
            return
        if self.resumed:
            await self._engine.restore_trial(self)
            if self._engine.role.leads:
                self._count_on(await in_thread(last_rows, self.dir))
                self.record.first_checkpoint = self.record.next_checkpoint
            forget_uploads(self._engine, self)
            self.resumed = False
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.take(self)
        elif self.record.params:
            await write_params(self.dir, self.record.params)
        self._prepared = True

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

    def _touch(self) -> None:
        self.record.updated, now = wall_time(), asyncio.get_running_loop().time()
        self.dirty_since = now if self.dirty_since is None else self.dirty_since
        self._changed_since = now if self._changed_since is None else self._changed_since

    def _rules(self) -> Rules:
        config = self._engine.run.sync_config
        if not config.sync_artifacts:
            return Rules(only=OWN_FILES)
        return Rules(
            tuple(config.include), tuple(config.exclude), config.symlinks,
            self._reported_dirs | self._own_names() | self._engine.role.others(), always=OWN_FILES, skip_numbered=True,
        )  # fmt: skip

    async def _accept(self, wanted: Wanted, source: Checkpoint | None) -> CheckpointHandle | None:
        if source is not None and wanted.mode is UploadMode.ASYNC:
            await self.settled(self._engine.run.checkpoint_config.max_pending_checkpoints - 1)
            await self._engine.gate.passed()
            self._engine.check_open()
        if source is None:
            return await self._record(wanted, None, None)
        in_use = self._in_use()
        claim = InUse(str(source.path), f"another report of {self.key}", source.owned)
        self._engine.being_reported.append(claim)
        try:
            most = self._longest(wanted)
            try:
                files = await in_thread(self._look, source, self._engine.directories(), in_use, most)
            except AsyncsyncError as error:
                if self.ranks is not None and wanted.mode is not UploadMode.NO_UPLOAD:
                    self._nothing(wanted.step, f"failed: {error}")  # the other ranks may wait for it
                raise
            if wanted.name is not None:
                await self._refuse_taken(wanted.name, files)
            return await self._record(wanted, source, files)
        finally:
            self._engine.being_reported.remove(claim)

    async def _record(
        self, wanted: Wanted, source: Checkpoint | None, files: Accepted | None
    ) -> CheckpointHandle | None:
        """The row, and with it the checkpoint: from there on there is no way back. The engine waits for its end."""
        self._engine.check_open()
        recorded = asyncio.get_running_loop().create_future()
        self._engine.recording.add(recorded)
        try:
            return await self._write_row(wanted, source, files)
        finally:
            self._engine.recording.discard(recorded)
            recorded.set_result(None)

    async def _write_row(
        self, wanted: Wanted, source: Checkpoint | None, files: Accepted | None
    ) -> CheckpointHandle | None:
        job = None
        if source is not None and files is not None and wanted.mode is not UploadMode.NO_UPLOAD:
            job = self._job(wanted, source, files)
        row = {**wanted.metrics, "training_iteration": self.record.reports + 1, "timestamp": int(wall_time())}
        if job is not None:
            row["checkpoint_dir_name"] = job.name
        cancelled = None
        if self._engine.role.leads:
            _, cancelled = await in_thread_to_its_end(append_result, self.dir, {**row, **wanted.metrics})
        self._recorded(wanted, job)
        if cancelled is not None:
            raise cancelled
        if job is not None:
            if job.goes_on:
                await self._engine.session.journal.flush()
            return job.handle
        return self._not_uploaded(source) if source is not None else None

    @staticmethod
    def _look(source: Checkpoint, trials: list[str], in_use: list[InUse], most: int) -> Accepted:
        """In a worker thread. ``most``: bytes of a path."""
        path = absolute(str(source.path))
        refuse_directory(path, owned=source.owned, trials=trials, in_use=in_use)
        files = accept(path)
        long = [file.path for file in files.files if len(file.path) * 4 > most and len(file.path.encode()) > most]
        if long:
            raise CheckpointIncompleteError(
                f"the checkpoint {files.path!r} has names that are longer than the store allows ({most} bytes here): "
                f"{some(long)}"
            )
        files.digest, files.size  # noqa: B018  known from now on: the event loop is not to go over all files
        return files

    def _longest(self, wanted: Wanted) -> int:
        """Bytes that a path in the checkpoint may have."""
        name = wanted.name or checkpoint_name(self.record.next_checkpoint)
        return longest_path(self._engine.session.store, f"{self.key}/{name}/")

    def _in_use(self) -> list[InUse]:
        trials = self._engine.trials.values()
        return [
            InUse(job.source.path, f"{trial.key}/{job.name}", job.delete_local)
            for trial in trials for job in trial.jobs if job.source is not None
        ] + self._engine.being_reported  # fmt: skip

    def _recorded(self, wanted: Wanted, job: CheckpointJob | None) -> None:
        """Plain: the row is in result.json, and all that belongs to it follows."""
        self.record.reports += 1
        self.record.metrics = wanted.metrics
        self._touch()
        if job is None:
            return
        if job.source is not None and not (inside := os.path.relpath(job.source.path, self.tree.root)).startswith(".."):
            self._reported_dirs |= {inside}
        self.record.next_checkpoint = max(self.record.next_checkpoint, job.number + 1)
        self.jobs.append(job)
        for warning in job.source.warnings if job.source is not None else ():
            self._engine.emit(SyncWarning(tree=f"{self.key}/{job.name}", message=warning))
        suspended, self._suspended = self._suspended, None
        if suspended is not None and suspended.token != job.token:
            self.give_up(suspended)  # nobody goes on with it
        if not job.written_as:
            write_down(self._engine, self, job)
        self._engine.accept(job)

    def _job(self, wanted: Wanted, source: Checkpoint, files: Accepted) -> CheckpointJob:
        delete = wanted.delete_local
        if delete is None:
            delete = wanted.mode is UploadMode.ASYNC and source.owned
        goes_on = source.owned and wanted.mode is UploadMode.ASYNC and self._engine.role.world_size == 1
        found = self._suspended_with(files, wanted)
        number = found.number if found is not None else self.record.next_checkpoint
        name = found.name if found is not None else wanted.name or checkpoint_name(number)
        job = CheckpointJob(
            self.key, files, number, CheckpointHandle(name, f"{self.uri}/{name}"), wanted.metrics, wanted.metadata,
            wanted.mode, delete, asyncio.get_running_loop().time(), token(), step=wanted.step,
            named=wanted.name is not None, goes_on=goes_on,
        )  # fmt: skip
        if found is not None:
            job.token, job.written_as, job.begun, job.tree = found.token, found.written_as, True, found.tree
        return job

    def _suspended_with(self, files: Accepted, wanted: Wanted) -> CheckpointJob | None:
        """The checkpoint that was cut short by its time-out, if this is the same."""
        self._take_suspended()
        found = self._suspended
        same = found is not None and found.is_of(files) and wanted.name in (None, found.name)
        return found if same and found is not None and wanted.step == found.step else None

    def _take_suspended(self) -> None:
        """What an earlier process left so; only the last one can be gone on with."""
        for left in self._engine.suspended.pop(self.key, ()):
            if self._suspended is not None:
                self.give_up(self._suspended)
            self._suspended = job_of(self, left, UploadMode.SYNC)

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

    def unregister(self, job: CheckpointJob) -> None:
        """Plain: the record is not going to name it. What it names of another process stays, whatever its name."""
        if job.registered:
            self.record.checkpoints = [item for item in self.record.checkpoints if item.name != job.name]
            job.registered = False

    def give_up(self, job: CheckpointJob) -> None:
        """It will never be durable. Plain; what is in the store of it is deleted once the record says so. Not what the
        record names: another process used the number, or this is in the store after all."""
        cross_out(self._engine.session, job)
        self.unregister(job)
        if any(item.name == job.name for item in self.record.checkpoints):
            return
        if job.tree is None and not job.begun:
            return  # nothing was sent
        self._engine.session.uploads.abandon_below(f"{self.key}/{job.name}/")
        if self.ranks is None and job.name not in self.record.given_up:  # other ranks may still be sending to it
            self.record.given_up.append(job.name)
            self._touch()

    async def _refuse_taken(self, name: str, files: Accepted) -> None:
        """ConfigError if the trial has something of this name: its artifacts and its checkpoints share a prefix."""
        self._take_suspended()
        suspended = self._suspended
        again = suspended is not None and suspended.name == name and suspended.is_of(files)
        if name in self._own_names() and not again:
            raise ConfigError(f"report(name={name!r}) is not usable: trial {self.name!r} has that already")
        there = await in_thread(os.path.lexists, f"{self.tree.root}/{name}")
        if there or await self.tree.has_below(name):
            raise ConfigError(
                f"report(name={name!r}) is not usable: trial {self.name!r} has an artifact of this name; give the "
                "checkpoint another one"
            )

    def _own_names(self) -> frozenset[str]:
        """Directories of the trial's prefix that are checkpoints, or what is left of some."""
        names = {item.name for item in self.record.checkpoints} | {job.name for job in self.jobs}
        names |= {item.name for item in self._engine.suspended.get(self.key, ())}
        names |= {self._suspended.name} if self._suspended is not None else set()
        return frozenset(names | set(self.record.given_up))

    def _nothing(self, step: int | None, reason: str) -> CheckpointJob:
        """Accept, in place of a checkpoint that this rank does not make, the task to tell the others. Plain."""
        number = self.record.next_checkpoint
        name = checkpoint_name(number)
        job = CheckpointJob(
            self.key, None, number, CheckpointHandle(name, f"{self.uri}/{name}"), {}, {}, UploadMode.ASYNC, False,
            asyncio.get_running_loop().time(), token(), step=step, given_up=reason,
        )  # fmt: skip
        self.record.next_checkpoint = number + 1
        self.jobs.append(job)
        self._engine.accept(job)
        return job

    def _not_uploaded(self, source: Checkpoint) -> CheckpointHandle:
        handle = CheckpointHandle(source.path.name, source.path.absolute().as_uri())
        handle.told = True
        handle.settle(SyncError(f"the checkpoint {source.path} is not durable: {NO_UPLOAD_NOTE}"))
        return handle


def _as_checkpoint(source: CheckpointSource | None) -> Checkpoint | None:
    return source if source is None or isinstance(source, Checkpoint) else Checkpoint.lend(source)


def _check_mode(mode: UploadMode, source: Checkpoint | None, delete_local: bool | None) -> None:
    if not isinstance(mode, UploadMode):
        raise ConfigError(f"report(upload={mode!r}) is not usable: it must be an UploadMode")
    if delete_local and source is not None and not source.owned:
        raise ConfigError(
            "report(delete_local=True) is refused for a directory that was only lent: hand it over with "
            "Checkpoint.take(directory)"
        )


def check_checkpoint(name: str | None) -> str | None:
    """ConfigError if a checkpoint cannot be called so in any trial."""
    if name is None:
        return None
    check_name("report(name=...)", name)
    if RESERVED.match(name) or name in OWN_FILES or is_own_name(name):
        raise ConfigError(
            f"report(name={name!r}) is not usable: asyncsync itself gives names like checkpoint_000000, rank_00000, "
            "result.json and x.asyncsync-tmp"
        )
    return name


def check_step(step: object, role: Role, source: Checkpoint | None) -> int | None:
    """ConfigError if it is no step, or if several ranks could not be matched without one."""
    if step is None:
        if role.world_size > 1 and source is not None:
            raise ConfigError(
                f"report(checkpoint=...) needs step=... where world_size={role.world_size}: the ranks are matched by "
                "it, and counting reports cannot notice that one of them skipped one"
            )
        return None
    return as_step(step)


def as_step(step: object) -> int:
    """ConfigError if it is no step."""
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0 or isinstance(step, bool):
        raise ConfigError(f"step={step!r} is not usable: it must be a whole number, 0 or more")
    return number


def _existing(root: str, names: frozenset[str]) -> frozenset[str]:
    """Those that still are there: so the set cannot grow for ever."""
    return frozenset(name for name in names if os.path.isdir(f"{root}/{name}"))
