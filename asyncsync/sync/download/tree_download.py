"""Downloading a tree: missing and different files are fetched, verified by the manifest, then renamed into place.

The CRC32C in the manifest decides, not the object's version: a copied or moved tree has other versions.

Memory: at most ``concurrency`` small files of up to 1 MiB, or SEGMENT_REQUESTS pieces of 1 MiB, plus one per request
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

from asyncsync.aio.descriptors import within_descriptors
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
from asyncsync.sync.in_flight import FilesInFlight

log = logging.getLogger("asyncsync")

SEGMENT_SIZE = 16 << 20
"""Most bytes of one range request, unless ``part_size`` is given."""
CHECKED_FILES = 64
"""Files that one call to a worker thread checks."""
PROGRESS_INTERVAL = 0.2
"""Seconds between two progress reports."""
MOST_PATHS_IN_ERROR = 5
"""How many paths an error message names."""

SEGMENT_REQUESTS = 12
"""Ranges of large files in flight: more are no faster, and each holds memory here and a reader in the store."""
CHECKING_WORKERS = 8
"""Batches that are checked at once."""

Job = tuple[FileEntry, Callable[[], Coroutine[Any, Any, None]]]


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """The result of a download. Sizes in bytes."""

    files_fetched: int
    files_skipped: int
    """Files that already were in the target with the right content."""
    bytes_total: int
    bytes_fetched: int
    seconds: float
    target: Path = Path()
    """Where the files are now. The report itself can be passed to ``open`` and ``os.path`` functions as this path."""
    files_removed: int = 0
    """Files and links that were in the target and not in the tree, removed because exact content was requested."""
    warnings: tuple[str, ...] = ()
    """Attributes that the target's file system refused; the bytes are right."""

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
    part_size: int = SEGMENT_SIZE,
    landed: list[str] | None = None,
) -> DownloadReport:
    """Make ``target`` hold every file of ``manifest``, whose objects lie below ``prefix`` (ends in ``/``, or empty).

    Files with the right size and CRC32C are kept; files that are not in the manifest are left alone. ``on_progress`` is
    called on the event loop, at most five times a second. A cancel or an error leaves only complete files. A cancel, an
    unreachable store or SIGKILL also leaves the verified parts of large files in hidden temporary files
    (``.NAME.*.asyncsync-tmp``): the next download resumes them, and removes those that it cannot use. ``landed``
    receives the paths of files that were put in place, in any case.

    Raises:
        SyncError: a path is outside the target directory; nothing was written.
        CheckpointIncompleteError: objects are missing; it names them.
        IntegrityError: bytes are not those of the manifest, read twice.
        SyncFailedError: any other failure, such as a full disk; ``failures`` has the cause of each file.
    """
    download = _Download(store, prefix, manifest, Path(target), concurrency, on_progress, part_size)
    try:
        return await download.run()
    finally:
        if landed is not None:
            landed.extend(download.landed)


