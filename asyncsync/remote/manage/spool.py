"""Private: an object in a temporary file of this machine, on its way to a store that takes it in one request only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import NamedTemporaryFile, gettempdir
from typing import Any

import google_crc32c

from asyncsync.aio.threads import in_thread_stoppable
from asyncsync.errors import SyncError
from asyncsync.stores.base import FileRange, ObjectInfo, Piece, Store
from asyncsync.stores.read import uri_of


@asynccontextmanager
async def spooled(store: Store, key: str, info: ObjectInfo) -> AsyncIterator[tuple[FileRange, int]]:
    """The bytes of an object in a file, and their CRC32C. The file is removed at the end.

    PreconditionError if the object is not that of ``info`` any more; SyncError if the file cannot be written.
    """
    made: list[Any] = []
    crc = 0

    async def keep(piece: Piece) -> None:
        nonlocal crc
        try:
            await in_thread_stoppable(lambda _: _write(made[0], piece))
        except OSError as error:
            where = f"its {info.size:,} bytes cannot be kept in {gettempdir()}"
            raise SyncError(f"{uri_of(store, key)}: {where}: {error}. TMPDIR names another directory") from error
        crc = google_crc32c.extend(crc, bytes(piece))

    try:
        await in_thread_stoppable(lambda _: made.append(_create()))
        await store.read(key, keep, if_version=info.version or None)
        yield FileRange(made[0].name, 0, info.size), crc
    finally:
        for file in made:
            file.close()


def _create() -> Any:
    return NamedTemporaryFile(prefix="asyncsync-", buffering=0)


def _write(file: Any, piece: Piece) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
