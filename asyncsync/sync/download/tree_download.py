"""Getting a tree back: what is missing or different is fetched, checked against the manifest, then renamed in place.

The CRC32C in the manifest is what decides, not the object's version: a copied or moved tree has other versions.

Memory: at most ``concurrency`` small files of up to 1 MiB, or SEGMENTS_AT_ONCE pieces of 1 MiB, plus one a request
inside the store.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.disk.descent import Beneath
from asyncsync.disk.files import PIECE
from asyncsync.disk.landing import (
    Landing,
    already_right,
    check_entries,
    check_parents,
    check_space,
    make_directories,
    resumable,
    space_taken,
    sweep,
)
from asyncsync.errors import (
    CheckpointIncompleteError,
    IntegrityError,
    NotFoundError,
    StoreError,
    SyncFailedError,
)
from asyncsync.events import Progress
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.stores.base import ObjectInfo, Piece, Store
from asyncsync.stores.read import list_all
from asyncsync.sync.download.ranged_file import Intake, RangedFile, WrongSizeError, damaged
from asyncsync.sync.download.small_files import SmallFileWriter

log = logging.getLogger("asyncsync")

PART = 16 << 20
BATCH = 64
"""Files whose presence is looked at in one visit to a worker thread."""
PROGRESS_EVERY = 0.2
SHOWN = 5
"""How many paths an error message names."""

SEGMENTS_AT_ONCE = 12
"""Ranges of large files on their way at once: more gain nothing, and each holds memory here and a reader there."""
LOOKERS = 8
"""Batches that are looked at side by side."""

Job = tuple[FileEntry, Callable[[], Coroutine[Any, Any, None]]]


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """What a download did. Sizes in bytes."""

    files_fetched: int
    files_skipped: int
    """Were there and right already."""
    bytes_total: int
    bytes_fetched: int
    seconds: float
    target: Path = Path()
    """Where it is now. The report itself can be given to ``open`` and ``os.path`` functions as this path."""
    files_removed: int = 0
    """Files and links that were in the target and not of it, where it was asked for exactly."""
    warnings: tuple[str, ...] = ()
    """What the target's file system refused, and does not matter for the bytes."""

    def __fspath__(self) -> str:
        return str(self.target)


async def download_tree(
    store: Store,
    prefix: str,
    manifest: Manifest,
    target: str | os.PathLike[str],
    *,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None = None,
    part_size: int = PART,
    landed: list[str] | None = None,
) -> DownloadReport:
    """Make ``target`` hold every file of ``manifest``, whose objects lie below ``prefix`` (ends in ``/``, or empty).

    Files that are there with the right size and CRC32C are kept; others that are not in the manifest are left alone.
    ``on_progress`` is called on the event loop, at most five times a second. A cancel or an error leaves whole files.
    A cancel, a store that is away or SIGKILL also leaves the verified parts of large files in hidden temporary ones
    (``.NAME.*.asyncsync-tmp``): the next download goes on with them, and removes those that it cannot use. ``landed``
    is filled with the paths of files that were put in place, whatever happens.

    Raises:
        SyncError: a path would leave the target; nothing was written.
        CheckpointIncompleteError: objects are missing; it names them.
        IntegrityError: bytes are not what the manifest says, read twice.
        SyncFailedError: anything else, a full disk too; ``failures`` says which file and why.
    """
    download = _Download(store, prefix, manifest, Path(target), concurrency, on_progress, part_size)
    try:
        return await download.run()
    finally:
        if landed is not None:
            landed.extend(download.landed)


class _StopError(Exception):
    """Ends the other workers; why is in ``failures``."""


