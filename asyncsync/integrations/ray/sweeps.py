"""The trials of Ray Tune, as records of asyncsync. They are derived from the files that Tune's driver writes for people
and tools: ``result.json``, ``params.json``, ``error.txt`` and the state of the experiment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncsync import Storage, TrialSummary  # only the driver imports them

NAME = "checkpoint_dir_name"
"""Key of a result: the checkpoint that was reported with it."""
STATUS = {"TERMINATED": "finished", "ERROR": "failed", "RUNNING": "running", "PENDING": "pending", "PAUSED": "paused"}
"""Tune's words for the state of a trial, and asyncsync's."""
MOST_ERROR = 2000
"""Characters of an error in a record."""


@dataclass(slots=True)
class _Results:
    """The content of ``result.json`` of one trial, up to ``offset``."""

    offset: int = 0
    reports: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> metrics, in the order of the reports."""

    def read(self, path: Path) -> None:
        """Read the appended lines; an incomplete last line is read the next time."""
        if not path.exists():
            return
        if path.stat().st_size < self.offset:  # written anew, by a restored experiment
            self.offset, self.reports = 0, 0
            self.checkpoints.clear()
        with path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                self._add(json.loads(line))

    def _add(self, result: dict[str, Any]) -> None:
        self.reports += 1
        self.last = result
        name = result.get(NAME)
        if name:
            self.checkpoints.pop(name, None)
            self.checkpoints[name] = result


@dataclass(slots=True)
class _Sweep:
    """One experiment whose driver this process is."""

    results: dict[str, _Results] = field(default_factory=dict)
    trials: dict[str, TrialSummary] = field(default_factory=dict)
    retired: dict[str, set[str]] = field(default_factory=dict)
    """Trial -> names of checkpoints that were deleted."""


_sweeps: dict[tuple[str, str], _Sweep] = {}
"""By URI of the storage and key of the experiment."""


async def update(storage: Storage, local: str, key: str) -> None:
    """Write the records of the experiment ``key``, whose driver's files are in ``local``; nothing if there is no state
    of an experiment."""
    state = newest_state(local)
    if state is None:
        return
    sweep = _sweeps.setdefault((storage.uri, key), _Sweep())
    statuses = dict(statuses_in(state))
    for directory in sorted(item for item in Path(local).iterdir() if (item / "params.json").exists()):
        trial = _summary(sweep, directory, statuses.get(directory.name, "running"))
        sweep.trials[directory.name] = trial
        await storage.save_trial(f"{key}/{directory.name}", trial, key)
    states = statuses | {name: trial.status for name, trial in sweep.trials.items()}
    over = all(status in ("finished", "failed") for status in states.values())
    await storage.save_experiment(key, key.rpartition("/")[2], "finished" if states and over else "running", states)


def is_driver(uri: str, key: str) -> bool:
    """Whether this process is the driver of the experiment that the checkpoint ``key`` belongs to."""
    return (uri, key.rpartition("/")[0].rpartition("/")[0]) in _sweeps


async def retire(storage: Storage, key: str) -> None:
    """The driver is about to delete the directory ``key``: if a record names it, the record is written without it."""
    above, _, name = key.rpartition("/")
    experiment, _, trial = above.rpartition("/")
    sweep = _sweeps.get((storage.uri, experiment))
    if sweep is None:
        return
    sweep.retired.setdefault(trial, set()).add(name)
    known = sweep.trials.get(trial)
    if known is not None and any(item.name == name for item in known.checkpoints):
        kept = replace(known, checkpoints=[item for item in known.checkpoints if item.name != name])
        sweep.trials[trial] = kept
        await storage.save_trial(above, kept, experiment)


def newest_state(local: str) -> dict[str, Any] | None:
    """The newest state of an experiment in this directory; None if there is none that can be read."""
    names = sorted(
        name for name in os.listdir(local) if name.startswith("experiment_state-") and name.endswith(".json")
    )
    if not names:
        return None
    try:
        state = json.loads((Path(local) / names[-1]).read_bytes())
    except ValueError:  # the driver is writing it
        return None
    return state if isinstance(state, dict) else None


def statuses_in(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Directory and status of each trial."""
    for item in state.get("trial_data", ()):
        trial = item[0] if isinstance(item, list) else item
        trial = json.loads(trial) if isinstance(trial, str) else trial
        if isinstance(trial, dict):
            name = trial.get("relative_logdir") or (trial.get("storage") or {}).get("trial_dir_name")
            if isinstance(name, str):
                yield name, STATUS.get(str(trial.get("status")), str(trial.get("status")).lower())


def _summary(sweep: _Sweep, directory: Path, status: str) -> TrialSummary:
    from asyncsync import CheckpointSummary, TrialSummary

    results = sweep.results.setdefault(directory.name, _Results())
    results.read(directory / "result.json")
    retired = sweep.retired.get(directory.name, set())
    checkpoints = [
        CheckpointSummary(name, number_of(name, place), metrics)
        for place, (name, metrics) in enumerate(results.checkpoints.items())
        if name not in retired
    ]
    error = directory / "error.txt"
    return TrialSummary(
        directory.name,
        status,
        json.loads((directory / "params.json").read_bytes()),
        results.last,
        results.reports,
        checkpoints,
        error.read_text(errors="replace")[-MOST_ERROR:] if error.exists() else None,
    )


def number_of(name: str, place: int) -> int:
    """The number in the name of a checkpoint; ``place`` if it has none."""
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else place
