"""The local store: objects are plain files with plain names, and a crash leaves no partial object."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from asyncsync.aio.descriptors import out_of_descriptors
from asyncsync.aio.threads import in_thread, in_thread_stoppable
from asyncsync.disk.files import PIECE, FileRange, close_descriptor
from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.stores.base import KEYS_PER_DELETE, Body, ObjectInfo, Page, Part, Sink, Store, Traits, Upload, lease_of
from asyncsync.stores.local import files as disk
from asyncsync.stores.local.keys import check_key, check_prefix
from asyncsync.stores.local.listing import Listings
from asyncsync.stores.local.multipart import LocalUploads
from asyncsync.stores.local.publish import prune, write_file
from asyncsync.stores.local.sweep import sweep

_T = TypeVar("_T")

_UNAVAILABLE_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENOTCONN}
"""Errors of a disk or a network file system that does not respond."""


class LocalStore(Store):
    """Objects are files below ``root``, an absolute path that may not exist yet.

    - A put writes a temporary file beside the target, syncs it, renames it, and syncs the directory: acknowledged bytes
      are on the disk.
    - The kernel copies a FileRange (shared blocks or ``copy_file_range``, if the file system supports it). So its
      CRC32C is not checked, only its size, and that the source did not change meanwhile. Bytes in memory are checked.
    - Create-only writes are atomic with respect to all writers. Conditional replaces exclude each other with a lock
      file, across processes and across stores with other roots, but not unconditional writes of the same key.
    - A version is inode, mtime in ns and size. Empty directories are removed with their last object.
    - Parts of open uploads are in ``.asyncsync/uploads`` below the root, and survive the process.
    - Symbolic links that lead out of the root are refused.

    Errors: AccessDeniedError for missing permissions, UnavailableError for a disk that does not respond (EIO, ESTALE,
    ETIMEDOUT), ThrottledError if this process has no free file descriptor (EMFILE), StoreError with the system's text
    for anything else, including a full disk. A missing source file raises Python's plain ``FileNotFoundError``, which
    is not a StoreError.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_absolute():
            raise ConfigError(f"storage path {str(root)!r} is relative: give an absolute path")
        self.root = os.path.normpath(root)
        self.uri = self.root
        self.traits = Traits(
            "file",
            crc32c=False,
            min_part_size=1,
            min_range_source=0,
            max_part_size=1 << 62,
            max_parts=1_000_000,
            max_single_put=1 << 62,
            max_key_bytes=3000,
            local=True,
        )
        self._uploads = LocalUploads(self.root)
        self._listings = Listings(self.root)

    async def close(self) -> None:
        """Every call closes the files that it opened; only listings that nobody continued are left."""
        self._listings.forget()

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        target, lease = self._path(key), lease_of(body)

        def work(stop: threading.Event) -> ObjectInfo:
            permit = disk.WritePermit(stop, lease)
            if isinstance(body, FileRange):
                with disk.open_source(body) as source:  # outside _mapped: a missing source is not an error of the store
                    return self._write(key, target, source, permit, crc32c, if_version)
            return self._write(key, target, body, permit, crc32c, if_version)

        return await in_thread_stoppable(work)

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        path, where = self._path(key), self._where(key)
        first = PIECE if length is None else min(PIECE, length)
        opened: list[int] = []

        def begin(stop: threading.Event) -> tuple[ObjectInfo, bytes]:
            with self._mapped(key):
                fd, found = disk.open_object(path, self.root)
                if stop.is_set():
                    close_descriptor(fd)  # the caller may not wait any more
                    raise disk.StoppedError
                opened.append(fd)
                info = _info(key, found)
                if if_version is not None and if_version != info.version:
                    raise PreconditionError(f"{where} has version {info.version}, not {if_version}")
                return info, os.pread(fd, first, start)

        def more(at: int, size: int, _: threading.Event) -> bytes:
            with self._mapped(key):
                return os.pread(opened[0], size, at)

        try:
            # A cancelled call still waits for its thread, so that no thread reads from a descriptor closed below.
            info, data = await in_thread_stoppable(begin)
            end = info.size if length is None else min(info.size, start + length)
            at = start
            while at < end:
                if not data:
                    raise UnavailableError(f"{where} was truncated at {at} of {info.size} bytes while it was read")
                await sink(data)
                at += len(data)
                data = await in_thread_stoppable(partial(more, at, min(PIECE, end - at))) if at < end else b""
        finally:
            for fd in opened:
                close_descriptor(fd)
        return info

    async def head(self, key: str) -> ObjectInfo:
        path = self._path(key)

        def work() -> ObjectInfo:
            with self._mapped(key):
                fd, found = disk.open_object(path, self.root)
                close_descriptor(fd)
                return _info(key, found)

        return await in_thread(work)

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        if delimiter not in ("", "/"):
            raise StoreError(f"{self.uri}: invalid delimiter {delimiter!r}: only '/' is supported")
        self._check_prefix(prefix)

        def work() -> Page:
            with self._mapped(prefix):
                return self._listings.page(prefix, folded=bool(delimiter), token=token)

        return await in_thread(work)

    async def delete(self, keys: Sequence[str]) -> None:
        if len(keys) > KEYS_PER_DELETE:
            raise StoreError(f"{self.uri}: {len(keys)} keys in one delete, at most {KEYS_PER_DELETE} are allowed")
        paths, lease = {key: self._path(key) for key in keys}, lease_of(keys)

        def work(stop: threading.Event) -> None:
            permit = disk.WritePermit(stop, lease)
            for key, path in paths.items():
                permit.check()
                with self._mapped(key):
                    disk.beneath(os.path.dirname(path), self.root)
                    disk.unlink(path)
            with self._mapped(keys[0]):
                for parent in {os.path.dirname(path) for path in paths.values()}:
                    if os.path.isdir(parent):
                        disk.sync_dir(parent)
                    prune(parent, self.root)

        if keys:
            await in_thread_stoppable(work)

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        origin, target, lease = self._path(source), self._path(key), lease_of(key)
        self.check_copy_condition(key, if_version)

        def work(stop: threading.Event) -> ObjectInfo:
            with self._source(source, origin, if_source_version) as opened:
                return self._write(key, target, opened, disk.WritePermit(stop, lease), None, if_version)

        return await in_thread_stoppable(work)

    async def create_multipart(self, key: str) -> Upload:
        self._path(key)
        return await self._upload_call(key, lambda _: self._uploads.create(key))

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        where, lease = self._where(upload.key), lease_of(body)

        def work(stop: threading.Event) -> Part:
            permit = disk.WritePermit(stop, lease)
            if isinstance(body, FileRange):
                with disk.open_source(body) as source, self._mapped(upload.key):
                    return self._uploads.put_part(upload, number, offset, source, crc32c, permit)
            with self._mapped(upload.key):
                checked = disk.check_crc(where, body, crc32c)
                return self._uploads.put_part(upload, number, offset, body, checked, permit)

        return await in_thread_stoppable(work)

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
        origin = self._path(source)

        def work(stop: threading.Event) -> Part:
            with self._source(source, origin, if_source_version) as opened, self._mapped(upload.key):
                if start < 0 or length < 1 or start + length > opened.size:
                    raise StoreError(
                        f"{self._where(source)}: no range of {length} bytes at {start}, it has {opened.size} bytes"
                    )
                piece = disk.SourceFile(opened.fd, opened.path, start, length, opened.found)
                return self._uploads.put_part(upload, number, offset, piece, None, disk.WritePermit(stop))

        return await in_thread_stoppable(work)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        target, where = self._path(upload.key), self._where(upload.key)

        def work(stop: threading.Event) -> ObjectInfo:
            disk.beneath(os.path.dirname(target), self.root)
            permit = disk.WritePermit(stop, upload.lease)
            found, known = self._uploads.complete(upload, parts, target, where, crc32c, if_version, permit)
            return _info(upload.key, found, known)

        return await self._upload_call(upload.key, work)

    async def abort_multipart(self, upload: Upload) -> None:
        await self._upload_call(upload.key, lambda _: self._uploads.abort(upload))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await self._upload_call(upload.key, lambda _: self._uploads.parts(upload))

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        self._check_prefix(prefix)
        return await self._upload_call(prefix, lambda _: self._uploads.all(prefix))

    async def sweep(self) -> int:
        return await in_thread_stoppable(partial(sweep, self.root))

    async def _upload_call(self, key: str, func: Callable[[threading.Event], _T]) -> _T:
        def work(stop: threading.Event) -> _T:
            with self._mapped(key):
                return func(stop)

        return await in_thread_stoppable(work)

    def _write(
        self,
        key: str,
        target: str,
        body: bytes | disk.SourceFile,
        permit: disk.WritePermit,
        crc32c: int | None,
        if_version: str | None,
    ) -> ObjectInfo:
        with self._mapped(key):
            disk.beneath(os.path.dirname(target), self.root)
            found, checked = write_file(target, body, self._where(key), permit, crc32c, if_version)
            return _info(key, found, checked)

    @contextlib.contextmanager
    def _source(self, key: str, path: str, if_version: str | None) -> Iterator[disk.SourceFile]:
        """An object of this store, opened as the source of a copy."""
        with self._mapped(key):
            fd, found = disk.open_object(path, self.root)
        try:
            if if_version is not None and if_version != disk.version_of(found):
                raise PreconditionError(f"{self._where(key)} has version {disk.version_of(found)}, not {if_version}")
            yield disk.SourceFile(fd, path, 0, found.st_size, found)
        finally:
            close_descriptor(fd)

    @contextlib.contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise  # some StoreErrors are OSErrors too
        except OSError as error:
            raise _store_error(error, self._where(key)) from error

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _path(self, key: str) -> str:
        check_key(self.uri, key)
        return os.path.join(self.root, key)

    def _check_prefix(self, prefix: str) -> None:
        if prefix:
            check_prefix(self.uri, prefix)


def _info(key: str, found: os.stat_result, crc32c: int | None = None) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, disk.version_of(found), crc32c, found.st_mtime)


def _store_error(error: OSError, where: str) -> StoreError:
    text = f"{where}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return AccessDeniedError(text)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(text)
    if error.errno in _UNAVAILABLE_ERRNOS:
        return UnavailableError(text)
    if out_of_descriptors(error):
        return ThrottledError(f"{text}: fewer requests at a time follow; 'ulimit -n' allows more")
    return StoreError(text)
