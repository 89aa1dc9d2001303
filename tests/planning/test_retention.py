"""Which checkpoints are kept."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.retention import to_retire


@dataclass
class Item:
    number: int
    metrics: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    pinned: bool = False
    tags: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"c{self.number}"


def losses(*values: object) -> list[Item]:
    return [Item(number, {} if value is None else {"loss": value}) for number, value in enumerate(values)]


def test_none_keeps_all() -> None:
    assert to_retire(losses(1, 2, 3), None, "loss") == []


def test_without_a_score_the_newest_are_kept() -> None:
    assert to_retire(losses(1, 2, 3, 4), 2) == ["c0", "c1"]


def test_the_best_are_kept_and_the_latest_always() -> None:
    assert to_retire(losses(0.1, 0.2, 0.9, 0.5), 2, "loss", "min") == ["c2"]


def test_max_keeps_the_largest() -> None:
    assert to_retire(losses(9, 1, 2, 8), 2, "loss", "max") == ["c1", "c2"]


@pytest.mark.parametrize("order", ["min", "max"])
@pytest.mark.parametrize("worst", [math.nan, None, "high", float("nan")])
def test_nan_and_missing_rank_worst_in_either_order(order: str, worst: object) -> None:
    assert to_retire(losses(worst, 5, 6), 2, "loss", order) == ["c0"]


def test_a_nested_score_is_found_by_its_path() -> None:
    items = [Item(number, {"eval": {"loss": loss}}) for number, loss in enumerate((3, 1, 2))]
    assert to_retire(items, 1, "eval/loss", "min") == ["c0"]


def test_a_flat_name_with_a_slash_is_found_too() -> None:
    items = [Item(0, {"eval/loss": 3}), Item(1, {"eval/loss": 1}), Item(2, {"eval/loss": 2})]
    assert to_retire(items, 1, "eval/loss", "min") == ["c0"]


def test_among_equals_the_newer_wins() -> None:
    assert to_retire(losses(1, 1, 1, 2), 1, "loss", "min") == ["c0", "c1"]


@given(
    st.lists(st.one_of(st.floats(), st.none(), st.integers()), max_size=12),
    st.integers(1, 5),
    st.sampled_from(["min", "max"]),
)
def test_at_most_one_more_than_asked_is_kept_and_never_fewer(values: list[object], keep: int, order: str) -> None:
    items = losses(*values)
    kept = len(items) - len(to_retire(items, keep, "loss", order))
    assert min(keep, len(items)) <= kept <= keep + 1
    assert not items or items[-1].name not in to_retire(items, keep, "loss", order)
