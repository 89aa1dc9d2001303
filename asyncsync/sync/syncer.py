"""Syncer: keeps one local directory and one prefix in sync on request."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from asyncsync.aio.tasks import leave_group, within
from asyncsync.aio.threads import in_thread
from asyncsync.config import SyncConfig, TransferConfig, split_sas
from asyncsync.errors import CheckpointIncompleteError, ConfigError, EngineClosedError
from asyncsync.events import Event, Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.patterns import Rules
from asyncsync.report import SyncReport
from asyncsync.stores.base import Lane
from asyncsync.sync.download.tree_download import download_tree
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.preview import SyncPlan
from asyncsync.sync.scheduler import Scheduler
from asyncsync.sync.session import Session
from asyncsync.sync.tree import Tree, TreeOptions
from asyncsync.sync.upload.tree_upload import Tally, progress_event

KEY = ""

log = logging.getLogger("asyncsync")


class _Member:
    """The scheduler's view of a syncer."""

    key = KEY

    def __init__(self, tree: Tree, on_progress: Callable[[Tally], None], removed: set[str]) -> None:
        self._tree, self._on_progress, self._removed = tree, on_progress, removed
        self.last_start = float("-inf")
        """On the event loop's clock."""

    async def sync_once(self) -> SyncReport:
        """One attempt."""
        self.last_start = asyncio.get_running_loop().time()
        removed = set(self._removed)
        report = await self._tree.sync_once(self._on_progress)
        self._removed -= removed
        return report

    def progress(self) -> str:
        """How much of the running or last sync is done, for people."""
        return self._tree.progress()

    def has_nothing_to_sync(self) -> bool:
        """Never known: the files are the user's."""
        return False


