"""Downloading one large file: read in ranges, each verified by its CRC32C before the next one is requested."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from asyncsync.aio.threads import in_thread
from asyncsync.disk.landing import Landing
from asyncsync.errors import IntegrityError, PreconditionError
from asyncsync.planning.crc32c import crc32c_of_pieces
from asyncsync.planning.manifest import FileEntry
from asyncsync.stores.base import ObjectInfo, Piece, Store


class WrongSizeError(Exception):
    """More bytes arrived than were requested. Never leaves this package."""


class ReplacedError(IntegrityError):
    """The object is not the one that the manifest names: a sync may be running."""


class Intake:
    """A sink that refuses more than ``size`` bytes. ``take`` receives the offset of each piece, and the piece."""

    def __init__(self, size: int, take: Callable[[int, Piece], Awaitable[None]]) -> None:
        self.done = 0
        self._size, self._take = size, take

    async def __call__(self, piece: Piece) -> None:
        if self.done + len(piece) > self._size:
            raise WrongSizeError
        await self._take(self.done, piece)
        self.done += len(piece)


def damaged(store: Store, key: str, entry: FileEntry, offset: int, info: ObjectInfo | None) -> IntegrityError:
    """The error that names path, store and offset of damaged bytes."""
    replaced = info is not None and bool(entry.version) and info.version != entry.version
    why = "it was replaced since its manifest was written, or is damaged" if replaced else "it is damaged"
    return (ReplacedError if replaced else IntegrityError)(
        f"{entry.path}: the bytes from offset {offset} of {store.uri.rstrip('/')}/{key} do not match the "
        f"manifest (read twice): {why}"
    )


class RangedFile:
    """Fills one :class:`Landing`. Each of ``segments`` can be fetched by another worker, in any order.

    Segments are the parts whose CRC32C the manifest has, cut into ranges of at most ``part_size`` bytes.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        landing: Landing,
        part_size: int,
        account: Callable[[int], None],
        reuse: Callable[[int], None],
    ) -> None:
        self.entry, self._reuse = landing.entry, reuse
        self._store, self._key, self._landing, self._account = store, prefix + landing.entry.path, landing, account
        self._parts = list(self.entry.ranges())
        self._pieces = [_cut(offset, size, part_size) for offset, size, _ in self._parts]
        self.segments = [(part, *piece) for part, pieces in enumerate(self._pieces) for piece in pieces]
        self._crcs: dict[int, int] = {}
        self._left = [len(pieces) for pieces in self._pieces]
        self._parts_left = len(self._parts)
        self._there: set[int] = set()
        """Parts that an earlier download left in the temporary file, verified."""
        self._opening = asyncio.Lock()
        self._is_open = False
        self._info: ObjectInfo | None = None
        self._version = landing.entry.version

    async def fetch(self, part: int, offset: int, size: int) -> bool:
        """Fetch one segment; True if that was the last one and the file is in place. IntegrityError, StoreError."""
        async with self._opening:
            if not self._is_open:
                await self._open()
        if part not in self._there:
            self._crcs[offset] = await self._read(offset, size)
        self._left[part] -= 1
        if self._left[part]:
            return False
        if part not in self._there:
            await self._check_part(part)
        self._landing.has_parts = True
        self._parts_left -= 1
        if self._parts_left:
            return False
        self._check_whole()
        await in_thread(self._landing.finish)
        return True

    async def _open(self) -> None:
        """Create the temporary file. Parts that an earlier download left are verified, and not fetched again."""
        if await in_thread(self._landing.create, resume=True):
            for part, (offset, size, crc) in enumerate(self._parts):
                if await in_thread(self._landing.is_right, offset, size, crc):
                    self._there.add(part)
                    self._reuse(size)
        self._landing.has_parts = bool(self._there)
        self._is_open = True

    async def _read(self, offset: int, size: int) -> int:
        """CRC32C of the range; -1 if its size is wrong."""
        crc = 0

        async def take(at: int, piece: Piece) -> None:
            nonlocal crc
            crc = await in_thread(self._landing.write, offset + at, piece, crc)
            self._account(len(piece))

        intake = Intake(size, take)
        try:
            await self._read_pinned(intake, offset, size)
        except (WrongSizeError, IntegrityError):
            return -1
        return crc if intake.done == size else -1

    async def _read_pinned(self, intake: Intake, offset: int, size: int) -> None:
        """Read all ranges from one version of the object: the manifest's, or the copy's if the object is a copy."""
        pinned = self._version
        if pinned:
            try:
                self._info = await self._store.read(self._key, intake, start=offset, length=size, if_version=pinned)
                return
            except PreconditionError:
                if intake.done or pinned != self.entry.version:
                    raise
        if self._version == pinned:
            self._version = (await self._store.head(self._key)).version
        self._info = await self._store.read(self._key, intake, start=offset, length=size, if_version=self._version)

    async def _check_part(self, part: int) -> None:
        offset, size, expected = self._parts[part]
        found = [(self._crcs.pop(start), length) for start, length in self._pieces[part]]
        if any(crc < 0 for crc, _ in found) or crc32c_of_pieces(found) != expected:
            self._account(-size)
            if await self._read(offset, size) != expected:
                raise damaged(self._store, self._key, self.entry, offset, self._info)

    def _check_whole(self) -> None:
        if crc32c_of_pieces((crc, size) for _, size, crc in self._parts) != self.entry.crc32c:
            raise IntegrityError(
                f"{self.entry.path}: the manifest of {self._store.uri} contradicts itself, the checksums of the parts "
                "do not make that of the file"
            )


def _cut(offset: int, size: int, most: int) -> list[tuple[int, int]]:
    return [(start, min(most, offset + size - start)) for start in range(offset, offset + size, most)]
