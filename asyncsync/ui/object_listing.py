"""Where the bytes are: every object of an experiment, beside what its records name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncsync import Experiment, StoredObject
from asyncsync.ui.page_data import value

MOST_ROWS = 200
CHECKPOINT_PREFIX = "checkpoint_"
"""Begin of the name of a checkpoint, unless the report named it."""


@dataclass(slots=True)
class _Row:
    name: str
    bytes: int = 0
    checkpoints: int = 0
    other: int = 0
    unlisted: int = 0


def listing_document(experiment: Experiment, objects: Sequence[StoredObject]) -> dict[str, Any]:
    """A row for each trial, and one for the experiment's own files, the largest first."""
    listed = {f"{trial.name}/{item.name}" for trial in experiment.trials for item in trial.checkpoints}
    trials = {trial.name for trial in experiment.trials}
    rows: dict[str, _Row] = {}
    for item in objects:
        steps = item.path.split("/")
        name = steps[0] if len(steps) > 1 and steps[0] in trials else ""
        row = rows.setdefault(name, _Row(name or "(the experiment's own files)"))
        row.bytes += item.size
        if f"{name}/{steps[min(1, len(steps) - 1)]}" in listed:
            row.checkpoints += item.size
        elif name and len(steps) > 2 and steps[1].startswith(CHECKPOINT_PREFIX):
            row.unlisted += item.size
        else:
            row.other += item.size
    ordered = sorted(rows.values(), key=lambda row: -row.bytes)
    return {
        "objects": len(objects),
        "bytes": sum(row.bytes for row in ordered),
        "rows": [
            {
                "name": value(row.name),
                "bytes": row.bytes,
                "checkpoints": row.checkpoints,
                "other": row.other,
                "unlisted": row.unlisted,
            }
            for row in ordered[:MOST_ROWS]
        ],
    }