class _StopError(Exception):
    """Ends the other workers; the cause is in ``failures``."""


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
        self._concurrency, self._part_size = within_descriptors(max(1, concurrency)), part_size
        self._on_progress, self._reported_at = on_progress, 0.0
        self._failures: dict[str, Exception] = {}
        self._landings: set[Landing] = set()
        self.landed: list[str] = []
        self._skipped = self._skipped_bytes = self._bytes = 0
        self._large = asyncio.Semaphore(SEGMENT_REQUESTS)
        self._shelf = SmallFileWriter()
        self._in_flight = FilesInFlight()

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
                landing.drop(keep=landing.has_parts and self._can_resume())
                if landing.is_in_place:  # its waiter was cancelled
                    self.landed.append(landing.entry.path)
        if self._failures:
            raise await self._failed()
        self._report_progress(last=True)
        total = self._manifest.bytes_total
        seconds = time.monotonic() - started
        return DownloadReport(
            len(self.landed), self._skipped, total, self._bytes, seconds, Path(self._target), warnings=self._warnings()
        )

    def _warnings(self) -> tuple[str, ...]:
        if self._below.refused is None:
            return ()
        why = self._below.refused.strerror
        text = f"{self._target}: its file system does not store modes or times of files ({why}); their bytes are right"
        log.warning("%s", text)
        return (text,)

    async def _prepare(self, entries: Sequence[FileEntry]) -> list[FileEntry]:
        """Check the target before anything is written, and make its directories; returns the files to fetch."""
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
            batch = entries[start : start + CHECKED_FILES]
            right = await in_thread(already_right, self._below, batch)
            for entry, is_right in zip(batch, right, strict=True):
                if is_right:
                    self._skipped += 1
                    self._skipped_bytes += entry.size
                else:
                    wanted.append(entry)

        await for_each_limited(range(0, len(entries), CHECKED_FILES), look, CHECKING_WORKERS)

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
                counted = partial(self._account_part, entry.path), partial(self._reuse, entry.path)
                file = RangedFile(self._store, self._prefix, landing, self._part_size, *counted)
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
            info = await self._store.head(key)  # some stores refuse a range of an empty object
            return b"" if not info.size else b"?", info
        try:
            # One byte more than expected shows whether the object has grown. A read of known, small length is one
            # request that the guard can retry as a whole.
            info = await self._store.read(key, Intake(entry.size, keep), start=0, length=min(entry.size + 1, PIECE))
        except WrongSizeError:
            return b"", None
        except IntegrityError:
            return b"", None  # the store has noticed the damage
        return b"".join(pieces), info

    async def _segment(self, file: RangedFile, landing: Landing, segment: tuple[int, int, int]) -> None:
        async with self._large:
            if segment == file.segments[0]:
                self._in_flight.begin(file.entry.path, file.entry.size)
            is_whole = await file.fetch(*segment)
        if is_whole:
            self._landings.discard(landing)
            self._in_flight.end(file.entry.path)
            self._done(file.entry.path, 0)

    def _done(self, path: str, size: int) -> None:
        self.landed.append(path)
        self._account(size)

    def _can_resume(self) -> bool:
        """Whether the next download can resume with the temporary files: after a cancel, and if all errors are
        transient."""
        return all(getattr(error, "retryable", False) for error in self._failures.values())

    def _reuse(self, path: str, size: int) -> None:
        self._in_flight.add(path, size)
        self._skipped_bytes += size

    def _account_part(self, path: str, size: int) -> None:
        self._in_flight.add(path, size)
        self._account(size)

    def _account(self, size: int) -> None:
        self._bytes += size
        self._report_progress()

    def _report_progress(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is None or (now - self._reported_at < PROGRESS_INTERVAL and not last):
            return
        self._reported_at = now
        self._on_progress(
            Progress(
                tree=self._prefix.rstrip("/"),
                files_done=len(self.landed) + self._skipped,
                files_total=len(self._manifest.files),
                bytes_done=self._bytes + self._skipped_bytes,
                bytes_total=self._manifest.bytes_total,
                files=self._in_flight.shown(),
            )
        )

    async def _failed(self) -> Exception:
        """One error for all failures."""
        missing = [path for path, error in self._failures.items() if isinstance(error, NotFoundError)]
        if missing:
            return CheckpointIncompleteError(await self._missing_text(missing))
        only = next(iter(self._failures.values()))
        if len(self._failures) == 1 and isinstance(only, IntegrityError):
            return only
        text = "; ".join(f"{path}: {error}" for path, error in list(self._failures.items())[:MOST_PATHS_IN_ERROR])
        failed = SyncFailedError(f"{self._uri} is not complete in {self._target}: {text}", self._failures)
        failed.__cause__ = only
        return failed

    async def _missing_text(self, missing: Sequence[str]) -> str:
        """Names all missing objects, not only those that were found missing first."""
        try:
            there = await list_all(self._store, self._prefix)
        except StoreError as error:
            names, more = list(missing), f" (the rest could not be listed: {error})"
        else:
            names = [path for path in self._manifest.files if self._prefix + path not in there] or list(missing)
            more = f" and {len(names) - MOST_PATHS_IN_ERROR} more" if len(names) > MOST_PATHS_IN_ERROR else ""
        shown = ", ".join(sorted(names)[:MOST_PATHS_IN_ERROR])
        return f"{self._uri}: its manifest names {len(names)} file(s) that are missing: {shown}{more}"
