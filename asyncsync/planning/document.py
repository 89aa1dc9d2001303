"""The JSON documents that asyncsync keeps beside the data: records, manifests, parts of ranks. Pure.

Every document has ``format``, a whole number. A reader knows one format, and passes over fields that it does not know:
they are kept and written back, so that an older asyncsync takes nothing away from a newer one. Only a change that an
older reader must not pass over raises the format, and then the older reader refuses the document.

Whatever is wrong with a document is one error, :class:`DocumentError`; nothing else leaves a reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__version__ = "0.1.0"
"""Of the whole package: documents name the asyncsync that wrote them."""
FORMAT = 1
DEEPEST = 400
"""Levels of lists and objects in a document. Python's parser and encoder stop at about 900, fewer the deeper the call;
what is read here can be written again from wherever that happens."""
LARGEST = 1 << 30
"""Bytes of a document that is parsed at once; manifests are parsed line by line. In memory it is ten times as large."""
MOST = 1 << 63
"""Numbers are below this: what counts bytes, files or reports never gets there."""
LAST_TIME = 253_402_300_800.0
"""Unix seconds of the end of the year 9999, the last that Python's dates know."""


class DocumentError(ValueError):
    """The text goes behind the object's name: "... is damaged: ..." or "... is of format 2, written by ..."."""


@contextmanager
def parsing(kind: str) -> Iterator[None]:
    """Everything that a parser raises over a document of this ``kind`` becomes a DocumentError."""
    try:
        yield
    except DocumentError:
        raise
    except KeyError as error:
        raise DocumentError(f"is damaged, not a {kind}: there is no {error}") from error
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DocumentError(f"is damaged, not a {kind}: {error}") from error
    except RecursionError:
        raise DocumentError(f"is damaged, not a {kind}: it is nested too deeply") from None


def loads(data: bytes) -> dict[str, Any]:
    """The object that ``data`` is. TypeError, ValueError or RecursionError if it is none: for :func:`parsing`."""
    if len(data) > LARGEST:
        raise ValueError(f"it has {len(data)} bytes")
    raw = json.loads(data.decode())
    if not isinstance(raw, dict):
        raise TypeError("it is not an object")
    if data.count(b"[") + data.count(b"{") > DEEPEST:  # else it cannot be that deep
        check_depth(raw)
    return raw


def check_depth(value: Any, most: int = DEEPEST) -> None:
    """ValueError if ``value`` has more than ``most`` levels. Level by level, without recursion."""
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


def check_format(raw: Mapping[str, Any]) -> None:
    """DocumentError if a later asyncsync wrote the document in a way that this one cannot read; ValueError if its
    ``format`` is none."""
    version = raw["format"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format {shown(version)} is not a whole number from 1 on")
    if version > FORMAT:
        by = raw.get("by")
        writer = f" ({by[:40]})" if isinstance(by, str) and by.isprintable() else ""
        raise DocumentError(
            f"is of format {version if version < MOST else '(huge)'}, written by a newer asyncsync{writer}; this one "
            f"(asyncsync {__version__}, format {FORMAT}) cannot read it: upgrade asyncsync"
        )


def shown(value: object) -> str:
    """``value`` for a message: short, whatever it is."""
    text = f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: object) -> int:
    """A whole number from 0 on that fits in 63 bits. ValueError names the field."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"{name!r} is {shown(value)}, not a whole number from 0 on")
    return value


def seconds(name: str, value: object) -> float:
    """A time in Unix seconds, or a number of seconds. ValueError names the field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LAST_TIME:  # so no NaN
        raise ValueError(f"{name!r} is {shown(value)}, not a time in seconds")
    return value


def text(name: str, value: object) -> str:
    """Text that UTF-8 can hold. TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is {shown(value)}, not text")
    if not value.isascii():
        value.encode()
    return value


def mapping(name: str, value: object) -> dict[str, Any]:
    """An object, whatever is in it. TypeError names the field."""
    if not isinstance(value, dict):
        raise TypeError(f"{name!r} is {shown(value)}, not an object")
    return value
