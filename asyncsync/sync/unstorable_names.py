"""Names of files that the store cannot hold: not UTF-8, or too long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from asyncsync.errors import SyncFailedError
from asyncsync.planning.snapshot import FileStat, Snapshot
from asyncsync.stores.base import Store

MOST_NAMES_IN_ERROR = 5
MOST_NAMES_IN_WARNINGS = 20
"""Left-out files that get a warning each; the others are counted in one more warning."""


def longest_path(store: Store, prefix: str) -> int:
    """Longest path below ``prefix``, in bytes: the store's limit for keys less its own prefix and ``prefix``."""
    above = store.uri.partition("://")[2].partition("/")[2]
    return store.traits.max_key_bytes - len(f"{above}/{prefix}".encode())


def too_long(files: Iterable[FileStat], store: Store, prefix: str) -> dict[str, str]:
    """The paths that are too long for the store, each with the reason."""
    most = longest_path(store, prefix)
    why = f"the name is longer than the store allows ({most} bytes here)"
    return {file.path: why for file in files if len(file.path) * 4 > most and len(file.path.encode()) > most}


def unstorable(snapshot: Snapshot, store: Store, prefix: str) -> dict[str, str]:
    """The paths of a snapshot that the store cannot hold, each with the reason."""
    bad = dict.fromkeys(snapshot.refused, "the name is not UTF-8, or longer than a path may be")
    return bad | too_long(snapshot.files, store, prefix)


def leave_out(snapshot: Snapshot, bad: Mapping[str, str]) -> None:
    """Take the paths out of the snapshot, with warnings that name them."""
    snapshot.warnings += [f"{path!r}: left out, {why}" for path, why in list(bad.items())[:MOST_NAMES_IN_WARNINGS]]
    if len(bad) > MOST_NAMES_IN_WARNINGS:
        more = len(bad) - MOST_NAMES_IN_WARNINGS
        snapshot.warnings.append(f"{more} more files were left out because of their names")
    snapshot.left_out = len(bad)
    snapshot.bytes_total -= sum(file.size for file in snapshot.files if file.path in bad)
    snapshot.files = [file for file in snapshot.files if file.path not in bad]


def refused_names(root: str, bad: Mapping[str, str]) -> SyncFailedError:
    """The error for a tree that may not leave out a file."""
    names = ", ".join(repr(path) for path in list(bad)[:MOST_NAMES_IN_ERROR])
    text = f"{root}: nothing was sent, the store could not hold these names: {names}; rename the files"
    return SyncFailedError(text, {path: ValueError(why) for path, why in bad.items()})
