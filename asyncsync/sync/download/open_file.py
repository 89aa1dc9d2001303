"""Reading one stored file in ranges, without downloading all of it. Every byte is verified before it is returned."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Protocol

import google_crc32c

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import ConfigError, IntegrityError
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.stores.base import ObjectInfo, Piece, Store
from asyncsync.sync.download.ranged_file import Intake, WrongSizeError, damaged

PATHS_IN_MESSAGE = 5
PARTS_AT_ONCE = 4
"""Parts that one read fetches in parallel."""
READ_ATTEMPTS = 2
"""Reads of a part whose bytes are wrong: damage in transit does not come twice."""


class CheckpointFile:
    """A stored file, open for reading, with the methods of a file of ``aiofiles`` in binary mode.

    The manifest has a checksum for each part of a file (16 MiB by default; a file of up to 32 MiB is one part), so a
    read fetches the parts that hold its range, and no others. The last part read stays in memory, which is the bound:
    one part, beside what a read returns. Use it in one task at a time.
    """

    def __init__(self, store: Store, prefix: str, entry: FileEntry) -> None:
        self._store, self._key, self._entry = store, prefix + entry.path, entry
        self._parts = list(entry.ranges()) if entry.size else []
        self._step = entry.part_size or entry.size
        self._position = 0
        self._cached: tuple[int, bytes] = (-1, b"")
        self.closed = False
        """True after the block that opened it."""

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at byte {self._position:,}"
        return f"<CheckpointFile {self.name}, {self.size:,} bytes, {state}>"

    @property
    def name(self) -> str:
        """Path of the file in its tree."""
        return self._entry.path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._entry.size

    async def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes from the present position; all the rest if ``size`` is negative. Fewer only at the end.

        IntegrityError if the stored bytes are not those of the manifest, read twice; StoreError; ValueError if the file
        is closed.
        """
        start, end = self._range(size)
        data = await self._bytes(start, end)
        self._position = end
        return data

    async def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill ``buffer`` as far as the file goes. Returns the number of bytes. Raises as :meth:`read`."""
        view = memoryview(buffer).cast("B")
        data = await self.read(len(view))
        view[: len(data)] = data
        return len(data)

    async def readline(self) -> bytes:
        """The bytes up to and with the next line end; empty at the end of the file. Raises as :meth:`read`."""
        lines = list[bytes]()
        while not (lines and lines[-1].endswith(b"\n")):
            first, part = await self._present_part()
            start = self._position - first
            line = part[start : part.find(b"\n", start) + 1 or len(part)]
            if not line:
                break
            lines.append(line)
            self._position += len(line)
        return b"".join(lines)

    async def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position, and return it. ValueError for one before the beginning, or an unknown ``whence``."""
        self._position = moved_to(offset, whence, self._position, self)
        return self._position

    async def tell(self) -> int:
        """The present position."""
        return self._position

    async def __aenter__(self) -> CheckpointFile:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the bytes in memory. The block that opened the file does it, too."""
        self.closed, self._cached = True, (-1, b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    def _range(self, size: int) -> tuple[int, int]:
        if self.closed:
            raise ValueError(f"{self.name} is closed: read it inside its 'async with' block")
        start = min(self._position, self.size)
        return start, self.size if size < 0 else min(self.size, start + size)

    async def _present_part(self) -> tuple[int, bytes]:
        """The part at the present position, and its first position in the file; empty at the end."""
        start, _ = self._range(0)
        if start >= self.size:
            return self._position, b""
        index = start // self._step
        if self._cached[0] != index:
            self._cached = index, await self._part(index)
        return index * self._step, self._cached[1]

    async def _bytes(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        indexes = range(start // self._step, (end - 1) // self._step + 1)
        parts: dict[int, bytes] = {}

        async def fetch(index: int) -> None:
            parts[index] = self._cached[1] if self._cached[0] == index else await self._part(index)

        await for_each_limited(indexes, fetch, min(PARTS_AT_ONCE, len(indexes)))
        self._cached = indexes[-1], parts[indexes[-1]]
        offset = indexes[0] * self._step
        if len(indexes) == 1:
            return parts[indexes[0]][start - offset : end - offset]
        return memoryview(b"".join(parts[index] for index in indexes))[start - offset : end - offset].tobytes()

    async def _part(self, index: int) -> bytes:
        """One part, verified. A part that is wrong is read once more."""
        offset, size, expected = self._parts[index]
        info: ObjectInfo | None = None
        for _ in range(READ_ATTEMPTS):
            data = bytearray(size)

            async def take(at: int, piece: Piece, data: bytearray = data) -> None:
                data[at : at + len(piece)] = piece

            intake = Intake(size, take)
            try:
                info = await self._store.read(self._key, intake, start=offset, length=size)
            except (WrongSizeError, IntegrityError):
                continue
            found = bytes(data)
            if intake.done == size and google_crc32c.value(found) == expected:
                return found
        raise damaged(self._store, self._key, self._entry, offset, info)


class _SizedFile(Protocol):
    """A file of a known size."""

    @property
    def name(self) -> str:
        """Names it in messages."""

    @property
    def size(self) -> int:
        """Bytes."""


def moved_to(offset: int, whence: int, position: int, file: _SizedFile) -> int:
    """The position after a ``seek`` from ``position``. ValueError for one before the beginning, or an unknown
    ``whence``."""
    base = {io.SEEK_SET: 0, io.SEEK_CUR: position, io.SEEK_END: file.size}.get(whence)
    if base is None:
        raise ValueError(f"invalid whence={whence!r}: must be os.SEEK_SET, os.SEEK_CUR or os.SEEK_END")
    if base + offset < 0:
        raise ValueError(f"negative position {base + offset} in {file.name}")
    return base + offset


def entry_of(manifest: Manifest, path: str, where: str) -> FileEntry:
    """The entry of a file; ConfigError names files that exist."""
    if path in manifest.files:
        return manifest.files[path]
    known = ", ".join(sorted(manifest.files)[:PATHS_IN_MESSAGE])
    raise ConfigError(f"{where} has no file {path!r}; it has {len(manifest.files)}: {known}")
