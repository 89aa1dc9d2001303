"""``copy``: from any store to any store, whole trees, trials and experiments with their records.

Files first, then the manifests, with the versions that the new objects have, then the records: whatever interrupts a
copy, a manifest at the target names only complete files. A file that the target already holds with the same bytes is
not copied again, and a large one resumes with its next part.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import google_crc32c
from msgspec import structs

from asyncsync.aio.tasks import for_each_limited
from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import (
    IntegrityError,
    NotFoundError,
    PreconditionError,
    SourceChangedError,
    SyncError,
    UnsupportedError,
)
from asyncsync.events import Progress
from asyncsync.planning.crc32c import crc32c_of_pieces
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD, DocumentError
from asyncsync.planning.manifest import MANIFEST, META_DIR, FileEntry, Manifest
from asyncsync.planning.segments import SEGMENTS
from asyncsync.remote.access import DEFAULT_TRANSFER
from asyncsync.remote.manage.copy_places import Places, check_apart, opened
from asyncsync.remote.manage.spool import spooled
from asyncsync.remote.prefixes import parents, prefixes_with
from asyncsync.report import SyncReport
from asyncsync.stores.base import ObjectInfo, Part, Piece, Store, Upload
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.in_flight import FilesInFlight
from asyncsync.sync.records.manifests import read_manifest
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import PROBE

COPY_WORKERS = 32
"""Files in progress at once."""
MAX_WHOLE = 16 << 20
"""Files up to this size (bytes) are copied with one request."""
PARTS_IN_MEMORY = 8
"""Bodies of more than 1 MiB in memory at once, each at most as large as a part."""
SERVER_PART = 512 << 20
"""Bytes of a part that the store copies itself."""
MANIFESTS_IN_PARALLEL = 16
PROGRESS_PERIOD = 0.2
"""Seconds between two calls of ``on_progress``."""


async def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    target_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
    on_progress: Callable[[Progress], None] | None = None,
) -> SyncReport:
    """Copy everything below ``source`` to ``target``: a tree, a checkpoint, a trial, an experiment, or a plain prefix.

    Within one bucket the store copies the bytes itself, and its CRC32C of the copy, if it reports one, is compared with
    the manifest. Otherwise they pass through this machine, in parts, at most 128 MiB of them in memory, and every byte
    is compared with the CRC32C in the manifest on the way. A target without multipart uploads gets each file of more
    than 16 MiB from a temporary file (in ``TMPDIR``), eight at a time. Objects that no manifest names, such as parts of
    incomplete checkpoints, are left out, and of an experiment that runs the checkpoints that it completes meanwhile. If
    it is interrupted, the same call resumes it.

    Args:
        storage_options: options of the source; also of the target, unless ``target_options`` are given.
        on_progress: called on the event loop, about five times a second.

    Raises:
        NotFoundError: there is nothing at ``source``.
        ConfigError: one of the two contains the other, or a URI or option is unknown.
        SyncError: the target holds objects that this copy would not write, or the source lacks a file of a manifest.
        DamagedError: a manifest of the source cannot be read.
        SourceChangedError: a file was written again during the copy.
        IntegrityError: a file does not have the checksum in its manifest.
        StoreError: a store refused or failed a request.
    """
    began = time.monotonic()
    here, options = split_sas(os.fspath(source).rstrip("/"), storage_options)
    there, other = split_sas(
        os.fspath(target).rstrip("/"), storage_options if target_options is None else target_options
    )
    await check_apart(here, there, transfer)
    async with opened(here, there, transfer, options, other) as places:
        report = await _Copy(places, on_progress).run()
        requests = places.source.requests + (0 if places.server_side else places.target.requests)
    return replace(report, requests=requests, seconds=time.monotonic() - began)


@dataclass(slots=True)
class _Plan:
    """The objects to copy, relative to the source."""

    manifests: dict[str, Manifest]
    """By prefix."""
    entries: dict[str, FileEntry]
    """The file that a manifest names, by path."""
    files: dict[str, ObjectInfo]
    documents: list[str]
    """Documents other than manifests, records last."""


@dataclass(slots=True)
class _Copy:
    """One run."""

    places: Places
    on_progress: Callable[[Progress], None] | None
    files_done: int = 0
    bytes_done: int = 0
    files_sent: int = 0
    bytes_sent: int = 0
    bytes_copied: int = 0
    files_copied: int = 0
    skipped: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    """Version of each object at the target, by path."""
    present: dict[str, ObjectInfo] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    """Open uploads at the target, by key: those of an interrupted copy."""
    memory: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARTS_IN_MEMORY))
    in_flight: FilesInFlight = field(default_factory=FilesInFlight)
    files_total: int = 0
    bytes_total: int = 0
    _reported: float = 0.0

    async def run(self) -> SyncReport:
        plan = await self._plan()
        self.files_total = len(plan.files)
        self.bytes_total = sum(item.size for item in plan.files.values())
        await self._look_at_target(plan)

        async def one(path: str) -> None:
            await self._file(path, plan.files[path], plan.entries.get(path))
            self.files_done += 1
            self._show()

        await for_each_limited(sorted(plan.files), one, COPY_WORKERS)
        for prefix in sorted(plan.manifests, key=len, reverse=True):  # a checkpoint's before its trial's
            await self._manifest(prefix, plan.manifests[prefix])
        for path in plan.documents:
            await self._document(path, plan.manifests)
        self._show(last=True)
        return SyncReport(
            files_sent=self.files_sent,
            files_skipped=self.skipped,
            bytes_total=self.bytes_total,
            bytes_sent=self.bytes_sent,
            bytes_copied=self.bytes_copied,
            files_copied=self.files_copied,
        )

    # what to copy

    async def _plan(self) -> _Plan:
        places = self.places
        objects = await self._listed()
        if not objects:
            raise NotFoundError(f"{places.source_uri('')} holds nothing to copy. Check the URL with asyncsync ls")
        manifests: dict[str, Manifest] = {}

        async def read(prefix: str) -> None:
            manifests[prefix] = await read_manifest(places.source, places.source_prefix + prefix)

        await for_each_limited(prefixes_with(MANIFEST, objects), read, MANIFESTS_IN_PARALLEL)
        entries = {prefix + path: entry for prefix, found in manifests.items() for path, entry in found.files.items()}
        if not entries.keys() <= objects.keys():  # a manifest that is newer than the listing?
            objects = await self._listed()
        files = {path: info for path, info in objects.items() if _is_copied(path, entries, manifests)}
        if missing := sorted(entries.keys() - files.keys()):
            raise SyncError(
                f"{places.source_uri(missing[0])} is missing, although a manifest names it, and {len(missing) - 1} "
                f"more. asyncsync verify {places.source_uri('')} lists them"
            )
        documents = [path for path in objects if META_DIR in path.split("/") and not _is_of_a_manifest(path)]
        return _Plan(manifests, entries, files, sorted(documents, key=_document_order))

    async def _listed(self) -> dict[str, ObjectInfo]:
        """The objects of the source."""
        prefix = self.places.source_prefix
        objects = _relative(await list_all(self.places.source, prefix), prefix)
        objects.pop(PROBE, None)
        return objects

    async def _look_at_target(self, plan: _Plan) -> None:
        """Refuse a target that holds something else; find the results of an interrupted copy."""
        places = self.places
        self.present = _relative(await list_all(places.target, places.target_prefix), places.target_prefix)
        written = plan.files.keys() | {prefix + MANIFEST for prefix in plan.manifests} | set(plan.documents)
        if others := sorted(self.present.keys() - written):
            raise SyncError(
                f"{places.target_uri()} is not empty: it holds {len(others)} other objects, such as {others[0]}. "
                "Choose another target, or remove it with asyncsync rm"
            )
        for upload in await places.target.list_multiparts(places.target_prefix):
            self.uploads[upload.key] = upload

    # one file

    async def _file(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        if await self._is_there(path, info, entry):
            self.skipped += 1
            self.bytes_done += info.size
            return
        try:
            if not (self.places.server_side and await self._server_copy(path, info, entry)):
                await self._bytes(path, info, entry)
        except PreconditionError as error:
            text = f"{self.places.source_uri(path)} was written again during the copy. Run the same command again"
            raise SourceChangedError(text) from error

    async def _bytes(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        """Copy a file through this machine."""
        if info.size <= MAX_WHOLE:
            await self._whole(path, info, entry)
        elif self.places.target.traits.multipart:
            await self._in_parts(path, info, entry)
        else:
            await self._through_disk(path, info, entry)

    async def _is_there(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> bool:
        """Whether the target has the same bytes. Without a checksum in its listing they are asked for, or read."""
        there = self.present.get(path)
        expected = info.crc32c if entry is None else entry.crc32c
        if there is None or there.size != info.size or expected is None:
            return False
        key = self.places.target_prefix + path
        if there.crc32c is None:
            there = await self.places.target.head(key)
        crc = there.crc32c if there.crc32c is not None else await _crc_of(self.places.target, key)
        self.versions[path] = there.version
        return crc == expected

    async def _whole(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        if info.size <= 1 << 20:
            await self._send(path, info, entry)
        else:
            async with self.memory:
                await self._send(path, info, entry)

    async def _send(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        data = await _read(self.places.source, self.places.source_prefix + path, 0, info.size, info.version)
        crc = google_crc32c.value(data)
        self._check(path, crc, info, entry)
        written = await self.places.target.put(self.places.target_prefix + path, data, crc32c=crc)
        self._sent(path, written, len(data))

    async def _through_disk(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        """Copy a file that is too large for memory to a store that takes it in one request."""
        async with self.memory, spooled(self.places.source, self.places.source_prefix + path, info) as (body, crc):
            self._check(path, crc, info, entry)
            written = await self.places.target.put(self.places.target_prefix + path, body, crc32c=crc)
        self._sent(path, written, info.size)

    async def _in_parts(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> None:
        """Copy in the parts of the manifest, if the target supports them: then finished parts are recognised."""
        target, key = self.places.target, self.places.target_prefix + path
        ranges = self._ranges(info.size, entry)
        upload = self.uploads.get(key) or await target.create_multipart(key)
        self.in_flight.begin(path, info.size)
        finished = await self._finished(path, upload, ranges)
        parts: dict[int, tuple[Part, int]] = {}

        async def one(number: int) -> None:
            offset, size, crc = ranges[number - 1]
            known = finished.get(number)
            if known is not None and crc is not None:
                parts[number] = known, crc
                return
            async with self.memory:
                data = await _read(self.places.source, self.places.source_prefix + path, offset, size, info.version)
                found = google_crc32c.value(data)
                if crc is not None and found != crc:
                    raise self._damaged(path, found, crc)
                parts[number] = await target.put_part(upload, number, offset, data, crc32c=found), found
            self.bytes_sent += size
            self.bytes_done += size
            self.in_flight.add(path, size)
            self._show()

        try:
            await for_each_limited(range(1, len(ranges) + 1), one, PARTS_IN_MEMORY)
        finally:
            self.in_flight.end(path)
        ordered = [parts[number] for number in sorted(parts)]
        whole = crc32c_of_pieces((crc, size) for (_, crc), (_, size, _) in zip(ordered, ranges, strict=True))
        self._check(path, whole, info, entry)
        written = await target.complete_multipart(upload, [part for part, _ in ordered], crc32c=whole)
        self._sent(path, written, 0)

    def _ranges(self, size: int, entry: FileEntry | None) -> list[tuple[int, int, int | None]]:
        """(offset, size, crc32c) of each part."""
        traits = self.places.target.traits
        if entry is not None and max(traits.min_part_size, 1) <= entry.part_size <= MAX_WHOLE:
            return list(entry.ranges())
        step = max(MAX_WHOLE, traits.min_part_size, -(-size // traits.max_parts))
        return [(start, min(step, size - start), None) for start in range(0, size, step)]

    async def _finished(
        self, path: str, upload: Upload, ranges: Sequence[tuple[int, int, int | None]]
    ) -> dict[int, Part]:
        """Parts of an interrupted copy whose checksums, as the target reports them, are those of the manifest."""
        if self.uploads.get(upload.key) is None:
            return {}
        found = {part.number: part for part in await self.places.target.list_parts(upload)}
        same: dict[int, Part] = {}
        for number, (_, size, crc) in enumerate(ranges, start=1):
            part = found.get(number)
            if part is not None and part.size == size and crc is not None and part.crc32c == crc:
                same[number] = part
                self.bytes_done += size
                self.in_flight.add(path, size)
        return same

    async def _server_copy(self, path: str, info: ObjectInfo, entry: FileEntry | None) -> bool:
        """Let the store copy a file; False if it cannot."""
        target, places = self.places.target, self.places
        source, key = places.source_prefix + path, places.target_prefix + path
        try:
            if info.size <= SERVER_PART or not target.traits.range_copy:
                written = await target.copy(source, key, if_source_version=info.version, size=info.size)
            else:
                written = await self._copy_in_parts(source, key, info)
        except UnsupportedError:
            return False
        if written.crc32c is not None:
            self._check(path, written.crc32c, info, entry)
        self.versions[path] = written.version
        self.files_copied += 1
        self.bytes_copied += info.size
        self.bytes_done += info.size
        return True

    async def _copy_in_parts(self, source: str, key: str, info: ObjectInfo) -> ObjectInfo:
        target = self.places.target
        upload = self.uploads.get(key) or await target.create_multipart(key)
        parts = [
            await target.copy_part(
                upload,
                number,
                start,
                source,
                start,
                min(SERVER_PART, info.size - start),
                if_source_version=info.version,
            )
            for number, start in enumerate(range(0, info.size, SERVER_PART), start=1)
        ]
        return await target.complete_multipart(upload, parts)

    def _check(self, path: str, crc: int, info: ObjectInfo, entry: FileEntry | None) -> None:
        expected = info.crc32c if entry is None else entry.crc32c
        if expected is not None and crc != expected:
            raise self._damaged(path, crc, expected)

    def _damaged(self, path: str, crc: int, expected: int) -> IntegrityError:
        return IntegrityError(
            f"{self.places.source_uri(path)} is damaged: its bytes have CRC32C {crc:08x}, its manifest has "
            f"{expected:08x}. asyncsync verify {self.places.source_uri('')} --deep shows all damage, and --repair DIR "
            "repairs it"
        )

    def _sent(self, path: str, written: ObjectInfo, size: int) -> None:
        self.versions[path] = written.version
        self.files_sent += 1
        self.bytes_sent += size
        self.bytes_done += size

    # documents

    async def _manifest(self, prefix: str, manifest: Manifest) -> None:
        """Write a manifest with the versions that its files have at the target."""
        files = {
            path: structs.replace(entry, version=self.versions.get(prefix + path) or entry.version)
            for path, entry in manifest.files.items()
        }
        data = replace(manifest, files=files).to_bytes()
        await self.places.target.put(
            f"{self.places.target_prefix}{prefix}{MANIFEST}", data, crc32c=google_crc32c.value(data)
        )

    async def _document(self, path: str, manifests: Mapping[str, Manifest]) -> None:
        data, _ = await self.places.source.get(self.places.source_prefix + path)
        if path == TRIAL_RECORD or path.endswith(f"/{TRIAL_RECORD}"):
            data = await self._without_newer(path.removesuffix(TRIAL_RECORD), data, manifests)
        await self.places.target.put(self.places.target_prefix + path, data, crc32c=google_crc32c.value(data))

    async def _without_newer(self, trial: str, data: bytes, manifests: Mapping[str, Manifest]) -> bytes:
        """The record of a trial without the checkpoints that were completed after the copy began: they are not at the
        target."""
        try:
            record = TrialRecord.from_bytes(data)
        except DocumentError:
            return data  # damaged; verify reports it there, too
        source, start = self.places.source, f"{self.places.source_prefix}{trial}"
        absent = [item for item in record.checkpoints if f"{trial}{item.name}/" not in manifests]
        newer = [item for item in absent if await exists(source, f"{start}{item.name}/{MANIFEST}")]
        if not newer:
            return data
        record.checkpoints = [item for item in record.checkpoints if item not in newer]
        return record.to_bytes()

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.on_progress is not None and (last or now - self._reported >= PROGRESS_PERIOD):
            self._reported = now
            progress = Progress(
                tree="",
                files_done=self.files_done,
                files_total=self.files_total,
                bytes_done=self.bytes_done,
                bytes_total=self.bytes_total,
                files=self.in_flight.shown(),
            )
            self.on_progress(progress)


def _relative(objects: Mapping[str, ObjectInfo], prefix: str) -> dict[str, ObjectInfo]:
    found = {key[len(prefix) :]: info for key, info in objects.items()}
    return {path: info for path, info in found.items() if not _is_placeholder(path, info)}


def _is_copied(path: str, entries: Mapping[str, FileEntry], manifests: Mapping[str, Manifest]) -> bool:
    """Whether a manifest names the file, or no manifest is responsible for it."""
    if META_DIR in path.split("/"):
        return False
    return path in entries or not any(prefix in manifests for prefix in parents(path))


def _is_placeholder(path: str, info: ObjectInfo) -> bool:
    """Whether this is an empty object that another tool wrote in place of a directory, such as the console of S3. No
    file can have its name where directories are real."""
    return not info.size and (not path or path.endswith("/"))


def _is_of_a_manifest(path: str) -> bool:
    """A manifest or a segment of one: manifests are written anew, as one document."""
    return path.endswith(MANIFEST) or f"/{SEGMENTS}" in f"/{path}"


def _document_order(path: str) -> tuple[int, str]:
    if path == EXPERIMENT_RECORD or path.endswith(f"/{EXPERIMENT_RECORD}"):
        return 2, path
    return int(path == TRIAL_RECORD or path.endswith(f"/{TRIAL_RECORD}")), path


async def _read(store: Store, key: str, start: int, length: int, version: str) -> bytes:
    pieces: list[bytes] = []

    async def keep(piece: Piece) -> None:
        pieces.append(bytes(piece))

    if length:
        await store.read(key, keep, start=start, length=length, if_version=version or None)
    return b"".join(pieces)


async def _crc_of(store: Store, key: str) -> int:
    crc = 0

    async def extend(piece: Piece) -> None:
        nonlocal crc
        crc = google_crc32c.extend(crc, bytes(piece))

    await store.read(key, extend)
    return crc
