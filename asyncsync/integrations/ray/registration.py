"""The checkpoints that Ray registers, and asyncsync's records of them.

Ray Train registers checkpoints in one file of the run, which its controller writes: just before, everything that the
file names is committed. Ray Tune's driver stores the state of all trials in a directory that it syncs: just after, the
records of the trials follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from asyncsync import CheckpointSummary, Storage, TrialSummary
from asyncsync.integrations.ray import sweeps
from asyncsync.integrations.ray.attempts import SEEN

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""The file in which Ray Train registers the checkpoints of a run."""
NAME = "checkpoint_dir_name"
"""Key of a checkpoint's name, wherever it occurs in that file."""
_registered: set[str] = set()
"""Checkpoints that this process has registered."""


async def write(storage: Storage, key: str, data: bytes) -> None:
    """Write one file. Before the file that registers checkpoints is written, they are committed."""
    experiment, _, name = key.rpartition("/")
    if name != SNAPSHOT:
        await storage.write(key, data)
        return
    document = json.loads(data)
    names = dict.fromkeys(names_in(document))
    for checkpoint in names:
        await commit(storage, f"{experiment}/{checkpoint}")
    await storage.write(key, data)
    _registered.update(f"{storage.uri}/{experiment}/{checkpoint}" for checkpoint in names)
    await _save_run(storage, experiment, document)
    await storage.clean_up()


async def commit(storage: Storage, key: str) -> None:
    """Commit a checkpoint of several ranks, unless it is complete already."""
    if f"{storage.uri}/{key}" in _registered:
        return
    if await storage.stat(key) is None:
        latest = SEEN.latest()
        if latest is not None:
            await storage.commit_checkpoint(key, *latest)


def names_in(document: Any) -> Iterator[str]:
    """The names of all checkpoints that the document names."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == NAME and isinstance(value, str):
                yield value
            else:
                yield from names_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from names_in(value)


async def is_registered(storage: Storage, experiment: str, key: str) -> bool:
    """Whether Ray Train has registered the checkpoint ``key`` of ``experiment``."""
    path = f"{experiment}/{SNAPSHOT}"
    if not await storage.is_file(path):
        return False
    return key[len(experiment) + 1 :] in set(names_in(json.loads(await storage.read(path))))


async def directory_pushed(storage: Storage, local: str, key: str) -> None:
    """A directory was synced; if it is that of Tune's driver, the records of its trials are written."""
    await sweeps.update(storage, local, key)
    await storage.clean_up()


async def delete(storage: Storage, key: str) -> None:
    """Delete a directory. If it is a checkpoint, no record names it when its first byte is deleted."""
    _registered.discard(f"{storage.uri}/{key}")
    await sweeps.retire(storage, key)
    await storage.delete_directory(key)


async def _save_run(storage: Storage, experiment: str, document: Any) -> None:
    """The record of a run of Ray Train: an experiment that is its own and only trial."""
    results = document.get("checkpoint_results", [])
    numbers = document.get("checkpoint_report_indices", range(len(results)))
    checkpoints = [
        CheckpointSummary(result[NAME], number, result.get("metrics") or {})
        for result, number in zip(results, numbers, strict=False)
    ]
    latest = document.get("latest_checkpoint_result") or {}
    name = experiment.rpartition("/")[2]
    trial = TrialSummary(
        name,
        metrics=latest.get("metrics") or {},
        reports=document.get("current_report_index", 0),
        checkpoints=checkpoints,
    )
    await storage.save_trial(experiment, trial, name)
    await storage.save_experiment(experiment, name, "running", {name: "running"})
