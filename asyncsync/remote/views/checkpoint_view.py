"""A committed checkpoint of a stored trial: read its manifest, open, download or verify its files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asyncsync.aio.threads import in_thread, worker_threads
from asyncsync.errors import AsyncsyncError, CheckpointRetiredError
from asyncsync.events import Progress
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.retention import by_age
from asyncsync.remote.access import StoreAccess, open_for_reading
from asyncsync.remote.current_tree import download_selection
from asyncsync.remote.restore import is_incomplete_or_damaged
from asyncsync.remote.selection import Selection
from asyncsync.remote.verify import verify
from asyncsync.report import VerifyReport
from asyncsync.sync.download.exact_target import remove_files
from asyncsync.sync.download.open_file import CheckpointFile, entry_of
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.records.manifests import find_record, read_manifest
from asyncsync.sync.records.model import TrialRecord


@dataclass(frozen=True)
class CheckpointView:
    """A committed checkpoint."""

    name: str
    trial: str
    """Name of its trial."""
    uri: str
    number: int
    metrics: dict[str, Any]
    """As reported with the checkpoint."""
    metadata: dict[str, Any]
    """As reported with the checkpoint."""
    files: int
    """Number of files; :meth:`manifest` names them."""
    bytes: int
    """Size of all files."""
    time: float
    """When the checkpoint became durable, Unix seconds."""
    step: int | None = None
    """Training step of the report, or None."""
    pinned: bool = False
    """Whether retention leaves it alone."""
    tags: list[str] = field(default_factory=list)
    """Names that users gave it, see :func:`asyncsync.tag`."""
    _access: StoreAccess = field(default_factory=StoreAccess, repr=False, compare=False)

    async def manifest(self) -> Manifest:
        """Every file with its size and checksums.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint.
            CheckpointIncompleteError: the manifest is missing for another reason.
            DamagedError: the manifest cannot be read.
        """
        async with (
            self._retirement_reported(),
            open_for_reading(self.uri, self._access.transfer, self._access.options) as store,
        ):
            return await read_manifest(store, "")

    async def download(
        self,
        target: str | os.PathLike[str],
        *,
        include: str | Sequence[str] | None = None,
        exact: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        landed: list[str] | None = None,
    ) -> DownloadReport:
        """Download the checkpoint into the directory ``target`` and verify every byte.

        Files that are already correct are not transferred again. No file is ever half written, and all files belong to
        this checkpoint. The returned report can be used as the path of ``target``.

        Args:
            target: a directory; it need not exist.
            include: download only files that match one of these gitignore patterns (a path is a pattern too).
            exact: when everything is in place, remove all other files and links from ``target``, then empty
                directories. Links are not followed.
            on_progress: called on the event loop, at most five times a second.
            landed: filled with the paths of the files that were written, also if the download fails.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint; the error names the trial's newest one. The
                downloaded files are removed.
            CheckpointIncompleteError: the manifest or data is missing for another reason.
            IntegrityError: the data is damaged.
            ConfigError: ``include`` matches no file or was given together with ``exact``; or ``target`` must not be
                cleared: the root, a home directory, a parent of the working directory, a directory that asyncsync
                syncs.
            SyncFailedError: any other failure.
        """
        selection, transfer = Selection.of(include, exact=exact), self._access.transfer
        put: list[str] = [] if landed is None else landed
        try:
            async with self._retirement_reported(), open_for_reading(self.uri, transfer, self._access.options) as store:
                return await download_selection(
                    store,
                    "",
                    target,
                    selection,
                    concurrency=transfer.max_concurrency,
                    on_progress=on_progress,
                    landed=put,
                )
        except CheckpointRetiredError:
            with worker_threads():
                await in_thread(remove_files, os.fspath(target), put)  # it can never be completed
            raise

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[CheckpointFile]:
        """Open one file of the checkpoint for reading: ``async with checkpoint.open("model.bin") as file``.

        Only the parts that are read are fetched, and each is verified.

        Raises:
            CheckpointRetiredError: the trial has retired the checkpoint, now or while the file is read.
            CheckpointIncompleteError: the manifest or the file is missing for another reason.
            IntegrityError: the bytes are damaged.
            ConfigError: the checkpoint has no such file; the message names some that it has.
        """
        access = self._access
        async with self._retirement_reported(), open_for_reading(self.uri, access.transfer, access.options) as store:
            entry = entry_of(await read_manifest(store, ""), path, self.uri)
            async with CheckpointFile(store, "", entry) as file:
                yield file

    async def verify(self, *, deep: bool = True) -> VerifyReport:
        """Compare the store with the manifest; ``deep`` reads every byte. CheckpointRetiredError if the trial has
        retired the checkpoint."""
        access = self._access
        async with self._retirement_reported():
            report = await verify(self.uri, deep=deep, storage_options=access.options, transfer=access.transfer)
        if not report.ok and (retired := await self._retired()) is not None:
            raise retired
        return report

    @asynccontextmanager
    async def _retirement_reported(self) -> AsyncIterator[None]:
        """Report an incomplete checkpoint that the trial has retired as CheckpointRetiredError."""
        try:
            yield
        except AsyncsyncError as error:
            if not is_incomplete_or_damaged(error) or (retired := await self._retired()) is None:
                raise
            raise retired from error

    async def _retired(self) -> CheckpointRetiredError | None:
        """The error to raise if the trial's record no longer names the checkpoint."""
        access = self._access
        try:
            async with open_for_reading(
                self.uri.removesuffix(f"/{self.name}"), access.transfer, access.options
            ) as store:
                record = await find_record(store, TRIAL_RECORD, TrialRecord)
        except AsyncsyncError:
            return None  # unknown; the original error describes the failure
        if record is None or self.name in {item.name for item in record.checkpoints}:
            return None
        text = f"{self.uri} was retired by its trial since its record was read"
        if not record.checkpoints:
            return CheckpointRetiredError(f"{text}; the trial has no checkpoint now")
        newest = max(record.checkpoints, key=by_age).name
        newest_uri = f"{self.uri.removesuffix(self.name)}{newest}"
        return CheckpointRetiredError(
            f"{text}; its newest checkpoint is {newest_uri}: open the experiment again", newest_uri
        )
