"""A stored experiment or trial in a notebook: a table and a small curve. Pure: every text is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROWS_SHOWN = 30
CELL_CHARACTERS = 60
COUNTERS = frozenset({"training_iteration", "timestamp", "iteration", "epoch", "step", "global_step"})
"""Values of a report that count or date it, and measure nothing."""
WIDTH, HEIGHT = 120, 28
POINTS_SHOWN = 240

Point = tuple[float, float]


def first_metric(metrics: Mapping[str, Any]) -> str | None:
    """The first metric that is a number and no counter."""
    names = (name for name, value in metrics.items() if as_number(value) is not None)
    return next((name for name in names if name not in COUNTERS), None)


def as_number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def curve_svg(points: Sequence[Point], title: str) -> str:
    """A curve of ``points`` (x, y) as an inline SVG in the color of the text; empty for fewer than two points."""
    if len(points) < 2:
        return ""
    points = [*points[:: math.ceil(len(points) / POINTS_SHOWN)], points[-1]]
    across = _to_scale([x for x, _ in points], WIDTH - 4)
    up = _to_scale([y for _, y in points], HEIGHT - 4)
    place = " ".join(f"{x + 2:.1f},{HEIGHT - 2 - y:.1f}" for x, y in zip(across, up, strict=True))
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>'
        f'{html.escape(title)}</title><polyline points="{place}" fill="none" stroke="currentColor" '
        'stroke-width="1.5" stroke-linejoin="round"/></svg>'
    )


def _to_scale(values: Sequence[float], length: int) -> list[float]:
    """The values as places between 0 and ``length``; all in the middle if they are equal."""
    low, high = min(values) / 2, max(values) / 2  # halves: the span of two large numbers may overflow
    return [length * (0.5 if high == low else (value / 2 - low) / (high - low)) for value in values]


def table_html(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], more: int = 0) -> str:
    """A table. ``rows``: cells as HTML, see :func:`cell`. ``more``: number of rows that are not in it."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{item}</td>' for item in row)}</tr>" for row in rows)
    rest = f"<tr><td colspan={len(columns)}>and {more:,} more</td></tr>" if more > 0 else ""
    return (
        f'<table><caption style="text-align:left">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}{rest}</tbody></table>"
    )


def cell(value: Any) -> str:
    """A value as escaped text, cut after CELL_CHARACTERS."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 3]}...")


def pairs(values: Mapping[str, Any], limit: int = 4) -> str:
    """The first values as ``name=value``, escaped."""
    shown = [f"{cell(name)}={cell(value)}" for name, value in list(values.items())[:limit]]
    return ", ".join(shown) + (", ..." if len(values) > limit else "")
