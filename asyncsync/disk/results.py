"""The files that ``report`` writes in a trial's directory: result.json, progress.csv, params.json."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiofiles.os

from asyncsync.aio.threads import in_thread
from asyncsync.disk.scan import TEMPORARY
from asyncsync.errors import ConfigError
from asyncsync.planning.document import DEEPEST, check_depth

RESULTS, PROGRESS, PARAMS = "result.json", "progress.csv", "params.json"
OWN_FILES = (RESULTS, PROGRESS, PARAMS)
"""Always synced, whatever ``sync_artifacts`` says."""

ABOVE = 10
"""Levels of a record, or of what stands in a journal, above the metrics in it; more than there are."""


ELEMENTS = 1_000
"""Elements of an array up to which it is recorded as a list; one that has more as the text that it gives of itself."""


def plain(value: object) -> object:
    """JSON for what is not JSON: a number of an array library by ``.item()``, an array by ``.tolist()``, anything else,
    and whatever refuses, as text."""
    for method in ("item", "tolist"):
        give = getattr(value, method, None)
        if not callable(give) or (method == "tolist" and _elements(value) > ELEMENTS):
            continue
        try:
            found = give()
        except Exception:  # noqa: BLE001, S112  # of several elements, without data, on another device: each has its own
            continue
        if isinstance(found, str | int | float | list) or found is None:
            return found
    return _text(value)


def _elements(value: object) -> int:
    """Of an array, as NumPy or PyTorch say it; 0 of what says neither."""
    try:
        count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
        return count if isinstance(count, int) else 0
    except Exception:  # noqa: BLE001  # without data
        return ELEMENTS + 1


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # the text of a metric is no reason to lose its report
        return f"<{type(value).__qualname__}>"


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``value`` that holds JSON types only. ConfigError if it is no mapping, holds itself, or more levels
    than a record that has it can be read with."""
    why: object = "it is no mapping"
    try:
        if isinstance(value, Mapping):
            copy: dict[str, Any] = json.loads(json.dumps(_textual(value, frozenset()), default=plain))
            check_depth(copy, DEEPEST - ABOVE)
            return copy
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
    raise ConfigError(f"metrics, metadata and parameters must be JSON of at most {DEEPEST - ABOVE} levels: {why}")


def _textual(value: Any, above: frozenset[int]) -> Any:
    """The same with plain containers, and only such keys as JSON has. ValueError if it holds itself."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if not isinstance(value, Mapping | list | tuple):
        value = plain(value)
        if not isinstance(value, list):
            return value
    if id(value) in above:
        raise ValueError("Circular reference detected")
    above |= {id(value)}
    if len(above) > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping):
        return {_key(key): _textual(inner, above) for key, inner in list(value.items())}
    return [_textual(inner, above) for inner in list(value)]


def _key(key: object) -> Any:
    return key if isinstance(key, str | int | float) or key is None else _text(key)


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined with ``/``."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


async def write_params(directory: Path, params: Mapping[str, Any]) -> None:
    """params.json, once a trial. Readers see the old file or the new.

    The text is written in one thread call: ``aiofiles.open`` would leave the file open if it is cancelled just then.
    """
    temporary = directory / f".{PARAMS}{TEMPORARY}"  # always the same, so that crashes leave one at most
    try:
        await in_thread(temporary.write_text, json.dumps(params, indent=2, default=plain) + "\n", encoding="utf-8")
        await aiofiles.os.replace(temporary, directory / PARAMS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_result(directory: Path, row: Mapping[str, Any]) -> None:
    """Blocking: one line in result.json, flushed, and one row in progress.csv, or nothing: an error leaves both as they
    were. What a crash left of half a line is removed first.

    Each row of the CSV is one line. Columns that come later are added to it: it is written anew then, with nothing in
    the rows before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    results, progress = directory / RESULTS, directory / PROGRESS
    _mend_lines(results)
    _mend_rows(progress)
    before = {path: path.stat().st_size if path.exists() else 0 for path in (results, progress)}
    try:
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        _append_csv(progress, {_csv_text(key): _csv_text(value) for key, value in flatten(row).items()})
    except BaseException:
        for path, size in before.items():
            with suppress(OSError):  # the first error is the one to tell; the next row mends what is left
                os.truncate(path, size)
        raise


TAIL = 1 << 16
"""Bytes at the end of result.json in which the last rows are looked for."""


def last_rows(directory: Path) -> list[dict[str, Any]]:
    """Blocking: the rows at the end of result.json, those that are whole. A process that was killed had recorded them,
    and perhaps not told the store."""
    try:
        with open(directory / RESULTS, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # the first was cut, the last one may be torn
            row = json.loads(line)
            found += [row] if isinstance(row, dict) else []
    return found


def _mend_lines(path: Path) -> None:
    """Half a line at the end goes; a whole one without its end gets it."""
    tail = _tail(path)
    if tail is None:
        return
    start, line = tail
    try:
        json.loads(line)
    except ValueError:
        os.truncate(path, start)
    else:
        with open(path, "ab") as file:
            file.write(b"\n")


def _mend_rows(path: Path) -> None:
    """Half a row at the end goes."""
    tail = _tail(path)
    if tail is not None:
        os.truncate(path, tail[0])


def _tail(path: Path) -> tuple[int, bytes] | None:
    """Where the last line starts and what it is, if its end is missing."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if not size or (file.seek(-1, os.SEEK_END) >= 0 and file.read(1) == b"\n"):
                return None
            file.seek(0)
            data = file.read()
    except FileNotFoundError:
        return None
    start = data.rfind(b"\n") + 1
    return start, data[start:]


def _csv_text(value: Any) -> Any:
    """One row is one line, so that half a row can be known: line ends, and what no UTF-8 can hold, are escapes."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _append_csv(path: Path, row: Mapping[str, Any]) -> None:
    columns = _columns(path)
    if columns is not None and (more := [name for name in row if name not in columns]) and _widen(path, row, more):
        return
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(row), extrasaction="ignore", lineterminator="\n")
        if columns is None:
            writer.writeheader()
        writer.writerow(row)


def _columns(path: Path) -> list[str] | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), None)
    except FileNotFoundError:
        return None


def _widen(path: Path, row: Mapping[str, Any], more: list[str]) -> bool:
    """The table with more columns and one more row, in one step; False if it cannot be read, and stays as it is."""
    temporary = path.with_name(f".{PROGRESS}{TEMPORARY}")
    try:
        with (
            open(path, encoding="utf-8", errors="surrogateescape", newline="") as old,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as new,
        ):
            rows, writer = csv.reader(old), csv.writer(new, lineterminator="\n")
            columns = [*next(rows), *more]
            writer.writerow(columns)
            writer.writerows([*cells, *[""] * (len(columns) - len(cells))] for cells in rows)
            writer.writerow([row.get(name, "") for name in columns])
        os.replace(temporary, path)
    except csv.Error:
        temporary.unlink(missing_ok=True)
        return False
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True
