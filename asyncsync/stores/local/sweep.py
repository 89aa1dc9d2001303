"""Removes remains of killed writers from a local store: temporary files, and uploads without a key."""

from __future__ import annotations

import os
import threading

from asyncsync.disk.landing import remove_stale
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.stores.local import files as disk
from asyncsync.stores.local.keys import CONTROL_DIR, UPLOADS_NAME


def sweep(root: str, stop: threading.Event) -> int:
    """Remove leftovers below ``root``; the number of files removed. Files of running writers are locked and stay.
    Blocking."""
    removed, directories = 0, [root]
    while directories:
        disk.check_stop(stop)
        path = directories.pop()
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except OSError:
            continue  # removed meanwhile, or not readable
        directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        removed += sum(remove_stale(entry.path) for entry in entries if entry.name.endswith(TEMPORARY))
        if path.endswith(f"/{CONTROL_DIR}/{UPLOADS_NAME}"):
            for entry in entries:
                _remove_without_key(entry.path)
    return removed


def _remove_without_key(home: str) -> None:
    """An upload without a key: its process was killed while it was being created."""
    try:
        names = set(os.listdir(home))
        if not names & {"key", f"key{TEMPORARY}"} and names <= {"data"}:
            for name in names:
                os.unlink(f"{home}/{name}")
            os.rmdir(home)
    except OSError:
        return  # another process removed it, or is creating one
