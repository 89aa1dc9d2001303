"""One checkpoint that several ranks write, as one of them finds it in the store.

Each rank has a record there: of what it has sent, or of why there will be nothing. Whoever sees a part of every rank
writes the manifest; a failure of this generation keeps everybody from it, and from waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from asyncsync.disk.files import in_thread
from asyncsync.errors import CheckpointIncompleteError, ConcurrentWriterError, PreconditionError
from asyncsync.planning.manifest import MANIFEST, META_DIR, Manifest
from asyncsync.planning.ranks import GENERATION, RETURNED, SameFileError, failure_name, merge, part_name, rank_of
from asyncsync.records import FailureRecord
from asyncsync.report import SyncReport
from asyncsync.stores.base import MISSING, Store
from asyncsync.stores.together import for_each
from asyncsync.transfer.listing import list_all
from asyncsync.transfer.reader import exists, find, find_manifest, find_record

READERS = 16
LONGEST_REASON = 2000
"""Characters of an error that the other ranks are told."""


class LostError(CheckpointIncompleteError):
    """A checkpoint will not be whole. ``reason`` is what all ranks are told."""

    def __init__(self, uri: str, world_size: int, reason: str) -> None:
        super().__init__(
            f"checkpoint {uri} is not whole: of {world_size} ranks, {reason}. What the others sent is left for prune"
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rank sees of a checkpoint."""

    missing: Sequence[int] = ()
    """Ranks whose part is not there, or does not count yet."""
    given_up: str = ""
    """Why, in the words of the rank that said so first."""
    certain: bool = True
    """Whether it was said by somebody who is alive in our generation, as far as that can be known."""

    @property
    def whole(self) -> bool:
        """The manifest is there."""
        return not self.missing and not self.given_up


@dataclass(frozen=True, slots=True)
class SharedCheckpoint:
    """``prefix`` is that of the checkpoint, ``rank`` is who looks."""

    store: Store
    prefix: str
    rank: int
    world_size: int
    generation: int
    returned: bool = False
    """Whether we came back in the midst of the generation, and have not seen that rank 0 is alive."""
    before_us: frozenset[str] = frozenset()
    """Failures that were there when we came back: whoever told them may be gone with rank 0."""

    async def look(self) -> Seen:
        """Who is missing. If nobody is, the manifest is there when this returns."""
        there = await self._names()
        if MANIFEST.rpartition("/")[2] in there:
            return Seen()
        came = {rank_of(name, self.world_size) for name in there}
        missing = [rank for rank in range(self.world_size) if rank not in came]
        said = await self._said(self._failed(there))
        if said.given_up:
            return replace(said, missing=missing)
        if missing:
            return Seen(missing)
        return await self._look_into()

    async def failures(self) -> list[str]:
        """Keys of what was said against it, in whatever generation."""
        return [self.prefix + failure_name(rank, self.world_size) for rank in self._failed(await self._names())]

    async def was_sent(self) -> bool:
        """Whether our part is there since before we came back: then it stays, others may have counted on it."""
        if await exists(self.store, self.prefix + MANIFEST):
            return True
        name = part_name(self.rank, self.world_size)
        await self.store.delete([self.prefix + failure_name(self.rank, self.world_size)])  # another process failed
        part = await find_manifest(self.store, self.prefix, name)
        if part is None:
            return False
        if part.info.get(GENERATION) == self.generation:
            return True
        await self.store.delete([self.prefix + name])
        return False

    async def give_up(self, reason: str) -> bool:
        """Leave word why, so that nobody waits for it, and who comes later does not complete it. True: it just became
        whole all the same."""
        word = FailureRecord(self.rank, self.generation, reason[:LONGEST_REASON])
        await self.store.put(self.prefix + failure_name(self.rank, self.world_size), word.to_bytes())
        return await exists(self.store, self.prefix + MANIFEST)

    async def report(self, ours: SyncReport) -> SyncReport:
        """Of all that it holds; what travelled is what we sent of it."""
        manifest = await find_manifest(self.store, self.prefix)
        files = manifest.files if manifest is not None else {}
        return SyncReport(
            files_skipped=len(files), bytes_total=sum(entry.size for entry in files.values()),
            bytes_sent=ours.bytes_sent, bytes_copied=ours.bytes_copied, requests=ours.requests,
        )  # fmt: skip

    async def _names(self) -> set[str]:
        return {key.rpartition("/")[2] for key in await list_all(self.store, f"{self.prefix}{META_DIR}/")}

    def _failed(self, names: Iterable[str]) -> list[int]:
        found = (rank_of(name, self.world_size, failed=True) for name in names)
        return sorted(rank for rank in found if rank is not None)

    async def _said(self, failed: Iterable[int]) -> Seen:
        """Why one of these ranks has given it up, if that was in this generation."""
        seen = Seen()
        for rank in failed:
            key = self.prefix + failure_name(rank, self.world_size)
            word = await find_record(self.store, key, FailureRecord)
            if word is not None and word.generation == self.generation:
                seen = Seen(given_up=word.reason, certain=not self.returned or key not in self.before_us)
                if seen.certain:
                    break
        return seen

    async def _look_into(self) -> Seen:
        """Everybody's part is there: whether each is of this generation; then the manifest is written."""
        parts: dict[int, Manifest] = {}

        async def read(rank: int) -> None:
            part = await find_manifest(self.store, self.prefix, part_name(rank, self.world_size))
            if part is not None and part.info.get(GENERATION) == self.generation:
                parts[rank] = part

        await for_each(range(self.world_size), read, READERS)
        missing = [rank for rank in range(self.world_size) if rank not in parts]
        if missing:
            return Seen(missing)
        if self.rank and (self.returned or any(part.info.get(RETURNED) for part in parts.values())):
            return Seen([0])  # its part is there, and may be all that is left of it
        await self._commit(parts)
        return Seen()

    async def _commit(self, parts: dict[int, Manifest]) -> None:
        """Write the manifest; that another rank was faster with the same one is as good."""
        where = f"{self.store.uri.rstrip('/')}/{self.prefix}".rstrip("/")
        try:
            data = await in_thread(lambda: merge(parts).to_bytes())
        except SameFileError as error:
            raise ConcurrentWriterError(f"{where} was not made: {error}") from error
        try:
            await self.store.put(self.prefix + MANIFEST, data, if_version=MISSING)
        except PreconditionError as error:
            if await find(self.store, self.prefix + MANIFEST) != data:
                raise ConcurrentWriterError(f"{where}: somebody else has written another manifest") from error
