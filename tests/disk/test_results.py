"""Every report is recorded, whatever its metrics contain; a row is complete or missing."""

from __future__ import annotations

import csv
import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from asyncsync import ConfigError
from asyncsync.disk import results
from asyncsync.disk.results import MOST_LISTED_ELEMENTS, append_result, as_json


class Array:
    """As array libraries have it: a scalar is given out only where there is one."""

    def __init__(self, elements: list[Any], error: type[Exception] = RuntimeError) -> None:
        self.elements, self.error = elements, error

    def numel(self) -> int:
        return len(self.elements)

    def item(self) -> Any:
        if len(self.elements) != 1:
            raise self.error("not a scalar")
        return self.elements[0]

    def tolist(self) -> list[Any]:
        return self.elements

    def __str__(self) -> str:
        return "array(...)"


class Meta(Array):
    """Without data: nothing but its text."""

    def tolist(self) -> list[Any]:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")


class Mute:
    """Not even a text."""

    def __str__(self) -> str:
        raise SystemError("no text")


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (Array([0.5]), 0.5),
        (Array([1, 2]), [1, 2]),
        (Array([[1], [Array([3])]]), [[1], [3]]),
        (Array([], NotImplementedError), []),
        (Array([0] * (MOST_LISTED_ELEMENTS + 1)), "array(...)"),
        (Meta([1, 2]), "array(...)"),
        (Array([1j]), [str(1j)]),
        (Mute(), "<Mute>"),
        ({(1, 2): 0.5, 3: 1, None: 2}, {"(1, 2)": 0.5, "3": 1, "null": 2}),
        (UserDict(a=(1, 2)), {"a": [1, 2]}),
        (b"raw", "b'raw'"),
    ],
    ids=range(11),
)
def test_values_that_are_not_json_are_recorded_as_a_list_or_text(value: object, recorded: object) -> None:
    assert as_json({"x": value}) == {"x": recorded}


def test_arrays_of_numpy_are_lists() -> None:
    numpy = pytest.importorskip("numpy")
    value = {"grid": numpy.arange(4).reshape(2, 2), "one": numpy.float32(0.5), numpy.int64(3): numpy.array(1)}
    assert as_json(value) == {"grid": [[0, 1], [2, 3]], "one": 0.5, "3": 1}
    assert isinstance(as_json({"x": numpy.zeros(10**6)})["x"], str)


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value, value]
    return value


@pytest.mark.parametrize("value", [circular(), [1], None, {"x": 10**5000}], ids=["circular", "list", "none", "digits"])
def test_values_that_cannot_be_recorded_are_a_config_error(value: Any) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        as_json(value)


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "progress.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "result.json").read_text().splitlines()]


def test_columns_that_come_later_are_added_to_the_table(tmp_path: Path) -> None:
    append_result(tmp_path, {"loss": 1, "text": 'two\nlines, "quoted"'})
    append_result(tmp_path, {"loss": 2, "late": {"er": 3}})
    append_result(tmp_path, {"loss": 3})
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert [row["late/er"] for row in rows(tmp_path)] == ["", "3", ""]
    assert rows(tmp_path)[0]["text"] == 'two\\nlines, "quoted"'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.csv", "result.json"]


@pytest.mark.parametrize("torn", range(1, 26))
def test_half_a_row_that_a_crash_left_is_removed(tmp_path: Path, torn: int) -> None:
    append_result(tmp_path, {"loss": 1, "text": "a\nb"})
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    append_result(tmp_path, {"loss": 2, "text": "c\nd, and a longer text"})
    for path, data in whole.items():
        path.write_bytes(path.read_bytes()[: len(data) + torn])
    append_result(tmp_path, {"loss": 3, "text": ""})
    assert [line["loss"] for line in lines(tmp_path)] == [1, 3]
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "3"]


@pytest.mark.parametrize("row", [{"loss": 2}, {"loss": 2, "new": 1}], ids=["same columns", "a new one"])
def test_a_full_disk_leaves_both_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    append_result(tmp_path, {"loss": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.csv, "DictWriter", Full)
    monkeypatch.setattr(results.csv, "writer", Full)
    with pytest.raises(OSError, match="No space"):
        append_result(tmp_path, row)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_text_that_is_not_utf8_is_recorded_with_escapes(tmp_path: Path) -> None:
    append_result(tmp_path, as_json({"name": "caf\udce9"}))
    assert rows(tmp_path)[0]["name"] == "caf\\udce9"
