"""Which checkpoints are kept. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Scored(Protocol):
    """The properties of a checkpoint that retention uses."""

    name: str
    number: int
    metrics: dict[str, Any]


def by_age(item: Scored) -> tuple[int, int]:
    """Sort key of checkpoints of one trial, the newest last: by number, never by a clock. Of two with one number, the
    one with the longer name is older: its process was replaced."""
    return item.number, -len(item.name)


def lookup(metrics: Mapping[str, Any], attribute: str) -> object:
    """A metric by its flat name, or nested as ``a/b``; None if there is none."""
    if attribute in metrics:
        return metrics[attribute]
    value: object = metrics
    for step in attribute.split("/"):
        if not isinstance(value, Mapping) or step not in value:
            return None
        value = value[step]
    return value


def score(metrics: Mapping[str, Any], attribute: str, order: str) -> float | None:
    """The score; larger is better for both orders. None for a missing or non-numeric value and for NaN: these rank
    worst."""
    value = lookup(metrics, attribute)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    if math.isnan(number):
        return None
    return number if order == "max" else -number


def ranked(checkpoints: Sequence[Scored], attribute: str | None, order: str) -> list[Scored]:
    """Best first. Without an attribute, and among equals, the newest is best."""

    def key(item: Scored) -> tuple[bool, float, tuple[int, int]]:
        value = None if attribute is None else score(item.metrics, attribute, order)
        return (value is not None, value if value is not None else 0.0, by_age(item))

    return sorted(checkpoints, key=key, reverse=True)


def to_retire(
    checkpoints: Sequence[Scored], num_to_keep: int | None, attribute: str | None = None, order: str = "max"
) -> list[str]:
    """Names of the checkpoints to retire: all but the best ``num_to_keep`` and the latest."""
    if num_to_keep is None or len(checkpoints) <= num_to_keep:
        return []
    keep = {item.name for item in ranked(checkpoints, attribute, order)[:num_to_keep]}
    keep.add(max(checkpoints, key=by_age).name)
    return [item.name for item in checkpoints if item.name not in keep]
