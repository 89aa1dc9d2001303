"""``ls``: list the experiments, the trials, the checkpoints or the files at a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from asyncsync import CheckpointView, Experiment, ExperimentSummary, StoredObject, TrialView, browse
from asyncsync import contents as contents_of
from asyncsync.cli.app import DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, age, jsonable
from asyncsync.cli.stored.filters import Choice, View, choice_options
from asyncsync.errors import NotFoundError
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.retention import flatten
from asyncsync.units import counted, size_text

METRICS_SHOWN = 4
"""Metrics in a row of a table."""

LS = """List the contents of a URL as a table.

\b
A storage path   lists its experiments
An experiment    lists its trials: status, last metrics, checkpoints
A trial          lists its checkpoints
A pushed tree    lists the files of its manifest
Any other URL    lists its directories and files

Why: it reads only records and manifests, so everything it shows is durable. --sort and --where take fields, metrics and
params.NAME. If stdout is not a terminal, tabs separate the columns.

\b
Examples:
  asyncsync ls s3://bucket/experiments
  asyncsync ls s3://bucket/experiments/sweep --checkpoints
  asyncsync ls s3://bucket/experiments/sweep --sort loss --order min --limit 10
  asyncsync ls s3://bucket/experiments/sweep --where status=failed --where 'params.lr<0.1'
  asyncsync ls s3://bucket/experiments/sweep/trial_00003
  asyncsync ls s3://bucket/results --json

