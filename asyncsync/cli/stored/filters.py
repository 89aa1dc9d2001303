"""``--sort``, ``--order``, ``--limit`` and ``--where``: choose and order trials and checkpoints."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from asyncsync import CheckpointView, ExperimentSummary, TrialView
from asyncsync.cli.config_files import suggestion
from asyncsync.errors import ConfigError
from asyncsync.planning.retention import flatten, lookup

View = TypeVar("View", bound=CheckpointView | ExperimentSummary | TrialView)
Function = TypeVar("Function", bound=Callable[..., Any])

FIELDS = (
    "name",
    "status",
    "reports",
    "started",
    "updated",
    "error",
    "step",
    "number",
    "files",
    "bytes",
    "time",
    "trial",
    "pinned",
    "tags",
)
"""Names that mean a field of a trial, a checkpoint or an experiment; every other name is a metric, and ``params.X`` a
parameter."""
_CONDITION = re.compile(r"(?P<name>[^<>=!~]+?)\s*(?P<test><=|>=|!=|==|=|<|>|~)\s*(?P<value>.*)", re.DOTALL)
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def choice_options(function: Function) -> Function:
    """Add ``--sort``, ``--order``, ``--limit`` and ``--where``."""
    where = "Keep rows for which it holds: status=failed, loss<0.3, params.lr>=0.01, name~part. Repeatable."
    for decorate in (
        click.option("--where", multiple=True, metavar="CONDITION", help=where),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show the first N rows only."),
        click.option(
            "--order",
            type=click.Choice(["min", "max"]),
            help="Smallest or largest first.  [default: min; metrics: max]",
        ),
        click.option("--sort", metavar="NAME", help="Sort by a metric, params.NAME, or a field such as updated."),
    ):
        function = decorate(function)
    return function


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows to show. ConfigError if a condition cannot be read."""

    sort: str | None = None
    order: str | None = None
    limit: int | None = None
    where: Sequence[str] = ()

    def __post_init__(self) -> None:
        for condition in self.where:
            _parse(condition)

    def of(self, items: Sequence[View]) -> list[View]:
        """The chosen ones, in order. Rows without the value that ``sort`` names come last."""
        tests = [_parse(condition) for condition in self.where]
        chosen = [item for item in items if all(_holds(value_of(item, *test[:1]), *test[1:]) for test in tests)]
        if self.sort is not None:
            chosen = self._sorted(chosen)
        return chosen[: self.limit]

    def notes(self, items: Sequence[View]) -> list[str]:
        """The names in conditions that no row has: perhaps misspelt, perhaps a metric that is reported later."""
        names = dict.fromkeys(name for name, *_ in map(_parse, self.where) if name not in FIELDS)
        missing = [name for name in names if items and not any(_is_there(value_of(item, name)) for item in items)]
        return [f"--where {name}: no row has it{_close(name, items)}; {_known(items)}" for name in missing]

    def _sorted(self, items: list[View]) -> list[View]:
        name = str(self.sort)
        values = [(value_of(item, name), item) for item in items]
        there = [(value, item) for value, item in values if _is_there(value)]
        if items and not there:
            raise ConfigError(f"invalid --sort {name}: no row has it{_close(name, items)}; {_known(items)}")
        numbers = all(isinstance(value, int | float) for value, _ in there)
        order = self.order or ("min" if name in FIELDS or name.startswith("params.") else "max")
        key: Callable[[tuple[Any, View]], Any] = lambda pair: pair[0] if numbers else str(pair[0])  # noqa: E731
        ordered = sorted(there, key=key, reverse=order == "max")
        return [item for _, item in ordered] + [item for value, item in values if not _is_there(value)]


def value_of(item: CheckpointView | ExperimentSummary | TrialView, name: str) -> Any:
    """The value that a name means for a row, None if there is none: a field, a parameter or a metric."""
    if name == "status" and getattr(item, "lost", False):
        return "lost"
    if name in FIELDS and hasattr(item, name):
        value = getattr(item, name)
        return " ".join(value) if isinstance(value, list) else value
    if name.startswith("params."):
        return lookup(getattr(item, "params", {}), name.removeprefix("params."))
    return lookup(getattr(item, "metrics", {}), name.removeprefix("metrics."))


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _parse(condition: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(condition.strip())
    if match is None:
        raise ConfigError(
            f"invalid --where {condition!r}: must be NAME=VALUE, or with != < > <= >= or ~ (contains) instead of =, "
            "such as status=failed or loss<0.3"
        )
    return match["name"].strip(), match["test"], match["value"].strip()


def _holds(value: Any, test: str, expected: str) -> bool:
    if test == "~":
        return value is not None and expected in str(value)
    if value is None:
        return test == "!="
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return _TESTS[test](float(value), float(expected))
        except ValueError:
            return test == "!="
    return _TESTS[test](str(value).lower(), expected.lower())


def _names(items: Sequence[CheckpointView | ExperimentSummary | TrialView]) -> set[str]:
    """Metrics and parameters, as they are written in a condition."""
    names: set[str] = set()
    for item in items:
        names |= set(flatten(getattr(item, "metrics", {})))
        names |= {f"params.{name}" for name in getattr(item, "params", {})}
    return names


def _close(name: str, items: Sequence[CheckpointView | ExperimentSummary | TrialView]) -> str:
    """``, did you mean 'x'?`` for a misspelled name, also for a parameter without its ``params.``."""
    known = {*_names(items), *FIELDS}
    return f", did you mean 'params.{name}'?" if f"params.{name}" in known else suggestion(name, known)


def _known(items: Sequence[CheckpointView | ExperimentSummary | TrialView]) -> str:
    names = _names(items)
    return f"there are {', '.join(sorted(names)[:20]) or 'no metrics'}, and the fields {', '.join(FIELDS)}"
