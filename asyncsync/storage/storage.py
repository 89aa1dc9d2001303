"""Storage: a storage path that stays open."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
from xxhash import xxh3_128_hexdigest

from asyncsync.aio.retry import RetryHooks, retry_transient
from asyncsync.aio.tasks import for_each_limited, leave_group
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.accepted_files import accept
from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    EngineClosedError,
    NotFoundError,
    PreconditionError,
)
from asyncsync.planning.manifest import MANIFEST, FileEntry, Manifest
from asyncsync.planning.patterns import Rules
from asyncsync.remote.current_tree import download_current
from asyncsync.report import SyncReport
from asyncsync.status import EngineStatus
from asyncsync.storage import entries, shared
from asyncsync.storage.entries import StoredEntry
from asyncsync.storage.shared import CheckpointUpload, Writer
from asyncsync.storage.summaries import SummaryWriter, TrialSummary
from asyncsync.stores.base import Lane, Piece, Store
from asyncsync.stores.read import list_all, uri_of
from asyncsync.sync.download.tree_download import download_tree
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.records.manifests import find_manifest, get_manifest
from asyncsync.sync.session import READ_PATIENCE, Session, session_status
from asyncsync.sync.tree import Tree, TreeOptions

RETRY_TIME = 1800.0
"""Default of ``retry_time``, seconds: that of ``SyncConfig.sync_timeout``."""
FILES_IN_PARALLEL = 16
LONGEST_PROBE_PAUSE = 4.0
"""Seconds between two tests whether an unavailable store is back: a training loop waits for it."""
MOST_TREES = 1000
"""Synced directories whose state is remembered; the one that was synced longest ago is forgotten first."""
MOST_PARTS = 16
"""Parts of checkpoints that may still be amended."""
CONFLICTS = 3
"""Times that a directory is synced again because another process has synced it, too."""


@dataclass(slots=True)
class _OpenTree:
    """A directory that is synced again and again. ``rules`` may change between two passes."""

    tree: Tree
    rules: list[Rules]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Storage:
    """A storage path that stays open, for frameworks that choose directories and names themselves: one connection
    pool, one budget, one journal. Use it as ``async with Storage(uri) as storage``. Paths are relative to ``uri``, with
    ``/``; ``""`` is the storage path itself.

    A checkpoint that has no manifest does not exist: it is neither listed nor found.

    Args:
        uri: ``s3://bucket/prefix``, ``gs://...``, an absolute path, ``file:///...``.
        transfer: limits and sizes of transfers.
        storage_options: options of the store.
        retry_time: seconds for which uploads are retried while their errors are transient.

    Raises:
        ConfigError: on entering: the URI or an option is unknown.
        EngineClosedError: on any call outside of the block.
        StoreError: on any call: the store refused or failed a request, and retries did not help.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        transfer: TransferConfig = TransferConfig(),  # noqa: B008 (frozen)
        storage_options: Mapping[str, object] | None = None,
        retry_time: float = RETRY_TIME,
    ) -> None:
        self.uri = os.fspath(uri)
        self._transfer, self._options, self._retry_time = transfer, storage_options, retry_time
        self._session: Session | None = None
        self._trees: dict[tuple[str, str], _OpenTree] = {}
        self._summaries = SummaryWriter()
        self._plain: set[str] = set()
        """Directories that are known not to be checkpoints."""
        self._parts: dict[str, str] = {}
        """Prefix of a checkpoint -> its part that this process wrote last."""
        self._cleaning = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Storage {self.uri} {'closed' if self._session is None else 'open'}>"

    async def __aenter__(self) -> Storage:
        session = await Session.open(self.uri, self._transfer, self._options, patience=READ_PATIENCE)
        session.breaker.longest_pause = LONGEST_PROBE_PAUSE
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._watch = self._group.create_task(session.watch(), name="asyncsync watch")
        self._session = session
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        assert session is not None
        self._watch.cancel()
        try:
            await leave_group(self._group, error)
        finally:
            await session.close()

    # -- files

    async def stat(self, path: str) -> StoredEntry | None:
        """The file or directory at ``path``, or None. An incomplete checkpoint counts as missing."""
        return await entries.stat(self._store, path)

    async def is_file(self, path: str) -> bool:
        """Whether there is a file at ``path``. One request."""
        try:
            await self._store.head(path)
        except NotFoundError:
            return False
        return True

    async def entries(self, path: str, *, recursive: bool = False) -> list[StoredEntry] | None:
        """The files and directories below ``path``, or None if it is not a directory."""
        if recursive:
            return await entries.descendants(self._store, path)
        return await entries.children(self._store, path)

    async def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes of a file from ``start`` on, in memory; None: all bytes. NotFoundError if it is missing."""
        if not start and length is None:
            return (await self._store.get(path))[0]
        pieces: list[bytes] = []

        async def keep(piece: Piece) -> None:
            pieces.append(bytes(piece))

        await self._store.read(path, keep, start=start, length=length)
        return b"".join(pieces)

    async def write(self, path: str, data: bytes) -> None:
        """Write one file, atomically. In a committed checkpoint the manifest is amended, so that it names the file.
        ConcurrentWriterError if another process amends it at the same time."""
        prefix = path[: path.rfind("/") + 1]
        if prefix in self._plain or not await self._amend(prefix, path[len(prefix) :], data):
            self._plain.add(prefix)
            await self._store.put(path, data, crc32c=google_crc32c.value(data))

    async def write_file(self, local: str | os.PathLike[str], path: str) -> None:
        """Upload one file of this machine, in one request. OSError if it cannot be read."""
        size = (await in_thread(os.stat, local)).st_size
        await self._store.put(path, FileRange(os.fspath(local), 0, size))

    async def delete(self, path: str) -> None:
        """Delete a file. A missing one is ignored."""
        await self._store.delete([path])

    async def delete_directory(self, path: str) -> None:
        """Delete everything below ``path``; of a checkpoint the manifest first. A missing directory is ignored."""
        prefix = f"{path}/" if path else ""
        session = self._open()
        session.uploads.abandon_below(prefix)
        session.copy_sources.forget(prefix)
        self._summaries.forget(prefix)
        while keys := await list_all(self._store, prefix):
            await shared.delete_keys(self._store, prefix, keys)
        await self.clean_up()

    # -- directories

    async def push(
        self, local: str | os.PathLike[str], path: str, *, exclude: Sequence[str] = (), links: bool = True
    ) -> SyncReport:
        """Sync the directory ``local`` to ``path``: new and changed files are sent, nothing is deleted.

        A repeated sync without changes sends no request. ``exclude``: gitignore patterns. ``links``: follow symbolic
        links out of the directory. SyncFailedError names the files that are not durable.
        """
        rules = Rules(exclude=tuple(exclude), symlinks="follow" if links else "inside")
        key = (os.path.abspath(local), f"{path}/" if path else "")
        opened = self._trees.pop(key, None) or self._new_opened_tree(key, rules)
        self._trees[key] = opened  # the newest
        self._forget_trees()
        async with opened.lock:
            opened.rules[0] = rules
            for _ in range(CONFLICTS):
                try:
                    return await retry_transient(opened.tree.sync_once, self._hooks())
                except ConcurrentWriterError:
                    opened.tree = self._new_tree(key, opened.rules)
            return await opened.tree.sync_once()

    async def pull(self, path: str, local: str | os.PathLike[str]) -> None:
        """Download the directory ``path`` into ``local``; nothing is deleted there. Every byte of a checkpoint or of a
        synced directory is verified against its manifest.

        CheckpointIncompleteError if it is a checkpoint without a manifest; NotFoundError if nothing is stored there.
        """
        store, prefix = self._store, f"{path}/" if path else ""
        manifest = await find_manifest(store, prefix)
        if manifest is not None and entries.is_checkpoint(manifest):
            await self._download(prefix, manifest, local)
            self._open().copy_sources.remember(prefix, manifest.files)
            return
        if manifest is None and await entries.is_incomplete(store, prefix):
            raise CheckpointIncompleteError(
                f"{uri_of(store, prefix).rstrip('/')} has no manifest: it was never completed. Use an earlier one"
            )
        found = await self.entries(path, recursive=True)
        if found is None:
            raise NotFoundError(f"there is nothing at {uri_of(store, path)}")
        files = [item for item in found if item.is_file]

        async def fetch(item: StoredEntry) -> None:
            await self.pull_file(item.path, Path(local) / item.path[len(prefix) :])

        await for_each_limited(files, fetch, FILES_IN_PARALLEL)

    async def _download(self, prefix: str, manifest: Manifest, local: str | os.PathLike[str]) -> None:
        """Download a checkpoint; if that fails, the one that its current manifest names."""
        concurrency = self._transfer.max_concurrency
        try:
            await download_tree(self._store, prefix, manifest, local, concurrency=concurrency)
        except AsyncsyncError:
            await download_current(self._store, prefix, local, concurrency=concurrency)

    async def pull_file(self, path: str, local: str | os.PathLike[str]) -> None:
        """Download one file; ``local`` is replaced when every byte has arrived. NotFoundError if it is missing."""
        partial = f"{os.fspath(local)}.{os.getpid()}.asyncsync-tmp"
        await in_thread(os.makedirs, os.path.dirname(os.path.abspath(partial)), 0o777, True)
        target = await in_thread(open, partial, "wb")
        try:

            async def keep(piece: Piece) -> None:
                await in_thread(target.write, piece)

            await self._store.read(path, keep)
            await in_thread(target.close)
            await in_thread(os.replace, partial, local)
        except BaseException:
            target.close()
            if os.path.exists(partial):
                os.unlink(partial)
            raise

    # -- checkpoints

    async def push_checkpoint(
        self,
        local: str | os.PathLike[str],
        path: str,
        writer: Writer,
        *,
        alone: bool,
        info: Mapping[str, Any] | None = None,
        may_replace: Callable[[], Awaitable[bool]] | None = None,
    ) -> SyncReport:
        """Upload the files of one process to the checkpoint ``path``; all or nothing.

        ``alone``: no other process takes part; the checkpoint is committed when this returns, and whatever an earlier
        attempt has left there is removed first. Otherwise the checkpoint exists after :meth:`commit_checkpoint`.
        Content that it shares with checkpoints which this object has pushed or pulled is copied inside the store.
        ``may_replace`` is asked before a checkpoint or a file of an earlier attempt is replaced.

        Raises:
            CheckpointIncompleteError: ``local`` is missing; or it holds no file and ``alone``.
            ConcurrentWriterError: another rank of the same attempt wrote a file of the same name with different
                content; the checkpoint is committed already; or ``may_replace`` refused.
            SourceChangedError: files changed while they were sent.
            SyncFailedError: any other failure; ``failures`` has the cause of each file.
        """
        session, prefix = self._open(), f"{path}/"
        self._summaries.forget(prefix)
        source = await in_thread(accept, os.fspath(local), may_be_empty=not alone)
        upload = CheckpointUpload(
            session, prefix, source, writer, alone, dict(info or {}), self._retry_time, may_replace
        )
        self._plain.discard(prefix)
        report = await upload.run()
        if not alone:
            self._remember_part(prefix, upload.record)
        return report

    async def commit_checkpoint(self, path: str, attempt: str, processes: Mapping[int, str]) -> None:
        """Commit a checkpoint of several processes: write the manifest that names the files of all of them, then remove
        everything that it does not name.

        ``processes``: rank -> process of the writers of ``attempt`` that reported it. Those without a complete part are
        left out. Committing it again changes nothing.

        Raises:
            CheckpointIncompleteError: no part of the attempt is complete, or none holds a file, or a file is missing.
            ConcurrentWriterError: two ranks wrote one file with different content; the error names them. Or another
                attempt has committed the checkpoint.
        """
        prefix = f"{path}/"
        session = self._open()
        manifest = await retry_transient(lambda: shared.commit(session, prefix, attempt, processes), self._hooks())
        self._summaries.remember(prefix, manifest)

    async def save_trial(self, path: str, trial: TrialSummary, experiment: str = "") -> None:
        """Write the record of the trial at ``path``, so that ``Experiment.open`` shows it. Checkpoints without a
        manifest are left out. The caller is the only process that writes this record."""
        prefix = f"{path}/" if path else ""
        await self._summaries.save_trial(self._view(Lane.RECORD), prefix, trial, experiment)

    async def save_experiment(
        self, path: str, name: str, status: str, trials: Mapping[str, str], started: float = 0.0
    ) -> None:
        """Write the record of the experiment at ``path``. ``trials``: name -> status; ``started``: Unix seconds."""
        prefix = f"{path}/" if path else ""
        await self._summaries.save_experiment(self._view(Lane.RECORD), prefix, name, status, trials, started)

    def status(self) -> EngineStatus:
        """How its requests do; it has no trials. A plain call that reads only memory."""
        return session_status(self._open())

    def prefer(self, paths: Sequence[str]) -> None:
        """Send these checkpoints (``path/``) before all others, in this order: time is short."""
        self._open().budget.prefer(paths)

    async def clean_up(self) -> int:
        """Abort the uploads that killed processes of this machine have left open; returns how many clean-ups were
        done. One that fails is retried by the next call."""
        async with self._cleaning:
            return await clean_up(self._open())

    # -- inside

    def _open(self) -> Session:
        if self._session is None:
            raise EngineClosedError("the storage is not open: use it inside its 'async with' block")
        return self._session

    @property
    def _store(self) -> Store:
        return self._view(Lane.CHECKPOINT)

    def _view(self, lane: Lane) -> Store:
        return self._open().view(lane, "storage")

    def _remember_part(self, prefix: str, record: str) -> None:
        self._parts.pop(prefix, None)
        self._parts[prefix] = record
        if len(self._parts) > MOST_PARTS:
            del self._parts[next(iter(self._parts))]

    def _hooks(self) -> RetryHooks:
        give_up = time.monotonic() + self._retry_time
        return RetryHooks(lambda _: time.monotonic() < give_up, self._open().breaker.wait_to_retry)

    def _new_opened_tree(self, key: tuple[str, str], rules: Rules) -> _OpenTree:
        current = [rules]
        return _OpenTree(self._new_tree(key, current), current)

    def _forget_trees(self) -> None:
        while len(self._trees) > MOST_TREES:
            key = next((key for key, opened in self._trees.items() if not opened.lock.locked()), None)
            if key is None or key == next(reversed(self._trees)):
                return
            del self._trees[key]

    def _new_tree(self, key: tuple[str, str], rules: list[Rules]) -> Tree:
        return Tree(self._open(), *key, TreeOptions(lambda: rules[0], Lane.ARTIFACT))

    async def _amend(self, prefix: str, name: str, data: bytes) -> bool:
        """Write a file of a checkpoint that is committed, or whose part this process has written; False if there is
        none. A file that is replaced is first taken out of the manifest, so that the checkpoint is complete at every
        moment."""
        record = self._parts.get(prefix, MANIFEST)
        found = await get_manifest(self._store, prefix + record)
        if found is None and record != MANIFEST:  # committed since
            del self._parts[prefix]
            return await self._amend(prefix, name, data)
        if found is None or not entries.is_checkpoint(found[0]):
            return False
        manifest, version = found
        if name in manifest.files:
            files = {path: entry for path, entry in manifest.files.items() if path != name}
            version = await self._replace(prefix + record, Manifest(files, manifest.info, manifest.extra), version)
        crc = google_crc32c.value(data)
        stored = await self._store.put(prefix + name, data, crc32c=crc)
        digest = xxh3_128_hexdigest(data)
        entry = FileEntry(name, len(data), time.time_ns(), 0o644, crc, 0, (digest,), (crc,), stored.version)
        amended = Manifest({**manifest.files, name: entry}, manifest.info, manifest.extra)
        await self._replace(prefix + record, amended, version)
        self._summaries.forget(prefix)
        return True

    async def _replace(self, key: str, manifest: Manifest, version: str) -> str:
        try:
            return (await self._store.put(key, manifest.to_bytes(), if_version=version)).version
        except PreconditionError as error:
            raise ConcurrentWriterError(
                f"{uri_of(self._store, key)}: another process amends the checkpoint: write again"
            ) from error
