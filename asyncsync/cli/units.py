"""Sizes, durations and numbers for people. Sizes are in powers of 1024 everywhere."""

from __future__ import annotations

import time


def human_bytes(count: float) -> str:
    """A size for people: ``1536`` is ``1.5 KiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    power = 0
    while count >= 1024 and power < 4:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {'KMGT'[power - 1]}iB"


def human_seconds(seconds: float) -> str:
    """A duration for people: ``0.8 s``, ``42 s``, ``3 m``, ``5 h``, ``2 d``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def age(moment: float | None) -> str:
    """The age of a Unix time, for people; ``-`` if there is none."""
    return f"{human_seconds(time.time() - moment)} ago" if moment else "-"


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 file``, ``1,024 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
