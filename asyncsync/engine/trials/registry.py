"""Private: the trials of one engine: those that run, and those that earlier processes left in the store."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from asyncsync.config import UploadMode, check_name, state_dir
from asyncsync.disk.files import local_disk
from asyncsync.engine.trials.context import EXPERIMENT_KEY, EngineContext, Role
from asyncsync.engine.trials.job import CheckpointJob, LeftBehind
from asyncsync.engine.trials.ranks import Ranks
from asyncsync.engine.trials.resume import Predecessor, belongs_to_run, new_record, take_over_record
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import DamagedError
from asyncsync.planning.manifest import META_DIR
from asyncsync.planning.patterns import Rules
from asyncsync.stores.guard.fenced import Fence
from asyncsync.sync.records.model import TrialRecord

MAX_COPY_ORIGINS = 4
"""Checkpoints from an earlier process to try as copy sources for a new trial."""


class Registry:
    """Opens trials, each at most once, and finds them by name. All methods are synchronous."""

    def __init__(self, context: EngineContext, runner: str, predecessor: Predecessor, *, resume: bool) -> None:
        self._context, self._runner, self._predecessor, self._resume = context, runner, predecessor, resume
        self.trials: dict[str, TrialState] = {}
        self._stored: dict[str, tuple[TrialRecord, str]] = {}
        """Records and their versions of stored trials that were not opened yet."""
        self._damaged: dict[str, DamagedError] = {}
        """Trials whose record cannot be read, and the errors. Nothing is written to them."""
        self._left_behind: dict[str, list[LeftBehind]] = {}
        """Checkpoints that resume when they are reported again, by trial that was not opened yet."""
        self._copy_origins: list[str] = []
        """The newest checkpoints of stored trials when this process began."""
        self._resumed_unasked: set[str] = set()
        """Trials that run because of pending checkpoints, and that the user has not asked for yet."""
        context.directories.add_trial(str(state_dir()))

    def add_stored(self, known: dict[str, tuple[TrialRecord, str]], damaged: dict[str, DamagedError]) -> None:
        """Add the trials that are in the store."""
        self._stored, self._damaged = known, damaged
        newest = [(record.checkpoints[-1], record.name) for record, _ in known.values() if record.checkpoints]
        newest = nlargest(MAX_COPY_ORIGINS, newest, key=lambda item: (item[0].time, item[1]))
        self._copy_origins = [f"{trial}/{checkpoint.name}/" for checkpoint, trial in newest]
        for name, error in damaged.items():
            message = (
                f"trial {name!r} is not resumed, the others are: {error}. Nothing is written to it. Restore an earlier "
                "version of that object, or use another trial name"
            )
            self._context.warn(name, message)

    def open(self, name: str, params: Mapping[str, Any] | None) -> TrialState:
        """The trial of this name. The first call takes a lock, makes a directory and adds the trial to the schedule.

        Raises ConfigError for an invalid name, ConcurrentWriterError if another process of this machine runs the trial
        in the same directory, and DamagedError if a resumed trial's record cannot be read.
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
        is_new = _make_directory(context.local_dir, name, context.role)
        trial.left_behind = self._left_behind.pop(name, ())
        context.directories.add_trial(trial.root, is_new=is_new and context.role.leads)
        self.trials[name] = trial
        context.unsettled[name] = None
        context.note_status(name, trial.record.status)
        self._stored.pop(name, None)  # last: a scan in a thread must know the name all the time
        context.scheduler.add(trial)
        return trial

    def resume_checkpoints(self, left: Iterable[LeftBehind]) -> Iterator[CheckpointJob]:
        """Resume these checkpoints and their trials, in the order of reports. Checkpoints of an earlier experiment of
        the same name are dropped."""
        context = self._context
        for item in left:
            if item.trial in self._damaged:
                continue  # it stays in the journal until the trial can be read again
            record = self.stored_record(item.trial)
            if not belongs_to_run(item.payload, context.record.nonce, record.nonce if record is not None else None):
                context.session.journal.checkpoint_closed(context.uri, item.trial, item.name)
            elif not item.resumes_by_itself:
                self._keep_left_behind(item)
            else:
                params = None if record is not None else item.payload["params"]  # its record did not reach the store
                trial = self.trials.get(item.trial) or self.open(item.trial, params)
                self._resumed_unasked.add(item.trial)
                job = trial.resume_job(item, UploadMode.ASYNC)
                trial.add_job(job)
                yield job

    def _keep_left_behind(self, item: LeftBehind) -> None:
        trial = self.trials.get(item.trial)
        if trial is None:
            self._left_behind.setdefault(item.trial, []).append(item)
        else:
            trial.left_behind = (*trial.left_behind, item)

    def give_up_suspended(self) -> None:
        """The run ends: give up all checkpoints that wait for another report."""
        for trial in self.trials.values():
            trial.give_up_suspended()
        session = self._context.session
        for name, items in self._left_behind.items():
            for item in items:
                session.journal.checkpoint_closed(session.uri, name, item.name)
                session.uploads.abandon_below(f"{name}/{item.name}/")
        self._left_behind.clear()

    def stored_record(self, trial: str) -> TrialRecord | None:
        """The trial's stored record, if there is one."""
        if trial in self.trials:
            return self.trials[trial].record if self.trials[trial].keeper.file.exists else None
        return self._stored[trial][0] if trial in self._stored else None

    def scheduled(self) -> list[TrialState]:
        """The trials that are not finished."""
        return [trial for trial in self.trials.values() if self._context.scheduler.has(trial.key)]

    def tree_keys(self) -> list[str]:
        """Keys of the scheduled trees. The experiment comes last, because its record holds the status of the trials."""
        keys = [trial.key for trial in self.scheduled()]
        return [*keys, EXPERIMENT_KEY] if self._context.role.is_driver else keys

    def not_durable(self) -> set[str]:
        """Names of the trees and checkpoints that are not durable."""
        missing = {f"{trial.key}/{job.name}" for trial in self.trials.values() for job in trial.jobs}
        missing |= {trial.key for trial in self.trials.values() if trial.dirty_since is not None}
        if self._context.role.is_driver and not self._context.record_file.is_current():
            missing.add(EXPERIMENT_KEY)
        return missing

    def rules(self) -> Rules:
        """Rules that exclude the trials' files from the experiment's own."""
        config = self._context.run.sync_config
        skip = ChainMap[str, Any](self._context.record.trials, self._stored, self._damaged)  # copying would take long
        patterns, ready = (tuple(config.include), tuple(config.exclude)), config.ready_rules
        return Rules(*patterns, config.symlinks, skip, skip_marked=True, ready=ready)

    def copy_origins(self, trial: TrialState) -> list[str]:
        """Prefixes of earlier checkpoints that may share content with the next one of ``trial``.

        That is the trial's own last checkpoint. If it has none, the newest ones of other trials: it may be a fork.
        """
        if trial.record.checkpoints:
            return [f"{trial.key}/{trial.record.checkpoints[-1].name}/"]
        return self._copy_origins

    def fence_of(self, key: str) -> Fence | None:
        """The fence of writes below this key; None if this process may not write there."""
        trial = self.trials.get(key.partition("/")[0])
        if trial is not None:
            return trial.confirm
        return self._context.confirm if self._context.role.is_driver else None

    def fence_of_given_up(self, key: str, name: str, nonce: str) -> Fence | None:
        """The fence of a trial, if the record that this process stored gives up the checkpoint of this name."""
        trial = self.trials.get(key)
        given_up = trial is not None and trial.record.nonce == nonce and trial.keeper.gives_up(name)
        return trial.confirm if trial is not None and given_up else None

    def note_deleted(self, trial: str, name: str) -> None:
        """The store holds nothing of this checkpoint any more."""
        if trial in self.trials:
            self.trials[trial].keeper.note_deleted(name)

    def note_sync_failure(self, key: str, error: BaseException) -> None:
        """A background sync failed and will be retried."""
        if key in self.trials:
            self.trials[key].failures.note_sync(error)

    def _make(self, name: str, params: Mapping[str, Any] | None) -> TrialState:
        context, known = self._context, self._stored.get(name)
        if known is None:
            resumed = self._resume and not context.role.leads
            record = new_record(context.run, context.role, self._runner, name, params)
            return TrialState(context, record, resumed=resumed, ranks=self._ranks(name, resumed=resumed))
        record, version = known
        before = take_over_record(record, context.role, self._runner, params)
        if before.runner == self._predecessor.runner:
            before = replace(
                before, running=before.running and self._predecessor.running
            )  # a trial ends with its engine
        trial = TrialState(context, record, version, resumed=True, ranks=self._ranks(name, resumed=True))
        trial.predecessor_may_write = before.may_still_write()
        trial.keeper.replaced_runners = frozenset({before.runner, self._predecessor.runner} - {""})
        return trial

    def _ranks(self, name: str, *, resumed: bool) -> Ranks | None:
        return Ranks(self._context, name, resumed=resumed) if self._context.role.world_size > 1 else None


def _make_directory(local_dir: Path, trial: str, role: Role) -> bool:
    """Make and mark the trial's directory before it contains files, and return whether it is new. A driver that shares
    ``local_dir`` then does not take these files for its own, even if its running scan started before this trial
    existed."""
    directory, is_new = f"{local_dir}/{trial}", False
    with local_disk(f"the directory of trial {trial!r} was not made"):
        try:
            os.mkdir(directory)
            is_new = True
            os.mkdir(f"{directory}/{META_DIR}")
        except OSError:  # it exists, or its parent is missing
            os.makedirs(f"{directory}/{META_DIR}", exist_ok=True)
        if not role.leads:
            os.makedirs(local_dir / role.directory(trial), exist_ok=True)
    return is_new
