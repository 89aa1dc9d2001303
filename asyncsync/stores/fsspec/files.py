"""Files of one file system of fsspec. Blocking: for worker threads.

A file is written under a temporary name, read back and compared, and moved to its name. Between its pieces, a write
stops if it was cancelled or has lost its lease.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import google_crc32c

from asyncsync.disk.files import PIECE, FileRange, Lease, check_lease
from asyncsync.errors import (
    AsyncsyncError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    SourceChangedError,
    StoreError,
    UnavailableError,
)
from asyncsync.runtime import token as random_token
from asyncsync.stores.base import MISSING, Body, ObjectInfo
from asyncsync.stores.fsspec.connections import FileSystemAddress

TEMPORARY = ".asyncsync-tmp-"
"""Prefix of the names of temporary files, which listings leave out."""
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "modify", "updated", "created")
"""Names under which file systems give the time of the last change."""


@dataclass(frozen=True, slots=True)
class Stop:
    """When a write must stop: after a cancel, or without its lease."""

    event: threading.Event
    lease: Lease | None = None

    def check(self) -> None:
        """Raise if the write must stop. The error of a cancel is dropped: the caller raises the cancel itself."""
        if self.event.is_set():
            raise UnavailableError("cancelled")
        check_lease(self.lease)


class Files:
    """The files below one directory. ``connection``: a file system that only this object uses."""

    def __init__(self, address: FileSystemAddress, connection: Any) -> None:
        self._address, self._fs = address, connection

    def path(self, key: str) -> str:
        """The path of a key. StoreError for a key that may be outside the directory, or is a temporary file."""
        segments = key.split("/")
        if not all(segments) or {".", ".."} & set(segments) or "\0" in key or segments[-1].startswith(TEMPORARY):
            raise StoreError(f"{self._address.shown}: invalid key {key!r}: a file cannot have this name")
        return f"{self._address.path}/{key}"

    @contextmanager
    def _mapped(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (AsyncsyncError, SourceChangedError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(f"{verb} {self._address.shown}/{key}: there is no such file") from error
        except Exception as error:
            raise self._address.failure(verb, key, error) from error

    def info(self, key: str, if_version: str | None = None) -> ObjectInfo:
        """Metadata of a file. NotFoundError if it is missing, PreconditionError if it has another version."""
        with self._mapped("info", key):
            found = self._fs.info(self.path(key))
            if found.get("type") != "file":
                raise FileNotFoundError(key)
        info = info_of(key, found)
        if if_version not in (None, info.version):
            raise PreconditionError(f"{self._address.shown}/{key}: has version {info.version}, not {if_version}")
        return info

    def check_condition(self, key: str, if_version: str | None) -> None:
        """PreconditionError if the condition does not hold now. Another writer may change that a moment later."""
        if if_version is None:
            return
        try:
            found = self.info(key).version
        except NotFoundError:
            found = MISSING
        if found != if_version:
            raise PreconditionError(
                f"{self._address.shown}/{key}: has version {found or 'none'}, not {if_version or 'none'}"
            )

    # Reading

    def open(self, key: str) -> Any:
        """The file, open for reading."""
        with self._mapped("open", key):
            return self._fs.open(self.path(key), "rb")

    def pieces(self, key: str, file: Any, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start``."""
        with self._mapped("read", key):
            file.seek(start)
            data: bytes = file.read(length)
            return data

    # Writing

    def write(self, key: str, body: Body, crc32c: int | None, if_version: str | None, stop: Stop) -> ObjectInfo:
        """Write one file; its metadata. Errors of reading the body are raised as they are."""
        target = self.path(key)
        self.check_condition(key, if_version)
        temporary = f"{target.rpartition('/')[0]}/{TEMPORARY}{random_token()}"
        source = pieces_of(body)
        first = next(source, b"")  # before anything is created: the local file may be missing
        try:
            with self._mapped("write", key):
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                size, crc = self._fill(temporary, first, source, stop)
            if crc32c is not None and crc != crc32c:
                raise IntegrityError(
                    f"write {self._address.shown}/{key}: the bytes to send have CRC32C {crc:08x}, not {crc32c:08x}"
                )
            self._read_back(key, temporary, size, crc)
            stop.check()
            self.check_condition(key, if_version)
            with self._mapped("write", key):
                self._move(temporary, target)
        except BaseException:  # also a cancel: clean up, then raise
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise
        return self.info(key)

    def _fill(self, path: str, first: bytes, rest: Iterator[bytes], stop: Stop) -> tuple[int, int]:
        """Write a temporary file; its size and CRC32C."""
        size = crc = 0
        stop.check()
        with self._fs.open(path, "wb") as file:
            piece: bytes | None = first
            while piece:
                file.write(piece)
                crc, size = google_crc32c.extend(crc, piece), size + len(piece)
                piece = next(rest, None)
                stop.check()
        return size, int(crc)

    def _read_back(self, key: str, path: str, size: int, crc32c: int) -> None:
        """IntegrityError if the file system has other bytes than those that were written."""
        got = crc = 0
        with self._mapped("read back", key), self._fs.open(path, "rb") as file:
            while data := file.read(PIECE):
                got, crc = got + len(data), google_crc32c.extend(crc, data)
        if (got, crc) != (size, crc32c):
            raise IntegrityError(
                f"write {self._address.shown}/{key}: {size} bytes with CRC32C {crc32c:08x} were written, and "
                f"{got} with {crc:08x} came back",
                retryable=True,
            )

    def _move(self, temporary: str, target: str) -> None:
        """fsspec's own ``mv`` takes brackets in a name for a pattern: only one of the file system itself is used."""
        if type(self._fs).mv.__qualname__.startswith("AbstractFileSystem"):
            self._fs.cp_file(temporary, target)
            self._fs.rm_file(temporary)
            return
        try:
            self._fs.mv(temporary, target)
        except OSError:
            if not self._fs.exists(target):
                raise
            if self._fs.exists(temporary):  # else it was moved, and only the response was lost
                self._move_over(temporary, target)

    def _move_over(self, temporary: str, target: str) -> None:
        """For a server that renames to free names only: the file that is replaced stays under another name until its
        successor is in place."""
        aside = f"{temporary}-replaced"
        self._fs.mv(target, aside)
        try:
            self._fs.mv(temporary, target)
        except BaseException:
            self._fs.mv(aside, target)
            raise
        self._fs.rm_file(aside)

    def delete(self, key: str) -> None:
        """Delete a file; a missing one is ignored."""
        try:
            self.info(key)
            with self._mapped("delete", key):
                self._fs.rm_file(self.path(key))
        except NotFoundError:
            return

    def delete_temporary(self, key: str) -> None:
        """Delete the temporary file of a writer; a missing one, or another file, is ignored."""
        directory, slash, name = key.rpartition("/")
        if name.startswith(TEMPORARY):
            with suppress(NotFoundError), self._mapped("delete", key):
                self._fs.rm_file(f"{self.path(directory)}/{name}" if slash else f"{self._address.path}/{name}")

    # Listings

    def entries(self, directory: str, *, temporary: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Names and properties in a directory, whose key ends in a slash or is empty. A missing one has none.
        ``temporary``: the temporary files and the directories only, else everything but temporary files."""
        path = f"{self._address.path}/{directory}".rstrip("/") or "/"
        try:
            with self._mapped("list", directory):
                self._fs.invalidate_cache()
                found = self._fs.ls(path, detail=True)
        except NotFoundError:
            return []
        named = [(str(entry["name"]).rstrip("/"), entry) for entry in found]
        inside = [(full.rpartition("/")[2], entry) for full, entry in named if full.strip("/") != path.strip("/")]
        return [
            (name, entry)
            for name, entry in inside
            if name and (name.startswith(TEMPORARY) == temporary or (temporary and entry.get("type") == "directory"))
        ]

    def below(self, directory: str, prefix: str, *, temporary: bool = False) -> Iterator[ObjectInfo]:
        """All files whose keys begin with ``prefix``, from ``directory`` on; or the temporary ones of writers."""
        for name, entry in self.entries(directory, temporary=temporary):
            key = directory + name
            if entry.get("type") == "directory":
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self.below(f"{key}/", prefix, temporary=temporary)
            elif entry.get("type") == "file" and key.startswith(prefix):
                yield info_of(key, entry)


def pieces_of(body: Body) -> Iterator[bytes]:
    """The bytes of a body. SourceChangedError if a file is shorter."""
    if isinstance(body, bytes):
        yield from (body[at : at + PIECE] for at in range(0, len(body), PIECE))
        return
    done = 0
    if not body.size:
        FileRange(body.path, body.offset, 1).read(0, 1)  # it must exist
    for piece in body.pieces():
        done += len(piece)
        yield piece
    if done != body.size:
        raise SourceChangedError(f"{body.path}: ended after {done} of {body.size} bytes: it became shorter")


def info_of(key: str, entry: dict[str, Any]) -> ObjectInfo:
    """Metadata of a file. Its version is made of its size and the time of its last change, which is all that file
    systems give: two writes of one size within the same second have the same version."""
    modified = next((_unix(entry[name]) for name in _TIMES if entry.get(name) is not None), None)
    size = int(entry.get("size") or 0)
    shown = "" if modified is None else f"{modified:.6f}"
    return ObjectInfo(key, size, f"{size}-{shown}", None, modified)


def _unix(when: object) -> float | None:
    if isinstance(when, datetime):
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(when) if isinstance(when, int | float) else None
