"""Sending one file that is too large to read whole: one streamed request, or a multipart upload with resume.

If the store may hold parts of it already, :mod:`asyncsync.sync.upload.assembly` sends only the rest.
"""

from __future__ import annotations

from dataclasses import replace

from asyncsync.aio.tasks import for_each
from asyncsync.aio.threads import in_hasher, in_thread
from asyncsync.config import TransferConfig
from asyncsync.disk.digests import TRIES, Digest, digest_range, md5_range, stat_file
from asyncsync.disk.files import FileRange
from asyncsync.disk.hashing import crc32c_combine
from asyncsync.errors import IntegrityError, NotFoundError, SourceChangedError
from asyncsync.planning.changes import cut, part_size_for
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.matching import Candidate, Matches
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import ObjectInfo, Part, Store, Upload
from asyncsync.sync.upload.append_only import samples, trusted
from asyncsync.sync.upload.assembly import Account, Assembly, Fate, grid_of
from asyncsync.sync.upload.copy_sources import Sources
from asyncsync.sync.upload.create_only import LostSourceError, Replacing
from asyncsync.sync.upload.multipart import find_upload, going_on, open_upload
from asyncsync.sync.upload.open_uploads import OpenUploads

PARTS_AT_ONCE = 16
"""Parts of a file that are hashed, wait for a slot or are on their way; how many are, the budget says."""


