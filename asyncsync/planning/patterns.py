"""Which files of a tree are selected: patterns of gitignore, names that are left out, markers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec


def compile_patterns(patterns: Iterable[str]) -> GitIgnoreSpec:
    """The matcher for gitignore patterns. ValueError for an invalid one. The library is imported when the first pattern
    is used."""
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(patterns)


@dataclass(frozen=True, slots=True)
class Rules:
    """Selects the files of a tree. Patterns follow gitignore; ``skip`` are directories by relative path."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    symlinks: Literal["inside", "follow", "skip"] = "inside"
    skip: Collection[str] = frozenset()
    only: tuple[str, ...] | None = None
    """Only these files, by relative path; nothing else is visited."""
    always: tuple[str, ...] = ()
    """Files that are selected whether or not the patterns match."""
    skip_numbered: bool = False
    """Leave out top directories named ``checkpoint_000000`` and up: they are not artifacts."""
    whole: bool = False
    """Leave out only sockets, pipes and devices; anything else that would be left out is listed in
    ``Snapshot.broken``."""
    skip_marked: bool = False
    """Leave out top directories that contain an ``.asyncsync``: another process syncs them."""
    ready: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Directories that are complete only with their markers: pairs of pattern and markers."""


EVERYTHING = Rules()
"""All files but those of asyncsync itself."""
