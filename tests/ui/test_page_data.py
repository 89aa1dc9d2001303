"""What the page shows is JSON of bounded size, and says what the records say."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from asyncsync import CheckpointView, Experiment, StoredObject, TrialView
from asyncsync.planning.retention import to_retire
from asyncsync.ui.curves import curves_document, thinned
from asyncsync.ui.object_listing import listing_document
from asyncsync.ui.page_data import MOST_COLUMNS, as_json, experiment_document, trial_document, value
from asyncsync.ui.retention_forecast import RetentionRule
from asyncsync.ui.sources import engines_of

from .conftest import an_engine


def checkpoint(number: int, loss: float = 0.0, **more: object) -> CheckpointView:
    name = f"checkpoint_{number:06}"
    return CheckpointView(name, "t", f"s3://b/e/t/{name}", number, {"loss": loss}, {}, 1, 10, 100.0 + number, **more)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (2**60, str(2**60)),
        (True, True),
        (None, None),
        ([1, math.nan], "[1, NaN]"),
        ("\ud800", "\\ud800"),
        ("x" * 1000, "x" * 297 + "..."),
    ],
)
def test_every_value_is_json_of_bounded_length(raw: object, shown: object) -> None:
    assert value(raw) == shown
    as_json({"x": value(raw)})


def test_a_document_cannot_end_its_script_element() -> None:
    data = as_json({"x": "</script><!--\u2028"})
    assert b"<" not in data
    assert json.loads(data) == {"x": "</script><!--\u2028"}


def test_the_table_has_columns_of_one_length() -> None:
    trials = [TrialView(f"t{n}", "", "finished", {"a": {"b": n}} if n else {}, {"loss": math.nan}) for n in range(3)]
    table = experiment_document(Experiment("e", "s3://b/e", "finished", trials))["table"]
    assert {len(found) for found in table["values"].values()} == {3}
    assert table["values"]["param:a/b"] == [None, 1, 2]
    assert table["values"]["metric:loss"] == ["NaN"] * 3


def test_rare_columns_are_left_out_and_counted() -> None:
    trials = [TrialView("t", "", "finished", {}, {f"m{n}": n for n in range(MOST_COLUMNS + 5)})]
    table = experiment_document(Experiment("e", "s3://b/e", "finished", trials))["table"]
    assert table["left_out"] == 5


def test_a_trial_names_its_best_pinned_and_doomed_checkpoints() -> None:
    items = [checkpoint(0, 3.0), checkpoint(1, 1.0), checkpoint(2, 2.0, pinned=True)]
    rule = RetentionRule(keep=2, attribute="loss", order="min")
    found = trial_document(TrialView("t", "", "running", checkpoints=items), rule)["checkpoints"]
    assert [item["best"] for item in found] == [False, True, False]
    assert [item["pinned"] for item in found] == [False, False, True]
    assert [item["removed_next"] for item in found] == [True, False, False]


def test_nothing_is_removed_next_from_a_trial_that_has_ended() -> None:
    items = [checkpoint(number, number) for number in range(4)]
    found = trial_document(TrialView("t", "", "finished", checkpoints=items), RetentionRule(keep=1))["checkpoints"]
    assert not any(item["removed_next"] for item in found)


@pytest.mark.parametrize("seed", range(30))
def test_the_forecast_is_what_retention_does_with_a_better_checkpoint(seed: int) -> None:
    dice = random.Random(seed)
    rule = RetentionRule(
        dice.randint(1, 4), dice.choice([None, "loss"]), dice.choice(["min", "max"]), dice.choice([None, 3])
    )
    items = [
        checkpoint(
            n,
            dice.choice([dice.random(), math.nan]),
            pinned=dice.random() < 0.2,
            tags=["x"] * (dice.random() < 0.1),
            step=n + 1,
        )
        for n in range(dice.randint(0, 6))
    ]
    better = checkpoint(len(items), -1e9 if rule.order == "min" else 1e9, step=10_000 + len(items) * 3)
    expected = to_retire([*items, better], rule.keep, rule.attribute, rule.order, keep_every=rule.keep_every)
    assert sorted(rule.removed_next(items)) == sorted(expected)


@pytest.mark.parametrize("config", [{}, {"checkpoint": None}, {"checkpoint": {"num_to_keep": "x", "keep_every": True}}])
def test_a_strange_configuration_keeps_everything(config: dict[str, object]) -> None:
    assert RetentionRule.of(config) == RetentionRule()


def test_a_thinned_curve_keeps_its_ends_and_extremes() -> None:
    dice = random.Random(1)
    points = [(float(x), dice.gauss(0, 1)) for x in range(50_000)]
    found = thinned(points, 1000)
    assert len(found) <= 1000
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert {max(points, key=lambda point: point[1]), min(points, key=lambda point: point[1])} <= set(found)
    assert found == sorted(found)


def test_curves_leave_out_and_count_what_is_not_finite() -> None:
    rows = [
        {"loss": 1.0, "a": {"b": 2}},
        {"loss": math.nan, "text": "x"},
        {"loss": 10**400},
        {"loss": 0.5, "flag": True},
    ]
    found = curves_document(TrialView("t", "", "running"), rows)
    assert found["curves"] == {"loss": {"x": [1, 4], "y": [1.0, 0.5]}, "a/b": {"x": [1], "y": [2.0]}}
    assert found["not_finite"] == {"loss": 2}
    as_json(found)


def test_the_lag_of_a_checkpoint_is_from_its_report_until_it_was_durable() -> None:
    trial = TrialView("t", "", "running", checkpoints=[checkpoint(0)])
    rows = [
        {"checkpoint_dir_name": "checkpoint_000000", "timestamp": 97},
        {"checkpoint_dir_name": "gone", "timestamp": 98},
    ]
    assert curves_document(trial, rows)["durable"] == [
        {"name": "checkpoint_000000", "reported": 97.0, "durable": 100.0}
    ]


def test_a_listing_separates_what_records_name() -> None:
    trial = TrialView("t", "", "running", checkpoints=[checkpoint(0)])
    objects = [
        StoredObject("t/checkpoint_000000/model", 5),
        StoredObject("t/checkpoint_000001/model", 7),
        StoredObject("t/logs/x", 11),
        StoredObject("t/result.json", 13),
        StoredObject("searcher.pkl", 17),
    ]
    found = listing_document(Experiment("e", "s3://b/e", "running", [trial]), objects)
    assert (found["objects"], found["bytes"]) == (5, 53)
    assert found["rows"][0] == {"name": "t", "bytes": 36, "checkpoints": 5, "other": 24, "unlisted": 7}
    assert found["rows"][1]["bytes"] == 17


def test_two_addresses_of_one_directory_are_one_experiment(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = replace(an_engine(), uri=f"file://{tmp_path}/real/exp")
    assert engines_of(f"{tmp_path}/link/exp", [found]) == [found]
    assert engines_of("s3://b/exp", [found]) == []
