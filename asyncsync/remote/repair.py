"""``verify --repair``: what the store has lost and a local tree still has, byte for byte, is sent again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import digest_range
from asyncsync.disk.files import FileRange
from asyncsync.errors import AsyncsyncError, SourceChangedError
from asyncsync.events import Progress
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat
from asyncsync.remote.verify import DEFAULT, Verification
from asyncsync.report import RepairReport
from asyncsync.stores.base import MISSING, Lane, Part
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.session import Session
from asyncsync.sync.upload.multipart import open_upload

FILES_AT_ONCE = 8
PARTS_AT_ONCE = 4


async def repair(
    uri: str | os.PathLike[str],
    local: str | os.PathLike[str],
    *,
    deep: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
    on_progress: Callable[[Progress], None] | None = None,
) -> RepairReport:
    """Verify ``uri`` as :func:`verify` does, and send again what is damaged or missing and lies in ``local``.

    ``local`` is laid out as the prefix: a pushed tree, a checkpoint, a trial, an experiment. A file is sent only if it
    has the size, and each of its parts the CRC32C and the XXH3-128, that the manifest says; it replaces exactly the
    object that was found, and is then read back, every byte. Manifests are not touched, and what is not a
    file of a manifest (records, manifests) cannot be repaired. Errors of single files are in the report.
    """
    root = os.path.abspath(os.fspath(local))
    session = await Session.open(os.fspath(uri), transfer, storage_options)
    try:
        store = session.store.view(Lane.CHECKPOINT, "repair")
        check = await Verification.run(store, os.fspath(uri), transfer.max_concurrency, on_progress, deep=deep)
        found = check.report(store.requests, deep=deep)
        job = _Repair(session, store, check, root)
        await for_each_limited(sorted(check.wrong), job.file, FILES_AT_ONCE)
        await job.verify_again()
        await clean_up(session)
        left = check.report(store.requests, deep=deep)
        return RepairReport(found, sorted(job.sent - check.wrong), job.failed, left)
    finally:
        await session.close()


@dataclass(slots=True)
class _Repair:
    session: Session
    store: GuardedView
    check: Verification
    root: str
    sent: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    async def file(self, key: str) -> None:
        """One key that is damaged or missing."""
        entry = self.check.entries.get(key)
        if entry is None:
            self.failed[key] = "no file of a manifest, so nothing tells what it should hold"
            return
        path = os.path.join(self.root, key)
        try:
            stat = FileStat.of(entry.path, await in_thread(os.stat, path))
            if not await in_thread(_is_same, path, entry):
                self.failed[key] = f"{path} is not what the manifest says"
                return
            await self._send(key, path, stat, entry)
        except (AsyncsyncError, OSError) as error:
            self.failed[key] = str(error)
            return
        self.sent.add(key)

    async def _send(self, key: str, path: str, stat: FileStat, entry: FileEntry) -> None:
        """Replace what was found, and nothing else."""
        info = self.check.objects.get(key)
        version = MISSING if key in self.check.missing or info is None else info.version
        if entry.part_size and len(entry.parts) > 1:
            await self._send_parts(key, path, stat, entry, version)
        else:
            body = FileRange(path, 0, entry.size)
            self.check.objects[key] = await self.store.put(key, body, crc32c=entry.crc32c, if_version=version)

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
            await for_each_limited(jobs, lambda job: job(), PARTS_AT_ONCE)
            parts = [done[number] for number in sorted(done)]
            self.check.objects[key] = await self.store.complete_multipart(
                upload, parts, crc32c=entry.crc32c, if_version=version
            )
        except BaseException:  # a cancel too: plain bookkeeping, then on its way
            uploads.abandon(upload)
            raise
        uploads.closed(upload)

    async def verify_again(self) -> None:
        """Read back what was sent: only what comes back right counts."""
        for key in self.sent:
            self.check.clear(key)
        await self.check.contents(sorted(self.sent))


def _is_same(path: str, entry: FileEntry) -> bool:
    """Whether a local file holds what the manifest says. Blocking; OSError."""
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
