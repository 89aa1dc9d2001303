"""Trial: one training run; what ``await trial.report(...)`` does."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncsync.config import UploadMode, check_name
from asyncsync.disk.results import OWN_FILES, as_json
from asyncsync.disk.scan import is_own_name
from asyncsync.engine.trials.acceptance import ReportAcceptance, ReportRequest
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.engine.trials.context import EngineContext, Role
from asyncsync.engine.trials.rank_commit import LostError
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import ConfigError, EngineClosedError
from asyncsync.report import SyncReport

CheckpointSource = str | os.PathLike[str] | Checkpoint
RESERVED = re.compile(r"checkpoint_\d|rank_\d")
"""Beginnings of names that asyncsync gives."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one ``report`` did. ``checkpoint`` is None if none was given."""

    metrics: dict[str, Any]
    checkpoint: CheckpointHandle | None = None


class Trial:
    """One training run of an experiment; ``engine.trial(name)`` makes it."""

    __slots__ = ("_acceptance", "_context", "_state")

    def __init__(self, context: EngineContext, state: TrialState, acceptance: ReportAcceptance) -> None:
        self._context, self._state, self._acceptance = context, state, acceptance

    @property
    def name(self) -> str:
        """The trial's name, unique in its experiment."""
        return self._state.name

    @property
    def dir(self) -> Path:
        """The trial's directory on this machine; write artifacts here. Ranks have one each."""
        return self._state.dir

    @property
    def uri(self) -> str:
        """Where the trial is stored."""
        return self._state.uri

    @property
    def status(self) -> str:
        """``running``, or what ``finish`` was given."""
        return self._state.record.status

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
        number = check_step(step, self._context.role, source)
        request = ReportRequest(
            as_json(metrics), as_json(metadata or {}), upload, delete_local, number, check_checkpoint(name)
        )
        await self._context.gate.wait_open()
        self._context.check_open()
        if not self._context.scheduler.has(self._state.key):
            raise EngineClosedError(f"trial {self.name!r} is finished: it takes no more reports")
        self._state.raise_failures()
        async with self._state.reporting:
            await self._state.prepare()
            handle = await self._acceptance.accept(self._state, request, source)
        if handle is not None and upload is UploadMode.SYNC:
            await handle.durable()
            config = self._context.run.sync_config
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

    async def sync(self) -> SyncReport:
        """Sync the trial's files and record now, and wait for it. Raises why it failed."""
        self._context.check_open()
        return await self._context.scheduler.sync(self._state.key)

    async def finish(self, status: str = "finished", error: object = None) -> None:
        """The trial is over: wait for its checkpoints, sync it once more, leave the schedule.

        ``error`` (a text or an exception) is kept in the record. Raises what is not durable.
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
        state.raise_failures()


def _as_checkpoint(source: CheckpointSource | None) -> Checkpoint | None:
    return source if source is None or isinstance(source, Checkpoint) else Checkpoint.lend(source)


def _check_mode(mode: UploadMode, source: Checkpoint | None, delete_local: bool | None) -> None:
    if not isinstance(mode, UploadMode):
        raise ConfigError(f"invalid report(upload={mode!r}): must be an UploadMode")
    if delete_local and source is not None and not source.owned:
        raise ConfigError(
            "invalid report(delete_local=True): the directory is only lent; hand it over with "
            "Checkpoint.take(directory)"
        )


def check_checkpoint(name: str | None) -> str | None:
    """ConfigError if a checkpoint cannot be called so in any trial."""
    if name is None:
        return None
    check_name("report(name=...)", name)
    if RESERVED.match(name) or name in OWN_FILES or is_own_name(name):
        raise ConfigError(
            f"invalid report(name={name!r}): must not be a name that asyncsync itself uses, such as checkpoint_000000, "
            "rank_00000, result.json or x.asyncsync-tmp"
        )
    return name


def check_step(step: object, role: Role, source: Checkpoint | None) -> int | None:
    """ConfigError if it is no step, or if several ranks could not be matched without one."""
    if step is None:
        if role.world_size > 1 and source is not None:
            raise ConfigError(
                f"invalid report(checkpoint=...) without step=... (world_size={role.world_size}): the step "
                "matches the reports of the ranks, because counting reports cannot notice that one of them skipped one"
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
        raise ConfigError(f"invalid step={step!r}: must be an integer >= 0")
    return number