class LargeFile:
    """Sends one file; sends it again if it changes meanwhile."""

    def __init__(
        self, store: Store, prefix: str, root: str, config: TransferConfig, uploads: OpenUploads, account: Account,
        sources: Sources, writes: Replacing | None = None,
    ) -> None:  # fmt: skip
        self._writes = writes or Replacing(store)
        self._store, self._prefix, self._root, self._config = store, prefix, root, config
        self._uploads, self._account, self._sources = uploads, account, sources

    async def send(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, Fate]:
        """The entry for the manifest and what became of the file.

        SourceChangedError if the file changed each time it was read, or at all where the state to send is fixed;
        FileNotFoundError if it is gone; StoreError.
        """
        last: Exception | None = None
        for _ in range(TRIES):
            try:
                marks = await samples(self._path(file), file, self._config)
                entry, sent = await self._send_once(file, known)
                entry = replace(entry, samples=marks)
            except (SourceChangedError, IntegrityError) as error:
                last = error  # a checksum that does not fit is a change, unless the file stayed the same: see below
            try:
                now = await in_thread(stat_file, self._root, file.path)
            except FileNotFoundError:
                self._uploads.abandon_key(self._prefix + file.path)
                raise
            if now.same_content_as(file):
                if last is not None:
                    self._uploads.abandon_key(self._prefix + file.path)
                    raise last
                return entry, sent
            if self._writes.fixed:
                self._uploads.abandon_key(self._prefix + file.path)
                raise SourceChangedError(f"{file.path}: changed since the checkpoint was reported")
            file, last = now, None
        self._uploads.abandon_key(self._prefix + file.path)
        raise SourceChangedError(
            f"{file.path}: changed {TRIES} times while it was read; is it written to all the time?"
        )

    async def _send_once(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, Fate]:
        if file.size <= min(self._config.multipart_threshold, self._store.traits.max_single_put):
            return await self._put(file, known)
        unnamed = self._uploads.sent(self._prefix + file.path)
        own = unnamed if unnamed is not None and unnamed.part_size else known
        candidates = self._sources.candidates(file, own)
        while candidates:
            copies = self._writes.copies_whole()
            try:
                return await self._assemble(file, own, candidates)
            except LostSourceError:
                self._uploads.abandon_key(self._prefix + file.path)
            if self._writes.copies_whole() == copies:
                break  # else it just turned out that the store copies only into parts
        return await self._multipart(file), "sent"

    def _path(self, file: FileStat) -> str:
        return f"{self._root}/{file.path}"

    def _range(self, file: FileStat, offset: int, size: int) -> FileRange:
        return FileRange(self._path(file), offset, size)

    async def _put(self, file: FileStat, known: FileEntry | None) -> tuple[FileEntry, Fate]:
        body = self._range(file, 0, file.size)
        digest = await in_hasher(digest_range, body)
        if known is not None and known.size == file.size and known.parts == (digest.xxh3,):
            return known, "unchanged"
        if self._uploads.sent(self._prefix + file.path) is not None:
            entry = await self._in_store(file, 0, [digest])
            if entry is not None:
                return entry, "sent"
        equal = self._sources.equal(file.size, digest.crc32c, (digest.xxh3,))
        if equal is not None:
            try:
                version = await self._writes.copy(equal.origin(), self._prefix + file.path, digest.crc32c)
            except LostSourceError:
                pass  # its bytes are here: they are sent
            else:
                self._account(0, 0, file.size)
                return self._entry(file, digest.crc32c, 0, [digest], version), "copied"
        info, there = await self._put_whole(file, body, digest.crc32c)
        self._account(file.size - there, there, 0)
        entry = self._entry(file, digest.crc32c, 0, [digest], info.version)
        self._uploads.file_sent(self._prefix + file.path, entry)
        return entry, "sent"

    async def _put_whole(self, file: FileStat, body: FileRange, crc32c: int) -> tuple[ObjectInfo, int]:
        """The object, and how many of its bytes the store had from another process."""
        key, traits = self._prefix + file.path, self._store.traits
        if not traits.resumable_puts or file.size <= (traits.part_size or 0):
            return await self._writes.put(key, body, crc32c), 0
        progress = self._uploads.progress_of_whole(key, self._path(file), file, crc32c)
        info = await self._writes.put(key, replace(body, progress=progress), crc32c)
        self._uploads.whole_sent(key)
        return info, progress.there

    async def _assemble(
        self, file: FileStat, own: FileEntry | None, candidates: list[Candidate]
    ) -> tuple[FileEntry, Fate]:
        """Send only what the store has nowhere. LostSourceError if that did not work out."""
        key = self._prefix + file.path
        matches = Matches(candidates)
        size = grid_of(file, matches, self._store.traits, self._config)
        # its parts are not those of the same file sent whole: the negative size tells the two apart
        begun, parts = await find_upload(self._store, self._uploads, key, -size)
        if begun is not None and not self._uploads.is_open(key, begun.upload_id):
            there = await self._finished_before(file, size, gone=True)
            if there is not None:
                return there, "sent"
            begun = None
        work = Assembly(
            self._store, key, self._path(file), file, size, config=self._config, matches=matches,
            uploads=self._uploads, account=self._account,
            known=await trusted(self._path(file), file, own, size, self._config), writes=self._writes,
        )  # fmt: skip
        try:
            done = await work.run(begun, parts)
        except (SourceChangedError, IntegrityError):
            raise  # the next try needs only the parts that changed
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._uploads.abandon_key(key)
            raise
        if done.fate == "unchanged":
            self._uploads.abandon_key(key)  # what was begun for another state of the file
            if self._uploads.sent(key) is None:
                assert own is not None
                return own, "unchanged"
            there = await self._in_store(file, done.part_size, done.digests)
            if there is None:
                raise LostSourceError(f"{key} is not what was sent there")
            return there, "sent"
        entry = self._entry(file, done.crc32c, done.part_size, done.digests, done.version)
        self._uploads.file_sent(key, entry)
        self._uploads.abandon_key(key)
        return entry, done.fate

    async def _multipart(self, file: FileStat) -> FileEntry:
        traits = self._store.traits
        size = part_size_for(
            file.size, self._config.part_size or traits.part_size, least=traits.min_part_size,
            most=traits.max_part_size, max_parts=traits.max_parts,
        )  # fmt: skip
        begun = self._uploads.part_size(self._prefix + file.path)
        if begun > 0 and file.size <= begun * traits.max_parts:
            size = begun
        upload, done = await find_upload(self._store, self._uploads, self._prefix + file.path, size)
        if upload is None or not self._uploads.is_open(upload.key, upload.upload_id):
            there = await self._finished_before(file, size, gone=upload is not None)
            if there is not None:
                return there
            key = self._prefix + file.path
            upload = await open_upload(self._store, self._uploads, key, self._path(file), file, size)
        return await self._fill(file, upload, done, size)

    async def _fill(self, file: FileStat, upload: Upload, done: dict[int, Part], size: int) -> FileEntry:
        sender = _Parts(self, file, upload, done, size)
        try:
            await sender.run()
        except (SourceChangedError, IntegrityError):
            raise  # the file changed, so its next try needs only the parts that did: see send
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._uploads.abandon(upload)
            raise
        try:
            crc = _combined_digests(sender.digests, file.size, size)
            info = await self._writes.complete(upload, sender.parts, crc)
        except Exception as error:
            if not getattr(error, "retryable", False):
                self._uploads.abandon(upload)
            raise
        entry = self._entry(file, crc, size, sender.digests, info.version)
        if info.crc32c in (None, crc):
            self._uploads.file_sent(upload.key, entry)
        self._uploads.closed(upload)
        if info.crc32c is not None and info.crc32c != crc:
            raise IntegrityError(f"{self._store.uri}: {upload.key} has checksum {info.crc32c:08x}, sent was {crc:08x}")
        return entry

    async def _finished_before(self, file: FileStat, part_size: int, *, gone: bool) -> FileEntry | None:
        """The file is in the store though no manifest says so: an earlier process ended in between.

        ``gone``: its upload is not open any more, which is what a complete looks like whose answer was lost.
        """
        if not gone and self._uploads.sent(self._prefix + file.path) is None:
            return None
        cuts = cut(file.size, part_size)
        digests = [await in_hasher(digest_range, self._range(file, offset, size)) for offset, size in cuts]
        return await self._in_store(file, part_size, digests)

    async def _in_store(self, file: FileStat, part_size: int, digests: list[Digest]) -> FileEntry | None:
        """The entry of the object that is there, if that has the bytes that the file has now."""
        key = self._prefix + file.path
        sent, crc = self._uploads.sent(key), _combined_digests(digests, file.size, part_size)
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
            file.path, file.size, file.mtime_ns, file.mode, crc, part_size,
            tuple(digest.xxh3 for digest in digests), tuple(digest.crc32c for digest in digests), version, file.inode,
        )  # fmt: skip


