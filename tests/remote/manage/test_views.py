"""Objects for people: what they print, and the tables they give."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from onebench import Bench

import asyncsync
from asyncsync import Experiment, RunConfig, Syncer, UploadMode, blocking
from asyncsync.errors import ConfigError
from asyncsync.testing import run_virtual


class Frame:
    """As much of pandas as to_frame uses."""

    def __init__(self, rows: list[dict[str, Any]], index: list[str]) -> None:
        self.rows, self.index = rows, index


def experiment(bench: Bench) -> tuple[Experiment, list[str]]:
    async def main() -> tuple[Experiment, list[str]]:
        async with bench.engine() as engine:
            trial = engine.trial("t", params={"lr": 0.1})
            report = await trial.report({"loss": 1.0, "status": "odd"}, bench.checkpoint(), upload="async")
            await report.checkpoint.durable()
            shown = [repr(engine), repr(trial), repr(engine.events())]
        return await Experiment.open("memory://b/exp"), [*shown, repr(engine)]

    return run_virtual(main())


def test_every_object_says_what_it_is_and_how_it_stands(bench: Bench, tmp_path: Path) -> None:
    found, shown = experiment(bench)
    assert shown == [
        "<SyncEngine memory://b/exp running, 1 trials>",
        "<Trial memory://b/exp/t running, 1 reports, 0 checkpoints pending>",
        "<EventStream 0 events waiting, 0 dropped>",
        "<SyncEngine memory://b/exp not running, 1 trials>",
    ]
    assert repr(found) == "<Experiment memory://b/exp finished, 1 trials>"
    assert repr(found.trials[0]) == "<TrialView memory://b/exp/t unfinished, 1 reports, 1 checkpoints>"
    assert repr(Syncer(tmp_path, "memory://b/x")) == f"<Syncer {tmp_path} -> memory://b/x, closed>"


def test_no_public_object_is_shown_as_an_address_in_memory() -> None:
    plain = [
        f"{module.__name__}.{name}"
        for module in (asyncsync, blocking)
        for name, kind in ((name, getattr(module, name)) for name in module.__all__)
        if isinstance(kind, type) and not issubclass(kind, BaseException) and kind.__repr__ is object.__repr__
    ]
    assert plain == []


def test_blocking_objects_say_how_they_stand(bench: Bench) -> None:
    with blocking.SyncEngine(
        RunConfig(name="exp", storage_path="memory://b"), local_dir=bench.tmp_path / "other"
    ) as engine:
        trial = engine.trial("t")
        report = trial.report({"loss": 1.0}, bench.checkpoint())
        assert repr(engine) == "<BlockingEngine memory://b/exp running, 1 trials>"
        assert repr(trial) == "<BlockingTrial memory://b/exp/t running, 1 reports, 0 checkpoints pending>"
        assert "checkpoint_000000 durable" in repr(report)
    found = blocking.Experiment.open("memory://b/exp").trials[0].checkpoints[0]
    with found.open("weights") as file:
        file.read(10)
        assert repr(file) == "<StoredFile weights, 1,000 bytes, at byte 10>"
    assert repr(file) == "<StoredFile weights, 1,000 bytes, closed>"


def test_a_frame_has_one_row_per_trial(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = Frame
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = experiment(bench)[0].to_frame()
    assert frame.index == ["t"]
    assert frame.rows[0] | {"reports": 1, "checkpoints": 1, "params.lr": 0.1, "loss": 1.0} == frame.rows[0]
    assert frame.rows[0]["metrics.status"] == "odd"


def test_without_pandas_the_error_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        experiment(bench)[0].to_frame()


def test_history_is_what_was_reported(bench: Bench) -> None:
    found, _ = experiment(bench)
    assert [row["loss"] for row in run_virtual(found.trials[0].history())] == [1.0]


@pytest.mark.parametrize("mode", list(UploadMode))
def test_a_mode_is_given_by_its_value_too(mode: UploadMode) -> None:
    assert UploadMode.of(mode) is UploadMode.of(mode.value) is UploadMode.of(mode.name) is mode


@pytest.mark.parametrize("value", ["asyn", "", None, 1])
def test_another_mode_is_refused_with_the_known_ones(value: object) -> None:
    with pytest.raises(ConfigError, match="'sync', 'async', 'no_upload'"):
        UploadMode.of(value)  # type: ignore[arg-type]
