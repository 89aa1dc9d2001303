"""Private: one checkpoint that several ranks write, as one of them sees it in the store.

Each rank has a record there: of its uploaded part, or of the failure for which it gave the checkpoint up. Whether the
checkpoint is committed or given up is decided once, by the outcome record. That record is only ever created, so all
ranks see the same outcome. A rank that sees a part of every rank, all of one step and generation, decides to commit and
writes the manifest. A rank that knows that this cannot happen decides to give up.
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
from asyncsync.planning.rank_agreement import (
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
"""Characters of an error that the other ranks receive."""

R = TypeVar("R", FailureRecord, OutcomeRecord)


class LostError(CheckpointIncompleteError):
    """A checkpoint of several ranks is lost. ``reason``: as all ranks see it. ``step``: the latest step that is given
    up."""

    def __init__(self, uri: str, world_size: int, reason: str, step: int, ours: str = "") -> None:
        super().__init__(
            f"checkpoint {uri} is incomplete: of {world_size} ranks, {reason}{ours}. Parts already uploaded remain "
            'until "asyncsync prune" removes them'
        )
        self.reason, self.step = reason, step


class ConflictError(LostError, ConcurrentWriterError):
    """Lost because two ranks uploaded one file with different content."""


@dataclass(frozen=True, slots=True)
class CommitView:
    """The state of a checkpoint as one rank sees it."""

    missing: Sequence[int] = ()
    """Ranks whose part is missing or does not count yet."""
    failure: FailureRecord | None = None
    """Why it is lost, and for which steps; None if it is not."""
    certain: bool = True
    """Whether the failure comes from a rank that is alive in our generation, as far as this rank can know."""
    complete: bool = False
    """Whether the manifest is stored."""


COMPLETE = CommitView(complete=True)


@dataclass(frozen=True, slots=True)
class SharedCheckpoint:
    """``prefix``: of the checkpoint. ``rank``: the rank that looks. ``step``: the training step that it reports."""

    store: Store
    prefix: str
    rank: int
    world_size: int
    generation: Generation
    step: int = -1
    returned: bool = False
    """Whether this rank returned to a running generation, and has not seen that rank 0 is alive."""
    earlier_failures: frozenset[tuple[str, str]] = frozenset()
    """Failures that were recorded before this rank returned, and their versions. Their ranks may have ended with rank
    0."""
    token: str = ""
    """Identifies our checkpoint, see :data:`asyncsync.sync.tree.ID`."""
    source: Accepted | None = None
    """Its files, to compare with those that an earlier process of this rank uploaded."""
    matching_parts: set[tuple[str, str]] = field(default_factory=set)
    """Parts of other ranks that are known to be of our step, and their versions."""

    async def inspect(self, *, every: bool = False) -> CommitView:
        """Find the missing ranks. If none is missing, the manifest is stored when this returns, unless the steps
        differ.

        While ranks are missing, our step is compared with that of the lowest rank that has a part. So a rank reads one
        part, and a difference shows as soon as both parts are stored. ``every``: compare with all parts.
        """
        stored, is_older = await self._listed()
        if _short(MANIFEST) in stored:
            return await self._compare_with_manifest() if is_older else COMPLETE
        missing = self._missing(stored)
        failure = await self._find_failure(stored)
        if failure is not None:
            return replace(failure, missing=missing)
        if not missing:
            return await self._commit_if_complete()
        present = [rank for rank in range(self.world_size) if rank not in set(missing)]
        for rank in present if every else present[:1]:
            if (differs := await self._compare(rank, stored)) is not None:
                return replace(differs, missing=missing)
        return CommitView(missing)

    async def inspect_before_sending(self, *, resumed: bool) -> CommitView:
        """Check the stored records before the upload. ``resumed``: some may be of an earlier process of this rank.

        This rank does not count as missing if its part is stored. That part stays: the others may have counted on it.
        """
        stored, _ = await self._listed()
        if _short(MANIFEST) in stored:
            return await self._compare_with_manifest()
        if resumed:
            await self._withdraw_failure(stored)
        failure = await self._find_failure(stored)
        if failure is not None:
            return failure
        part = part_name(self.rank, self.world_size)
        ours = await find_manifest(self.store, self.prefix, part) if resumed and _short(part) in stored else None
        missing = self._missing(stored)
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
        """The other rank that has this file in its part of our step."""
        present = set(range(self.world_size)) - {self.rank, *self._missing((await self._listed())[0])}
        owners: list[int] = []

        async def read(rank: int) -> None:
            part = await find_manifest(self.store, self.prefix, part_name(rank, self.world_size))
            ours = part is not None and self.generation.has(part.info) and part.info.get(STEP) == self.step
            if part is not None and ours and path in part.files:
                owners.append(rank)

        await for_each_limited(sorted(present), read, PART_READERS)
        return min(owners, default=None)

    async def failure_versions(self) -> frozenset[tuple[str, str]]:
        """Keys and versions of the recorded failures, of all generations."""
        stored, _ = await self._listed()
        names = [_short(failure_name(rank, self.world_size)) for rank in self._failed(stored)]
        return frozenset(self._version(name, stored) for name in [*names, _short(OUTCOME)] if name in stored)

    async def give_up(self, reason: str, step: int, *, conflict: bool = False) -> FailureRecord | None:
        """Record a failure, so that no rank waits for the checkpoint or completes it later. ``step``: the latest that
        is given up.

        Returns the failure that stands, which is that of the first rank; None if the checkpoint is complete with our
        step after all. Our own record is written first: while it exists, no returning rank deletes the outcome.
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
        """A report of the whole checkpoint. Bytes sent and copied are ours."""
        manifest = await find_manifest(self.store, self.prefix)
        files = manifest.files if manifest is not None else {}
        return SyncReport(
            files_skipped=len(files),
            bytes_total=sum(entry.size for entry in files.values()),
            bytes_sent=ours.bytes_sent,
            bytes_copied=ours.bytes_copied,
            requests=ours.requests,
        )

    # reading its records

    async def _listed(self) -> tuple[dict[str, str], bool]:
        """The version of each record, by file name; and whether the manifest is older than our part. An older one may
        belong to a deleted checkpoint."""
        found = await list_all(self.store, f"{self.prefix}{META_DIR}/")
        manifest = found.get(self.prefix + MANIFEST)
        part = found.get(self.prefix + part_name(self.rank, self.world_size))
        is_older = manifest is not None and (part is None or (manifest.modified or 0) < (part.modified or 0))
        return {_short(key): info.version for key, info in found.items()}, is_older

    def _missing(self, stored: Iterable[str]) -> list[int]:
        present = {rank_of(name, self.world_size) for name in stored}
        return [rank for rank in range(self.world_size) if rank not in present]

    def _failed(self, stored: Iterable[str]) -> list[int]:
        found = (rank_of(name, self.world_size, failed=True) for name in stored)
        return sorted(rank for rank in found if rank is not None)

    def _version(self, name: str, stored: Mapping[str, str]) -> tuple[str, str]:
        return f"{self.prefix}{META_DIR}/{name}", stored[name]

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
        """A record of this generation, else None. Raises DamagedError."""
        record = await find_record(self.store, f"{self.prefix}{META_DIR}/{name}", kind)
        return record if record is not None and self._is_current(record) else None

    async def _find_failure(self, stored: Mapping[str, str]) -> CommitView | None:
        """Why it was given up in this generation: from the outcome, or if there is none yet, from a rank's failure."""
        if _short(OUTCOME) in stored:
            outcome = await self._read(_short(OUTCOME), OutcomeRecord)
            if outcome is not None:
                return None if outcome.committed else self._failure_view(_short(OUTCOME), stored, _failure_of(outcome))
        view = None
        for rank in self._failed(stored):
            name = _short(failure_name(rank, self.world_size))
            failure = await self._read(name, FailureRecord)
            if failure is not None:
                view = self._failure_view(name, stored, failure)
                if view.certain:
                    break
        return view

    def _failure_view(self, name: str, stored: Mapping[str, str], failure: FailureRecord) -> CommitView:
        return CommitView(
            failure=failure, certain=not self.returned or self._version(name, stored) not in self.earlier_failures
        )

    async def _withdraw_failure(self, stored: dict[str, str]) -> None:
        """Delete the failure that an earlier process of this rank recorded, unless other ranks acted on it: then they
        recorded failures too."""
        if any(rank != self.rank for rank in self._failed(stored)):
            return
        void = [name for name in [_short(failure_name(self.rank, self.world_size))] if name in stored]
        if _short(OUTCOME) in stored:
            outcome = await self._read(_short(OUTCOME), OutcomeRecord)
            if outcome is not None and outcome.rank == self.rank:
                void.append(_short(OUTCOME))
        if void:
            await self.store.delete([f"{self.prefix}{META_DIR}/{name}" for name in void])
        for name in void:
            del stored[name]

    async def _compare_with_manifest(self) -> CommitView:
        """Check whether the existing manifest is of our step."""
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
        """Whether our rank's part is of the files that we report: uploaded by this process, or the same files by an
        earlier one."""
        if part.info.get(ID) == self.token:
            return True
        stored = {path: (entry.size, entry.crc32c) for path, entry in part.files.items()}
        return self.source is not None and await in_hasher(self.source.holds, stored)

    @property
    def _other_files(self) -> str:
        return f"rank {self.rank} had sent other files of step {self.step} before it was started again"

    async def _compare(self, rank: int, stored: Mapping[str, str]) -> CommitView | None:
        """The failure if another rank's part is of another step than ours, else None."""
        name = part_name(rank, self.world_size)
        version = self._version(_short(name), stored)
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

    # deciding its outcome

    async def _commit_if_complete(self) -> CommitView:
        """All parts are stored: commit if each is of this generation and of one step."""
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
            return CommitView([0])  # its part is stored, but it may have ended since
        return await self._commit(parts)

    async def _commit(self, parts: dict[int, Manifest]) -> CommitView:
        """Write the manifest. An equal one that another rank wrote first is as good."""
        where = f"{self.store.uri.rstrip('/')}/{self.prefix}".rstrip("/")
        try:
            data = await in_thread(lambda: merge(parts).to_bytes())
        except SameFileError as error:
            raise ConcurrentWriterError(f"{where} was not committed: {error}") from error
        stands = await self._decide(self._outcome(-1, parts[0].info.get(STEP, -1), committed=True))
        if not stands.committed:
            return CommitView(failure=_failure_of(stands))
        try:
            await self.store.put(self.prefix + MANIFEST, data, if_version=MISSING)
        except PreconditionError as error:
            if await find(self.store, self.prefix + MANIFEST) != data:
                raise ConcurrentWriterError(
                    f"{where} was not committed: another process wrote a different manifest"
                ) from error
        return COMPLETE

    async def _decide(self, ours: OutcomeRecord) -> OutcomeRecord:
        """Create the outcome, and return the one that stands: that of the first rank. An outcome of an earlier
        generation, left by an ended process, is replaced."""
        key, version = self.prefix + OUTCOME, MISSING
        while True:
            try:
                await self.store.put(key, ours.to_bytes(), if_version=version)
            except PreconditionError:
                pass  # another rank was first
            else:
                return ours
            stored = await get_record(self.store, key, OutcomeRecord)
            if stored is None:
                version = MISSING  # the rank that wrote it returned and deleted it
                continue
            stands, version = stored
            if self._is_current(stands):
                return stands
            if stands.nonce == self.generation.nonce and stands.generation > self.generation.epoch:
                raise ConcurrentWriterError(
                    f"{self.store.uri.rstrip('/')}/{key} is of a later run of the trial (epoch {stands.generation}, "
                    f"ours is {self.generation.epoch}). Start this rank again, with resume=True"
                )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _failure_of(outcome: OutcomeRecord) -> FailureRecord:
    return FailureRecord(
        outcome.rank, outcome.generation, outcome.reason, outcome.step, outcome.conflict, outcome.nonce
    )
