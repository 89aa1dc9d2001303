"""The JSON documents that asyncsync stores beside the data: records, manifests, parts of ranks. Pure.

Every document has ``format``, a whole number. A reader knows one format. It ignores fields that it does not know, and
writes them back, so that an older asyncsync removes nothing that a newer one wrote. Only a change that an older reader
must not ignore increases the format; the older reader then refuses the document.

Everything wrong with a document is reported as one error, :class:`DocumentError`; readers raise nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__version__ = "0.1.0"
"""Version of the whole package: documents name the asyncsync that wrote them."""
FORMAT = 1
EXPERIMENT_RECORD = ".asyncsync/experiment.json"
"""Below an experiment: the driver's record."""
TRIAL_RECORD = ".asyncsync/trial.json"
"""Below a trial: its record."""
MOST_LEVELS = 400
"""Levels of lists and objects in a document. Python's parser and encoder stop at about 900, fewer the deeper the call;
with this limit everything that was read can also be written, from any call."""
MOST_DOCUMENT_BYTES = 1 << 30
"""Bytes of a document that is parsed at once; manifests are parsed line by line. In memory it is ten times as large."""
NUMBER_LIMIT = 1 << 63
"""All numbers are below this limit: no count of bytes, files or reports reaches it."""
TIME_LIMIT = 253_402_300_800.0
"""Unix time of the end of the year 9999, the last year that Python's dates support."""


class DocumentError(ValueError):
    """The text continues a sentence that begins with the object's name: "... is damaged: ..." or "... is of format 2,
    written by ..."."""


@contextmanager
def parsing(kind: str) -> Iterator[None]:
    """Turn every exception of a parser for documents of this ``kind`` into a DocumentError."""
    try:
        yield
    except DocumentError:
        raise
    except KeyError as error:
        raise DocumentError(f"is damaged, not a {kind}: {error} is missing") from error
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DocumentError(f"is damaged, not a {kind}: {error}") from error
    except RecursionError:
        raise DocumentError(f"is damaged, not a {kind}: it is nested too deeply") from None


def loads(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``. TypeError, ValueError or RecursionError if it is not one: use :func:`parsing`."""
    if len(data) > MOST_DOCUMENT_BYTES:
        raise ValueError(f"it has {len(data)} bytes")
    raw = json.loads(data.decode())
    if not isinstance(raw, dict):
        raise TypeError("it is not an object")
    if data.count(b"[") + data.count(b"{") > MOST_LEVELS:  # else it cannot be that deep
        check_depth(raw)
    return raw


def check_depth(value: Any, most: int = MOST_LEVELS) -> None:
    """ValueError if ``value`` has more than ``most`` levels. Checked level by level, without recursion."""
    level, depth = [value], 0
    while level:
        if depth > most:
            raise ValueError("it is nested too deeply")
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def check_format(raw: Mapping[str, Any], newest: int = FORMAT) -> None:
    """DocumentError if a later asyncsync wrote the document in a format that this one cannot read; ValueError if
    ``format`` is invalid. ``newest``: the last format that can be read."""
    version = raw["format"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format {shown(version)} is not a whole number from 1 on")
    if version > newest:
        by = raw.get("by")
        writer = f" ({by[:40]})" if isinstance(by, str) and by.isprintable() else ""
        raise DocumentError(
            f"is of format {version if version < NUMBER_LIMIT else '(huge)'}, written by a newer asyncsync{writer}; "
            f"this one (asyncsync {__version__}, format {newest}) cannot read it: upgrade asyncsync"
        )


def shown(value: object) -> str:
    """``value`` for a message, always short."""
    text = f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: object) -> int:
    """A whole number, 0 or more, that fits in 63 bits. ValueError names the field."""
    if type(value) is not int or not 0 <= value < NUMBER_LIMIT:
        raise ValueError(f"{name!r} is {shown(value)}, not a whole number from 0 on")
    return value


def seconds(name: str, value: object) -> float:
    """A time in Unix seconds, or a number of seconds. ValueError names the field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < TIME_LIMIT:  # so no NaN
        raise ValueError(f"{name!r} is {shown(value)}, not a time in seconds")
    return value


def text(name: str, value: object) -> str:
    """Text that can be encoded as UTF-8. TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is {shown(value)}, not text")
    if not value.isascii():
        value.encode()
    return value


def mapping(name: str, value: object) -> dict[str, Any]:
    """A JSON object with any content. TypeError names the field."""
    if not isinstance(value, dict):
        raise TypeError(f"{name!r} is {shown(value)}, not an object")
    return value
