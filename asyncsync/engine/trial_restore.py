"""Restoring a trial's newest checkpoint while its engine runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.resume import adopt_checkpoints, belongs_to_run
from asyncsync.engine.trials.state import TrialState
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.stores.base import Lane
from asyncsync.sync.records.manifests import find_record
from asyncsync.sync.records.model import TrialRecord

if TYPE_CHECKING:  # imported when they are used: most programs restore nothing
    from asyncsync.remote.restore import Candidates, RestoreReport
    from asyncsync.remote.views.checkpoint_view import CheckpointView


def latest(context: EngineContext, trial: TrialState) -> CheckpointView | None:
    """The newest durable checkpoint of the record in memory."""
    return next(iter(_newest_first(context, trial, _known(trial))), None)


async def restore_latest(
    context: EngineContext,
    trial: TrialState,
    target: str | os.PathLike[str],
    include: str | Sequence[str] | None,
) -> RestoreReport[CheckpointView]:
    """See :meth:`asyncsync.Trial.restore`."""
    from asyncsync.remote.restore import Candidates
    from asyncsync.remote.views.experiment import restore_checkpoint

    if trial.ranks is None or trial.ranks.leads:
        await trial.prepare()

    async def candidates() -> Candidates[CheckpointView]:
        return Candidates(_newest_first(context, trial, await _record(context, trial)))

    return await restore_checkpoint(await candidates(), candidates, target, trial.uri, include)


async def _record(context: EngineContext, trial: TrialState) -> TrialRecord:
    """The trial's record. Every rank adopts what a resume adopts, so that all restore the same checkpoint."""
    if trial.ranks is None or trial.ranks.leads:
        return _known(trial)
    store = context.session.view(Lane.RECORD, trial.key)
    record = await find_record(store, f"{trial.key}/{TRIAL_RECORD}", TrialRecord)
    found = deepcopy(record) if record is not None else TrialRecord(trial.name)
    ours = partial(belongs_to_run, experiment=context.record.nonce, trial=None if record is None else record.nonce)
    await adopt_checkpoints(store, found, ours, partial(context.warn, trial.key))
    return found


def _known(trial: TrialState) -> TrialRecord:
    return replace(trial.record, checkpoints=trial.durable_checkpoints())


def _newest_first(context: EngineContext, trial: TrialState, record: TrialRecord) -> list[CheckpointView]:
    from asyncsync.remote.access import StoreAccess
    from asyncsync.remote.views.trial_view import view_of

    access = StoreAccess(dict(context.run.storage_options), context.run.transfer)
    return view_of(trial.name, trial.uri, record, access).checkpoints[::-1]
