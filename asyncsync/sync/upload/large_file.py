"""Sending one file that is too large for memory: in one streamed request, or as a multipart upload that resumes.

If the store may already hold parts of the file, :mod:`asyncsync.sync.upload.assembly` sends only the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher, in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import READ_ATTEMPTS, Digest, digest_range, md5_range, stat_file
from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, NotFoundError, SourceChangedError, UnsupportedError
from asyncsync.planning.crc32c import crc32c_of_parts
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.parts import Candidate, Matches, cut, part_size_for
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import ObjectInfo, Part, Store, Upload
from asyncsync.sync.upload.append_only import appended_to, digest_file_samples, trusted_parts
from asyncsync.sync.upload.assembly import Account, AssembledFile, Assembly, FileOutcome, part_size_of
from asyncsync.sync.upload.copy_sources import TreeCopySources
from asyncsync.sync.upload.create_only import LostSourceError, Replacing
from asyncsync.sync.upload.multipart import find_upload, open_upload, resumable_body
from asyncsync.sync.upload.open_uploads import OpenUploads

log = logging.getLogger("asyncsync")

FILE_PART_WORKERS = 16
"""Parts of one file that are being hashed, wait for a slot or are in flight. The budget limits how many are in
flight."""


class SentPart(NamedTuple):
    """A part that the store has acknowledged, and the checksums of its bytes."""

    part: Part
    digest: Digest


class LargeFile:
    """Sends one file, and sends it again if it changes meanwhile."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        root: str,
        config: TransferConfig,
        uploads: OpenUploads,
        account: Account,
        sources: TreeCopySources,
        writes: Replacing | None = None,
    ) -> None:
        self._writes = writes or Replacing(store)
        self._store, self._prefix, self._root, self._config = store, prefix, root, config
        self._uploads, self._account, self._sources = uploads, account, sources

    async def send(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, FileOutcome]:
        """The file's entry for the manifest, and how the file got into the store. ``known``: its entry in the last
        manifest.

        SourceChangedError if the file changed during every attempt, or at all where its accepted state is fixed;
        FileNotFoundError if it is missing; StoreError.
        """
        last: Exception | None = None
        for _ in range(READ_ATTEMPTS):
            try:
                samples = await digest_file_samples(self._path(file), file, self._config)
                entry, outcome = await self._send_once(file, known)
                entry = structs.replace(entry, samples=samples)
            except (SourceChangedError, IntegrityError) as error:
                last = error  # a wrong checksum means that the file changed, unless its state is the same: see below
            try:
                now = await in_thread(stat_file, self._root, file.path)
            except FileNotFoundError:
                self._abandon(file)
                raise
            if now.same_content_as(file):
                if last is not None:
                    self._abandon(file)
                    raise last
                return entry, outcome
            if self._writes.fixed:
                self._abandon(file)
                raise SourceChangedError(f"{file.path}: changed since the checkpoint was reported")
            file, last = now, None
        self._abandon(file)
        raise SourceChangedError(
            f"{file.path}: changed {READ_ATTEMPTS} times while it was read; is it written to all the time?"
        )

    async def _send_once(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, FileOutcome]:
        unnamed = self._uploads.sent(self._key(file))
        latest = unnamed if unnamed is not None and unnamed.part_size else known
        appended = None
        if not self._writes.fixed:
            appended = appended_to(file, unnamed or known, self._config, self._store.traits)
        if self._store.traits.in_one_request(file.size, self._config.multipart_threshold):
            candidates = [Candidate(self._key(file), appended)] if appended is not None else []
            found = await self._assembled_from(file, appended, candidates)
            return found or await self._send_in_one_request(file, known)
        own = appended or latest
        try:
            found = await self._assembled_from(file, own, self._sources.candidates(file, own))
            return found or (await self._send_in_parts(file), "sent")
        except UnsupportedError as error:
            if file.size > self._store.traits.max_single_put:
                raise
            log.warning("%s is sent in one request: %s", self._key(file), error)
            self._abandon(file)
            return await self._send_in_one_request(file, known)

    async def _assembled_from(
        self, file: FileStat, own: FileEntry | None, candidates: list[Candidate]
    ) -> tuple[FileEntry, FileOutcome] | None:
        """Assemble the file with copies from the ``candidates``; None if all of it has to be sent."""
        while candidates:
            copies = self._writes.copies_whole()
            try:
                return await self._assemble(file, own, candidates)
            except LostSourceError:
                self._abandon(file)
            if self._writes.copies_whole() == copies:
                break  # otherwise the store has just turned out to copy only into parts: assemble again
        return None

    def _key(self, file: FileStat) -> str:
        return self._prefix + file.path

    def _path(self, file: FileStat) -> str:
        return f"{self._root}/{file.path}"

    def _range(self, file: FileStat, offset: int, size: int) -> FileRange:
        return FileRange(self._path(file), offset, size)

    def _abandon(self, file: FileStat) -> None:
        self._uploads.abandon_key(self._key(file))

    async def _send_in_one_request(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, FileOutcome]:
        key, body = self._key(file), self._range(file, 0, file.size)
        digest = await in_hasher(digest_range, body, self._store.traits.crc64)
        body = replace(body, crc64=digest.crc64)
        if known is not None and known.size == file.size and known.parts == (digest.xxh3,):
            return known, "unchanged"
        if self._uploads.sent(key) is not None:
            entry = await self._in_store(file, 0, [digest])
            if entry is not None:
                return entry, "sent"
        version = await self._copy_equal(file, digest)
        if version is not None:
            return self._entry(file, digest.crc32c, 0, [digest], version), "copied"
        info, reused = await self._put(file, body, digest.crc32c)
        self._account(file.size - reused, reused, 0)
        entry = self._entry(file, digest.crc32c, 0, [digest], info.version)
        self._uploads.file_sent(key, entry)
        return entry, "sent"

    async def _copy_equal(self, file: FileStat, digest: Digest) -> str | None:
        """Let the store copy an equal object; its version, or None if the bytes have to be sent."""
        equal = self._sources.equal(file.size, digest.crc32c, (digest.xxh3,))
        if equal is None:
            return None
        try:
            version = await self._writes.copy(equal.origin(), self._key(file), digest.crc32c)
        except LostSourceError:
            return None
        self._account(0, 0, file.size)
        return version

    async def _put(self, file: FileStat, body: FileRange, crc32c: int) -> tuple[ObjectInfo, int]:
        """The object, and how many of its bytes an earlier attempt had already sent."""
        key, traits = self._key(file), self._store.traits
        if not traits.resumable_puts or file.size <= (traits.part_size or 0):
            return await self._writes.put(key, body, crc32c), 0
        token = self._uploads.resume_token_of_file(key, self._path(file), file, crc32c)
        info = await self._writes.put(key, replace(body, progress=token), crc32c)
        self._uploads.file_put(key)
        return info, token.there

    async def _assemble(
        self, file: FileStat, own: FileEntry | None, candidates: list[Candidate]
    ) -> tuple[FileEntry, FileOutcome]:
        """Send only the bytes that the store has nowhere. LostSourceError if a source was missing or wrong."""
        key, matches = self._key(file), Matches(candidates)
        size = part_size_of(file, matches, self._store.traits, self._config)
        upload, parts = await find_upload(self._store, self._uploads, key, size, "assembled")
        if upload is not None and not self._uploads.is_open(key, upload.upload_id):
            entry = await self._completed_before(file, size, upload_missing=True)
            if entry is not None:
                return entry, "sent"
            upload = None
        work = Assembly(
            self._store,
            key,
            self._path(file),
            file,
            size,
            config=self._config,
            matches=matches,
            uploads=self._uploads,
            account=self._account,
            known=await trusted_parts(self._path(file), file, own, size, self._config),
            writes=self._writes,
        )
        try:
            done = await work.run(upload, parts)
        except (SourceChangedError, IntegrityError):
            raise  # the next attempt sends only the parts that changed
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._abandon(file)
            raise
        return await self._assembled(file, own, done)

    async def _assembled(
        self, file: FileStat, own: FileEntry | None, done: AssembledFile
    ) -> tuple[FileEntry, FileOutcome]:
        key = self._key(file)
        self._abandon(file)  # an upload opened for another state of the file; a completed one is closed already
        if done.outcome != "unchanged":
            entry = self._entry(file, done.crc32c, done.part_size, done.digests, done.version)
            self._uploads.file_sent(key, entry)
            return entry, done.outcome
        if self._uploads.sent(key) is None:
            assert own is not None
            return own, "unchanged"
        found = await self._in_store(file, done.part_size, done.digests)
        if found is None:
            raise LostSourceError(f"{self._store.uri}: {key} has other bytes than those sent; it is sent again")
        return found, "sent"

    async def _send_in_parts(self, file: FileStat) -> FileEntry:
        key, size = self._key(file), self._multipart_size(file)
        upload, acknowledged = await find_upload(self._store, self._uploads, key, size)
        if upload is None or not self._uploads.is_open(upload.key, upload.upload_id):
            entry = await self._completed_before(file, size, upload_missing=upload is not None)
            if entry is not None:
                return entry
            upload = await open_upload(self._store, self._uploads, key, self._path(file), file, size)
        try:
            sent = await self._send_parts(file, upload, acknowledged, size)
        except (SourceChangedError, IntegrityError):
            raise  # the file changed; the next attempt sends only the parts that changed: see send
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._uploads.abandon(upload)
            raise
        return await self._complete(file, upload, sent, size)

    def _multipart_size(self, file: FileStat) -> int:
        """Part size of the upload: that of an upload to resume, if it suits the file."""
        traits = self._store.traits
        resumed = self._uploads.part_size(self._key(file))
        if resumed > 0 and file.size <= resumed * traits.max_parts:
            return resumed
        return part_size_for(
            file.size,
            self._config.part_size or traits.part_size,
            least=traits.min_part_size,
            most=traits.max_part_size,
            max_parts=traits.max_parts,
        )

    async def _send_parts(
        self, file: FileStat, upload: Upload, acknowledged: Mapping[int, Part], part_size: int
    ) -> list[SentPart]:
        """All parts of the file, a few at a time. Parts that the store has ``acknowledged`` already are only hashed."""
        cuts = cut(file.size, part_size)
        sent: dict[int, SentPart] = {}

        async def send(number: int) -> None:
            offset, size = cuts[number - 1]
            sent[number] = await self._send_part(upload, number, self._range(file, offset, size), acknowledged)

        workers = min(len(cuts), FILE_PART_WORKERS, self._config.max_concurrency + 1)  # one more hashes meanwhile
        await for_each_limited(range(1, len(cuts) + 1), send, workers)
        return [sent[number] for number in sorted(sent)]

    async def _send_part(
        self, upload: Upload, number: int, body: FileRange, acknowledged: Mapping[int, Part]
    ) -> SentPart:
        digest = await in_hasher(digest_range, body, self._store.traits.crc64)
        body, offset, size = replace(body, crc64=digest.crc64), body.offset, body.size
        there = acknowledged.get(number)
        if there is not None and there.size == size and await _has_same_bytes(there, body, digest):
            self._account(0, size, 0)
            return SentPart(Part(number, offset, size, there.etag, digest.crc32c), digest)
        part = Part(number, offset, size, "", digest.crc32c)
        body = resumable_body(self._store, self._uploads, upload, part, body)
        response = await self._store.put_part(upload, number, offset, body, crc32c=digest.crc32c)
        part = replace(part, etag=response.etag)
        self._uploads.part_done(upload, part)
        self._account(size - body.there, body.there, 0)
        return SentPart(part, digest)

    async def _complete(self, file: FileStat, upload: Upload, sent: list[SentPart], part_size: int) -> FileEntry:
        digests = [each.digest for each in sent]
        crc = _crc32c_of(digests, file.size, part_size)
        try:
            info = await self._writes.complete(upload, [each.part for each in sent], crc)
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._uploads.abandon(upload)
            raise
        entry = self._entry(file, crc, part_size, digests, info.version)
        if info.crc32c in (None, crc):
            self._uploads.file_sent(upload.key, entry)
        self._uploads.closed(upload)
        if info.crc32c is not None and info.crc32c != crc:
            raise IntegrityError(
                f"{self._store.uri}: {upload.key} has CRC32C {info.crc32c:08x}, the bytes sent have {crc:08x}"
            )
        return entry

    async def _completed_before(self, file: FileStat, part_size: int, *, upload_missing: bool) -> FileEntry | None:
        """The entry of a file that is in the store although no manifest names it: an earlier process ended in between.

        ``upload_missing``: the store no longer knows the upload, as after a complete whose response was lost.
        """
        if not upload_missing and self._uploads.sent(self._key(file)) is None:
            return None
        cuts = cut(file.size, part_size)
        digests = [await in_hasher(digest_range, self._range(file, offset, size)) for offset, size in cuts]
        return await self._in_store(file, part_size, digests)

    async def _in_store(self, file: FileStat, part_size: int, digests: list[Digest]) -> FileEntry | None:
        """The entry of the object under the file's key, if it has the bytes that the file has now."""
        key = self._key(file)
        sent, crc = self._uploads.sent(key), _crc32c_of(digests, file.size, part_size)
        try:
            info = await self._store.head(key)
        except NotFoundError:
            info = None
        if info is not None and info.size == file.size:
            ours = sent is not None and (sent.version, sent.parts) == (info.version, tuple(d.xxh3 for d in digests))
            if ours or info.crc32c == crc:
                self._account(0, file.size, 0)
                entry = self._entry(file, crc, part_size, digests, info.version)
                self._uploads.file_sent(key, entry)
                return entry
        self._uploads.file_named(key)
        return None

    @staticmethod
    def _entry(file: FileStat, crc: int, part_size: int, digests: list[Digest], version: str) -> FileEntry:
        return FileEntry(
            file.path,
            file.size,
            file.mtime_ns,
            file.mode,
            crc,
            part_size,
            tuple(digest.xxh3 for digest in digests),
            tuple(digest.crc32c for digest in digests),
            version,
            file.inode,
        )


async def _has_same_bytes(there: Part, body: FileRange, digest: Digest) -> bool:
    """Whether a part in the store has these bytes. Where its CRC32C is not known, its ETag may be its MD5: the process
    crashed between the store's response and the journal, and not every store lists checksums."""
    if there.crc32c is not None:
        return there.crc32c == digest.crc32c
    return there.etag.strip('"') == await in_hasher(md5_range, body)


def _crc32c_of(digests: list[Digest], size: int, part_size: int) -> int:
    return crc32c_of_parts([digest.crc32c for digest in digests], size, part_size or size)
