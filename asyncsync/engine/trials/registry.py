"""Private: the trials of one engine: those that run, and those that an earlier process left in the store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncsync.config import UploadMode, check_name, state_dir
from asyncsync.disk.scan import Rules
from asyncsync.engine.trials.context import EXPERIMENT_KEY, EngineContext, Role
from asyncsync.engine.trials.job import CheckpointJob, LeftBehind
from asyncsync.engine.trials.pending_checkpoints import belongs_to_run
from asyncsync.engine.trials.ranks import Ranks
from asyncsync.engine.trials.resume import Predecessor, new_record, take_over_record
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import DamagedError
from asyncsync.planning.manifest import META_DIR
from asyncsync.stores.guard.fenced import Fence
from asyncsync.sync.records.model import TrialRecord

MAX_COPY_ORIGINS = 4
"""Checkpoints from an earlier process to try as copy sources for a new trial."""


class Registry:
    """Opens trials, each at most once, and knows them by name. Plain calls."""

    def __init__(self, context: EngineContext, runner: str, predecessor: Predecessor, *, resume: bool) -> None:
        self._context, self._runner, self._predecessor, self._resume = context, runner, predecessor, resume
        self.trials: dict[str, TrialState] = {}
        self._stored: dict[str, tuple[TrialRecord, str]] = {}
        """Records, and their versions, of trials that are in the store and were not opened yet."""
        self._damaged: dict[str, DamagedError] = {}
        """Trials whose record cannot be read, and why: nobody writes to them."""
        self._left_behind: dict[str, list[LeftBehind]] = {}
        """By trial that was not opened yet: checkpoints that are resumed if they are reported again."""
        self._resumed_unasked: set[str] = set()
        """Trials that run because they had pending checkpoints, and that nobody has asked for yet."""

    def add_stored(self, known: dict[str, tuple[TrialRecord, str]], damaged: dict[str, DamagedError]) -> None:
        """The trials that are in the store."""
        self._stored, self._damaged = known, damaged
        for name, error in damaged.items():
            message = (
                f"trial {name!r} is not resumed, the others are: {error}. Nothing is written to it; put an earlier "
                "version of that object back, or use another name"
            )
            self._context.warn(name, message)

    def open(self, name: str, params: Mapping[str, Any] | None) -> TrialState:
        """The trial of this name, new on first use: a lock, a directory, and a place in the schedule.

        ConfigError for the name, ConcurrentWriterError if another process of this machine runs the trial in the same
        directory, DamagedError if the trial was to be resumed and its record cannot be read.
        """
        found = self.trials.get(name)
        if found is not None:
            if name in self._resumed_unasked:
                self._resumed_unasked.discard(name)
                found.set_params(params)
            return found
        check_name("the trial name", name)
        if name in self._damaged:
            raise copy(self._damaged[name]) from self._damaged[name]
        context = self._context
        context.session.locks.take(context.lock_name(name))
        trial = self._make(name, params)
        _make_directory(context.local_dir, name, context.role)
        trial.left_behind = self._left_behind.pop(name, ())
        self.trials[name] = trial
        context.note_status(name, trial.record.status)
        context.scheduler.add(trial)
        return trial

    def resume_checkpoints(self, left: Iterable[LeftBehind]) -> Iterator[CheckpointJob]:
        """The trials of these checkpoints go on, and so do the checkpoints, in the order in which they were reported.
        Those of an experiment that is not this one, though it has its name, are forgotten."""
        context = self._context
        for item in left:
            if item.trial in self._damaged:
                continue  # it stays written down, for when the trial can be read again
            record = self.stored_record(item.trial)
            if not belongs_to_run(item.payload, context.record.nonce, record.nonce if record is not None else None):
                context.session.journal.checkpoint_closed(context.uri, item.trial, item.name)
            elif not item.resumes_by_itself:
                self._keep_left_behind(item)
            else:
                params = None if record is not None else item.payload["params"]  # its record had not reached the store
                trial = self.trials.get(item.trial) or self.open(item.trial, params)
                self._resumed_unasked.add(item.trial)
                job = trial.resume_job(item, UploadMode.ASYNC)
                trial.jobs.append(job)
                yield job

    def _keep_left_behind(self, item: LeftBehind) -> None:
        trial = self.trials.get(item.trial)
        if trial is None:
            self._left_behind.setdefault(item.trial, []).append(item)
        else:
            trial.left_behind = (*trial.left_behind, item)

    def give_up_suspended(self) -> None:
        """The run is over, and nobody has reported them again: nothing of them stays."""
        for trial in self.trials.values():
            trial.give_up_suspended()
        session = self._context.session
        for name, items in self._left_behind.items():
            for item in items:
                session.journal.checkpoint_closed(session.uri, name, item.name)
                session.uploads.abandon_below(f"{name}/{item.name}/")
        self._left_behind.clear()

    def stored_record(self, trial: str) -> TrialRecord | None:
        """What the store says of this trial, if it has a record of it."""
        if trial in self.trials:
            return self.trials[trial].record if self.trials[trial].keeper.file.exists else None
        return self._stored[trial][0] if trial in self._stored else None

    def scheduled(self) -> list[TrialState]:
        """The trials that are not finished."""
        return [trial for trial in self.trials.values() if self._context.scheduler.has(trial.key)]

    def tree_keys(self) -> list[str]:
        """Trees in the schedule, the experiment last: its record tells what became of the trials."""
        keys = [trial.key for trial in self.scheduled()]
        return [*keys, EXPERIMENT_KEY] if self._context.role.is_driver else keys

    def not_durable(self) -> set[str]:
        """Names of the trees and checkpoints that have something which is not in the store."""
        missing = {f"{trial.key}/{job.name}" for trial in self.trials.values() for job in trial.jobs}
        missing |= {trial.key for trial in self.trials.values() if trial.dirty_since is not None}
        if self._context.role.is_driver and not self._context.record_file.is_current():
            missing.add(EXPERIMENT_KEY)
        return missing

    def directories(self) -> list[str]:
        """Where the trials write, and where asyncsync keeps its state."""
        return [*(trial.tree.root for trial in self.trials.values()), str(state_dir())]

    def rules(self) -> Rules:
        """Which files of the experiment's directory are its own: none of a trial."""
        config = self._context.run.sync_config
        skip = frozenset((*self.trials, *self._stored, *self._damaged, *self._context.record.trials))
        return Rules(tuple(config.include), tuple(config.exclude), config.symlinks, skip, skip_marked=True)

    def copy_origins(self, trial: TrialState) -> list[str]:
        """Prefixes of checkpoints of an earlier process that have much in common with the next one of ``trial``: its
        own last one; if it has none, those of trials that it may have been forked from, the newest first."""
        if trial.record.checkpoints:
            return [f"{trial.key}/{trial.record.checkpoints[-1].name}/"]
        records = [other.record for other in self.trials.values() if other.resumed]
        records += [record for record, _ in self._stored.values()]
        last = [
            (record.checkpoints[-1].time, f"{record.name}/{record.checkpoints[-1].name}/")
            for record in records
            if record.checkpoints
        ]
        return [prefix for _, prefix in sorted(last, reverse=True)[:MAX_COPY_ORIGINS]]

    def fence_of(self, key: str) -> Fence | None:
        """Who is asked whether this process may write below this key; None: it may not."""
        trial = self.trials.get(key.partition("/")[0])
        if trial is not None:
            return trial.confirm
        return self._context.confirm if self._context.role.is_driver else None

    def note_deleted(self, trial: str, name: str) -> None:
        """What was owed is done: the store has nothing of this checkpoint any more."""
        if trial in self.trials:
            self.trials[trial].keeper.note_deleted(name)

    def note_sync_failure(self, key: str, error: BaseException) -> None:
        """A background sync failed; it is tried again."""
        if key in self.trials:
            self.trials[key].note_failure(error)

    def _make(self, name: str, params: Mapping[str, Any] | None) -> TrialState:
        context, known = self._context, self._stored.pop(name, None)
        if known is None:
            resumed = self._resume and not context.role.leads
            record = new_record(context.run, context.role, self._runner, name, params)
            return TrialState(context, record, resumed=resumed, ranks=self._ranks(name, resumed=resumed))
        record, version = known
        before = take_over_record(record, context.role, self._runner, params)
        if before.runner == self._predecessor.runner:
            before = replace(before, running=before.running and self._predecessor.running)  # it ended with its engine
        trial = TrialState(context, record, version, resumed=True, ranks=self._ranks(name, resumed=True))
        trial.predecessor_may_write = before.may_still_write()
        trial.keeper.replaced_runners = frozenset({before.runner, self._predecessor.runner} - {""})
        return trial

    def _ranks(self, name: str, *, resumed: bool) -> Ranks | None:
        return Ranks(self._context, name, resumed=resumed) if self._context.role.world_size > 1 else None


def _make_directory(local_dir: Path, trial: str, role: Role) -> None:
    """The trial's directory, marked before there is any file in it: so the driver, or one which shares ``local_dir``,
    does not take it for files of its own, though a scan that is under way has not heard of this trial."""
    os.makedirs(local_dir / trial / META_DIR, exist_ok=True)
    os.makedirs(local_dir / role.directory(trial), exist_ok=True)
