"""Private: the clock that dates a store's objects."""

from __future__ import annotations

import os
import tempfile

from asyncsync.aio.threads import in_thread
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import NotFoundError, StoreError, SyncError
from asyncsync.planning.manifest import META_DIR
from asyncsync.stores.base import Store

CLOCK_OBJECT = f"{META_DIR}/clock"
"""Written to read the time that the store gives it, then removed."""
CLOCK_ATTEMPTS = 3
"""Another process that reads the clock may remove the object between our write and our read."""


async def store_time(store: Store) -> float:
    """The current time in Unix seconds by the clock that dates objects, never by the clock of this machine.

    For a directory: the time that its file system gives to a new file. For any other store: the time of a small object
    that is written and removed.

    Raises:
        SyncError: the store does not report when an object was written.
        StoreError: the store refuses the object.
    """
    if store.traits.local and await in_thread(os.path.isdir, store.uri):
        return await in_thread(_directory_time, store.uri)
    try:
        modified = await _object_time(store)
    except StoreError as error:
        error.add_note(
            f"{store.uri}: the age of objects is measured by the store's clock, which takes writing a small object"
        )
        raise
    if modified is None:
        raise SyncError(f"{store.uri} does not report when an object was written, so the age of its objects is unknown")
    return modified


async def _object_time(store: Store) -> float | None:
    for _ in range(CLOCK_ATTEMPTS):
        await store.put(CLOCK_OBJECT, b"asyncsync was here to see what time it is\n")
        try:
            modified = (await store.head(CLOCK_OBJECT)).modified
        except NotFoundError:
            continue
        await store.delete([CLOCK_OBJECT])
        return modified
    return None


def _directory_time(root: str) -> float:
    try:
        with tempfile.TemporaryFile(dir=root, suffix=TEMPORARY) as file:
            file.write(b"\n")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise SyncError(
            f"{root}: the age of objects is measured by the file system's clock, and no file can be made there: {error}"
        ) from error
