"""Any file system of fsspec as a store: whole files, verified after each write.

It is second choice: see ``NOT_KEPT`` for the promises that such a store cannot keep.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import google_crc32c

from asyncsync.aio.threads import in_thread_stoppable
from asyncsync.disk.files import PIECE, check_lease, lease_of
from asyncsync.errors import NotFoundError, StoreError, UnavailableError, UnsupportedError
from asyncsync.stores.base import Body, ObjectInfo, Page, Part, Sink, Store, Traits, Upload
from asyncsync.stores.fsspec.connections import FileSystemAddress, disconnect
from asyncsync.stores.fsspec.files import Files, Stop, info_of

log = logging.getLogger("asyncsync")
T = TypeVar("T")

PAGE_SIZE = 1000
MAX_COPIED = 64 << 20
"""Largest file (bytes) that is copied; the copy holds it in memory."""
NOT_KEPT = (
    "it has no conditional writes: two processes that write the same prefix are not stopped",
    "it keeps no checksums: a file is read back after it is written, and damage that comes later shows when it is read",
    "its versions are size and time: a change of the same size within a second goes unnoticed",
    "files are sent whole: an interrupted file, and a changed one, is sent again from its beginning",
    "where the server cannot rename over an existing file, a reader may meet no file for a moment",
)
"""Promises of other stores that a file system of fsspec does not keep."""
TRAITS = Traits(
    "fsspec",
    conditional_writes=False,
    conditional_copy=False,
    multipart=False,
    range_copy=False,
    crc32c=False,
    min_part_size=1,
    max_single_put=1 << 62,
    max_key_bytes=1024,
    not_kept=NOT_KEPT,
)


class FsspecStore(Store):
    """One directory of a file system. ``options`` are the arguments of that file system's class.

    Conditions of writes are checked just before the write, which other writers do not notice.
    """

    def __init__(self, uri: str, *, options: Mapping[str, Any]) -> None:
        self._address = FileSystemAddress.of(uri, options)
        self.uri = self._address.shown
        self.traits = TRAITS
        self._idle: list[Any] = []
        self._slots = asyncio.Semaphore(self._address.most_connections)
        self._closed = self._warned = False

    async def close(self) -> None:
        """Close idle connections; those in use are closed when their call ends. Safe to call twice."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await in_thread_stoppable(partial(_disconnect, connection))

    # Connections

    @asynccontextmanager
    async def _files(self) -> AsyncIterator[Files]:
        """The files, through a connection of this call alone. A connection that broke is not used again."""
        async with self._slots:
            if self._closed:
                raise StoreError(f"{self.uri} is closed")
            self._warn()
            connection = self._idle.pop() if self._idle else await self._connect()
            usable = False
            try:
                yield Files(self._address, connection)
                usable = True
            except (UnavailableError, asyncio.CancelledError):
                raise
            except Exception:
                usable = True
                raise
            finally:
                if usable and not self._closed:
                    self._idle.append(connection)
                else:
                    await in_thread_stoppable(partial(_disconnect, connection))

    async def _connect(self) -> Any:
        made: list[Any] = []
        try:
            await in_thread_stoppable(lambda _: made.append(self._address.connect()))
        except asyncio.CancelledError:
            for connection in made:
                disconnect(connection)
            raise
        return made[0]

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s is a file system of fsspec: %s", self.uri, "; ".join(NOT_KEPT))

    async def _run(self, work: Callable[[Files, threading.Event], T]) -> T:
        async with self._files() as files:
            return await in_thread_stoppable(partial(work, files))

    # Objects

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        lease = lease_of(body)
        return await self._run(lambda files, stop: files.write(key, body, crc32c, if_version, Stop(stop, lease)))

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        async with self._files() as files:
            info = await in_thread_stoppable(lambda _: files.info(key, if_version))
            end = info.size if length is None else min(info.size, start + length)
            if start >= end:
                return info
            file = await in_thread_stoppable(lambda _: files.open(key))
            try:
                await self._pass_on(files, file, key, sink, start, end)
            finally:
                await in_thread_stoppable(lambda _: file.close())
        return info

    async def _pass_on(self, files: Files, file: Any, key: str, sink: Sink, start: int, end: int) -> None:
        at = start
        while at < end:
            piece = await in_thread_stoppable(partial(_read, files, file, key, at, min(PIECE, end - at)))
            if not piece:
                raise UnavailableError(f"{self.uri}/{key} ended at {at} of {end} bytes while it was read")
            await sink(piece)
            at += len(piece)

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(lambda files, _: files.info(key))

    async def delete(self, keys: Sequence[str]) -> None:
        lease = lease_of(keys)

        def work(files: Files, stop: threading.Event) -> None:
            for key in keys:
                if stop.is_set():
                    return
                check_lease(lease)
                files.delete(key)

        await self._run(work)

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        """The bytes travel here and back."""
        self.check_copy_condition(key, if_version)
        found = await self.head(source)
        lease = lease_of(key)

        def work(files: Files, stop: threading.Event) -> ObjectInfo:
            files.info(source, if_source_version)
            with files.open(source) as file:
                data = file.read()
            crc = int(google_crc32c.value(data))
            return files.write(str(key), data, crc, None, Stop(stop, lease))

        if found.size > MAX_COPIED:
            raise UnsupportedError(f"{self.uri}: {source} has {found.size} bytes, too many to copy: send them instead")
        return await self._run(work)

    # Listings

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        if delimiter not in ("", "/"):
            raise StoreError(f"{self.uri}: the only delimiter is '/', not {delimiter!r}")
        found = await self._run(lambda files, _: _entries(files, prefix, delimiter))
        rest = [entry for entry in found if token is None or entry[0].encode() > token.encode()]
        shown = rest[:PAGE_SIZE]
        return Page(
            tuple(info for _, info in shown if info is not None),
            tuple(name for name, info in shown if info is None),
            shown[-1][0] if len(rest) > PAGE_SIZE else None,
        )

    # Multipart: there is none, but a killed writer leaves its temporary file

    def _unsupported(self, key: str) -> UnsupportedError:
        return UnsupportedError(f"{self.uri}/{key}: a file system of fsspec has no multipart uploads")

    async def create_multipart(self, key: str) -> Upload:
        raise self._unsupported(key)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        raise self._unsupported(upload.key)

    async def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: str,
        start: int,
        length: int,
        *,
        if_source_version: str | None = None,
    ) -> Part:
        raise self._unsupported(upload.key)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        raise self._unsupported(upload.key)

    async def abort_multipart(self, upload: Upload) -> None:
        """Delete the temporary file of a killed writer."""
        await self._run(lambda files, _: files.delete_temporary(upload.key))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        raise NotFoundError(f"{self.uri}/{upload.key}: there is no upload {upload.upload_id[:40]!r}")

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        """The temporary files: those of killed writers take space, and no listing shows them."""
        directory = prefix.rpartition("/")[0]
        start = f"{directory}/" if directory else ""
        found = await self._run(lambda files, _: list(files.below(start, prefix, temporary=True)))
        return [Upload(info.key, info.version, info.modified) for info in found]


def _disconnect(connection: Any, _: threading.Event) -> None:
    disconnect(connection)


def _read(files: Files, file: Any, key: str, at: int, size: int, _: threading.Event) -> bytes:
    return files.pieces(key, file, at, size)


def _entries(files: Files, prefix: str, delimiter: str) -> list[tuple[str, ObjectInfo | None]]:
    """Keys and their metadata, or common prefixes and None, in byte order. Directories without a file are
    left out."""
    directory = prefix.rpartition("/")[0]
    directory = f"{directory}/" if directory else ""
    found: dict[str, ObjectInfo | None] = {}
    if not delimiter:
        found = {info.key: info for info in files.below(directory, prefix)}
    else:
        for name, entry in files.entries(directory):
            if (directory + name).startswith(prefix) or f"{directory}{name}/".startswith(prefix):
                if entry.get("type") == "directory":
                    inner = f"{directory}{name}/"
                    if next(files.below(inner, inner), None) is not None:
                        found[inner] = None
                elif entry.get("type") == "file":
                    found[directory + name] = info_of(directory + name, entry)
    return sorted(found.items(), key=lambda item: item[0].encode())
