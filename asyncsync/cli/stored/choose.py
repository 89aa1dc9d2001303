"""``best``, ``compare`` and ``history``: choose a checkpoint, and see why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from asyncsync import CheckpointView, Experiment, TrialView
from asyncsync import contents as contents_of
from asyncsync.cli.app import DONE, command
from asyncsync.cli.ls import short_metrics, shown_status, shown_value
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, age, jsonable
from asyncsync.errors import ConfigError, NotFoundError
from asyncsync.planning.retention import flatten
from asyncsync.units import counted, size_text

BEST = """Show the best checkpoint of an experiment by a metric, and fetch it with --pull.

Why: NaN and missing values are never best, and a fetched checkpoint is verified byte by byte. A nested metric is
written eval/loss.

\b
Examples:
  asyncsync best s3://bucket/experiments/sweep accuracy
  asyncsync best s3://bucket/experiments/sweep loss --order min --pull model

Exit codes: 0 done, 1 there is no such checkpoint or it cannot be read, 2 usage.
"""

COMPARE = """Compare two trials or two checkpoints: parameters, metrics and files that differ.

Why: it shows why two runs had different results. Equal values are left out; --all shows them too.

\b
Examples:
  asyncsync compare s3://bucket/sweep/trial_00003 s3://bucket/sweep/trial_00007
  asyncsync compare s3://bucket/sweep/t/checkpoint_000001 s3://bucket/sweep/t/checkpoint_000002 --all

Exit codes: 0 done, 1 one of them cannot be read, 2 usage.
"""

HISTORY = """Show the reports of a trial, one row each.

Why: the learning curve as numbers, from the trial's result.json as the store has it.

\b
Examples:
  asyncsync history s3://bucket/experiments/sweep/trial_00003
  asyncsync history s3://bucket/experiments/sweep/trial_00003 --metric loss --last 20

Exit codes: 0 done, 1 there is no such trial or it cannot be read, 2 usage.
"""

COLUMNS_SHOWN = 8


@command(help=BEST)
@click.argument("url")
@click.argument("metric")
@click.option("--order", type=click.Choice(["max", "min"]), default="max", show_default=True, help="Which is better.")
@click.option("--trial", metavar="NAME", help="Only checkpoints of this trial.")
@click.option("--pull", "local", type=click.Path(path_type=Path), metavar="DIR", help="Fetch it into DIR.")
async def best(
    output: Output,
    settings: Settings,
    *,
    url: str,
    metric: str,
    order: Literal["max", "min"],
    trial: str | None,
    local: Path | None,
) -> int:
    """See BEST."""
    uri = resolve_url(url)
    experiment = await Experiment.open(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    found = experiment.best_checkpoint(metric, order, trial)
    if found is None:
        raise NotFoundError(f"{uri} has no checkpoint yet; asyncsync ls {uri} shows its trials")
    if local is not None:
        with output.meter("fetching") as meter:
            output.at_interrupt = lambda: f"{local} is not complete: fetched {meter.text()}. Run the same command again"
            await found.download(local, on_progress=meter.update)
    output.line(f"{found.uri}")
    output.line(
        f"{short_metrics(found.metrics)}; {counted(found.files, 'file')}, {size_text(found.bytes)}, {age(found.time)}"
    )
    if local is not None:
        output.line(f"fetched into {local}, every byte verified")
    output.document({"ok": True, "uri": found.uri, "checkpoint": _as_json(found), "local": local and str(local)})
    return DONE


def _as_json(item: CheckpointView) -> dict[str, Any]:
    names = ("name", "trial", "uri", "metrics", "metadata", "files", "bytes", "time")
    return {name: jsonable(getattr(item, name)) for name in names}


@command(help=COMPARE)
@click.argument("first")
@click.argument("second")
@click.option("--all", "everything", is_flag=True, help="Also show what is equal.")
async def compare(output: Output, settings: Settings, *, first: str, second: str, everything: bool) -> int:
    """See COMPARE."""
    here, there = resolve_url(first), resolve_url(second)
    left = await _facts(here, settings.storage_options, settings)
    right = await _facts(there, settings.second_options, settings)
    names = [*left, *(name for name in right if name not in left)]
    rows = [
        (name, _cell(left.get(name)), _cell(right.get(name))) for name in names if left.get(name) != right.get(name)
    ]
    equal = [(name, _cell(left[name]), "=") for name in names if name in right and left.get(name) == right[name]]
    output.table(("", "A", "B"), [*rows, *(equal if everything else [])])
    output.line(f"{counted(len(rows), 'difference')}, {len(equal):,} equal; A is {here}, B is {there}")
    differ = {row[0]: [jsonable(left.get(row[0])), jsonable(right.get(row[0]))] for row in rows}
    output.document({"ok": True, "a": here, "b": there, "different": differ, "equal": [row[0] for row in equal]})
    return DONE


async def _facts(uri: str, options: Mapping[str, object], settings: Settings) -> dict[str, Any]:
    """The values to compare, by name: parameters, metrics, and the files of a checkpoint with their checksums."""
    found = await contents_of(uri, storage_options=options, transfer=settings.transfer)
    if isinstance(found, TrialView):
        facts = {"status": shown_status(found), "reports": found.reports, "checkpoints": len(found.checkpoints)}
        return {**facts, **_prefixed("params", found.params), **_prefixed("metrics", found.metrics)}
    if isinstance(found, Experiment | list):
        raise ConfigError(
            f"invalid URL {uri!r}: compare takes two trials or two checkpoints; asyncsync ls {uri} shows them"
        )
    files = {path: f"{size_text(item.size)} crc32c {item.crc32c:08x}" for path, item in sorted(found.files.items())}
    return {**_prefixed("metrics", found.info.get("metrics", {})), "bytes": found.bytes_total, **files}


def _prefixed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in flatten(values).items()}


def _cell(value: Any) -> str:
    return "-" if value is None else shown_value(value)


@command(help=HISTORY)
@click.argument("url")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show this metric only. Repeatable.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Show the last N reports only.")
async def history(output: Output, settings: Settings, *, url: str, metrics: tuple[str, ...], last: int | None) -> int:
    """See HISTORY."""
    uri = resolve_url(url)
    found = await contents_of(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    if not isinstance(found, TrialView):
        raise ConfigError(f"invalid URL {uri!r}: it is not a trial; asyncsync ls {uri} shows what it holds")
    reports = await found.history()
    rows = [flatten(report) for report in reports][-(last or len(reports) or 1) :]
    known = list(dict.fromkeys(name for row in rows for name in row))
    if missing := [name for name in metrics if name not in known]:
        raise ConfigError(f"invalid --metric {missing[0]}: the reports have {', '.join(known) or 'no metrics'}")
    columns = list(metrics) or known[:COLUMNS_SHOWN]
    output.table(columns, [[_cell(row.get(name)) for name in columns] for row in rows])
    hidden = (
        f"; {len(known) - len(columns)} more columns, see --metric" if not metrics and len(known) > len(columns) else ""
    )
    output.line(f"{counted(len(reports), 'report')} of {found.name}{hidden}")
    output.document({"ok": True, "uri": uri, "name": found.name, "reports": reports[-(last or len(reports) or 1) :]})
    return DONE
