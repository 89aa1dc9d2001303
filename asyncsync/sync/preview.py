"""A preview of a sync, file by file: files are read, nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import digest_range
from asyncsync.disk.files import FileRange
from asyncsync.errors import SourceChangedError
from asyncsync.planning.copied_ranges import pieces_of, whole_copy
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.parts import Candidate, Matches
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Store
from asyncsync.sync.upload.append_only import appended_to, trusted_parts
from asyncsync.sync.upload.assembly import Hashing, copied_at_once, limits_of, part_size_of
from asyncsync.sync.upload.copy_sources import TreeCopySources

PREVIEW_READERS = 8
"""Files that are read at once."""


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The action of a sync for one file. ``assemble``: some bytes are sent, the store copies the rest. Sizes in
    bytes."""

    path: str
    size: int
    action: Literal["send", "copy", "assemble", "keep"]
    bytes_sent: int = 0
    bytes_copied: int = 0
    requests: int = 0
    """A file that is sent in parts counts one request per part, one to open the upload and one to complete it."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """The actions of a sync of a tree if it ran now; field names as in :class:`asyncsync.SyncReport`."""

    files: list[FilePlan]
    """One plan for each file that may have changed, by path."""
    delete: list[str]
    """Files that would be deleted from the store."""
    files_skipped: int
    """Files that are unchanged according to the manifest: they are not even read."""
    bytes_total: int
    """Bytes of all files of the tree."""
    requests: int
    """Number of requests, if none is retried and no earlier sync was interrupted."""
    warnings: tuple[str, ...]

    @property
    def todo(self) -> list[FilePlan]:
        """Files of which bytes are sent or copied."""
        return [plan for plan in self.files if plan.action != "keep"]

    @property
    def bytes_sent(self) -> int:
        """Bytes that would be sent."""
        return sum(plan.bytes_sent for plan in self.files)

    @property
    def bytes_copied(self) -> int:
        """Bytes that the store would copy."""
        return sum(plan.bytes_copied for plan in self.files)


class Preview:
    """The plans of one tree. ``known``: its files as the store has them."""

    def __init__(
        self, store: Store, prefix: str, root: str, config: TransferConfig, known: dict[str, FileEntry]
    ) -> None:
        self._store, self._prefix, self._root, self._config = store, prefix, root, config
        self._known = known
        self._sources = TreeCopySources(prefix, known)

    async def of(self, files: Iterable[FileStat]) -> list[FilePlan]:
        """One plan per file, by path. Files that vanish meanwhile are left out. OSError if a file cannot be read."""
        files = list(files)
        self._sources.prepare(files)
        found: list[FilePlan] = []

        async def look(file: FileStat) -> None:
            try:
                found.append(await self._plan(file))
            except (FileNotFoundError, SourceChangedError):
                return

        await for_each_limited(files, look, min(PREVIEW_READERS, max(1, len(files))))
        return sorted(found, key=lambda plan: plan.path)

    async def _plan(self, file: FileStat) -> FilePlan:
        own = self._known.get(file.path)
        appended = appended_to(file, own, self._config, self._store.traits)
        if not self._store.traits.in_one_request(file.size, self._config.multipart_threshold):
            return await self._large(file, appended or own)
        if appended is not None:
            return await self._large(file, appended, [Candidate(self._prefix + file.path, appended)])
        same_size = own is not None and own.size == file.size
        if same_size or self._sources.has_size(file.size):
            digest = await in_thread(digest_range, FileRange(f"{self._root}/{file.path}", 0, file.size))
            if own is not None and same_size and own.parts == (digest.xxh3,):
                return FilePlan(file.path, file.size, "keep")
            if self._sources.equal(file.size, digest.crc32c, (digest.xxh3,)) is not None:
                return FilePlan(file.path, file.size, "copy", 0, file.size, 1)
        return FilePlan(file.path, file.size, "send", file.size, 0, 1)

    async def _large(
        self, file: FileStat, own: FileEntry | None, candidates: list[Candidate] | None = None
    ) -> FilePlan:
        path = f"{self._root}/{file.path}"
        candidates = self._sources.candidates(file, own) if candidates is None else candidates
        matches = Matches(candidates)
        size = part_size_of(file, matches, self._store.traits, self._config)
        if not candidates:
            return FilePlan(file.path, file.size, "send", file.size, 0, -(-file.size // size) + self._other_requests())
        hashing = Hashing(path, file, matches, size, await trusted_parts(path, file, own, size, self._config))
        segments = await hashing.everything()
        whole = whole_copy(segments)
        if whole is not None and whole.key == self._prefix + file.path:
            return FilePlan(file.path, file.size, "keep")
        limits = limits_of(self._store.traits, self._config, size)
        if whole is not None and copied_at_once(whole, self._store.traits, limits):
            return FilePlan(file.path, file.size, "copy", 0, file.size, 1)
        pieces, _ = pieces_of(segments, limits)
        sent = sum(piece.size for piece in pieces if piece.origin is None)
        action: Literal["send", "copy", "assemble"] = "assemble" if 0 < sent < file.size else "send" if sent else "copy"
        return FilePlan(file.path, file.size, action, sent, file.size - sent, len(pieces) + self._other_requests())

    def _other_requests(self) -> int:
        """Requests of an upload beside those for its parts."""
        return 3 if self._store.traits.conditional_complete else 2