class _Download:
    def __init__(
        self,
        store: Store,
        prefix: str,
        manifest: Manifest,
        target: Path,
        concurrency: int,
        on_progress: Callable[[Progress], None] | None,
        part_size: int,
    ) -> None:
        self._store, self._prefix, self._manifest = store, prefix, manifest
        self._target = os.path.abspath(target)
        self._concurrency, self._part_size = max(1, concurrency), part_size
        self._on_progress, self._told = on_progress, 0.0
        self._failures: dict[str, Exception] = {}
        self._landings: set[Landing] = set()
        self.landed: list[str] = []
        self._skipped = self._skipped_bytes = self._bytes = 0
        self._large = asyncio.Semaphore(SEGMENTS_AT_ONCE)
        self._shelf = SmallFileWriter()

    @property
    def _uri(self) -> str:
        return f"{self._store.uri.rstrip('/')}/{self._prefix}".rstrip("/")

    async def run(self) -> DownloadReport:
        started = time.monotonic()
        entries = list(self._manifest.files.values())
        await in_thread(check_entries, entries, self._uri)
        wanted = await self._prepare(entries)
        try:
            with suppress(_StopError):
                await for_each_limited(self._jobs(wanted), self._do, min(self._concurrency, self._job_count(wanted)))
        finally:
            for landing in self._landings:
                landing.drop(keep=landing.has_parts and self._may_pass())
                if landing.is_in_place:  # whoever waited for it was cancelled
                    self.landed.append(landing.entry.path)
        if self._failures:
            raise await self._failed()
        self._tell(last=True)
        total = self._manifest.bytes_total
        seconds = time.monotonic() - started
        return DownloadReport(
            len(self.landed), self._skipped, total, self._bytes, seconds, Path(self._target), warnings=self._warnings()
        )

    def _warnings(self) -> tuple[str, ...]:
        if self._below.refused is None:
            return ()
        why = self._below.refused.strerror
        text = f"{self._target}: its file system takes no modes or times of files ({why}); their bytes are right"
        log.warning("%s", text)
        return (text,)

    async def _prepare(self, entries: Sequence[FileEntry]) -> list[FileEntry]:
        """Check the target before anything is written, make directories; what has to be fetched."""
        directories = {entry.path.rpartition("/")[0] for entry in entries} - {""}
        wanted: list[FileEntry] = []
        try:
            self._below = await in_thread(Beneath, self._target)
            await in_thread(check_parents, self._target, directories)
            there = await in_thread(os.path.isdir, self._target)
            if there:
                await self._look(entries, wanted)
            else:
                wanted.extend(entries)
            await in_thread(make_directories, self._below, directories)
            needed = sum(entry.size for entry in wanted)
            if there:
                keep = {resumable(entry) for entry in wanted if entry.size > PIECE}
                await in_thread(sweep, self._below, directories, keep)
                needed -= await in_thread(space_taken, self._below, keep)
            await in_thread(check_space, self._target, needed)
        except OSError as error:
            where = str(error.filename or self._target)
            raise SyncFailedError(f"{self._uri}: cannot be put into {self._target}: {error}", {where: error}) from error
        return wanted

    async def _look(self, entries: Sequence[FileEntry], wanted: list[FileEntry]) -> None:
        async def look(start: int) -> None:
            batch = entries[start : start + BATCH]
            right = await in_thread(already_right, self._below, batch)
            for entry, is_right in zip(batch, right, strict=True):
                if is_right:
                    self._skipped += 1
                    self._skipped_bytes += entry.size
                else:
                    wanted.append(entry)

        await for_each_limited(range(0, len(entries), BATCH), look, LOOKERS)

    def _job_count(self, wanted: Sequence[FileEntry]) -> int:
        pieces = self._part_size
        return sum(1 if entry.size <= PIECE else len(entry.part_crcs) + entry.size // pieces for entry in wanted)

    def _jobs(self, wanted: Sequence[FileEntry]) -> Iterator[Job]:
        """Small files first: a large one in front of them would hold all workers."""
        for entry in wanted:
            if entry.size <= PIECE:
                yield entry, partial(self._small, entry)
        for entry in wanted:
            if entry.size > PIECE:
                landing = self._land(entry)
                file = RangedFile(self._store, self._prefix, landing, self._part_size, self._account, self._reuse)
                for segment in file.segments:
                    yield entry, partial(self._segment, file, landing, segment)

    def _land(self, entry: FileEntry) -> Landing:
        landing = Landing(self._below, entry)
        self._landings.add(landing)
        return landing

    async def _do(self, job: Job) -> None:
        entry, work = job
        try:
            await work()
        except (StoreError, OSError) as error:
            self._failures[entry.path] = error
            raise _StopError from None

    async def _small(self, entry: FileEntry) -> None:
        info: ObjectInfo | None = None
        for _ in range(2):
            data, info = await self._whole(entry)
            landing = self._land(entry)
            saved = await self._shelf.save(landing, data)
            self._landings.discard(landing)
            if saved:
                self._done(entry.path, entry.size)
                return
        key = self._prefix + entry.path
        raise damaged(self._store, key, entry, 0, info if info and info.version else await self._store.head(key))

    async def _whole(self, entry: FileEntry) -> tuple[bytes, ObjectInfo | None]:
        pieces: list[bytes] = []

        async def keep(_: int, piece: Piece) -> None:
            pieces.append(bytes(piece))

        key = self._prefix + entry.path
        if not entry.size:
            info = await self._store.head(key)  # a range of an empty object is an error for some stores
            return b"" if not info.size else b"?", info
        try:
            # One byte more than there should be shows that the object has grown. A read of known, small length is one
            # request that the guard can repeat as a whole.
            info = await self._store.read(key, Intake(entry.size, keep), start=0, length=min(entry.size + 1, PIECE))
        except WrongSizeError:
            return b"", None
        except IntegrityError:
            return b"", None  # the store noticed by itself
        return b"".join(pieces), info

    async def _segment(self, file: RangedFile, landing: Landing, segment: tuple[int, int, int]) -> None:
        async with self._large:
            is_whole = await file.fetch(*segment)
        if is_whole:
            self._landings.discard(landing)
            self._done(file.entry.path, 0)

    def _done(self, path: str, size: int) -> None:
        self.landed.append(path)
        self._account(size)

    def _may_pass(self) -> bool:
        """Whether the next download may go on with what is here: after a cancel, and while the store is away."""
        return all(getattr(error, "retryable", False) for error in self._failures.values())

    def _reuse(self, size: int) -> None:
        self._skipped_bytes += size

    def _account(self, size: int) -> None:
        self._bytes += size
        self._tell()

    def _tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is None or (now - self._told < PROGRESS_EVERY and not last):
            return
        self._told = now
        self._on_progress(
            Progress(
                tree=self._prefix.rstrip("/"),
                files_done=len(self.landed) + self._skipped,
                files_total=len(self._manifest.files),
                bytes_done=self._bytes + self._skipped_bytes,
                bytes_total=self._manifest.bytes_total,
            )
        )

    async def _failed(self) -> Exception:
        """One error for all that went wrong."""
        missing = [path for path, error in self._failures.items() if isinstance(error, NotFoundError)]
        if missing:
            return CheckpointIncompleteError(await self._missing_text(missing))
        only = next(iter(self._failures.values()))
        if len(self._failures) == 1 and isinstance(only, IntegrityError):
            return only
        text = "; ".join(f"{path}: {error}" for path, error in list(self._failures.items())[:SHOWN])
        failed = SyncFailedError(f"{self._uri} is not complete in {self._target}: {text}", self._failures)
        failed.__cause__ = only
        return failed

    async def _missing_text(self, missing: Sequence[str]) -> str:
        """Names all that is missing, not only what was met first."""
        try:
            there = await list_all(self._store, self._prefix)
        except StoreError as error:
            names, more = list(missing), f" (the rest could not be listed: {error})"
        else:
            names = [path for path in self._manifest.files if self._prefix + path not in there] or list(missing)
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = ", ".join(sorted(names)[:SHOWN])
        return f"{self._uri}: its manifest names {len(names)} file(s) that are not there: {shown}{more}"
