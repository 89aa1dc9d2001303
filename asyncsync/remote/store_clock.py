"""What time it is by the clock that dates a store's objects."""

from __future__ import annotations

import os
import tempfile

from asyncsync.aio.threads import in_thread
from asyncsync.disk.scan import TEMPORARY
from asyncsync.errors import NotFoundError, StoreError, SyncError
from asyncsync.planning.manifest import META_DIR
from asyncsync.stores.base import Store

CLOCK = f"{META_DIR}/clock"
"""Written to see the time that the store gives it, and removed."""
TRIES = 3
"""Another process may remove it just when we look: it asks for the time, too."""


async def store_time(store: Store) -> float:
    """Unix seconds, now or a moment ago, by the clock that tells the age of objects. This machine's is not asked.

    A directory: the time that its file system gives a new file. Else a small object is written and removed again.
    SyncError if the store does not say when an object was written; StoreError if it takes none.
    """
    if store.traits.local and await in_thread(os.path.isdir, store.uri):
        return await in_thread(_of_directory, store.uri)
    try:
        modified = await _of_object(store)
    except StoreError as error:
        error.add_note(f"{store.uri}: the age of objects is told by the store's clock, so a small one is written")
        raise
    if modified is None:
        raise SyncError(f"{store.uri} does not say when an object was written, so nobody knows what is old there")
    return modified


async def _of_object(store: Store) -> float | None:
    for _ in range(TRIES):
        await store.put(CLOCK, b"asyncsync was here to see what time it is\n")
        try:
            modified = (await store.head(CLOCK)).modified
        except NotFoundError:
            continue
        await store.delete([CLOCK])
        return modified
    return None


def _of_directory(root: str) -> float:
    try:
        with tempfile.TemporaryFile(dir=root, suffix=TEMPORARY) as file:
            file.write(b"\n")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise SyncError(
            f"{root}: the age of objects is told by the file system's clock, and no file can be made there: {error}"
        ) from error
