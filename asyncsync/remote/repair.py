"""``verify --repair``: send damaged and missing files again from a local tree that still has them byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig, split_sas
from asyncsync.disk.digests import digest_range
from asyncsync.disk.files import FileRange
from asyncsync.errors import AsyncsyncError, SourceChangedError
from asyncsync.events import Progress
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat
from asyncsync.remote.access import DEFAULT_TRANSFER
from asyncsync.remote.verify import Verification
from asyncsync.report import RepairReport
from asyncsync.stores.base import MISSING, Lane, Part
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.session import Session
from asyncsync.sync.upload.multipart import open_upload

FILES_IN_PARALLEL = 8
PARTS_IN_PARALLEL = 4


async def repair(
    uri: str | os.PathLike[str],
    local: str | os.PathLike[str],
    *,
    deep: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
    on_progress: Callable[[Progress], None] | None = None,
) -> RepairReport:
    """Verify ``uri`` as :func:`verify` does, and send damaged and missing files again from ``local``.

    ``local`` has the layout of the prefix: a pushed tree, a checkpoint, a trial or an experiment. A file is sent only
    if its size, and the CRC32C and XXH3-128 of each of its parts, match the manifest. It replaces exactly the object
    that was found, and every byte is then read back. Manifests are not changed. Records and manifests cannot be
    repaired. The report holds the errors of single files. ``on_progress`` is called on the event loop, about five times
    a second.

    Raises:
        NotFoundError: there is nothing at ``uri``.
        ConfigError: the URI or an option is unknown.
        StoreError: the store refused or failed a request of the check.
    """
    root = os.path.abspath(os.fspath(local))
    address, options = split_sas(os.fspath(uri), storage_options)
    session = await Session.open(address, transfer, options)
    try:
        store = session.store.view(Lane.CHECKPOINT, "repair")
        verification = await Verification.run(store, address, transfer.max_concurrency, on_progress, deep=deep)
        found = verification.report(store.requests, deep=deep)
        job = _Repair(session, store, verification, root)
        await for_each_limited(sorted(verification.findings), job.file, FILES_IN_PARALLEL)
        await job.verify_again()
        await clean_up(session)
        left = verification.report(store.requests, deep=deep)
        return RepairReport(found, sorted(job.sent - verification.findings), job.failed, left)
    finally:
        await session.close()


@dataclass(slots=True)
class _Repair:
    session: Session
    store: GuardedView
    verification: Verification
    root: str
    sent: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    async def file(self, key: str) -> None:
        """Repair one damaged or missing object."""
        entry = self.verification.entries.get(key)
        if entry is None:
            self.failed[key] = "no manifest names it, so its content is unknown"
            return
        path = os.path.join(self.root, key)
        try:
            stat = FileStat.of(entry.path, await in_thread(os.stat, path))
            if not await in_thread(_is_same, path, entry):
                self.failed[key] = f"{path} does not match the manifest"
                return
            await self._send(key, path, stat, entry)
        except (AsyncsyncError, OSError) as error:
            self.failed[key] = str(error)
            return
        self.sent.add(key)

    async def _send(self, key: str, path: str, stat: FileStat, entry: FileEntry) -> None:
        """Replace the object that was found, and nothing else."""
        info = self.verification.objects.get(key)
        version = MISSING if key in self.verification.missing or info is None else info.version
        if entry.part_size and len(entry.parts) > 1 and self.store.traits.multipart:
            await self._send_parts(key, path, stat, entry, version)
        else:
            body = FileRange(path, 0, entry.size)
            self.verification.objects[key] = await self.store.put(key, body, crc32c=entry.crc32c, if_version=version)

    async def _send_parts(self, key: str, path: str, stat: FileStat, entry: FileEntry, version: str) -> None:
        uploads = self.session.uploads
        upload = await open_upload(self.store, uploads, key, path, stat, entry.part_size)
        done: dict[int, Part] = {}

        async def send(number: int, offset: int, size: int, crc: int) -> None:
            part = await self.store.put_part(upload, number, offset, FileRange(path, offset, size), crc32c=crc)
            done[number] = Part(number, offset, size, part.etag, crc)
            uploads.part_done(upload, done[number])

        jobs = [partial(send, number, *each) for number, each in enumerate(entry.ranges(), start=1)]
        try:
            await for_each_limited(jobs, lambda job: job(), PARTS_IN_PARALLEL)
            parts = [done[number] for number in sorted(done)]
            self.verification.objects[key] = await self.store.complete_multipart(
                upload, parts, crc32c=entry.crc32c, if_version=version
            )
        except BaseException:  # a cancel too: bookkeeping without await, then it is re-raised
            uploads.abandon(upload)
            raise
        uploads.closed(upload)

    async def verify_again(self) -> None:
        """Read back the files that were sent: a file counts as repaired if it comes back correct."""
        for key in self.sent:
            self.verification.clear(key)
        await self.verification.check_contents(sorted(self.sent))


def _is_same(path: str, entry: FileEntry) -> bool:
    """Whether a local file matches the manifest. Blocking; OSError."""
    if os.stat(path).st_size != entry.size:
        return False
    for (offset, size, crc), identity in zip(entry.ranges(), entry.parts, strict=True):
        try:
            digest = digest_range(FileRange(path, offset, size))
        except SourceChangedError:
            return False
        if (digest.crc32c, digest.xxh3) != (crc, identity):
            return False
    return True
