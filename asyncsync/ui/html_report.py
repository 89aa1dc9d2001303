"""The report: the page of an experiment as one file that needs no server, no network and no store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncsync import Experiment, RunningEngine, TransferConfig, TrialView, running_engines
from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import split_sas
from asyncsync.errors import AsyncsyncError
from asyncsync.runtime import wall_time
from asyncsync.ui.curves import curves_document
from asyncsync.ui.html_page import plotly_script, report
from asyncsync.ui.page_data import as_json, experiment_document, live_document, trial_document, value
from asyncsync.ui.retention_forecast import RetentionRule
from asyncsync.ui.sources import engines_of, open_experiment
from asyncsync.ui.verdict import Reading

MOST_TRIALS_WITH_CURVES = 50
HISTORY_READERS = 16


async def write_report(
    uri: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    curves: int = MOST_TRIALS_WITH_CURVES,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig | None = None,
) -> int:
    """Write the report of the experiment at ``uri`` to the file ``output``, with one rename. Returns its size in bytes.

    ``curves``: number of trials whose reports are read and shown as curves: the best ones by the score of the
    retention, else the last updated ones.

    Raises:
        NotFoundError: there is no experiment at ``uri``.
        ConfigError: the URI or an option is unknown, or ``asyncsync[ui]`` is not installed.
    """
    await in_thread(plotly_script)  # without it nothing is read
    address, options = split_sas(os.fspath(uri), storage_options)
    experiment = await open_experiment(address, options, transfer or TransferConfig())
    engines = engines_of(experiment.uri, await in_thread(running_engines))
    rule = RetentionRule.of(experiment.config)
    trials = await _with_curves(chosen(experiment.trials, rule, curves), rule)
    text = await in_thread(_render, experiment, engines, trials)
    await in_thread(_replace, Path(output), text.encode())
    return len(text.encode())


def chosen(trials: Sequence[TrialView], rule: RetentionRule, most: int) -> list[TrialView]:
    """The trials whose curves a report shows."""
    return sorted(trials, key=lambda trial: (rule.score(trial.metrics), trial.updated), reverse=True)[:most]


async def _with_curves(trials: Sequence[TrialView], rule: RetentionRule) -> list[dict[str, Any]]:
    """The documents of trials, with curves or with the reason why they cannot be read."""
    found: dict[str, dict[str, Any]] = {}

    async def read(trial: TrialView) -> None:
        document = trial_document(trial, rule)
        try:
            document |= curves_document(trial, await trial.history())
        except AsyncsyncError as error:
            document["unread"] = value(str(error))
        found[trial.name] = document

    await for_each_limited(trials, read, HISTORY_READERS)
    return [found[trial.name] for trial in trials]


def _render(experiment: Experiment, engines: Sequence[RunningEngine], trials: list[dict[str, Any]]) -> str:
    now = wall_time()
    live = live_document(experiment, engines, Reading(read_at=now), now)
    data = as_json({"live": live, **experiment_document(experiment), "details": trials})
    return report(f"{experiment.name} - asyncsync", data, experiment._repr_html_())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
