"""When the heartbeat of a running experiment is overdue, so that readers count it as lost."""

from __future__ import annotations

LOST_AFTER_PERIODS = 3
"""Periods without a heartbeat: one or two writes may fail, and the clocks of two machines may differ by a minute."""


def is_overdue(last: float, period: float, now: float) -> bool:
    """Whether the heartbeat that was written at ``last`` (Unix seconds) should have been followed by another one.
    ``period``: longest time between two, seconds; 0: none are promised."""
    return period > 0 and now - last > LOST_AFTER_PERIODS * period
