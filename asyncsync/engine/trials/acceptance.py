"""Private: a report until its checkpoint is accepted: it is refused, or recorded as a row and submitted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsync.aio.threads import in_thread, in_thread_to_its_end
from asyncsync.config import UploadMode
from asyncsync.disk.accepted_files import Accepted, absolute, accept, some
from asyncsync.disk.results import OWN_FILES, append_result
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.engine.trials.context import DirectoryInUse, EngineContext, UsedDirectories
from asyncsync.engine.trials.job import CheckpointJob, checkpoint_name, remove_local
from asyncsync.engine.trials.pending_checkpoints import add_to_journal
from asyncsync.engine.trials.registry import Registry
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    CheckpointReplacedError,
    ConfigError,
    SyncError,
)
from asyncsync.events import CheckpointReplaced, SyncWarning
from asyncsync.planning.manifest import MANIFEST
from asyncsync.runtime import token, wall_time
from asyncsync.sync.unstorable_names import longest_path

NO_UPLOAD_NOTE = "it was reported with UploadMode.NO_UPLOAD, so nothing was uploaded"
OWN_DIRECTORY_ADVICE = "Report a directory of its own for each checkpoint"


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """The checked arguments of a report."""

    metrics: dict[str, Any]
    metadata: dict[str, Any]
    mode: UploadMode
    delete_local: bool | None
    step: int | None
    name: str | None


class ReportAcceptance:
    """Accepts the reports of one engine's trials. The caller holds the trial's ``reporting`` lock."""

    def __init__(self, context: EngineContext, registry: Registry, submit: Callable[[CheckpointJob], None]) -> None:
        self._context, self._registry, self._submit = context, registry, submit

    async def accept(
        self, trial: TrialState, request: ReportRequest, source: Checkpoint | None
    ) -> CheckpointHandle | None:
        """Record the report, and return the handle of its checkpoint. ASYNC waits while too many are pending.

        Raises ConfigError for a directory or a name that is refused, CheckpointIncompleteError if its files cannot
        be read, LocalDiskError if the report cannot be recorded, and EngineClosedError if the engine ends meanwhile.
        """
        if source is not None and request.mode is UploadMode.ASYNC:
            await self._wait_for_room(trial)
            await self._context.gate.wait_open()
            self._context.check_open()
        if source is None:
            return await self._record(trial, request, None, None)
        directories, this_report = self._context.directories, object()
        try:
            max_bytes = self._max_path_bytes(trial, request)
            try:
                files = await in_thread(
                    _accept_files, source, trial.key, directories, this_report, max_bytes, self._context.own_files
                )
            except AsyncsyncError as error:
                if trial.ranks is not None and request.mode is not UploadMode.NO_UPLOAD:
                    self.give_up_step(trial, request.step, f"failed: {error}")  # the other ranks may wait for this one
                raise
            if request.name is not None:
                await self._refuse_taken_name(trial, request.name, files)
            return await self._record(trial, request, source, files)
        finally:
            directories.drop_pending(this_report)

    async def _wait_for_room(self, trial: TrialState) -> None:
        """Wait until one more checkpoint may be pending, or may replace one."""
        config = self._context.run.checkpoint_config
        while len(trial.jobs) >= config.max_pending_checkpoints:
            if config.when_full == "replace" and _replaceable(trial) is not None:
                return
            await trial.wait_durable(len(trial.jobs) - 1)

    async def _record(
        self, trial: TrialState, request: ReportRequest, source: Checkpoint | None, files: Accepted | None
    ) -> CheckpointHandle | None:
        """Write the row and accept the checkpoint. This cannot be undone, so the engine waits for its end."""
        self._context.check_open()
        recorded = asyncio.get_running_loop().create_future()
        self._context.recording.add(recorded)
        try:
            return await self._write_row(trial, request, source, files)
        finally:
            self._context.recording.discard(recorded)
            recorded.set_result(None)

    async def _write_row(
        self, trial: TrialState, request: ReportRequest, source: Checkpoint | None, files: Accepted | None
    ) -> CheckpointHandle | None:
        job = None
        if source is not None and files is not None and request.mode is not UploadMode.NO_UPLOAD:
            job = self._job(trial, request, source, files)
        row = {**request.metrics, "training_iteration": trial.record.reports + 1, "timestamp": int(wall_time())}
        if job is not None:
            row["checkpoint_dir_name"] = job.name
        cancelled = None
        if self._context.role.leads:
            _, cancelled = await in_thread_to_its_end(append_result, trial.dir, {**row, **request.metrics})
        replaced = self._apply(trial, request, job)
        if cancelled is not None:
            raise cancelled
        if job is not None:
            if job.resumes_by_itself:
                await self._context.session.journal.flush()
            if replaced is not None:
                await remove_local(self._context, replaced)
            return job.handle
        return _not_uploaded(source) if source is not None else None

    def _max_path_bytes(self, trial: TrialState, request: ReportRequest) -> int:
        """Most bytes that a path in the checkpoint may have."""
        name = request.name or checkpoint_name(trial.record.next_checkpoint)
        return longest_path(self._context.session.store, f"{trial.key}/{name}/")

    def _apply(self, trial: TrialState, request: ReportRequest, job: CheckpointJob | None) -> CheckpointJob | None:
        """The row is in result.json: update the record and submit the checkpoint. Returns the one that it replaces.
        Synchronous."""
        replaced = None
        trial.record.reports += 1
        trial.record.metrics = request.metrics
        trial.touch()
        if job is None:
            return None
        if job.source is not None:
            relative = os.path.relpath(job.source.path, trial.root)
            if not relative.startswith(".."):
                trial.reported_dirs |= {relative}
        trial.record.next_checkpoint = max(trial.record.next_checkpoint, job.number + 1)
        if job.mode is UploadMode.ASYNC and self._context.run.checkpoint_config.when_full == "replace":
            replaced = self._make_room(trial, job)
        trial.add_job(job)
        for warning in job.source.warnings if job.source is not None else ():
            self._context.emit(SyncWarning(tree=f"{trial.key}/{job.name}", message=warning))
        suspended = trial.forget_suspended()
        if suspended is not None and suspended.token != job.token:
            trial.give_up(suspended)  # its directory was not reported again
        if not job.journal_name:
            add_to_journal(self._context, trial.record, job)
        self._submit(job)
        return replaced

    def _make_room(self, trial: TrialState, job: CheckpointJob) -> CheckpointJob | None:
        """Replace the oldest checkpoint that has not begun, if too many are pending. Synchronous."""
        replaced = _replaceable(trial)
        if len(trial.jobs) < self._context.run.checkpoint_config.max_pending_checkpoints or replaced is None:
            return None
        trial.give_up(replaced)
        error = CheckpointReplacedError(f"{replaced.handle.uri} was replaced by {job.name} before its upload began")
        replaced.handle.resolve(error)
        replaced.handle.error_raised = True  # it was asked for: the next report does not raise it
        trial.job_ended(replaced, error)
        self._context.emit(CheckpointReplaced(tree=trial.key, trial=trial.key, checkpoint=replaced.name, by=job.name))
        return replaced

    def _job(self, trial: TrialState, request: ReportRequest, source: Checkpoint, files: Accepted) -> CheckpointJob:
        delete = request.delete_local
        if delete is None:
            delete = request.mode is UploadMode.ASYNC and source.owned
        resumes_by_itself = source.owned and request.mode is UploadMode.ASYNC and self._context.role.world_size == 1
        found = self._suspended_with(trial, files, request)
        number = found.number if found is not None else trial.record.next_checkpoint
        name = found.name if found is not None else request.name or checkpoint_name(number)
        job = CheckpointJob(
            trial.key,
            files,
            number,
            CheckpointHandle(name, f"{trial.uri}/{name}"),
            request.metrics,
            request.metadata,
            request.mode,
            delete,
            asyncio.get_running_loop().time(),
            token(),
            step=request.step,
            user_named=request.name is not None,
            resumes_by_itself=resumes_by_itself,
        )
        if found is not None:
            job.token, job.journal_name, job.may_be_stored, job.tree = found.token, found.journal_name, True, found.tree
        return job

    def _suspended_with(self, trial: TrialState, files: Accepted, request: ReportRequest) -> CheckpointJob | None:
        """The suspended checkpoint, if this report is for the same one."""
        found = trial.suspended()
        same = found is not None and found.has_files(files) and request.name in (None, found.name)
        return found if same and found is not None and request.step == found.step else None

    async def _refuse_taken_name(self, trial: TrialState, name: str, files: Accepted) -> None:
        """Raise ConfigError if the name is taken: artifacts and checkpoints of a trial share a prefix."""
        suspended = trial.suspended()
        again = suspended is not None and suspended.name == name and suspended.has_files(files)
        if name in trial.checkpoint_names() and not again:
            raise ConfigError(
                f"invalid report(name={name!r}): trial {trial.name!r} already has a checkpoint of this name"
            )
        there = await in_thread(os.path.lexists, f"{trial.root}/{name}")
        if there or await trial.tree.has_below(name):
            raise ConfigError(
                f"invalid report(name={name!r}): trial {trial.name!r} has an artifact of this name; use another one"
            )

    def give_up_step(self, trial: TrialState, step: int | None, reason: str) -> CheckpointJob:
        """Submit a job that reports to the other ranks that this one makes no checkpoint. Synchronous."""
        number = trial.record.next_checkpoint
        name = checkpoint_name(number)
        job = CheckpointJob(
            trial.key,
            None,
            number,
            CheckpointHandle(name, f"{trial.uri}/{name}"),
            {},
            {},
            UploadMode.ASYNC,
            False,
            asyncio.get_running_loop().time(),
            token(),
            step=step,
            given_up=reason,
        )
        trial.record.next_checkpoint = number + 1
        trial.add_job(job)
        self._submit(job)
        return job


def refuse_directory(
    path: str,
    real: str,
    *,
    owned: bool,
    used: UsedDirectories,
    pending: object,
    own_files: Sequence[str] = OWN_FILES,
) -> None:
    """Raise ConfigError if the checkpoint contains a trial's own files, or if its deletion would affect others.

    ``path`` is absolute, ``real`` the same without links. ``owned``: asyncsync may delete the checkpoint once it is
    durable. ``pending``: the key of this checkpoint among the directories in use. ``own_files``: names of the files
    that asyncsync writes in a trial's directory.
    """
    parent, name = os.path.split(real)
    trial = used.trial_within(real) or (parent if name in own_files and used.is_trial(parent) else None)
    if trial is not None:
        raise ConfigError(
            f"invalid report(checkpoint={path!r}): the directory holds files that asyncsync itself writes, those "
            f"of {trial}; {OWN_DIRECTORY_ADVICE}"
        )
    if owned and (os.path.ismount(real) or _holds(real, os.path.realpath(os.path.expanduser("~")))):
        raise ConfigError(
            f"invalid Checkpoint.take({path!r}): the directory is a mount point or holds a home directory, and "
            f"asyncsync would empty it; {OWN_DIRECTORY_ADVICE}"
        )
    tree = _stored_tree(real) if owned else None
    if tree is not None:
        raise ConfigError(
            f"invalid Checkpoint.take({path!r}): it is stored in {tree}, and asyncsync would delete it there once "
            "it is durable; report the path itself, or Checkpoint.lend, which only reads it"
        )
    for other in used.pending(but=pending):
        if (owned or other.owned) and (_holds(real, other.path) or _holds(other.path, real)):
            raise ConfigError(
                f"invalid report(checkpoint={path!r}): the pending checkpoint {other.name} is not durable yet and uses "
                f"{other.path}, and one of the two is deleted once durable; {OWN_DIRECTORY_ADVICE}, or wait for "
                f"{other.name} first"
            )


def _stored_tree(real: str) -> str | None:
    """The directory above ``real``, or itself, that a store keeps: it has a manifest."""
    parts = real.split(os.sep)
    above = (os.sep.join(parts[:count]) for count in range(len(parts), 1, -1))
    return next((tree for tree in above if os.path.lexists(f"{tree}/{MANIFEST}")), None)


def _holds(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _accept_files(
    source: Checkpoint,
    trial: str,
    used: UsedDirectories,
    this_report: object,
    max_bytes: int,
    own_files: Sequence[str],
) -> Accepted:
    """Check and list the files; runs in a worker thread. ``max_bytes``: most bytes that a path may have."""
    path = absolute(str(source.path))
    real = os.path.realpath(path)
    used.add_pending(this_report, DirectoryInUse(real, f"another report of {trial}", source.owned))
    refuse_directory(path, real, owned=source.owned, used=used, pending=this_report, own_files=own_files)
    files = accept(path)
    long = [file.path for file in files.files if len(file.path) * 4 > max_bytes and len(file.path.encode()) > max_bytes]
    if long:
        raise CheckpointIncompleteError(
            f"the checkpoint {files.path!r} has names longer than the store allows ({max_bytes} bytes here): "
            f"{some(long)}"
        )
    files.digest, files.size  # noqa: B018  computed here, because the event loop must not iterate over all files
    return files


def _replaceable(trial: TrialState) -> CheckpointJob | None:
    """The oldest checkpoint that a newer one may replace: no caller waits for it, and nothing of it is stored."""
    free = (job for job in trial.jobs if job.mode is UploadMode.ASYNC and not (job.begun or job.may_be_stored))
    return next(free, None)


def _not_uploaded(source: Checkpoint) -> CheckpointHandle:
    handle = CheckpointHandle(source.path.name, source.path.absolute().as_uri())
    handle.error_raised = True
    handle.resolve(SyncError(f"the checkpoint {source.path} is not durable: {NO_UPLOAD_NOTE}"))
    return handle
