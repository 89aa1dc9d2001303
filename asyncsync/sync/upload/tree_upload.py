"""Sending the files of one tree: small ones are read in batches, large ones are sent in parts, all through one budget.

Peak memory: one piece (1 MiB) per request in flight, plus two batches of small files (2 MiB each) ready to send.

The number of workers follows the budget. A worker that begins or ends a file starts another one if there is work for
it, or ends if there are too many. An event loop therefore never gets hundreds of tasks at once, and a thousand trees
that sync together have a thousand workers, not a hundred thousand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from msgspec import structs

from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import Loaded, load
from asyncsync.errors import SourceChangedError, StoreError, SyncError
from asyncsync.events import Progress
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Store
from asyncsync.stores.guard.breaker import StillUnavailableError
from asyncsync.sync.in_flight import FilesInFlight
from asyncsync.sync.upload.assembly import FileOutcome
from asyncsync.sync.upload.copy_sources import CopySources, TreeCopySources
from asyncsync.sync.upload.create_only import LostSourceError, Replacing
from asyncsync.sync.upload.large_file import LargeFile
from asyncsync.sync.upload.open_uploads import OpenUploads

SMALL_FILE = 1 << 20
"""Files up to this size (bytes) are read into memory, many in one call, and sent from there."""
BATCH_FILES, BATCH_BYTES = 128, 2 << 20
LEAST_LOADED = 32
"""The next batch is read once fewer loaded files than this are left; at most two batches are in memory."""

SHARE_FILES = 4
"""Small files between two questions about the share of the store."""
PROGRESS_INTERVAL = 0.2
"""Seconds between two progress reports."""

OnProgress = Callable[["Tally"], None]


@dataclass(slots=True)
class Tally:
    """The results of a pass so far. ``entries`` are durable; ``failures`` are not, with the cause by path."""

    files_total: int = 0
    bytes_total: int = 0
    files_sent: int = 0
    bytes_sent: int = 0
    bytes_reused: int = 0
    """Bytes of parts that an earlier, interrupted upload had already sent."""
    files_copied: int = 0
    """Files that the store copied as a whole from another object: none of their bytes travelled."""
    bytes_copied: int = 0
    files_unchanged: int = 0
    """Files that were read and have the same content as before: not sent."""
    entries: dict[str, FileEntry] = field(default_factory=dict)
    failures: dict[str, BaseException] = field(default_factory=dict)
    vanished: list[str] = field(default_factory=list)
    in_flight: FilesInFlight = field(default_factory=FilesInFlight)

    @property
    def files_done(self) -> int:
        """Files that need no further work."""
        return len(self.entries) + len(self.vanished)

    def missing(self, files: Sequence[FileStat]) -> list[str]:
        """Paths that are not durable yet."""
        return [file.path for file in files if file.path not in self.entries]


class TreeUpload:
    """One pass over the files to send. ``run`` fills ``tally``, also if it is cancelled."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        root: str,
        config: TransferConfig,
        uploads: OpenUploads,
        *,
        known: Manifest | None = None,
        copy_sources: CopySources | None = None,
        on_progress: OnProgress | None = None,
        writes: Replacing | None = None,
    ) -> None:
        self.tally = Tally()
        self._writes = writes or Replacing(store)
        self._store, self._prefix, self._root, self._config = store, prefix, root, config
        self._uploads = uploads
        self._known = known.files if known is not None else {}
        self._sources = TreeCopySources(prefix, self._known, copy_sources)
        self._on_progress = on_progress
        self._progress_at = 0.0
        self._small: deque[Sequence[FileStat]] = deque()
        """In batches: the garbage collector looks at few objects, not at each file of a large tree."""
        self._large: deque[FileStat] = deque()
        self._ready: deque[Loaded] = deque()
        self._loading = False
        self._loaded = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._workers = 0
        self._share, self._share_files = 1, 0

    async def run(self, files: Sequence[FileStat]) -> Tally:
        """Send ``files``. Store errors and changing files are recorded in the tally; any other error is raised. May be
        called again, for files that have to be sent after them."""
        await in_hasher(self._prepare, files)
        if len(files) == 1:
            self._workers += 1
            await self._work()
            return self.tally
        async with asyncio.TaskGroup() as self._group:
            self._hire()
        return self.tally

    def _hire(self) -> None:
        """Start one more worker if more are useful and there is work for it."""
        if self._group is None or self._workers >= min(self._share, self._config.max_concurrency):
            return
        if self._ready or self._large or (self._small and not self._loading):
            self._share, self._share_files = self._store.share, SHARE_FILES
            if self._workers >= self._share:
                return
            self._workers += 1
            self._group.create_task(self._work(), name=f"upload {self._prefix}")

    def _prepare(self, files: Sequence[FileStat]) -> None:
        """In a worker thread, because it visits all files of the tree, also the unchanged ones."""
        self.tally.files_total += len(files)
        self.tally.bytes_total += sum(file.size for file in files)
        self._sources.prepare(files)
        self._small += _batches(file for file in files if file.size <= SMALL_FILE)
        self._large += (file for file in files if file.size > SMALL_FILE)

    async def _work(self) -> None:
        """One worker. Small files first: most files become durable for the fewest bytes."""
        try:
            while self._workers <= max(1, self._present_share()):
                loaded = await self._next_small()
                large = self._large.popleft() if loaded is None and self._large else None
                self._hire()
                if loaded is not None:
                    await self._send_small(loaded)
                elif large is not None:
                    await self._send_large(large)
                else:
                    return
        finally:
            self._workers -= 1

    def _present_share(self) -> int:
        """How many workers are useful now, asked for once in SHARE_FILES files: it costs as much as a signature."""
        if not self._share_files:
            self._share, self._share_files = self._store.share, SHARE_FILES
        self._share_files -= 1
        return self._share

    async def _next_small(self) -> Loaded | None:
        while not self._ready or self._runs_low():
            if self._loading:
                await self._loaded.wait()  # the batch is for all workers: a small tree is one batch
            elif self._small:
                await self._load_batch()
            else:
                return None
        return self._ready.popleft()

    def _runs_low(self) -> bool:
        if self._loading or not self._small or len(self._ready) >= LEAST_LOADED:
            return False
        return sum(len(loaded.data) for loaded in self._ready) < BATCH_BYTES

    async def _load_batch(self) -> None:
        batch = self._small.popleft()
        for file, result in zip(batch, await self._load(batch), strict=True):
            if isinstance(result, Loaded):
                self._ready.append(result)
            else:
                self._failed(file.path, result)

    async def _load(self, batch: Sequence[FileStat]) -> list[Loaded | OSError | SourceChangedError]:
        self._loading = True
        self._loaded.clear()
        try:
            return await in_hasher(load, self._root, batch, fixed=self._writes.fixed)
        finally:
            self._loading = False
            self._loaded.set()

    def _failed(self, path: str, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError) and not isinstance(error, StoreError) and not self._writes.fixed:
            self.tally.vanished.append(path)
        else:
            self.tally.failures[path] = error
        if isinstance(error, StillUnavailableError):
            self._give_up(error)

    def _give_up(self, error: StillUnavailableError) -> None:
        """Fail all files that were not started: they would only wait for the unreachable store again."""
        left = [*(loaded.stat for loaded in self._ready), *chain.from_iterable(self._small), *self._large]
        self.tally.failures |= {file.path: error for file in left}
        for queue in (self._ready, self._small, self._large):
            queue.clear()

    async def _send_small(self, loaded: Loaded) -> None:
        stat, digest = loaded.stat, loaded.digest
        old = self._known.get(stat.path)
        if old is not None and old.size == stat.size and (old.crc32c, old.parts) == (digest.crc32c, (digest.xxh3,)):
            self._unchanged(stat, old)
            return
        try:
            version = await self._copy_small(loaded)
            copied = version is not None
            if version is None:
                version = (await self._writes.put(self._prefix + stat.path, loaded.data, digest.crc32c)).version
        except (StoreError, SyncError) as error:
            self._failed(stat.path, error)
            return
        entry = FileEntry(
            stat.path,
            stat.size,
            stat.mtime_ns,
            stat.mode,
            digest.crc32c,
            0,
            (digest.xxh3,),
            (digest.crc32c,),
            version,
            stat.inode,
        )
        self._account(0 if copied else stat.size, 0, stat.size if copied else 0)
        self._sent(entry, "copied" if copied else "sent")

    async def _copy_small(self, loaded: Loaded) -> str | None:
        """Let the store copy an equal file, such as this one before it was renamed; None if it has to be sent."""
        stat, digest = loaded.stat, loaded.digest
        equal = self._sources.equal(stat.size, digest.crc32c, (digest.xxh3,))
        if equal is None:
            return None
        try:
            return await self._writes.copy(equal.origin(), self._prefix + stat.path, digest.crc32c)
        except LostSourceError:
            return None

    async def _send_large(self, file: FileStat) -> None:
        def account(sent: int, reused: int, copied: int) -> None:
            self.tally.in_flight.add(file.path, sent + reused + copied)
            self._account(sent, reused, copied)

        large = LargeFile(
            self._store,
            self._prefix,
            self._root,
            self._config,
            self._uploads,
            account,
            self._sources,
            self._writes,
        )
        self.tally.in_flight.begin(file.path, file.size)
        try:
            entry, outcome = await large.send(file, self._known.get(file.path))
        except (StoreError, SyncError, OSError) as error:
            self._failed(file.path, error)
            return
        finally:
            self.tally.in_flight.end(file.path)
        if outcome == "unchanged":
            self._unchanged(file, entry)
        else:
            self._sent(entry, outcome)

    def _account(self, sent: int, reused: int, copied: int) -> None:
        self.tally.bytes_sent += sent
        self.tally.bytes_reused += reused
        self.tally.bytes_copied += copied
        self._report_progress()

    def _sent(self, entry: FileEntry, outcome: FileOutcome) -> None:
        self.tally.entries[entry.path] = entry
        self.tally.files_sent += outcome == "sent"
        self.tally.files_copied += outcome == "copied"
        self._report_progress()

    def _unchanged(self, stat: FileStat, old: FileEntry) -> None:
        self.tally.files_unchanged += 1
        self.tally.entries[stat.path] = structs.replace(old, mtime_ns=stat.mtime_ns, mode=stat.mode, inode=stat.inode)

    def _report_progress(self) -> None:
        """Report progress, at most five times a second: a listener must not cost more than the transfer."""
        if self._on_progress is None:
            return
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_INTERVAL:
            self._progress_at = now
            self._on_progress(self.tally)


def _batches(files: Iterable[FileStat]) -> Iterator[tuple[FileStat, ...]]:
    """Small files that are read in one call."""
    batch: list[FileStat] = []
    size = 0
    for file in files:
        if batch and (len(batch) == BATCH_FILES or size + file.size > BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield tuple(batch)


def progress_event(key: str, tally: Tally) -> Progress:
    """The progress of a tree's upload as an event."""
    return Progress(
        tree=key,
        files_done=tally.files_done,
        files_total=tally.files_total,
        bytes_done=tally.bytes_sent + tally.bytes_reused,
        bytes_total=tally.bytes_total,
        files=tally.in_flight.shown(),
    )
