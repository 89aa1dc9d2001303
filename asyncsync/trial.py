"""Trial: one training run; what ``await trial.report(...)`` does."""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncsync.checkpoints import Checkpoint, CheckpointHandle, CheckpointJob, checkpoint_name, size_of
from asyncsync.config import UploadMode
from asyncsync.disk.files import in_thread
from asyncsync.disk.results import OWN_FILES, append_result, as_json, write_params
from asyncsync.disk.scan import Rules
from asyncsync.errors import ConfigError, EngineClosedError, SyncError, SyncFailedError
from asyncsync.injected import wall_time
from asyncsync.pending import forget_uploads, write_down
from asyncsync.ranks import Ranks
from asyncsync.recordfile import RecordFile
from asyncsync.records import TRIAL_RECORD, TrialRecord
from asyncsync.report import SyncReport
from asyncsync.shared import LostError
from asyncsync.stores.base import MISSING, Store
from asyncsync.stores.waiting import Lane
from asyncsync.transfer.tree import Tree, TreeOptions

if TYPE_CHECKING:
    from asyncsync.engine import SyncEngine

CheckpointSource = str | os.PathLike[str] | Checkpoint
NO_UPLOAD_NOTE = "it was reported with UploadMode.NO_UPLOAD: it stays where it is and nothing is sent"


@dataclass(frozen=True, slots=True)
class Report:
    """What one ``report`` did. ``checkpoint`` is None if none was given."""

    metrics: dict[str, Any]
    checkpoint: CheckpointHandle | None = None


