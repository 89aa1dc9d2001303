"""Trial: one training run, as users see it."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncsync.config import UploadMode, check_name
from asyncsync.disk.own_names import is_own_name
from asyncsync.disk.results import OWN_FILES, as_json
from asyncsync.engine.retire_pin import retire, set_pinned
from asyncsync.engine.trial_restore import latest, restore_latest
from asyncsync.engine.trials.acceptance import ReportAcceptance, ReportRequest
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.engine.trials.context import EngineContext, Role
from asyncsync.engine.trials.rank_commit import LostError
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import ConfigError, EngineClosedError
from asyncsync.report import SyncReport

if TYPE_CHECKING:
    from asyncsync.remote.restore import RestoreReport
    from asyncsync.remote.views.checkpoint_view import CheckpointView

CheckpointSource = str | os.PathLike[str] | Checkpoint
RESERVED = re.compile(r"checkpoint_\d|rank_\d")
"""Prefixes of names that asyncsync assigns."""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of one ``report``. ``checkpoint`` is None if the report had none."""

    metrics: dict[str, Any]
    checkpoint: CheckpointHandle | None = None


class Trial:
    """One training run of an experiment. Get it from ``engine.trial(name)``."""

    __slots__ = ("_acceptance", "_context", "_state")

    def __init__(self, context: EngineContext, state: TrialState, acceptance: ReportAcceptance) -> None:
        self._context, self._state, self._acceptance = context, state, acceptance

    def __repr__(self) -> str:
        pending = len(self._state.jobs)
        return f"<Trial {self.uri} {self.status}, {self._state.record.reports} reports, {pending} checkpoints pending>"

    @property
    def name(self) -> str:
        """The trial's name, unique in its experiment."""
        return self._state.name

    @property
    def dir(self) -> Path:
        """The trial's directory on this machine. Write artifacts here. Each rank has a directory of its own."""
        return self._state.dir

    @property
    def uri(self) -> str:
        """URI of the trial in the store."""
        return self._state.uri

    @property
    def status(self) -> str:
        """``running``, or the status given to ``finish``."""
        return self._state.record.status

    async def report(
        self,
        metrics: Mapping[str, Any],
        checkpoint: CheckpointSource | None = None,
        *,
        step: int | None = None,
        name: str | None = None,
        upload: UploadMode | str = UploadMode.SYNC,
        delete_local: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Report:
        """Record metrics, and make a checkpoint durable.

        Reports of a trial take effect in order, whatever their modes. If an earlier ASYNC checkpoint or background sync
        failed and nobody waited for it, this call raises that failure before it records anything. A cancelled report is
        recorded together with its checkpoint, or not at all.

        The checkpoint consists of all regular files in the directory when the report is accepted. No filter applies;
        links are followed. If a file changes or vanishes before all are stored, the checkpoint fails with
        SourceChangedError or CheckpointIncompleteError.

        Args:
            metrics: JSON values, nested mappings included. One line in ``result.json``, one row in ``progress.csv``.
            checkpoint: a directory, a file, or ``Checkpoint.take/lend/snapshot``. ConfigError if it contains the
                trial's own files; CheckpointIncompleteError if it is missing or contains no file.
            step: training step, 0 or more; stored with the checkpoint. Required with several ranks, whose parts are
                matched by it.
            name: name of the checkpoint in the store instead of ``checkpoint_000000`` and up. Must be new in the trial.
            upload: a mode, or its value such as ``"async"``. SYNC returns when the checkpoint is durable. ASYNC returns
                when it is accepted, and first waits while ``max_pending_checkpoints`` of this trial are pending.
                NO_UPLOAD uploads nothing. After a SyncTimeoutError of SYNC, another report of the same unchanged
                directory resumes the upload.
            delete_local: delete the files once they are durable. Default: only for ASYNC and a directory that asyncsync
                owns (``Checkpoint.take``). ConfigError for a directory that was only lent. Files that changed since the
                upload stay, and a SyncWarning names them.
            metadata: JSON values stored with the checkpoint.

        Raises SyncError and its subclasses if the checkpoint does not become durable (SYNC), SyncTimeoutError after
        ``sync_timeout`` seconds, and EngineClosedError after ``finish`` or outside the engine's block.
        """
        source, mode = _as_checkpoint(checkpoint), UploadMode.of(upload)
        _check_owned(source, delete_local)
        number = check_step(step, self._context.role, source)
        request = ReportRequest(
            as_json(metrics),
            as_json(metadata or {}),
            mode,
            delete_local,
            number,
            check_checkpoint(name, self._context.own_files),
        )
        await self._context.gate.wait_open()
        self._check_not_finished()
        self._state.raise_failures()
        async with self._state.reporting:
            await self._state.prepare()
            handle = await self._acceptance.accept(self._state, request, source)
        if handle is not None and mode is UploadMode.SYNC:
            await handle.durable()
            config = self._context.run.sync_config
            if config.sync_artifacts and config.sync_artifacts_on_checkpoint:
                await self.sync()
        return Report(dict(metrics), handle)

    def _check_not_finished(self) -> None:
        self._context.check_open()
        if not self._context.scheduler.has(self._state.key):
            raise EngineClosedError(
                f"trial {self.name!r} is finished and accepts no more reports. Use another trial name"
            )

    async def skip(self, step: int, reason: str) -> None:
        """Report to the other ranks that this one makes no checkpoint of ``step``; or give up one that it reported and
        that is not durable yet.

        Reports of that step on the other ranks raise CheckpointIncompleteError with this rank and ``reason``, before or
        after this call. The next step is open to all ranks again. Returns when the other ranks can see it. Does nothing
        if one process trains the trial. Raises ConfigError for an invalid step, and the store's error if the other
        ranks could not be informed.
        """
        number, state = as_step(step), self._state
        await self._context.gate.wait_open()
        self._context.check_open()
        if state.ranks is None:
            return
        async with self._state.reporting:
            await self._state.prepare()
            job = next((job for job in state.jobs if job.step == number), None)
            if job is None:
                job = self._acceptance.give_up_step(state, number, f"gave up step {number}: {reason}")
        if not job.given_up:
            await state.ranks.give_up(state, job, f"gave up step {number}: {reason}")
        try:
            await job.handle.durable()
        except LostError:
            return

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Set the trial's parameters, for searchers that choose them after the trial began. They are stored with the
        next report or sync. ConfigError on a rank other than 0, EngineClosedError after ``finish``."""
        self._check_not_finished()
        if not self._context.role.leads:
            raise ConfigError("invalid set_params(): rank 0 keeps the parameters of a trial; call it there")
        self._state.set_params(params)

    def latest(self) -> CheckpointView | None:
        """The newest durable checkpoint that this process knows, or None. Its ``open`` and ``download`` read the store.

        After a resume, a checkpoint that an earlier process stored and did not register is known after the first
        report, sync or :meth:`restore`. A rank other than 0 knows its own checkpoints only.
        """
        self._context.check_open()
        return latest(self._context, self._state)

    async def restore(
        self, target: str | os.PathLike[str], *, include: str | Sequence[str] | None = None
    ) -> RestoreReport[CheckpointView]:
        """Download the newest checkpoint of this trial that is complete and undamaged into the directory ``target``.

        Every byte is verified; every rank finds the same checkpoint. The report has ``checkpoint``, and
        ``passed_over``: the newer ones that could not be restored, with the reason. ``include``: gitignore patterns or
        paths; only these files are fetched.

        Raises NotFoundError if the trial has no checkpoint, and the errors of :meth:`asyncsync.Experiment.restore`.
        """
        self._context.check_open()
        return await restore_latest(self._context, self._state, target, include)

    async def retire(self, name: str) -> None:
        """Retire a durable checkpoint: the record is stored without it, then its data is deleted in the background.

        Raises ConfigError if the trial has no durable checkpoint of this name, if it is pinned, on a rank other than 0,
        and for the newest checkpoint of several ranks; and the errors of the store.
        """
        self._context.check_open()
        await retire(self._context, self._state, name)

    async def pin(self, name: str) -> None:
        """Keep a durable checkpoint, exempt from retention, also in later processes. Returns when that is stored.

        Raises ConfigError if the trial has no durable checkpoint of this name or on a rank other than 0,
        CheckpointRetiredError if it was retired at the same time, and the errors of the store.
        """
        self._context.check_open()
        await set_pinned(self._state, name, pinned=True)

    async def unpin(self, name: str) -> None:
        """Let retention decide about the checkpoint again, at the next one. Raises as :meth:`pin`."""
        self._context.check_open()
        await set_pinned(self._state, name, pinned=False)

    async def sync(self) -> SyncReport:
        """Sync the trial's files and record now, and wait for the end. Raises the error of a failed sync."""
        self._context.check_open()
        return await self._context.scheduler.sync(self._state.key)

    async def finish(self, status: str = "finished", error: object = None) -> None:
        """End the trial: wait for its checkpoints, sync it once more, and remove it from the schedule.

        ``error`` (a text or an exception) is stored in the record. Raises SyncError or SyncFailedError if anything is
        not durable.
        """
        self._context.check_open()
        state = self._state
        await state.prepare()
        state.record.status = status
        state.record.error = None if error is None else str(error) or type(error).__name__
        state.touch()
        await state.wait_durable()
        await state.wait_for_predecessor()
        state.give_up_suspended()
        self._context.note_status(self.name, status)
        await self.sync()
        self._context.scheduler.remove(state.key)
        state.put_away()
        state.raise_failures()


def _as_checkpoint(source: CheckpointSource | None) -> Checkpoint | None:
    return source if source is None or isinstance(source, Checkpoint) else Checkpoint.lend(source)


def _check_owned(source: Checkpoint | None, delete_local: bool | None) -> None:
    if delete_local and source is not None and not source.owned:
        raise ConfigError(
            "invalid report(delete_local=True): the directory is only lent; hand it over with "
            "Checkpoint.take(directory)"
        )


def check_checkpoint(name: str | None, own: Sequence[str] = OWN_FILES, where: str = "report(name=...)") -> str | None:
    """Raise ConfigError if nothing of the user's may have this name beside the files ``own``."""
    if name is None:
        return None
    check_name(where, name)
    if RESERVED.match(name) or name in own or is_own_name(name):
        raise ConfigError(
            f"invalid {where.replace('...', repr(name))}: must not be a name that asyncsync itself uses, such as "
            "checkpoint_000000, rank_00000, result.json or x.asyncsync-tmp"
        )
    return name


def check_step(step: object, role: Role, source: Checkpoint | None) -> int | None:
    """Raise ConfigError for an invalid step, or for a missing one where several ranks are matched by it."""
    if step is None:
        if role.world_size > 1 and source is not None:
            raise ConfigError(
                f"invalid report(checkpoint=...) without step=... (world_size={role.world_size}): the step "
                "matches the reports of the ranks, because counting reports cannot notice that one of them skipped one"
            )
        return None
    return as_step(step)


def as_step(step: object) -> int:
    """The step as an int. Raises ConfigError for anything else."""
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0 or isinstance(step, bool):
        raise ConfigError(f"invalid step={step!r}: must be an integer >= 0")
    return number
