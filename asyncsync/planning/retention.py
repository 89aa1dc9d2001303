"""Which checkpoints are kept. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar


class Scored(Protocol):
    """The properties of a checkpoint that retention uses."""

    name: str
    number: int
    metrics: dict[str, Any]


class Listed(Scored, Protocol):
    """A checkpoint in its trial's record."""

    step: int | None
    pinned: bool
    tags: list[str]


S = TypeVar("S", bound=Scored)


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


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The values by the names that :func:`lookup` takes: those of inner mappings as ``a/b``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{before}{name}/")
        else:
            found[f"{before}{name}"] = value
    return found


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


def ranked(checkpoints: Sequence[S], attribute: str | None, order: str) -> list[S]:
    """Best first. Without an attribute, and among equals, the newest is best."""

    def key(item: S) -> tuple[bool, float, tuple[int, int]]:
        value = None if attribute is None else score(item.metrics, attribute, order)
        return (value is not None, value if value is not None else 0.0, by_age(item))

    return sorted(checkpoints, key=key, reverse=True)


def to_retire(
    checkpoints: Sequence[Listed],
    num_to_keep: int | None,
    attribute: str | None = None,
    order: str = "max",
    *,
    keep_every: int | None = None,
    keep_pinned: bool = True,
) -> list[str]:
    """Names of the checkpoints to retire: all but the best ``num_to_keep``, the latest, and those that are kept for
    another reason. The latter do not count."""
    if num_to_keep is None or len(checkpoints) <= num_to_keep:
        return []
    others = [item for item in checkpoints if not (_is_periodic(item, keep_every) or (keep_pinned and is_marked(item)))]
    keep = {item.name for item in ranked(others, attribute, order)[:num_to_keep]}
    keep.add(max(checkpoints, key=by_age).name)
    return [item.name for item in others if item.name not in keep]


def is_marked(item: Listed) -> bool:
    """Whether somebody pinned or tagged it."""
    return item.pinned or bool(item.tags)


def _is_periodic(item: Listed, keep_every: int | None) -> bool:
    """Whether the step, or the number of a checkpoint without one, is a multiple of ``keep_every``."""
    return keep_every is not None and (item.number if item.step is None else item.step) % keep_every == 0