class Trial:
    """One training run of an experiment; ``engine.trial(name)`` makes it."""

    __slots__ = (
        "_changed",
        "_changed_since",
        "_claimed",
        "_engine",
        "_lock",
        "_prepared",
        "_preparing",
        "_reported_dirs",
        "dirty_since",
        "failing_since",
        "failures",
        "jobs",
        "key",
        "last_durable",
        "last_durable_time",
        "ranks",
        "record",
        "record_file",
        "resumed",
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
            self.record_file = RecordFile(f"{record.name}/{TRIAL_RECORD}", record.to_bytes, version)
        else:
            self.record_file = self.ranks.file
        where = engine.role.directory(record.name)
        self.tree = Tree(
            engine.session, f"{engine.local_dir}/{where}", f"{where}/",
            TreeOptions(
                self._rules, Lane.ARTIFACT, delete=engine.run.sync_config.delete, disown=True, fence=self.confirm
            ),
        )  # fmt: skip
        self.jobs: list[CheckpointJob] = []
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
        self._reported_dirs: frozenset[str] = frozenset()

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
        upload: UploadMode = UploadMode.SYNC,
        delete_local: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Report:
        """Record metrics, and make a checkpoint durable.

        Reports of a trial take effect in order, whatever their modes. A failure of an earlier ASYNC checkpoint or
        background sync that nobody waited for is raised here, before anything of this report is recorded.

        Args:
            metrics: JSON values; nested mappings are fine. One line in ``result.json``, one row in ``progress.csv``.
            checkpoint: a directory, or ``Checkpoint.take/lend/snapshot``.
            step: the training step, 0 or more. Where several ranks train the trial it is required with a checkpoint:
                their parts only make one checkpoint if they are of the same step.
            upload: SYNC returns when it is durable, ASYNC when it is accepted (it waits while
                ``max_pending_checkpoints`` of this trial are not durable yet), NO_UPLOAD sends nothing.
            delete_local: delete the directory once durable; default: only for ASYNC and a directory that asyncsync
                owns (``Checkpoint.take``). Refused for a directory that was only lent.
            metadata: JSON values kept with the checkpoint.
        """
        source = _as_checkpoint(checkpoint)
        _check_mode(upload, source, delete_local)
        if step is not None:
            step = _as_step(step)
        elif source is not None and self.ranks is not None:
            raise ConfigError(
                "report(checkpoint=...) needs step=... where several ranks train the trial: counting reports cannot "
                "notice that a rank skipped one"
            )
        await self._engine.gate.passed()
        self._engine.check_open()
        if not self._engine.scheduler.has(self.key):
            raise EngineClosedError(f"trial {self.name!r} is finished: it takes no more reports")
        self.raise_failures()
        async with self._locked():
            await self.prepare()
            handle = await self._accept(dict(metrics), source, upload, delete_local, dict(metadata or {}), step)
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
        step = _as_step(step)
        await self._engine.gate.passed()
        self._engine.check_open()
        if self.ranks is None:
            return
        async with self._locked():
            await self.prepare()
            job = next((job for job in self.jobs if job.step == step), None)
            if job is None:
                job = self._nothing(step, str(reason))
                self.record.next_checkpoint = job.number + 1
                self.jobs.append(job)
                await self._engine.scheduler.inbox.put(job)
        if not job.given_up:
            await self.ranks.give_up(self, job, str(reason))
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
        self._engine.trial_changed(self)
        await self.sync()
        self._engine.scheduler.remove(self.key)
        self.raise_failures()

    # what the engine calls

    async def sync_once(self) -> SyncReport:
        """One attempt at files and record."""
        await self.prepare()
        await self.claim()
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
            self._claimed = True

    async def save(self) -> bool:
        """Write the record if it has changed; whether it was written. ConcurrentWriterError."""
        return await self.record_file.save(self._engine.session.view(Lane.RECORD, self.key, self._engine.confirm))

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if another process runs the trial, or the experiment. What the store was asked before
        ``since``, on the loop's clock, does not count; of a rank nothing does that it was not asked just for this."""
        since = float("inf") if self.ranks is not None else since
        asked = min(await self._engine.confirm(store, since), await self.record_file.confirm(store, since))
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.check(store)
        return asked

    def progress(self) -> str:
        """How far the running or last sync is, for people."""
        return self.tree.progress()

    async def settled(self, most: int = 0) -> None:
        """Wait until at most ``most`` checkpoints are not durable."""
        while len(self.jobs) > most:
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
        if error is not None and not job.handle.told:
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
            forget_uploads(self._engine, self)
            self.resumed = False
        if self.ranks is not None and not self.ranks.leads:
            await self.ranks.take(self)
        elif self.record.params:
            await write_params(self.dir, self.record.params)
        self._prepared = True

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
            self._reported_dirs | self._engine.role.others(), always=OWN_FILES, skip_numbered=True,
        )  # fmt: skip

    async def _accept(
        self, metrics: dict[str, Any], source: Checkpoint | None, mode: UploadMode, delete_local: bool | None,
        metadata: dict[str, Any], step: int | None,
    ) -> CheckpointHandle | None:  # fmt: skip
        metrics, metadata = as_json(metrics), as_json(metadata)
        size = await size_of(str(source.path)) if source is not None else 0
        if source is not None and mode is UploadMode.ASYNC:
            await self.settled(self._engine.run.checkpoint_config.max_pending_checkpoints - 1)
            await self._engine.gate.passed()
            self._engine.check_open()
        job = self._job(source, mode, delete_local, metrics, metadata, size)
        if job is not None:
            job.step = step
        row = {**metrics, "training_iteration": self.record.reports + 1, "timestamp": int(wall_time())}
        if job is not None:
            row["checkpoint_dir_name"] = job.name
        if self._engine.role.leads:
            await in_thread(append_result, self.dir, {**row, **metrics})
        self.record.reports += 1
        self.record.metrics = metrics
        self._touch()
        if job is not None:
            self.record.next_checkpoint = job.number + 1
            self.jobs.append(job)
            if source is not None and source.owned and mode is UploadMode.ASYNC:
                write_down(self._engine, self, job)
            await self._engine.scheduler.inbox.put(job)
            if job.token:
                await self._engine.session.journal.flush()
            return job.handle
        return self._not_uploaded(source) if source is not None else None

    def _job(
        self, source: Checkpoint | None, mode: UploadMode, delete_local: bool | None, metrics: dict[str, Any],
        metadata: dict[str, Any], size: int,
    ) -> CheckpointJob | None:  # fmt: skip
        if source is None or mode is UploadMode.NO_UPLOAD:
            return None
        directory = os.path.abspath(source.path)
        inside = os.path.relpath(directory, self.tree.root)
        if not inside.startswith(".."):
            self._reported_dirs |= {inside}
        number = self.record.next_checkpoint
        name = checkpoint_name(number)
        delete = delete_local if delete_local is not None else (mode is UploadMode.ASYNC and source.owned)
        return CheckpointJob(
            self.key, directory, number, CheckpointHandle(name, f"{self.uri}/{name}"), metrics, metadata, delete, size,
            asyncio.get_running_loop().time(),
        )  # fmt: skip

    def _nothing(self, step: int, reason: str) -> CheckpointJob:
        """In place of a checkpoint that this rank does not make."""
        number = self.record.next_checkpoint
        name = checkpoint_name(number)
        return CheckpointJob(
            self.key, "", number, CheckpointHandle(name, f"{self.uri}/{name}"), {}, {}, False, 0,
            asyncio.get_running_loop().time(), step=step, given_up=reason or "no reason given",
        )  # fmt: skip

    def _not_uploaded(self, source: Checkpoint) -> CheckpointHandle:
        handle = CheckpointHandle(source.path.name, source.path.absolute().as_uri())
        handle.told = True
        handle.settle(SyncError(f"the checkpoint {source.path} is not durable: {NO_UPLOAD_NOTE}"))
        return handle


def _as_checkpoint(source: CheckpointSource | None) -> Checkpoint | None:
    return source if source is None or isinstance(source, Checkpoint) else Checkpoint.lend(source)


def _as_step(step: object) -> int:
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"step={step!r} is not usable: it must be a whole number, 0 or more")
    return number


def _check_mode(mode: UploadMode, source: Checkpoint | None, delete_local: bool | None) -> None:
    if not isinstance(mode, UploadMode):
        raise ConfigError(f"report(upload={mode!r}) is not usable: it must be an UploadMode")
    if delete_local and source is not None and not source.owned:
        raise ConfigError(
            "report(delete_local=True) is refused for a directory that was only lent: hand it over with "
            "Checkpoint.take(directory)"
        )


def _existing(root: str, names: frozenset[str]) -> frozenset[str]:
    """Those that still are there: so the set cannot grow for ever."""
    return frozenset(name for name in names if os.path.isdir(f"{root}/{name}"))
