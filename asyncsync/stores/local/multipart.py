"""Multipart uploads of the local store: one data file, written at offsets, and one empty marker file per part.

``.asyncsync/uploads/<id>/`` below the root contains ``key`` (the object's key), ``data``, and a marker for each
finished part, whose name describes it: ``part-<number>-<offset>-<size>-<crc32c>``. A marker is created after the bytes
are on the disk, so a part that is listed after a crash is durable.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Sequence

from asyncsync.disk.files import close_descriptor
from asyncsync.disk.own_names import TEMPORARY
from asyncsync.errors import IntegrityError, NotFoundError, StoreError
from asyncsync.planning.crc32c import crc32c_combine
from asyncsync.stores.base import Part, Upload
from asyncsync.stores.local import files as disk
from asyncsync.stores.local import publish
from asyncsync.stores.local.keys import CONTROL_DIR, UPLOADS_NAME

_ID = re.compile(r"[0-9a-f]{32}")
_MARKER = re.compile(r"part-(\d+)-(\d+)-(\d+)-([0-9a-f]{8}|none)")

_being_written: list[str] = []
"""The directory of an upload, for each part of it that a thread of this process is writing. An upload is resumed only
once all its threads have ended: one that is stuck in a dead file system may write when it wakes."""


class LocalUploads:
    """The open uploads of one root. All methods block, and raise errors of the system for the store to map."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._home = os.path.join(root, CONTROL_DIR, UPLOADS_NAME)

    def create(self, key: str) -> Upload:
        upload = Upload(key, os.urandom(16).hex(), time.time())
        home = self._dir(upload)
        # "key" is written under a temporary name and renamed, so that a crash never leaves an upload without its key
        fd = disk.create(os.path.join(home, f"key{TEMPORARY}"))
        try:
            disk.write_bytes(fd, key.encode(), 0, disk.WritePermit(threading.Event()))
            os.fsync(fd)
            os.close(os.open(os.path.join(home, "data"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            os.rename(os.path.join(home, f"key{TEMPORARY}"), os.path.join(home, "key"))
        except BaseException:
            self._remove(upload)
            raise
        finally:
            close_descriptor(fd)  # releases the lock that protects the upload from a sweep
        disk.sync_dir(home)
        return upload

    def put_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        body: bytes | disk.SourceFile,
        crc32c: int | None,
        permit: disk.WritePermit,
    ) -> Part:
        if number < 1 or offset < 0:
            raise StoreError(
                f"{upload.key}: invalid part {number} at offset {offset}: numbers count from 1, offsets from 0"
            )
        size = len(body) if isinstance(body, bytes) else body.size
        with _writing(self._dir(upload)), self._data(upload) as fd:
            permit.check()
            self._remove_marker(upload, number)
            if isinstance(body, bytes):
                disk.write_bytes(fd, body, offset, permit)
            else:
                disk.copy_range(body, fd, offset, permit)
            os.fsync(fd)
        permit.check()
        name = f"part-{number}-{offset}-{size}-{'none' if crc32c is None else format(crc32c, '08x')}"
        marker = os.open(os.path.join(self._dir(upload), name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.close(marker)
        return Part(number, offset, size, name, crc32c)

    def parts(self, upload: Upload) -> list[Part]:
        if self._dir(upload) in _being_written:
            raise NotFoundError(f"upload {upload.upload_id} of {upload.key}: a thread is stuck in one of its parts")
        with self._data(upload):
            return sorted(self._markers(upload), key=lambda part: part.number)

    def complete(
        self,
        upload: Upload,
        parts: Sequence[Part],
        target: str,
        where: str,
        crc32c: int | None,
        if_version: str | None,
        permit: disk.WritePermit,
    ) -> tuple[os.stat_result, int | None]:
        size, known = self._check(upload, parts, where, crc32c)
        data = os.path.join(self._dir(upload), "data")
        with self._data(upload) as fd:
            os.ftruncate(fd, size)  # a part that was replaced may have been longer
            found = disk.seal(fd)
        self._publish(data, target, where, if_version, permit)
        self._remove(upload)
        return found, known

    def abort(self, upload: Upload) -> None:
        self._remove(upload)

    def all(self, prefix: str) -> list[Upload]:
        try:
            names = sorted(name for name in os.listdir(self._home) if _ID.fullmatch(name))
        except FileNotFoundError:
            return []
        found = [upload for name in names if (upload := self._read(name)) is not None]
        return [upload for upload in found if upload.key.startswith(prefix)]

    def _read(self, name: str) -> Upload | None:
        path = os.path.join(self._home, name, "key")
        try:
            with open(path, "rb") as file:
                key, started = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None  # just being created, or just removed
        return Upload(key.decode(), name, started)

    def _dir(self, upload: Upload) -> str:
        if not _ID.fullmatch(upload.upload_id):
            raise NotFoundError(f"no upload {upload.upload_id!r} of {upload.key}")
        return os.path.join(self._home, upload.upload_id)

    @contextlib.contextmanager
    def _data(self, upload: Upload) -> Iterator[int]:
        try:
            fd = os.open(os.path.join(self._dir(upload), "data"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFoundError(f"no upload {upload.upload_id} of {upload.key}") from error
        try:
            if os.fstat(fd).st_nlink > 1:  # its writer was killed after publishing the object
                raise NotFoundError(f"upload {upload.upload_id} of {upload.key} is already complete")
            yield fd
        finally:
            close_descriptor(fd)

    def _markers(self, upload: Upload) -> Iterator[Part]:
        for name in os.listdir(self._dir(upload)):
            if match := _MARKER.fullmatch(name):
                number, offset, size = (int(group) for group in match.groups()[:3])
                yield Part(number, offset, size, name, None if match[4] == "none" else int(match[4], 16))

    def _remove_marker(self, upload: Upload, number: int) -> None:
        """Before a part is replaced: its old marker is removed before its bytes are overwritten."""
        for part in self._markers(upload):
            if part.number == number:
                disk.unlink(os.path.join(self._dir(upload), part.etag))

    def _check(self, upload: Upload, parts: Sequence[Part], where: str, crc32c: int | None) -> tuple[int, int | None]:
        """The size of the object made of these parts, and its CRC32C if all parts have one."""
        kept = {part.etag: part for part in self.parts(upload)}
        numbers = [part.number for part in parts]
        if not numbers or numbers != sorted(set(numbers)):
            raise StoreError(f"{where}: parts must be in order, each once; got {numbers[:20]}")
        size, total = 0, None if any(part.etag in kept and kept[part.etag].crc32c is None for part in parts) else 0
        for part in parts:
            have = kept.get(part.etag)
            if have is None or have.number != part.number:
                raise StoreError(f"{where}: part {part.number} was not uploaded or was replaced")
            if have.offset != size:
                raise StoreError(
                    f"{where}: part {part.number} starts at {have.offset}, but the one before ends at {size}"
                )
            if total is not None and have.crc32c is not None:
                total = crc32c_combine(total, have.crc32c, have.size)
            size += have.size
        if None not in (total, crc32c) and total != crc32c:
            raise IntegrityError(f"{where}: the parts have CRC32C {total:08x}, not {crc32c:08x}")
        return size, total

    def _publish(self, data: str, target: str, where: str, if_version: str | None, permit: disk.WritePermit) -> None:
        for attempt in range(disk.DIRECTORY_ATTEMPTS):
            disk.make_dirs(os.path.dirname(target))
            try:
                publish.publish(data, target, where, if_version, permit)
            except FileNotFoundError:
                if attempt == disk.DIRECTORY_ATTEMPTS - 1 or not os.path.exists(data):
                    raise
                continue  # a concurrent delete removed the empty directory
            return

    def _remove(self, upload: Upload) -> None:
        home = self._dir(upload)
        try:
            names = os.listdir(home)
        except FileNotFoundError:
            return
        # "data" first: without it every other call finds no upload
        for name in sorted(names, key=lambda name: (name != "data", name == "key", name)):
            if stat.S_ISREG(os.lstat(os.path.join(home, name)).st_mode):
                disk.unlink(os.path.join(home, name))
        publish.prune(home, self._root)


@contextlib.contextmanager
def _writing(directory: str) -> Iterator[None]:
    _being_written.append(directory)
    try:
        yield
    finally:
        _being_written.remove(directory)
