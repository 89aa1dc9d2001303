"""One checkpoint that several ranks write, as one of them finds it in the store.

Each rank has a record there: of what it has sent, or of why it has given the checkpoint up. Whether it is committed or
given up is decided once, by the outcome record: it is only ever created, so all ranks get the same verdict. Whoever
sees a part of every rank, all of one step and generation, decides that it is committed and writes the manifest;
whoever knows that this cannot be decides that it is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher, in_thread
from asyncsync.disk.accepted_files import Accepted
from asyncsync.errors import (
    CheckpointIncompleteError,
    ConcurrentWriterError,
    PreconditionError,
)
from asyncsync.planning.manifest import MANIFEST, META_DIR, Manifest
from asyncsync.planning.ranks import (
    OUTCOME,
    RETURNED,
    STEP,
    Generation,
    SameFileError,
    disagreement,
    failure_name,
    merge,
    part_name,
    rank_of,
)
from asyncsync.report import SyncReport
from asyncsync.stores.base import MISSING, Store
from asyncsync.stores.read import exists, find, list_all
from asyncsync.sync.records.manifests import find_manifest, find_record, get_record
from asyncsync.sync.records.model import FailureRecord, OutcomeRecord
from asyncsync.sync.tree_manifest import ID

PART_READERS = 16
MAX_REASON_LENGTH = 2000
"""Characters of an error that the other ranks are told."""

R = TypeVar("R", FailureRecord, OutcomeRecord)


class LostError(CheckpointIncompleteError):
    """A checkpoint will not be whole. ``reason`` is what all ranks are told, ``step`` the latest that is given up."""

    def __init__(self, uri: str, world_size: int, reason: str, step: int, ours: str = "") -> None:
        super().__init__(
            f"checkpoint {uri} is not whole: of {world_size} ranks, {reason}{ours}. What the others sent is left for "
            "prune"
        )
        self.reason, self.step = reason, step


class ConflictError(LostError, ConcurrentWriterError):
    """It will not be whole because two ranks have written one file with different content."""


@dataclass(frozen=True, slots=True)
class CommitView:
    """What a rank sees of a checkpoint."""

    missing: Sequence[int] = ()
    """Ranks whose part is not there, or does not count yet."""
    failure: FailureRecord | None = None
    """Why it will not be whole, and for which steps."""
    certain: bool = True
    """Whether somebody who is alive in our generation says so, as far as that can be known."""
    complete: bool = False
    """The manifest is there."""


COMPLETE = CommitView(complete=True)


@dataclass(frozen=True, slots=True)
class SharedCheckpoint:
    """``prefix`` is that of the checkpoint, ``rank`` is who looks, ``step`` the training step that it reports."""

    store: Store
    prefix: str
    rank: int
    world_size: int
    generation: Generation
    step: int = -1
    returned: bool = False
    """Whether we came back in the midst of the generation, and have not seen that rank 0 is alive."""
    earlier_failures: frozenset[tuple[str, str]] = frozenset()
    """Failures that were there when we came back, and their versions: who wrote them may be gone with rank 0."""
    token: str = ""
    """Of what we report, see :data:`asyncsync.sync.tree.ID`."""
    source: Accepted | None = None
    """Its files, to be compared with what an earlier process of our rank has sent."""
    matching_parts: set[tuple[str, str]] = field(default_factory=set)
    """Parts of other ranks, and their versions, that are known to be of our step."""

    async def inspect(self, *, every: bool = False) -> CommitView:
        """Who is missing. If nobody is, the manifest is there when this returns, unless the steps differ.

        While some are missing, our step is compared with that of the lowest rank that is there: so a rank reads one
        part, and two that differ are found as soon as both are there. ``every``: with all that are there.
        """
        there, older = await self._listed()
        if _short(MANIFEST) in there:
            return await self._compare_with_manifest() if older else COMPLETE
        missing = self._missing(there)
        failure = await self._find_failure(there)
        if failure is not None:
            return replace(failure, missing=missing)
        if not missing:
            return await self._commit_if_complete()
        came = [rank for rank in range(self.world_size) if rank not in set(missing)]
        for rank in came if every else came[:1]:
            if (differs := await self._compare(rank, there)) is not None:
                return replace(differs, missing=missing)
        return CommitView(missing)

    async def inspect_before_sending(self, *, resumed: bool) -> CommitView:
        """Before anything is sent, where something may be there already. ``resumed``: also something of our own, from
        before we came back. Our rank is not missing if our part is there: it stays, others may have counted on it."""
        there, _ = await self._listed()
        if _short(MANIFEST) in there:
            return await self._compare_with_manifest()
        if resumed:
            await self._withdraw_failure(there)
        failure = await self._find_failure(there)
        if failure is not None:
            return failure
        part = part_name(self.rank, self.world_size)
        ours = await find_manifest(self.store, self.prefix, part) if resumed and _short(part) in there else None
        missing = self._missing(there)
        if ours is None:
            return CommitView(sorted({*missing, self.rank}))
        if not self.generation.has(ours.info):
            await self.store.delete([self.prefix + part])
            return CommitView(sorted({*missing, self.rank}))
        earlier = ours.info.get(STEP)
        if earlier == self.step:
            if await self._is_ours(ours):
                return CommitView(missing)
            return CommitView(missing, self._failure_record(self._other_files, self.step - 1))
        reason = f"rank {self.rank} reported step {earlier} before it was started again, and step {self.step} now"
        return CommitView(missing, self._failure_record(reason, min(-1 if earlier is None else earlier, self.step)))

    async def owner_of(self, path: str) -> int | None:
        """Which other rank has this file in its part of our step."""
        came = set(range(self.world_size)) - {self.rank, *self._missing((await self._listed())[0])}
        owners: list[int] = []

        async def read(rank: int) -> None:
            part = await find_manifest(self.store, self.prefix, part_name(rank, self.world_size))
            ours = part is not None and self.generation.has(part.info) and part.info.get(STEP) == self.step
            if part is not None and ours and path in part.files:
                owners.append(rank)

        await for_each_limited(sorted(came), read, PART_READERS)
        return min(owners, default=None)

    async def failure_versions(self) -> frozenset[tuple[str, str]]:
        """Keys and versions of what was said against it, in whatever generation."""
        there, _ = await self._listed()
        names = [_short(failure_name(rank, self.world_size)) for rank in self._failed(there)]
        return frozenset(self._version(name, there) for name in [*names, _short(OUTCOME)] if name in there)

    async def give_up(self, reason: str, step: int, *, conflict: bool = False) -> FailureRecord | None:
        """Leave word why, so that nobody waits for it, and who comes later does not complete it; ``step`` is the latest
        that is given up. What stands: the word of whoever was first; None if it is whole with our step all the same.

        Our own record comes first: while it is there, nobody who comes back takes the outcome away again.
        """
        ours = self._failure_record(reason[:MAX_REASON_LENGTH], step, conflict=conflict)
        await self.store.put(self.prefix + failure_name(self.rank, self.world_size), ours.to_bytes())
        stands = await self._decide(self._outcome(self.rank, step, reason=ours.reason, conflict=conflict))
        if not stands.committed:
            return _failure_of(stands)
        if not await exists(self.store, self.prefix + MANIFEST):
            await self._commit_if_complete()
        return (await self._compare_with_manifest()).failure

    async def report(self, ours: SyncReport) -> SyncReport:
        """Of all that it holds; what travelled is what we sent of it."""
        manifest = await find_manifest(self.store, self.prefix)
        files = manifest.files if manifest is not None else {}
        return SyncReport(
            files_skipped=len(files),
            bytes_total=sum(entry.size for entry in files.values()),
            bytes_sent=ours.bytes_sent,
            bytes_copied=ours.bytes_copied,
            requests=ours.requests,
        )

    # what is there

    async def _listed(self) -> tuple[dict[str, str], bool]:
        """Version of each record, by its file name; and whether the manifest is older than our part, so that it may be
        of something that was deleted."""
        found = await list_all(self.store, f"{self.prefix}{META_DIR}/")
        manifest = found.get(self.prefix + MANIFEST)
        part = found.get(self.prefix + part_name(self.rank, self.world_size))
        older = manifest is not None and (part is None or (manifest.modified or 0) < (part.modified or 0))
        return {_short(key): info.version for key, info in found.items()}, older

    def _missing(self, there: Iterable[str]) -> list[int]:
        came = {rank_of(name, self.world_size) for name in there}
        return [rank for rank in range(self.world_size) if rank not in came]

    def _failed(self, there: Iterable[str]) -> list[int]:
        found = (rank_of(name, self.world_size, failed=True) for name in there)
        return sorted(rank for rank in found if rank is not None)

    def _version(self, name: str, there: Mapping[str, str]) -> tuple[str, str]:
        return f"{self.prefix}{META_DIR}/{name}", there[name]

    def _failure_record(self, reason: str, step: int, *, conflict: bool = False) -> FailureRecord:
        return FailureRecord(self.rank, self.generation.epoch, reason, step, conflict, self.generation.nonce)

    def _outcome(
        self, rank: int, step: int, *, committed: bool = False, reason: str = "", conflict: bool = False
    ) -> OutcomeRecord:
        epoch, nonce = self.generation.epoch, self.generation.nonce
        return OutcomeRecord(rank, epoch, step, committed, reason, conflict, nonce)

    def _is_current(self, record: FailureRecord | OutcomeRecord) -> bool:
        return Generation(record.generation, record.nonce) == self.generation

    async def _read(self, name: str, kind: type[R]) -> R | None:
        """A record of this generation; DamagedError."""
        record = await find_record(self.store, f"{self.prefix}{META_DIR}/{name}", kind)
        return record if record is not None and self._is_current(record) else None

    async def _find_failure(self, there: Mapping[str, str]) -> CommitView | None:
        """Why it was given up in this generation: by the outcome; where there is none yet, by one of the ranks."""
        if _short(OUTCOME) in there:
            outcome = await self._read(_short(OUTCOME), OutcomeRecord)
            if outcome is not None:
                return None if outcome.committed else self._failure_view(_short(OUTCOME), there, _failure_of(outcome))
        seen = None
        for rank in self._failed(there):
            name = _short(failure_name(rank, self.world_size))
            failure = await self._read(name, FailureRecord)
            if failure is not None:
                seen = self._failure_view(name, there, failure)
                if seen.certain:
                    break
        return seen

    def _failure_view(self, name: str, there: Mapping[str, str], failure: FailureRecord) -> CommitView:
        return CommitView(
            failure=failure, certain=not self.returned or self._version(name, there) not in self.earlier_failures
        )

    async def _withdraw_failure(self, there: dict[str, str]) -> None:
        """What we said as another process is void, unless others have acted on it: then they have left word too."""
        if any(rank != self.rank for rank in self._failed(there)):
            return
        void = [name for name in [_short(failure_name(self.rank, self.world_size))] if name in there]
        if _short(OUTCOME) in there:
            outcome = await self._read(_short(OUTCOME), OutcomeRecord)
            if outcome is not None and outcome.rank == self.rank:
                void.append(_short(OUTCOME))
        if void:
            await self.store.delete([f"{self.prefix}{META_DIR}/{name}" for name in void])
        for name in void:
            del there[name]

    async def _compare_with_manifest(self) -> CommitView:
        """There is a manifest: whether it is of our step."""
        manifest = await find_manifest(self.store, self.prefix)
        info = manifest.info if manifest is not None else {}
        if info.get(STEP) == self.step and self.generation.has(info):
            part = await find_manifest(self.store, self.prefix, part_name(self.rank, self.world_size))
            if part is None or await self._is_ours(part):
                return COMPLETE
            return CommitView(
                failure=self._failure_record(f"{self._other_files}, and the others have committed those", self.step)
            )
        step = info.get(STEP, -1)
        reason = f"rank {self.rank} reported step {self.step} when the others had committed step {step} there"
        return CommitView(failure=self._failure_record(reason, -1 if step is None else step))

    async def _is_ours(self, part: Manifest) -> bool:
        """Whether our rank's part is what we report: we have sent it, or as another process just the same files."""
        if part.info.get(ID) == self.token:
            return True
        stored = {path: (entry.size, entry.crc32c) for path, entry in part.files.items()}
        return self.source is not None and await in_hasher(self.source.holds, stored)

    @property
    def _other_files(self) -> str:
        return f"rank {self.rank} had sent other files of step {self.step} before it was started again"

    async def _compare(self, rank: int, there: Mapping[str, str]) -> CommitView | None:
        """Whether another rank's part is of another step than ours."""
        name = part_name(rank, self.world_size)
        version = self._version(_short(name), there)
        if rank == self.rank or version in self.matching_parts:
            return None
        part = await find_manifest(self.store, self.prefix, name)
        if part is None or not self.generation.has(part.info):
            return None
        found = disagreement({rank: part.info.get(STEP), self.rank: self.step})
        if found is not None:
            return CommitView(failure=self._failure_record(found.reason, found.step))
        self.matching_parts.add(version)
        return None

    # its outcome

    async def _commit_if_complete(self) -> CommitView:
        """Everybody's part is there: whether each is of this generation and of one step; then it is committed."""
        parts: dict[int, Manifest] = {}

        async def read(rank: int) -> None:
            part = await find_manifest(self.store, self.prefix, part_name(rank, self.world_size))
            if part is not None and self.generation.has(part.info):
                parts[rank] = part

        await for_each_limited(range(self.world_size), read, PART_READERS)
        missing = [rank for rank in range(self.world_size) if rank not in parts]
        if missing:
            return CommitView(missing)
        found = disagreement({rank: part.info.get(STEP) for rank, part in parts.items()})
        if found is not None:
            return CommitView(failure=self._failure_record(found.reason, found.step))
        if self.rank and (self.returned or any(part.info.get(RETURNED) for part in parts.values())):
            return CommitView([0])  # its part is there, and may be all that is left of it
        return await self._commit(parts)

    async def _commit(self, parts: dict[int, Manifest]) -> CommitView:
        """Write the manifest; that another rank was faster with the same one is as good."""
        where = f"{self.store.uri.rstrip('/')}/{self.prefix}".rstrip("/")
        try:
            data = await in_thread(lambda: merge(parts).to_bytes())
        except SameFileError as error:
            raise ConcurrentWriterError(f"{where} was not made: {error}") from error
        stands = await self._decide(self._outcome(-1, parts[0].info.get(STEP, -1), committed=True))
        if not stands.committed:
            return CommitView(failure=_failure_of(stands))
        try:
            await self.store.put(self.prefix + MANIFEST, data, if_version=MISSING)
        except PreconditionError as error:
            if await find(self.store, self.prefix + MANIFEST) != data:
                raise ConcurrentWriterError(f"{where}: somebody else has written another manifest") from error
        return COMPLETE

    async def _decide(self, ours: OutcomeRecord) -> OutcomeRecord:
        """Create the outcome; the one that stands is that of who was first. One of an earlier generation is replaced:
        a process that is gone left it."""
        key, version = self.prefix + OUTCOME, MISSING
        while True:
            try:
                await self.store.put(key, ours.to_bytes(), if_version=version)
            except PreconditionError:
                pass  # somebody was first
            else:
                return ours
            there = await get_record(self.store, key, OutcomeRecord)
            if there is None:
                version = MISSING  # who wrote it came back, and took it away
                continue
            stands, version = there
            if self._is_current(stands):
                return stands
            if stands.nonce == self.generation.nonce and stands.generation > self.generation.epoch:
                raise ConcurrentWriterError(
                    f"{self.store.uri.rstrip('/')}/{key} is of a later run of the trial (epoch {stands.generation}, "
                    f"ours is {self.generation.epoch}): start this rank again, with resume=True"
                )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _failure_of(outcome: OutcomeRecord) -> FailureRecord:
    return FailureRecord(
        outcome.rank, outcome.generation, outcome.reason, outcome.step, outcome.conflict, outcome.nonce
    )