class _Parts:
    """The parts of one upload, a few at a time; those that are there already are only hashed."""

    def __init__(self, owner: LargeFile, file: FileStat, upload: Upload, done: dict[int, Part], part_size: int) -> None:
        self.cuts = cut(file.size, part_size)
        self._digests: dict[int, Digest] = {}
        self._parts: dict[int, Part] = {}
        self._owner, self._file, self._upload, self._done = owner, file, upload, done

    @property
    def digests(self) -> list[Digest]:
        return [self._digests[number] for number in sorted(self._digests)]

    @property
    def parts(self) -> list[Part]:
        return [self._parts[number] for number in sorted(self._parts)]

    async def run(self) -> None:
        count = len(self.cuts)
        most = self._owner._config.max_concurrency + 1  # noqa: SLF001  one more: it is hashed meanwhile
        await for_each(range(1, count + 1), self._send, min(count, PARTS_AT_ONCE, most))

    async def _send(self, number: int) -> None:
        owner = self._owner
        offset, size = self.cuts[number - 1]
        body = owner._range(self._file, offset, size)  # noqa: SLF001 (one room)
        digest = await in_hasher(digest_range, body)
        self._digests[number] = digest
        done = self._done.get(number)
        if done is not None and done.size == size and await _is_same(done, body, digest):
            self._parts[number] = Part(number, offset, size, done.etag, digest.crc32c)
            owner._account(0, size, 0)  # noqa: SLF001
            return
        part = Part(number, offset, size, "", digest.crc32c)
        body = going_on(owner._store, owner._uploads, self._upload, part, body)  # noqa: SLF001
        part = await owner._store.put_part(self._upload, number, offset, body, crc32c=digest.crc32c)  # noqa: SLF001
        part = Part(number, offset, size, part.etag, digest.crc32c)
        self._parts[number] = part
        owner._uploads.part_done(self._upload, part)  # noqa: SLF001
        owner._account(size - body.there, body.there, 0)  # noqa: SLF001


async def _is_same(there: Part, body: FileRange, digest: Digest) -> bool:
    """Whether a part in the store has these bytes. Where its CRC32C is not known its ETag may be its MD5: a crash came
    between the store's answer and the journal, and not every store lists checksums."""
    if there.crc32c is not None:
        return there.crc32c == digest.crc32c
    return there.etag.strip('"') == await in_hasher(md5_range, body)


def _combined_digests(digests: list[Digest], size: int, part_size: int) -> int:
    sizes = [length for _, length in cut(size, part_size or max(size, 1))]
    return combined([(digest.crc32c, length) for digest, length in zip(digests, sizes, strict=True)])


def combined(crcs: list[tuple[int, int]]) -> int:
    """CRC32C of a whole from (crc, size) of its parts."""
    total = 0
    for crc, size in crcs:
        total = crc32c_combine(total, crc, size)
    return total
