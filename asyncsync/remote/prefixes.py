"""Private: the prefixes of trees, trials and checkpoints. A prefix ends in ``/`` or is empty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

CHECKPOINT_DIRECTORY = re.compile(r"(?:.*/)?checkpoint_\d{6,}/")
"""Matches the innermost checkpoint directory that contains a key."""


def checkpoint_directory(key: str) -> str:
    """The prefix of the innermost checkpoint directory that contains ``key``, or ``""``."""
    match = CHECKPOINT_DIRECTORY.match(key)
    return match[0] if match is not None else ""


def prefixes_with(name: str, keys: Iterable[str]) -> list[str]:
    """The prefixes that hold an object ``name``, such as a manifest or a record."""
    return [key.removesuffix(name) for key in keys if key == name or key.endswith(f"/{name}")]


def parent(prefix: str) -> str:
    """The prefix one level up."""
    head, slash, _ = prefix.rstrip("/").rpartition("/")
    return head + slash


def parents(prefix: str) -> Iterator[str]:
    """All prefixes above ``prefix``, the nearest first; the last one is ``""``."""
    while prefix:
        prefix = parent(prefix)
        yield prefix
