"""The actions of the page on the store: verify, pin and retire a checkpoint. Only if the server allows changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asyncsync import CheckpointView, TrialView, pin, remove, unpin
from asyncsync.errors import NotFoundError
from asyncsync.ui.live_experiment import LiveExperiment
from asyncsync.units import size_text


async def verify_checkpoint(_: LiveExperiment, item: CheckpointView) -> dict[str, Any]:
    """Read every byte of the checkpoint and compare it with the manifest."""
    report = await item.verify(deep=True)
    if report.ok:
        text = f"{item.name}: {report.files:,} files ({size_text(report.bytes)}) are as they were sent"
    else:
        problems = [f"{path}: {why}" for path, why in report.damaged.items()]
        problems += [f"{path}: missing" for path in report.missing]
        text = f"{item.name}: {len(problems):,} problems: {'; '.join(problems[:5])}"
    return {"ok": report.ok, "text": text}


async def retire_checkpoint(source: LiveExperiment, item: CheckpointView) -> dict[str, Any]:
    """Take it out of its trial's record, then delete it. ConcurrentWriterError if the trial runs, ConfigError if it is
    kept."""
    report = await remove(item.uri, dry_run=False, storage_options=source.storage_options, transfer=source.transfer)
    return {"ok": True, "text": f"{item.name} was removed: {report.objects:,} objects, {size_text(report.bytes)}"}


async def pin_checkpoint(source: LiveExperiment, item: CheckpointView) -> dict[str, Any]:
    """Keep it whatever retention says, also while its trial runs."""
    await pin(item.uri, storage_options=source.storage_options, transfer=source.transfer)
    return {"ok": True, "text": f"{item.name} is pinned: retention leaves it alone"}


async def unpin_checkpoint(source: LiveExperiment, item: CheckpointView) -> dict[str, Any]:
    """Leave it to retention again."""
    await unpin(item.uri, storage_options=source.storage_options, transfer=source.transfer)
    return {"ok": True, "text": f"{item.name} is left to retention again"}


def found_checkpoint(trial: TrialView, name: str) -> CheckpointView:
    """The checkpoint of the trial; NotFoundError if its record does not list it now."""
    for item in trial.checkpoints:
        if item.name == name:
            return item
    raise NotFoundError(f"{trial.uri} has no checkpoint {name!r} any more")


ACTIONS: Mapping[str, Callable[[LiveExperiment, CheckpointView], Awaitable[dict[str, Any]]]] = {
    "verify": verify_checkpoint,
    "pin": pin_checkpoint,
    "unpin": unpin_checkpoint,
    "retire": retire_checkpoint,
}
"""By the name in the address."""
