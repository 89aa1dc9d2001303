"""The reports of a trial as curves. Pure. Long curves are thinned: each stretch keeps its lowest and highest value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from asyncsync import TrialView
from asyncsync.planning.retention import flatten
from asyncsync.ui.page_data import HIDDEN_METRICS, value

MOST_POINTS = 1000
"""Of one curve."""
MOST_CURVES = 100
"""Of one trial."""
STEP, TIME, CHECKPOINT = "training_iteration", "timestamp", "checkpoint_dir_name"

Curve = dict[str, list[float]]


def curves_document(trial: TrialView, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``curves``: metric -> x (step) and y; ``not_finite``: metric -> number of NaN and infinite values; ``durable``:
    the checkpoints with the time of their report, and when they became durable."""
    points: dict[str, list[tuple[float, float]]] = {}
    not_finite: dict[str, int] = {}
    for place, row in enumerate(rows, start=1):
        step = _number(row.get(STEP))
        for name, raw in flatten(row).items():
            if name in HIDDEN_METRICS or (number := _number(raw)) is None:
                continue
            if math.isfinite(number):
                points.setdefault(name, []).append((place if step is None else step, number))
            else:
                not_finite[name] = not_finite.get(name, 0) + 1
    names = [*points][:MOST_CURVES]
    return {
        "curves": {value(name): as_curve(thinned(points[name])) for name in names},
        "not_finite": {value(name): count for name, count in not_finite.items()},
        "left_out": max(0, len(points) - MOST_CURVES),
        "rows": len(rows),
        "durable": durable_times(trial, rows),
    }


def durable_times(trial: TrialView, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each listed checkpoint with Unix times: ``reported`` (whole seconds, rounded down), ``durable``."""
    listed = {item.name: item for item in trial.checkpoints}
    found = []
    for row in rows:
        item, reported = listed.get(str(row.get(CHECKPOINT))), _number(row.get(TIME))
        if item is not None and reported is not None and math.isfinite(reported):
            found.append({"name": value(item.name), "reported": reported, "durable": max(reported, item.time)})
    return found


def _number(raw: Any) -> float | None:
    """A number as a float, also NaN and infinity; None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        return float(raw)
    except OverflowError:
        return math.inf


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: the first, the last, and the lowest and highest of each stretch, in their order."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    length = math.ceil((len(points) - 2) / stretches)
    found = [points[0]]
    for start in range(1, len(points) - 1, length):
        places = range(start, min(start + length, len(points) - 1))
        low, high = (pick(places, key=lambda place: points[place][1]) for pick in (min, max))
        found += [points[place] for place in sorted({low, high})]
    return [*found, points[-1]]


def as_curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Points column by column."""
    return {"x": [x for x, _ in points], "y": [y for _, y in points]}
