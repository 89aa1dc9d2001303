"""Retiring and pinning a checkpoint that the trial's record lists."""

from __future__ import annotations

from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.state import TrialState
from asyncsync.errors import CheckpointRetiredError, ConfigError, SyncError
from asyncsync.events import CheckpointRetired
from asyncsync.planning.retention import by_age
from asyncsync.runtime import wall_time
from asyncsync.sync.records.model import CheckpointRecord

SAVE_ATTEMPTS = 4
"""Saves of a record that may come together with another change of the same checkpoint."""


async def retire(context: EngineContext, trial: TrialState, name: str) -> None:
    """Store the record without the checkpoint; then its data is deleted. See :meth:`asyncsync.Trial.retire`."""
    await _prepare(trial, f"retire({name!r})")
    item = _listed(trial, name, "retire")
    _check_unmarked(item)
    if trial.ranks is not None and item is max(trial.record.checkpoints, key=by_age):
        raise ConfigError(
            f"invalid retire({name!r}): it is the newest checkpoint of a trial with several ranks, and a rank that "
            "returns finds the next number by it; retire it after the next checkpoint"
        )
    for _ in range(SAVE_ATTEMPTS):
        await _save_without(trial, name)
        if name not in {other.name for other in trial.record.checkpoints}:
            break
        _check_unmarked(item)  # another process may have marked it meanwhile
    else:
        raise SyncError(f"{trial.uri}/{name} was not retired: its record kept changing; call retire again")
    newest = max(trial.durable_checkpoints(), key=by_age, default=None)
    trial.last_durable = None if newest is None else newest.number
    trial.last_durable_time = None if newest is None else newest.time
    context.unsettled[trial.key] = None
    context.session.copy_sources.forget(f"{trial.key}/{name}/")
    context.emit(CheckpointRetired(tree=trial.key, trial=trial.key, checkpoint=name))
    if context.run.checkpoint_config.latest_file is not None:
        await trial.write_latest()
        await context.scheduler.ask(trial.key, force=True)


def _check_unmarked(item: CheckpointRecord) -> None:
    if item.pinned:
        raise ConfigError(f"invalid retire({item.name!r}): the checkpoint is pinned; call unpin({item.name!r}) first")
    if item.tags:
        text = f"the checkpoint is tagged {', '.join(item.tags)}; call asyncsync.tag(..., remove=True) first"
        raise ConfigError(f"invalid retire({item.name!r}): {text}")


async def _save_without(trial: TrialState, name: str) -> None:
    trial.keeper.retiring |= {name}
    try:
        await trial.keeper.save()
    finally:
        trial.keeper.retiring -= {name}


async def set_pinned(trial: TrialState, name: str, *, pinned: bool) -> None:
    """Store in the record whether retention leaves the checkpoint alone. See :meth:`asyncsync.Trial.pin`."""
    verb = "pin" if pinned else "unpin"
    await _prepare(trial, f"{verb}({name!r})")
    item = _listed(trial, name, verb)
    if name in trial.keeper.retiring:
        raise CheckpointRetiredError(f"{trial.uri}/{name} cannot be {verb}ned: it is being retired")
    for _ in range(SAVE_ATTEMPTS):
        item.pinned, trial.record.updated = pinned, wall_time()
        try:
            await trial.keeper.save()
        except BaseException:
            trial.touch()  # a later sync stores it
            raise
        if item.pinned == pinned:
            break  # else the save took over what another process had marked before
    if item not in trial.record.checkpoints:
        raise CheckpointRetiredError(f"{trial.uri}/{name} cannot be {verb}ned: it was retired meanwhile")


async def _prepare(trial: TrialState, call: str) -> None:
    if trial.ranks is not None and not trial.ranks.leads:
        raise ConfigError(f"invalid {call}: only rank 0 keeps the trial's record; call it there")
    await trial.prepare()
    await trial.take_ownership()


def _listed(trial: TrialState, name: str, verb: str) -> CheckpointRecord:
    found = next((item for item in trial.record.checkpoints if item.name == name), None)
    if found is not None and not any(job.name == name for job in trial.jobs):
        return found
    if any(job.name == name for job in trial.jobs):
        raise ConfigError(f"invalid {verb}({name!r}): the checkpoint is not durable yet; wait for its durable()")
    known = ", ".join(item.name for item in trial.record.checkpoints[-10:]) or "none"
    raise ConfigError(f"invalid {verb}({name!r}): trial {trial.name!r} has no such checkpoint; it has {known}")
