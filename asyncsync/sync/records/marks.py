"""Private: pins and tags, which any process may set in the record of a trial, also while its writer runs.

This is the one exception from "one writer for each record". A mark replaces exactly the version that was read, changes
nothing but pins and tags, and keeps the stamp of the writer: the record still belongs to the process that wrote it.

The store refuses that process' next write, because it names an older version. It then reads the record, finds its own
stamp, takes the marks over from ``MARKED``, and writes again. So neither overwrites the other, a checkpoint is never
retired by a write that follows its pin, and without marks nothing costs a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asyncsync.sync.records.model import MARKED, WRITER, CheckpointRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one checkpoint."""

    pinned: bool = False
    tags: tuple[str, ...] = ()


Change = Callable[[Marks], Marks]
"""Takes the marks of a checkpoint, and returns its new ones."""


def has_writer(stored: bytes) -> bool:
    """Whether a stored record carries the stamp of a writer that takes marks over."""
    return isinstance(json.loads(stored).get(WRITER), str)


def with_marks(stored: bytes, changes: dict[str, Change]) -> bytes:
    """The stored record of a trial, which must be readable, with the marks of these checkpoints changed."""
    document: dict[str, Any] = json.loads(stored)
    marked = document.setdefault(MARKED, {})
    for item in document["checkpoints"]:
        change = changes.get(item["name"])
        if change is None:
            continue
        marks = change(Marks(item.get("pinned", False), tuple(item.get("tags", ()))))
        item["pinned"], item["tags"] = marks.pinned, list(marks.tags)
        marked[item["name"]] = {"pinned": marks.pinned, "tags": list(marks.tags)}
    document[WRITER] = _next_stamp(document[WRITER])
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _next_stamp(stamp: str) -> str:
    """The stamp of the next version: no two versions of a record are equal, or a store with ETags of contents could not
    distinguish them."""
    written, _, count = stamp.partition("+")
    return f"{written}+{int(count or 0) + 1}"


def adopt_marks(record: TrialRecord, stored: bytes) -> None:
    """Take over the marks that other processes set in the stored record since its writer last wrote it."""
    marked = json.loads(stored).get(MARKED, {})
    for item in record.checkpoints:
        if isinstance(found := marked.get(item.name), dict):
            _set(item, found)


def _set(item: CheckpointRecord, found: dict[str, Any]) -> None:
    item.pinned, item.tags = found.get("pinned") is True, [str(tag) for tag in found.get("tags", ())]
