"""Names that are reserved for asyncsync, and names that no store takes."""

from __future__ import annotations

from asyncsync.planning.manifest import META_DIR

TEMPORARY = ".asyncsync-tmp"
"""Suffix of the temporary files that asyncsync writes; they are never synced."""

OWN_NAME = "the name is reserved for asyncsync"
"""Why a file of a checkpoint is refused."""


def is_own_name(name: str) -> bool:
    """Whether the name is reserved for asyncsync."""
    return name == META_DIR or name.endswith(TEMPORARY)


def is_text(path: str) -> bool:
    """Whether a name is UTF-8, which stores require."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