class Syncer:
    """Keeps ``local_dir`` and ``uri`` in sync; use it as ``async with Syncer(...) as syncer``.

    One sync runs at a time. All calls during a running sync are served by one more sync after it. Each sync is limited
    by ``sync_config.sync_timeout``. Entering raises ConcurrentWriterError if another process of this machine has the
    same directory and ``uri`` open, and ConfigError for an unknown URI or option. Calls that use the store raise
    EngineClosedError outside of the block.

    Args:
        local_dir: a directory, or a single file.
        uri: where it is stored: ``s3://bucket/prefix``, ``gs://...``, ``az://...``, an absolute path, ``file:///...``.
        sync_config: period, timeout, include and exclude patterns, links.
        transfer: limits and sizes of transfers.
        storage_options: options of the store.
        checksum: read every file instead of trusting size and mtime.
        check_store: look whether the store still has every file, before the first sync; what is missing or was replaced
            is sent again.
        on_event: called with each event, on the event loop.
    """

    def __init__(
        self,
        local_dir: str | os.PathLike[str],
        uri: str | os.PathLike[str],
        sync_config: SyncConfig = SyncConfig(),  # noqa: B008 (frozen)
        *,
        transfer: TransferConfig = TransferConfig(),  # noqa: B008 (frozen)
        storage_options: Mapping[str, object] | None = None,
        checksum: bool = False,
        check_store: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.local_dir = Path(os.path.abspath(os.fspath(local_dir)))
        self.uri, options = split_sas(os.fspath(uri), storage_options)
        self._config, self._transfer = sync_config, transfer
        self._options, self._checksum = options, checksum
        self._check_store = check_store
        self._on_event = on_event
        self._session: Session | None = None
        self._member: _Member | None = None
        self._removed: set[str] = set()
        """Paths to delete from the store with the next sync."""
        self._requested: set[asyncio.Future[SyncReport]] = set()
        self._unseen: BaseException | None = None
        """The error of the last requested sync, if nobody has received it."""

    def __repr__(self) -> str:
        return f"<Syncer {self.local_dir} -> {self.uri}, {'closed' if self._session is None else 'open'}>"

    async def __aenter__(self) -> Syncer:
        self._session = await Session.open(self.uri, self._transfer, self._options)
        root, rules = self.local_dir, self._rules()
        self._tree = Tree(
            self._session,
            str(root.parent if rules.only else root),
            "",
            TreeOptions(
                lambda: rules,
                Lane.ARTIFACT,
                delete=self._config.delete,
                removed=lambda: self._removed,
                max_delete=self._config.max_delete,
                checksum=self._checksum,
            ),
        )
        try:
            self._session.locks.take(self._tree.identity)
            if self._check_store:
                await self._tree.recheck()
        except BaseException:
            await self._session.close()
            raise
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._scheduler = Scheduler(self._config, self._group, self._emit)
        self._runner = self._group.create_task(self._scheduler.run(), name="asyncsync scheduler")
        self._member = _Member(self._tree, self._progress, self._removed)
        self._scheduler.add(self._member, periodic=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        assert session is not None
        try:
            if kind is None:
                await self._idle()
                await clean_up(session)
        finally:
            self._scheduler.close()
            self._scheduler.cancel_running()
            self._runner.cancel()
            try:
                await leave_group(self._group, error)
            finally:
                await session.close()
        if kind is None:
            self._raise_unseen()

    async def _idle(self) -> None:
        while self._requested:
            await asyncio.wait(self._requested)
        await self._scheduler.idle()

    def _request_ended(self, done: asyncio.Future[SyncReport]) -> None:
        self._requested.discard(done)
        self._unseen = None if done.cancelled() else done.exception()

    def _raise_unseen(self) -> None:
        error, self._unseen = self._unseen, None
        if error is not None:
            raise error

    async def sync_up(self) -> SyncReport:
        """Bring the prefix in sync with the directory, now or right after the running sync.

        Raises SyncFailedError, which names the files that are not durable; SyncTimeoutError after ``sync_timeout``
        seconds; ConcurrentWriterError if another process writes the prefix.
        """
        self._open()
        return await self._scheduler.sync(KEY)

    async def sync_up_if_needed(self) -> SyncReport | None:
        """The same, but only if ``sync_period`` has passed since the last sync started; otherwise None."""
        self._open()
        last_start = self._member.last_start if self._member is not None else float("-inf")
        if asyncio.get_running_loop().time() - last_start < self._config.period:
            return None
        return await self.sync_up()

    async def request(self) -> None:
        """Ask for a sync and do not wait for it. All requests during a running sync are served by one more.

        If the last requested sync fails, :meth:`wait` raises its error, or else the end of the block does.
        """
        self._open()
        done = await self._scheduler.submit(KEY)
        if done is not None:
            self._requested.add(done)
            done.add_done_callback(self._request_ended)

    def remove(self, path: str) -> None:
        """Delete this file, or everything in this directory, from the store with the next sync, unless it exists
        locally then. ``path`` is relative to the directory. For a mirror that deletes only what its owner removed,
        where ``SyncConfig(delete=True)`` would delete everything that is missing locally."""
        self._removed.add(path.strip("/"))

    async def sync_down(self) -> SyncReport:
        """Bring the directory in sync with the prefix: files that differ are fetched and verified, nothing is deleted.

        Raises CheckpointIncompleteError if the prefix has no manifest, IntegrityError if the stored bytes are damaged,
        SyncTimeoutError after ``sync_timeout`` seconds, and SyncFailedError for any other failure.
        """
        session = self._open()
        return await within(self._config.timeout, self._down(session), lambda: f"{self.uri} -> {self.local_dir}")

    async def delete(self) -> int:
        """Delete everything below the prefix, the manifest first. Returns the number of deleted objects. StoreError if
        the store refuses."""
        self._open()
        await self.wait()
        return await self._tree.delete_remote()

    async def wait(self) -> None:
        """Wait until no sync is running or requested. Raises the error of the last sync that :meth:`request` asked
        for; other failures are raised by the call that waits for them."""
        self._open()
        await self._idle()
        self._raise_unseen()

    async def plan(self) -> SyncPlan:
        """The actions of :meth:`sync_up` if it ran now, with a plan for each file that may have changed.
        SyncFailedError if the directory cannot be read."""
        self._open()
        return await self._tree.plan()

    async def probe(self) -> None:
        """Write and read a marker. Raises the error that names the missing bucket or permission."""
        await self._open().probe()

    async def manifest(self) -> Manifest | None:
        """Every file of the prefix with its size and checksums, as stored now; None before the first sync. DamagedError
        if it cannot be read."""
        self._open()
        return await self._tree.manifest()

    def progress(self) -> str:
        """How much of the running or last sync is done, for people."""
        return self._tree.progress()

    def _open(self) -> Session:
        if self._session is None:
            raise EngineClosedError("the syncer is not running: use it inside its 'async with' block")
        return self._session

    def _rules(self) -> Rules:
        config = self._config
        only = (self.local_dir.name,) if os.path.isfile(self.local_dir) else None
        ready = config.ready_rules if only is None else ()
        return Rules(tuple(config.include), tuple(config.exclude), config.symlinks, only=only, ready=ready)

    async def _down(self, session: Session) -> SyncReport:
        manifest = await self._tree.manifest()
        if manifest is None:
            raise CheckpointIncompleteError(f"{self.uri} has no manifest: no sync to it was ever completed")
        store = session.view(Lane.CHECKPOINT, "download")
        report = await download_tree(store, "", manifest, self.local_dir, concurrency=self._transfer.max_concurrency)
        return SyncReport(
            files_sent=report.files_fetched,
            files_skipped=report.files_skipped,
            bytes_total=report.bytes_total,
            bytes_sent=report.bytes_fetched,
            bytes_copied=0,
            requests=store.requests,
            seconds=report.seconds,
            warnings=report.warnings,
        )

    def _progress(self, tally: Tally) -> None:
        self._emit(progress_event(KEY, tally))

    def _emit(self, event: Event) -> None:
        if not isinstance(event, Progress):
            log.debug("%s: %s", self.uri, event)
        if self._on_event is not None:
            self._on_event(event)


async def push(
    local: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    sync_config: SyncConfig = SyncConfig(),  # noqa: B008 (frozen)
    transfer: TransferConfig = TransferConfig(),  # noqa: B008 (frozen)
    storage_options: Mapping[str, object] | None = None,
    checksum: bool = False,
    check_store: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> SyncReport:
    """Sync a directory (or one file) to ``uri`` once.

    Only new and changed files are sent; with ``check_store`` also those that the store has lost.

    ConfigError if ``local`` does not exist; otherwise as :meth:`Syncer.sync_up`.
    """

    def report_progress(event: Event) -> None:
        if on_progress is not None and isinstance(event, Progress):
            on_progress(event)

    syncer = Syncer(
        local,
        uri,
        sync_config,
        transfer=transfer,
        storage_options=storage_options,
        checksum=checksum,
        check_store=check_store,
        on_event=report_progress,
    )
    async with syncer:
        if await in_thread(_is_missing, local):
            raise ConfigError(f"there is nothing at {os.fspath(local)!r} to push")
        return await syncer.sync_up()


def _is_missing(path: str | os.PathLike[str]) -> bool:
    """Whether nothing is there. Any other reason why it cannot be looked at is for the sync to report."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
