"""The files that ``report`` writes in a trial's directory: result.json, progress.csv, params.json."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiofiles.os

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import close_descriptor, local_disk
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import ConfigError
from asyncsync.planning.document import MOST_LEVELS, check_depth
from asyncsync.planning.retention import flatten

RESULTS, PROGRESS, PARAMS = "result.json", "progress.csv", "params.json"
OWN_FILES = (RESULTS, PROGRESS, PARAMS)
"""Always synced, also without ``sync_artifacts``."""

LEVELS_ABOVE = 10
"""Levels of a record, or of a journal entry, above the metrics in it; an upper bound."""


MOST_LISTED_ELEMENTS = 1_000
"""Arrays of up to this many elements are recorded as lists, larger ones as their text."""


def plain(value: object) -> object:
    """A JSON value for an object of another type: a number of an array library by ``.item()``, an array by
    ``.tolist()``, anything else as text."""
    for method in ("item", "tolist"):
        give = getattr(value, method, None)
        if not callable(give) or (method == "tolist" and _elements(value) > MOST_LISTED_ELEMENTS):
            continue
        try:
            found = give()
        except Exception:  # noqa: BLE001, S112  # several elements, no data, another device: each raises its own
            continue
        if isinstance(found, str | int | float | list) or found is None:
            return found
    return _text(value)


def _elements(value: object) -> int:
    """Number of elements of a NumPy or PyTorch array; 0 for other objects."""
    try:
        count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
        return count if isinstance(count, int) else 0
    except Exception:  # noqa: BLE001  # an array without data
        return MOST_LISTED_ELEMENTS + 1


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # a report must not fail because of the text of a metric
        return f"<{type(value).__qualname__}>"


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``value`` with JSON types only. ConfigError if it is not a mapping, contains itself, or has more levels
    than a record that contains it may have."""
    why: object = "it is not a mapping"
    try:
        if isinstance(value, Mapping):
            copy: dict[str, Any] = json.loads(json.dumps(_textual(value, frozenset()), default=plain))
            check_depth(copy, MOST_LEVELS - LEVELS_ABOVE)
            return copy
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
    raise ConfigError(
        f"metrics, metadata and parameters must be JSON of at most {MOST_LEVELS - LEVELS_ABOVE} levels: {why}"
    )


def _textual(value: Any, above: frozenset[int]) -> Any:
    """``value`` with plain containers and JSON keys. ValueError if it contains itself."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if not isinstance(value, Mapping | list | tuple):
        value = plain(value)
        if not isinstance(value, list):
            return value
    if id(value) in above:
        raise ValueError("Circular reference detected")
    above |= {id(value)}
    if len(above) > MOST_LEVELS:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping):
        return {_key(key): _textual(inner, above) for key, inner in list(value.items())}
    return [_textual(inner, above) for inner in list(value)]


def _key(key: object) -> Any:
    return key if isinstance(key, str | int | float) or key is None else _text(key)


async def write_params(directory: Path, params: Mapping[str, Any]) -> None:
    """Write params.json, once per trial. Readers see the old file or the new one.

    The text is written in one thread call: ``aiofiles.open`` would leave the file open if it is cancelled at that
    moment.
    """
    temporary = directory / f".{PARAMS}{TEMPORARY}"  # one name, so that crashes leave one file at most
    with local_disk(f"{directory / PARAMS} was not written"):
        try:
            await in_thread(temporary.write_text, json.dumps(params, indent=2, default=plain) + "\n", encoding="utf-8")
            await aiofiles.os.replace(temporary, directory / PARAMS)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_pointer(directory: str, file: str, name: str | None) -> None:
    """Blocking. Make ``file`` hold ``name`` without a line end; None removes it. Readers see the old content or the new
    one."""
    if name is None:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{file}")
        return
    temporary = f"{directory}/.{file}{TEMPORARY}"
    try:
        with open(temporary, "w", encoding="utf-8") as output:
            output.write(name)
        os.replace(temporary, f"{directory}/{file}")
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def append_result(directory: Path, row: Mapping[str, Any]) -> None:
    """Blocking. Append one line to result.json, flushed, and one row to progress.csv, or nothing: an error leaves both
    files as they were. LocalDiskError. Half a line left by a crash is removed first.

    Each row of the CSV is one line. For new columns the file is rewritten, with empty cells in the earlier rows.
    """
    with local_disk(f"the report is not recorded in {directory}"):
        _append_result(directory, row)


def _append_result(directory: Path, row: Mapping[str, Any]) -> None:
    results, progress = directory / RESULTS, directory / PROGRESS
    before = {results: _complete_size(results, _repair_lines), progress: _complete_size(progress, _repair_rows)}
    if not before[results]:
        directory.mkdir(parents=True, exist_ok=True)
    try:
        _append(results, json.dumps(row) + "\n")
        _append_csv(progress, {_csv_text(key): _csv_text(value) for key, value in flatten(row).items()})
    except BaseException:
        for path, size in before.items():
            with suppress(OSError):  # the first error is raised; the next call repairs the file
                os.truncate(path, size)
        raise


def _complete_size(path: Path, repair: Callable[[Path], None]) -> int:
    """Bytes of the file, after the repair if its last line is not complete; 0 if it is missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(descriptor).st_size
        if not size or os.pread(descriptor, 1, size - 1) == b"\n":
            return size
    finally:
        close_descriptor(descriptor)
    repair(path)
    return os.stat(path).st_size


def _append(path: Path, text: str) -> None:
    with open(path, "ab", buffering=0) as file:
        left = memoryview(text.encode())
        while left:
            left = left[file.write(left) :]


TAIL_BYTES = 1 << 16
"""Bytes at the end of result.json in which the last rows are looked for."""


def last_rows(directory: Path) -> list[dict[str, Any]]:
    """Blocking. The complete rows at the end of result.json. A killed process may have recorded them without syncing
    them."""
    try:
        with open(directory / RESULTS, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # the first may be cut, the last incomplete
            row = json.loads(line)
            found += [row] if isinstance(row, dict) else []
    return found


def _repair_lines(path: Path) -> None:
    """Remove half a line at the end; end a complete line that has no line end."""
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


def _repair_rows(path: Path) -> None:
    """Remove half a row at the end."""
    tail = _tail(path)
    if tail is not None:
        os.truncate(path, tail[0])


def _tail(path: Path) -> tuple[int, bytes] | None:
    """Start and content of the last line, if it has no line end."""
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
    """Text for one cell. Line ends and characters that UTF-8 cannot hold are escaped: one row is one line, so that half
    a row can be recognised."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _append_csv(path: Path, row: Mapping[str, Any]) -> None:
    columns = _columns(path)
    if columns is not None and (more := [name for name in row if name not in columns]) and _widen(path, row, more):
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or list(row), extrasaction="ignore", lineterminator="\n")
    if columns is None:
        writer.writeheader()
    writer.writerow(row)
    _append(path, text.getvalue())


def _columns(path: Path) -> list[str] | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), None)
    except FileNotFoundError:
        return None


def _widen(path: Path, row: Mapping[str, Any], more: list[str]) -> bool:
    """Rewrite the table with more columns and one more row, in one step. False if it cannot be parsed: it stays as it
    is."""
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


def parse_results(data: bytes) -> list[dict[str, Any]]:
    """The rows of a result.json. Blocking: a hundred thousand take a second.

    ValueError names the line that is not a JSON object.
    """
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")  # noqa: TRY004  one error for every damage
        found.append(row)
    return found