Exit codes: 0 done, 1 there is nothing or it cannot be read, 2 usage.
"""


@command(help=LS)
@click.argument("url")
@click.option("--checkpoints", is_flag=True, help="For an experiment: one row for each checkpoint.")
@click.option("--files", is_flag=True, help="List the files of the manifest, also of a trial or experiment.")
@choice_options
async def ls(
    output: Output,
    settings: Settings,
    *,
    url: str,
    checkpoints: bool,
    files: bool,
    where: tuple[str, ...],
    **order: Any,
) -> int:
    """See LS."""
    uri, choice = resolve_url(url), Choice(where=where, **order)
    found = await _contents(uri, settings, files=files)
    if isinstance(found, Experiment):
        _show_experiment(output, uri, found, choice, checkpoints=checkpoints)
    elif isinstance(found, TrialView):
        _show_trial(output, replace(found, checkpoints=_chosen(output, choice, found.checkpoints)))
    elif isinstance(found, Manifest):
        _show_files(output, uri, found)
    elif found and isinstance(found[0], StoredObject):
        _show_objects(output, uri, [item for item in found if isinstance(item, StoredObject)])
    else:
        experiments = [item for item in found if isinstance(item, ExperimentSummary)]
        _show_experiments(output, uri, _chosen(output, choice, experiments))
    return DONE


async def _contents(
    uri: str, settings: Settings, *, files: bool
) -> Experiment | TrialView | Manifest | Sequence[ExperimentSummary | StoredObject]:
    """The records or the manifest there; for a prefix without any, its directories and objects."""
    where: dict[str, Any] = {"storage_options": settings.storage_options, "transfer": settings.transfer}
    try:
        return await contents_of(uri, files=files, **where)
    except NotFoundError as error:
        try:
            return await browse(uri, recursive=False, **where)
        except NotFoundError:
            raise error from None


def _show_objects(output: Output, uri: str, found: Sequence[StoredObject]) -> None:
    rows = [("-" if item.path.endswith("/") else size_text(item.size), age(item.modified), item.path) for item in found]
    output.table(("size", "age", "path"), rows)
    output.document({"ok": True, "kind": "objects", "uri": uri, "objects": jsonable(found)})


def _show_experiments(output: Output, uri: str, found: Sequence[ExperimentSummary]) -> None:
    rows, damaged = [], []
    for each in found:
        if each.error is not None:
            rows.append((each.name, each.status, "-", "-", "-"))
            damaged.append(f"{each.name} unreadable: {each.error}")
            continue
        trials = ", ".join(f"{number} {status}" for status, number in each.trials.items()) or "none"
        rows.append((each.name, shown_status(each), trials, age(each.started), age(each.updated)))
    output.table(("experiment", "status", "trials", "started", "updated"), rows)
    output.lines(damaged, before="")
    documents = [_summary_json(each) for each in found]
    output.document({"ok": True, "kind": "experiments", "uri": uri, "experiments": documents})


def _summary_json(item: ExperimentSummary) -> dict[str, Any]:
    head = {"name": item.name, "uri": item.uri, "status": item.status, "lost": item.lost}
    if item.error is not None:
        return {**head, "error": item.error}
    return {**head, "trials": item.trials, "started": item.started, "updated": item.updated}


def _chosen(output: Output, choice: Choice, rows: Sequence[View]) -> list[View]:
    for note in choice.notes(rows):
        output.note(note)
    return choice.of(rows)


def _show_experiment(output: Output, uri: str, experiment: Experiment, choice: Choice, *, checkpoints: bool) -> None:
    trials = experiment.trials if checkpoints else _chosen(output, choice, experiment.trials)
    if checkpoints:
        chosen = _chosen(output, choice, [item for trial in trials for item in trial.checkpoints])
        kept = {item.uri for item in chosen}
        trials = [replace(trial, checkpoints=[c for c in trial.checkpoints if c.uri in kept]) for trial in trials]
        rows = [(item.trial, *_checkpoint_row(item)) for item in chosen]
        output.table(("trial", *_CHECKPOINT_COLUMNS), rows)
    else:
        output.table(
            ("trial", "status", "reports", "last metrics", "kept", "latest checkpoint", "age"),
            [
                (
                    trial.name,
                    shown_status(trial),
                    str(trial.reports),
                    short_metrics(trial.metrics),
                    str(len(trial.checkpoints)),
                    *_latest(trial),
                )
                for trial in trials
            ],
        )
        for trial in trials:
            if trial.error:
                output.line(f"{trial.name} {trial.status}: {' '.join(str(trial.error).split())[:200]}")
    documents = [_trial_json(trial) for trial in trials]
    head = {"ok": True, "kind": "experiment", "uri": uri, "name": experiment.name}
    output.document({**head, "status": experiment.status, "lost": experiment.lost, "trials": documents})


_CHECKPOINT_COLUMNS = ("checkpoint", "metrics", "files", "size", "age", "marks")


def _checkpoint_row(item: CheckpointView) -> tuple[str, ...]:
    size = size_text(item.bytes)
    return (item.name, short_metrics(item.metrics), str(item.files), size, age(item.time), shown_marks(item))


def shown_marks(item: CheckpointView) -> str:
    """Pin and tags for people: ``pinned best``."""
    return " ".join([*(["pinned"] if item.pinned else []), *item.tags]) or "-"


def _latest(trial: TrialView) -> tuple[str, str]:
    if not trial.checkpoints:
        return "-", "-"
    latest = trial.checkpoints[-1]
    return latest.name, age(latest.time)


def _checkpoint_json(item: CheckpointView) -> dict[str, Any]:
    return {
        "name": item.name,
        "uri": item.uri,
        "metrics": item.metrics,
        "metadata": item.metadata,
        "files": item.files,
        "bytes": item.bytes,
        "time": item.time,
        "step": item.step,
        "pinned": item.pinned,
        "tags": item.tags,
    }


def _trial_json(trial: TrialView) -> dict[str, Any]:
    return {
        "name": trial.name,
        "uri": trial.uri,
        "status": trial.status,
        "lost": trial.lost,
        "error": trial.error,
        "params": trial.params,
        "metrics": trial.metrics,
        "reports": trial.reports,
        "started": trial.started,
        "updated": trial.updated,
        "checkpoints": [_checkpoint_json(item) for item in trial.checkpoints],
    }


def _show_trial(output: Output, trial: TrialView) -> None:
    output.line(
        f"{trial.name}: {shown_status(trial)}, {counted(trial.reports, 'report')}, {short_metrics(trial.metrics)}"
    )
    if trial.error:
        output.line(f"error: {' '.join(trial.error.split())}")
    output.table(_CHECKPOINT_COLUMNS, [_checkpoint_row(item) for item in trial.checkpoints])
    output.document({"ok": True, "kind": "trial", **_trial_json(trial)})


def _show_files(output: Output, uri: str, manifest: Manifest) -> None:
    entries = [manifest.files[path] for path in sorted(manifest.files)]
    rows = [(size_text(item.size), age(item.mtime_ns / 1e9), item.path) for item in entries]
    output.table(("size", "age", "path"), rows)
    output.line(f"{counted(len(entries), 'file')}, {size_text(manifest.bytes_total)}")
    files = [
        {"path": item.path, "size": item.size, "mtime": item.mtime_ns / 1e9, "crc32c": f"{item.crc32c:08x}"}
        for item in entries
    ]
    output.document({"ok": True, "kind": "files", "uri": uri, "bytes": manifest.bytes_total, "files": files})


def shown_status(item: ExperimentSummary | TrialView | Experiment) -> str:
    """The status for people: ``lost`` if the process that should run it has ended."""
    return "lost" if item.lost else item.status


def short_metrics(metrics: Mapping[str, Any], limit: int = METRICS_SHOWN) -> str:
    """The first metrics in one line: ``loss=0.0312 acc=0.97``; nested ones as ``eval/loss``."""
    flat = [
        f"{name}={shown_value(value)}"
        for name, value in flatten(metrics).items()
        if isinstance(value, int | float | str)
    ]
    return " ".join(flat[:limit]) + (" ..." if len(flat) > limit else "") if flat else "-"


def shown_value(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
