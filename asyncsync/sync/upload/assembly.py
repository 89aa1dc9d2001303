"""Sending a large file of which the store already holds some bytes: the store copies those, the rest is sent.

The file is hashed a few parts ahead of the requests. Copies and sends run side by side. A source that is missing or has
changed costs only its bytes: they are sent instead. At the end the CRC32C of the whole file decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from asyncsync.aio.tasks import for_each_limited, run_all
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import Digest, PartDigests, digest_part, digest_range, md5_range
from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, NotFoundError, StoreError
from asyncsync.planning.copied_ranges import Limits, Origin, PlannedPart, Segment, pieces_of, whole_copy
from asyncsync.planning.crc32c import crc32c_of_parts, crc32c_of_pieces
from asyncsync.planning.parts import Matches, cut, part_size_for
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import ObjectInfo, Part, Store, Traits, Upload
from asyncsync.stores.guard.breaker import StillUnavailableError
from asyncsync.sync.upload.create_only import LostSourceError, Replacing
from asyncsync.sync.upload.multipart import open_upload, resumable_body
from asyncsync.sync.upload.open_uploads import OpenUploads

HASHED_AHEAD = 8
"""Parts that are hashed before the next pieces are planned."""
FILE_HASHERS = 4
"""Parts of one file that are hashed at once."""
FILE_PIECE_WORKERS = 16
"""Pieces of one file that are being hashed, wait for a slot or are in flight. The budget limits how many are in
flight."""
FILE_COPY_REQUESTS = 4
"""Copies of one file in flight: the store has to move their bytes within the timeout of a request."""

Account = Callable[[int, int, int], None]
"""Takes bytes sent now, bytes that an earlier upload had sent, and bytes copied by the store."""
FileOutcome = Literal["sent", "copied", "unchanged"]
"""``sent``: at least some bytes travelled. ``copied``: the store copied the whole file. ``unchanged``: the store
already had the file under its own name."""


def limits_of(traits: Traits, config: TransferConfig, part_size: int) -> Limits:
    """The limits for copies into a file that is sent in parts of ``part_size`` bytes."""
    return Limits(
        floor=traits.min_part_size,
        part=part_size,
        ranges=traits.range_copy,
        least_source=traits.min_range_source,
        equal=traits.equal_parts,
        request_cost=0 if traits.local else config.request_cost_bytes,
    )


@dataclass(frozen=True, slots=True)
class AssembledFile:
    """A file that is in the store."""

    part_size: int
    crc32c: int
    digests: list[Digest]
    version: str
    outcome: FileOutcome


class _HashedPart(NamedTuple):
    """Checksums of the part at ``offset``; its first ``split_point`` bytes have their own in ``digests.head``."""

    offset: int
    size: int
    split_point: int
    digests: PartDigests


class Hashing:
    """Hashes the parts of a file on request and finds them in the store.

    ``known``: parts whose checksums are known without reading them again, by index.
    """

    def __init__(
        self, path: str, file: FileStat, matches: Matches, part_size: int, known: Mapping[int, PartDigests]
    ) -> None:
        self._path, self._matches, self._known = path, matches, known
        self._size, self._part_size = file.size, part_size
        self.cuts = cut(file.size, part_size)
        self.digests: dict[int, Digest] = {}
        """By index of the part."""

    async def window(self, first: int) -> list[Segment]:
        """The segments of HASHED_AHEAD parts, starting at index ``first``."""
        indexes = range(first, min(first + HASHED_AHEAD, len(self.cuts)))
        hashed: dict[int, _HashedPart] = {}

        async def work(index: int) -> None:
            hashed[index] = await self._hash(index)

        await for_each_limited(indexes, work, min(FILE_HASHERS, len(indexes)))
        return [segment for index in indexes for segment in self._segments(hashed[index])]

    async def everything(self) -> list[Segment]:
        """The segments of the whole file."""
        return [segment for first in range(0, len(self.cuts), HASHED_AHEAD) for segment in await self.window(first)]

    @property
    def all(self) -> list[Digest]:
        """The checksums of all parts, in order."""
        return [self.digests[index] for index in range(len(self.cuts))]

    @property
    def crc32c(self) -> int:
        """CRC32C of the whole file."""
        return crc32c_of_parts([digest.crc32c for digest in self.all], self._size, self._part_size)

    async def _hash(self, index: int) -> _HashedPart:
        offset, size = self.cuts[index]
        split_point = self._matches.split_point(offset, size)
        digests = self._known.get(index)
        if digests is None:
            digests = await in_hasher(digest_part, FileRange(self._path, offset, size), split_point)
        self.digests[index] = digests.whole
        return _HashedPart(offset, size, split_point, digests)

    def _segments(self, part: _HashedPart) -> list[Segment]:
        """One segment, unless the store has only the head of the part: then the head and the rest."""
        offset, size, split_point, digests = part
        whole, head = digests.whole, digests.head
        origin = self._matches.find(offset, size, whole.xxh3, whole.crc32c)
        if origin is None and head is not None:
            found = self._matches.find(offset, split_point, head.xxh3, head.crc32c)
            if found is not None:
                rest = size - split_point
                return [
                    Segment(offset, split_point, head.crc32c, found),
                    Segment(offset + split_point, rest, digests.tail_crc(rest)),
                ]
        return [Segment(offset, size, whole.crc32c, origin)]


class Assembly:
    """Puts one file together from copied and sent parts; it is hashed in parts of ``part_size`` bytes."""

    def __init__(
        self,
        store: Store,
        key: str,
        path: str,
        file: FileStat,
        part_size: int,
        *,
        config: TransferConfig,
        matches: Matches,
        uploads: OpenUploads,
        account: Account,
        known: Mapping[int, PartDigests],
        writes: Replacing | None = None,
    ) -> None:
        self._store, self._key, self._path, self._file = store, key, path, file
        self._writes = writes or Replacing(store)
        self._most_workers = min(FILE_PIECE_WORKERS, config.max_concurrency + 1)
        self._account, self._uploads = account, uploads
        self._part_size = part_size
        self._limits = limits_of(store.traits, config, part_size)
        self._hashing = Hashing(path, file, matches, part_size, known)
        self._crcs: dict[int, tuple[int, int]] = {}
        """Offset -> (size, CRC32C) of each segment."""
        self._todo: asyncio.Queue[tuple[int, PlannedPart] | None] = asyncio.Queue(2 * FILE_PIECE_WORKERS)
        self._copying = asyncio.Semaphore(FILE_COPY_REQUESTS)
        self._lost: set[tuple[str, str]] = set()
        """Key and version of sources that could not be copied."""
        self._parts: dict[int, Part] = {}
        self._earlier: dict[int, Part] = {}
        """Parts that an earlier pass sent, by number."""
        self._upload: Upload | None = None
        self._copied = False
        self._outcome: FileOutcome = "copied"

    async def run(self, upload: Upload | None, parts: dict[int, Part]) -> AssembledFile:
        """Put the file together. ``upload`` is an upload to resume, ``parts`` those that the store has of it.

        LostSourceError if the file must be sent without copies; SourceChangedError; IntegrityError; StoreError.
        """
        self._upload, self._earlier = upload, parts
        whole = await self._run()
        crc, digests = self._hashing.crc32c, self._hashing.all
        if whole is not None and whole.key == self._key:
            return AssembledFile(self._part_size, crc, digests, whole.version, "unchanged")
        if whole is not None:
            version = await self._writes.copy(whole, self._key, crc)
            self._account(0, 0, whole.total)
            return AssembledFile(self._part_size, crc, digests, version, "copied")
        info = await self._complete(crc)
        return AssembledFile(self._part_size, crc, digests, info.version, self._outcome)

    async def _complete(self, crc: int) -> ObjectInfo:
        assert self._upload is not None
        parts = [self._parts[number] for number in sorted(self._parts)]
        try:
            info = await self._writes.complete(self._upload, parts, crc)
        except (IntegrityError, NotFoundError) as error:
            if self._copied:  # some stores check the sources of copies only now
                raise LostSourceError(f"{self._key} could not be assembled from copies: {error}") from error
            raise
        except StoreError as error:
            if self._store.traits.equal_parts and not self._limits.equal:  # the store has just revealed this rule
                raise LostSourceError(f"{self._key} has to be sent in equal parts: {error}") from error
            raise
        if info.crc32c is not None and info.crc32c != crc:
            raise IntegrityError(
                f"{self._store.uri}: {self._key} has CRC32C {info.crc32c:08x}, the bytes sent have {crc:08x}"
            )
        self._uploads.closed(self._upload)
        return info

    async def _run(self) -> Origin | None:
        """Plan and execute; returns the one object that makes the upload unnecessary, if there is one."""
        workers = min(len(self._hashing.cuts), self._most_workers)
        whole: Origin | None = None

        async def plan() -> None:
            nonlocal whole
            whole = await self._plan()
            for _ in range(workers):
                await self._todo.put(None)

        await run_all([plan(), *(self._worker() for _ in range(workers))], name=f"assemble {self._key}")
        return whole

    async def _plan(self) -> Origin | None:
        undecided: list[Segment] = []
        count, number = len(self._hashing.cuts), 0
        for first in range(0, count, HASHED_AHEAD):
            segments = await self._hashing.window(first)
            self._crcs.update((segment.offset, (segment.size, segment.crc32c)) for segment in segments)
            undecided += segments
            final = first + HASHED_AHEAD >= count
            if final and number == 0 and (whole := self._whole(undecided)) is not None:
                return whole
            pieces, undecided = pieces_of(undecided, self._limits, final=final)
            if pieces and self._upload is None:
                self._upload = await open_upload(
                    self._store, self._uploads, self._key, self._path, self._file, self._part_size, "assembled"
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
            await self._make_part(number, piece)

    async def _make_part(self, number: int, piece: PlannedPart) -> None:
        assert self._upload is not None
        crc = self._crc_of(piece)
        if await self._is_there(number, piece, crc):
            self._parts[number] = replace(self._earlier[number], offset=piece.offset)
            self._account(0, piece.size, 0)
            self._outcome = "sent"  # by an earlier pass; whether it was copied is not known
            return
        part = await self._copy(number, piece, crc) or await self._send(number, piece, crc)
        self._parts[number] = part
        self._uploads.part_done(self._upload, part)

    async def _is_there(self, number: int, piece: PlannedPart, crc: int | None) -> bool:
        """Whether an earlier pass brought exactly these bytes to the store, and no part of another plan covers them."""
        there = self._earlier.get(number)
        if there is None or crc is None or there.size != piece.size or there.offset not in (-1, piece.offset):
            return False
        if self._store.traits.local:  # all its parts lie in one file, also those of an abandoned plan
            others = [part for part in self._earlier.values() if part.number != number]
            if any(part.offset < piece.end and part.offset + part.size > piece.offset for part in others):
                return False
        if there.crc32c is not None or piece.origin is not None:
            return there.crc32c == crc
        return there.etag == await in_hasher(md5_range, FileRange(self._path, piece.offset, piece.size))

    async def _copy(self, number: int, piece: PlannedPart, crc: int | None) -> Part | None:
        """Let the store copy the bytes; None if they have to be sent."""
        origin = piece.origin
        if origin is None or (origin.key, origin.version) in self._lost:
            return None
        assert self._upload is not None
        try:
            async with self._copying:
                part = await self._copy_part(self._upload, number, piece, origin)
        except StillUnavailableError:
            raise
        except StoreError:  # the source is missing, changed or not readable, or the store cannot copy
            self._lost.add((origin.key, origin.version))
            return None
        if crc is not None and part.crc32c is not None and part.crc32c != crc:
            self._lost.add((origin.key, origin.version))
            return None
        self._copied = True
        self._account(0, 0, piece.size)
        return Part(number, piece.offset, piece.size, part.etag, part.crc32c)

    async def _copy_part(self, upload: Upload, number: int, piece: PlannedPart, origin: Origin) -> Part:
        more: dict[str, Any] = {}
        if self._store.traits.checked_copies:
            more["body"] = FileRange(self._path, piece.offset, piece.size)
        place = (origin.key, origin.start, piece.size)
        return await self._store.copy_part(
            upload, number, piece.offset, *place, if_source_version=origin.version, **more
        )

    async def _send(self, number: int, piece: PlannedPart, crc: int | None) -> Part:
        assert self._upload is not None
        body = FileRange(self._path, piece.offset, piece.size)
        if crc is None:
            crc = (await in_hasher(digest_range, body)).crc32c
        part = Part(number, piece.offset, piece.size, "", crc)
        body = resumable_body(self._store, self._uploads, self._upload, part, body)
        response = await self._store.put_part(self._upload, number, piece.offset, body, crc32c=crc)
        self._outcome = "sent"
        self._account(piece.size - body.there, body.there, 0)
        return replace(part, etag=response.etag)

    def _crc_of(self, piece: PlannedPart) -> int | None:
        """CRC32C from those of the piece's segments; None if the piece ends inside a segment."""
        at, found = piece.offset, list[tuple[int, int]]()
        while at < piece.end:
            size, crc = self._crcs.get(at, (0, 0))
            if not size:
                return None
            found.append((crc, size))
            at += size
        return crc32c_of_pieces(found) if at == piece.end else None


def copied_at_once(whole: Origin, traits: Traits, limits: Limits) -> bool:
    """Whether one copy of the whole object is better than several copies of its ranges."""
    return traits.local or not traits.range_copy or whole.total <= limits.copied


def part_size_of(file: FileStat, matches: Matches, traits: Traits, config: TransferConfig) -> int:
    """The part size for hashing a file; that of the candidates it is compared with, if possible."""
    most_parts = traits.max_parts - 1  # a candidate's end may split one part in two
    size = part_size_for(
        file.size,
        config.part_size or traits.part_size,
        least=traits.min_part_size,
        most=traits.max_part_size,
        max_parts=most_parts,
    )
    return matches.part_size(size, file.size, most_parts)
