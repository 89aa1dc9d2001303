"""What a killed writer leaves in a local store: temporary files, and uploads that cannot say whose they are."""

from __future__ import annotations

import os
import threading

from asyncsync.disk.landing import remove_stale
from asyncsync.stores.local import files as disk
from asyncsync.stores.local.multipart import UPLOADS


def sweep(root: str, stop: threading.Event) -> int:
    """Blocking: remove them below ``root``; how many files. A living writer holds a lock on its own: those stay."""
    removed, directories = 0, [root]
    while directories:
        disk.check_stop(stop)
        path = directories.pop()
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except OSError:
            continue  # gone, or not ours to read
        directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        removed += sum(remove_stale(entry.path) for entry in entries if entry.name.endswith(disk.TEMPORARY))
        if path.endswith(f"/{disk.CONTROL}/{UPLOADS}"):
            for entry in entries:
                _remove_nameless(entry.path)
    return removed


def _remove_nameless(home: str) -> None:
    """An upload without a key was just being made when its process died."""
    try:
        names = set(os.listdir(home))
        if not names & {"key", f"key{disk.TEMPORARY}"} and names <= {"data"}:
            for name in names:
                os.unlink(f"{home}/{name}")
            os.rmdir(home)
    except OSError:
        return  # somebody was faster, or is making one there
