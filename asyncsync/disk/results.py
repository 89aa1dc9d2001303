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

from asyncsync.disk.files import in_thread
from asyncsync.disk.scan import TEMPORARY
from asyncsync.errors import ConfigError
from asyncsync.planning.document import DEEPEST, check_depth

RESULTS, PROGRESS, PARAMS = "result.json", "progress.csv", "params.json"
OWN_FILES = (RESULTS, PROGRESS, PARAMS)
"""Always synced, whatever ``sync_artifacts`` says."""

ABOVE = 10
"""Levels of a record, or of what stands in a journal, above the metrics in it; more than there are."""


def plain(value: object) -> object:
    """JSON for what is not JSON: numbers of array libraries by ``.item()``, anything else as text."""
    item = getattr(value, "item", None)
    if callable(item):
        try:
            return item()
        except (TypeError, ValueError):
            return str(value)
    return str(value)


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``value`` that holds JSON types only. ConfigError if it holds itself, or more levels than a record that
    has it can be read with."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, default=plain))
        check_depth(copy, DEEPEST - ABOVE)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"metrics, metadata and parameters must be JSON of at most {DEEPEST - ABOVE} levels: {why}"
        ) from None
    return copy


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
    """Blocking: one line in result.json, flushed, and one row in progress.csv, or nothing: OSError leaves both as they
    were.

    The columns of the CSV are those of its first row; further ones are only in result.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _end_torn_line(directory / RESULTS)
    before = {path: path.stat().st_size if path.exists() else 0 for path in (directory / RESULTS, directory / PROGRESS)}
    try:
        with open(directory / RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        _append_csv(directory / PROGRESS, flatten(row))
    except OSError:
        for path, size in before.items():
            if path.exists():
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


def _end_torn_line(path: Path) -> None:
    """A crash may have left half a line: the next one must not be glued to it."""
    try:
        with open(path, "rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        return


def _append_csv(path: Path, row: Mapping[str, Any]) -> None:
    with open(path, "a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        columns = next(csv.reader(file), None)
        file.seek(0, os.SEEK_END)
        writer = csv.DictWriter(file, columns or list(row), extrasaction="ignore", lineterminator="\n")
        if columns is None:
            writer.writeheader()
        writer.writerow(row)
