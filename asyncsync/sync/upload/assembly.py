"""Sending a large file of which the store has a part already: the rest is sent, that part the store copies itself.

The file is hashed a few parts ahead of what is on its way. Copies and sends run side by side. A source that is gone or
has changed costs its bytes and nothing else: they are sent. The checksum of the whole decides in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from asyncsync.aio.tasks import for_each, together
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import Cell, Digest, digest_cell, digest_range, md5_range
from asyncsync.disk.files import FileRange
from asyncsync.disk.hashing import crc32c_combine
from asyncsync.errors import IntegrityError, NotFoundError, StoreError
from asyncsync.planning.changes import cut, part_size_for
from asyncsync.planning.delta import Limits, Origin, Piece, Segment, pieces_of, whole_copy
from asyncsync.planning.matching import Matches
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import ObjectInfo, Part, Store, Traits, Upload
from asyncsync.stores.guard.breaker import StillUnavailableError
from asyncsync.sync.upload.create_only import LostSourceError, Replacing
from asyncsync.sync.upload.multipart import going_on, open_upload
from asyncsync.sync.upload.open_uploads import OpenUploads

WINDOW = 8
"""Parts that are hashed before the next pieces are decided."""
HASHERS = 4
"""Parts of one file that are hashed at once."""
PIECES_AT_ONCE = 16
"""Pieces of a file that are hashed, wait for a slot or are on their way; how many are, the budget says."""
COPIES_AT_ONCE = 4
"""Of them copies: the store has to move their bytes too, within the time-out of a request."""

Account = Callable[[int, int, int], None]
"""Takes bytes sent, bytes that an earlier upload had sent, bytes copied."""
Fate = Literal["sent", "copied", "unchanged"]
"""Bytes of the file travelled; the store copied all of it; the store had it under its own name."""


def limits_of(traits: Traits, config: TransferConfig, part_size: int) -> Limits:
    """What may be copied into a file that is sent in parts of ``part_size`` bytes."""
    return Limits(
        floor=traits.min_part_size,
        part=part_size,
        ranges=traits.range_copy,
        least_source=traits.min_range_source,
        equal=traits.equal_parts,
        request_cost=0 if traits.local else config.request_cost_bytes,
    )


@dataclass(frozen=True, slots=True)
class Assembled:
    """A file that is in the store."""

    part_size: int
    crc32c: int
    digests: list[Digest]
    version: str
    fate: Fate


class Hashing:
    """The parts of a file as segments, hashed when they are asked for. ``known``: parts whose checksums are known
    without reading them again, by index."""

    def __init__(self, path: str, file: FileStat, matches: Matches, part_size: int, known: Mapping[int, Cell]) -> None:
        self._path, self._matches, self._known = path, matches, known
        self._size = file.size
        self.cuts = cut(file.size, part_size)
        self.digests: dict[int, Digest] = {}
        self._segments: dict[int, list[tuple[int, int, Digest | int]]] = {}

    async def window(self, first: int) -> list[Segment]:
        """The segments of the parts from ``first`` on, WINDOW of them."""
        indexes = range(first, min(first + WINDOW, len(self.cuts)))
        await for_each(indexes, self._hash, min(HASHERS, len(indexes)))
        return [segment for index in indexes for segment in self._found(index)]

    async def everything(self) -> list[Segment]:
        """The segments of the whole file."""
        return [found for first in range(0, len(self.cuts), WINDOW) for found in await self.window(first)]

    @property
    def all(self) -> list[Digest]:
        """The checksums of all parts, in order."""
        return [self.digests[index] for index in range(len(self.cuts))]

    @property
    def crc32c(self) -> int:
        """Of the whole file."""
        total = 0
        for index, (_, size) in enumerate(self.cuts):
            total = crc32c_combine(total, self.digests[index].crc32c, size)
        return total

    async def _hash(self, index: int) -> None:
        offset, size = self.cuts[index]
        mark = self._matches.mark(offset, size)
        cell = self._known.get(index)
        if cell is None:
            cell = await in_hasher(digest_cell, FileRange(self._path, offset, size), mark)
        self.digests[index] = cell.whole
        self._segments[index] = [(offset, size, cell.whole)]
        if cell.head is not None:
            rest = size - mark
            self._segments[index] += [(offset, mark, cell.head), (offset + mark, rest, cell.tail_crc(rest))]

    def _found(self, index: int) -> list[Segment]:
        """The part as one segment if the store has all of it; else its head by itself, if the store has that."""
        whole, *halves = self._segments.pop(index)
        offset, size, digest = whole
        assert isinstance(digest, Digest)
        origin = self._matches.find(offset, size, digest.xxh3, digest.crc32c)
        if origin is None and halves:
            (_, mark, head), (start, rest, crc) = halves
            assert isinstance(head, Digest)
            assert isinstance(crc, int)
            found = self._matches.find(offset, mark, head.xxh3, head.crc32c)
            if found is not None:
                return [Segment(offset, mark, head.crc32c, found), Segment(start, rest, crc)]
        return [Segment(offset, size, digest.crc32c, origin)]


class Assembly:
    """One file on its way; hashed in parts of ``part_size`` bytes."""

    def __init__(
        self, store: Store, key: str, path: str, file: FileStat, part_size: int, *, config: TransferConfig,
        matches: Matches, uploads: OpenUploads, account: Account, known: Mapping[int, Cell],
        writes: Replacing | None = None,
    ) -> None:  # fmt: skip
        self._store, self._key, self._path, self._file = store, key, path, file
        self._writes = writes or Replacing(store)
        self._at_once = config.max_concurrency + 1
        self._account, self._uploads = account, uploads
        self._part_size = part_size
        self._limits = limits_of(store.traits, config, part_size)
        self._hashing = Hashing(path, file, matches, part_size, known)
        self._crcs: dict[int, tuple[int, int]] = {}
        """Offset -> (size, CRC32C) of the segments."""
        self._todo: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue(2 * PIECES_AT_ONCE)
        self._copying = asyncio.Semaphore(COPIES_AT_ONCE)
        self._lost: set[tuple[str, str]] = set()
        self._parts: dict[int, Part] = {}
        self._done: dict[int, Part] = {}
        self._upload: Upload | None = None
        self._copied = False
        self._fate: Fate = "copied"

    async def run(self, begun: Upload | None, done: dict[int, Part]) -> Assembled:
        """Put the file together; ``begun`` is an upload to go on with, ``done`` its parts in the store.

        LostSourceError if the file must be sent without copies; SourceChangedError; IntegrityError; StoreError.
        """
        self._upload, self._done = begun, done
        whole = await self._run()
        hashing = self._hashing
        crc, digests = hashing.crc32c, hashing.all
        if whole is not None and whole.key == self._key:
            return Assembled(self._part_size, crc, digests, whole.version, "unchanged")
        if whole is not None:
            version = await self._writes.copy(whole, self._key, crc)
            self._account(0, 0, whole.total)
            return Assembled(self._part_size, crc, digests, version, "copied")
        info = await self._complete(crc)
        return Assembled(self._part_size, crc, digests, info.version, self._fate)

    async def _complete(self, crc: int) -> ObjectInfo:
        assert self._upload is not None
        parts = [self._parts[number] for number in sorted(self._parts)]
        try:
            info = await self._writes.complete(self._upload, parts, crc)
        except (IntegrityError, NotFoundError) as error:
            if self._copied:  # some stores look for what is copied only now
                raise LostSourceError(f"{self._key} could not be put together from copies: {error}") from error
            raise
        except StoreError as error:
            if self._store.traits.equal_parts and not self._limits.equal:  # it turned out just now
                raise LostSourceError(f"{self._key} has to be sent in equal parts: {error}") from error
            raise
        if info.crc32c is not None and info.crc32c != crc:
            raise IntegrityError(f"{self._store.uri}: {self._key} has checksum {info.crc32c:08x}, sent was {crc:08x}")
        self._uploads.closed(self._upload)
        return info

    async def _run(self) -> Origin | None:
        """Plan and carry out; the one object that makes all of it unnecessary, if there is one."""
        workers = min(len(self._hashing.cuts), PIECES_AT_ONCE, self._at_once)
        whole: Origin | None = None

        async def plan() -> None:
            nonlocal whole
            whole = await self._plan()
            for _ in range(workers):
                await self._todo.put(None)

        await together([plan(), *(self._worker() for _ in range(workers))], name=f"assemble {self._key}")
        return whole

    async def _plan(self) -> Origin | None:
        waiting: list[Segment] = []
        count, number = len(self._hashing.cuts), 0
        for first in range(0, count, WINDOW):
            segments = await self._hashing.window(first)
            self._crcs.update((segment.offset, (segment.size, segment.crc32c)) for segment in segments)
            waiting += segments
            final = first + WINDOW >= count
            if final and number == 0 and (whole := self._whole(waiting)) is not None:
                return whole
            pieces, waiting = pieces_of(waiting, self._limits, final=final)
            if pieces and self._upload is None:
                self._upload = await open_upload(
                    self._store, self._uploads, self._key, self._path, self._file, -self._part_size
                )
            for piece in pieces:
                number += 1
                await self._todo.put((number, piece))
        return None

    def _whole(self, segments: list[Segment]) -> Origin | None:
        """The one object that makes the upload unnecessary."""
        whole = whole_copy(segments)
        if (
            whole is None
            or whole.key == self._key
            or (self._writes.copies_whole() and copied_at_once(whole, self._store.traits, self._limits))
        ):
            return whole
        return None

    async def _worker(self) -> None:
        while (item := await self._todo.get()) is not None:
            number, piece = item
            await self._one(number, piece)

    async def _one(self, number: int, piece: Piece) -> None:
        assert self._upload is not None
        crc = self._crc_of(piece)
        if await self._is_there(number, piece, crc):
            self._parts[number] = replace(self._done[number], offset=piece.offset)
            self._account(0, piece.size, 0)
            self._fate = "sent"  # by an earlier pass, as far as anybody knows
            return
        part = await self._copy(number, piece, crc) or await self._send(number, piece, crc)
        self._parts[number] = part
        self._uploads.part_done(self._upload, part)

    async def _is_there(self, number: int, piece: Piece, crc: int | None) -> bool:
        """Whether an earlier pass has brought just these bytes to the store, and none of another plan over them."""
        there = self._done.get(number)
        if there is None or crc is None or there.size != piece.size or there.offset not in (-1, piece.offset):
            return False
        if self._store.traits.local:  # its parts lie in one file, those of a plan that was given up too
            others = [part for part in self._done.values() if part.number != number]
            if any(part.offset < piece.end and part.offset + part.size > piece.offset for part in others):
                return False
        if there.crc32c is not None or piece.origin is not None:
            return there.crc32c == crc
        return there.etag == await in_hasher(md5_range, FileRange(self._path, piece.offset, piece.size))

    async def _copy(self, number: int, piece: Piece, crc: int | None) -> Part | None:
        """None: it has to be sent."""
        origin = piece.origin
        if origin is None or (origin.key, origin.version) in self._lost:
            return None
        assert self._upload is not None
        try:
            async with self._copying:
                part = await self._store.copy_part(
                    self._upload, number, piece.offset, origin.key, origin.start, piece.size,
                    if_source_version=origin.version,
                )  # fmt: skip
        except StillUnavailableError:
            raise
        except StoreError:  # gone, changed, not ours to read, or the store cannot do it
            self._lost.add((origin.key, origin.version))
            return None
        if crc is not None and part.crc32c is not None and part.crc32c != crc:
            self._lost.add((origin.key, origin.version))
            return None
        self._copied = True
        self._account(0, 0, piece.size)
        return Part(number, piece.offset, piece.size, part.etag, part.crc32c)

    async def _send(self, number: int, piece: Piece, crc: int | None) -> Part:
        assert self._upload is not None
        body = FileRange(self._path, piece.offset, piece.size)
        if crc is None:
            crc = (await in_hasher(digest_range, body)).crc32c
        part = Part(number, piece.offset, piece.size, "", crc)
        body = going_on(self._store, self._uploads, self._upload, part, body)
        part = await self._store.put_part(self._upload, number, piece.offset, body, crc32c=crc)
        self._fate = "sent"
        self._account(piece.size - body.there, body.there, 0)
        return Part(number, piece.offset, piece.size, part.etag, crc)

    def _crc_of(self, piece: Piece) -> int | None:
        """From those of its segments; None where it was cut inside of one."""
        at, total = piece.offset, 0
        while at < piece.end:
            size, crc = self._crcs.get(at, (0, 0))
            if not size:
                return None
            total, at = crc32c_combine(total, crc, size), at + size
        return total if at == piece.end else None


def copied_at_once(whole: Origin, traits: Traits, limits: Limits) -> bool:
    """Whether one copy of the whole object is better than several of its ranges."""
    return traits.local or not traits.range_copy or whole.total <= limits.copied


def grid_of(file: FileStat, matches: Matches, traits: Traits, config: TransferConfig) -> int:
    """The part size for a file; that of what it is compared with, if possible."""
    most = traits.max_parts - 1  # a candidate's end may cut one in two
    size = part_size_for(
        file.size, config.part_size or traits.part_size, least=traits.min_part_size, most=traits.max_part_size,
        max_parts=most,
    )  # fmt: skip
    return matches.part_size(size, file.size, most)
