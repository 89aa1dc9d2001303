"""Open uploads: recorded before and while they exist, so that each is either resumed or aborted.

Plain calls write to the journal before anything else is awaited. A crash therefore loses no upload.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import replace

from asyncsync.disk.files import ResumeToken
from asyncsync.disk.journal import Journal, OpenPart, OpenUpload, Owed, UploadKind
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat
from asyncsync.runtime import process_alive, process_id
from asyncsync.stores.base import Part, Upload

ABORT = "abort"
"""Kind of a clean-up: abort one upload by its ID, or all unknown uploads of a key."""


class OpenUploads:
    """The uploads of one store that are neither completed nor aborted: at most one per key."""

    def __init__(self, uri: str, journal: Journal) -> None:
        self._uri, self._journal = uri, journal
        self._open: dict[str, OpenUpload] = {}
        """By key. Their parts are in ``_parts``."""
        self._parts: dict[str, dict[int, OpenPart]] = {}
        """Key -> number -> part."""
        self._in_hand: set[int] = set()
        """Clean-ups that this process still does itself, by their number in the journal."""
        self._requested: dict[int, str] = {}
        """Keys with a create request in flight, by the number of its intention."""
        self.nonce = ""
        """Nonce of the experiment; empty outside of one."""
        self._sent: dict[str, FileEntry] = {}
        """Large files that are in the store and that no manifest names yet, by key."""

    async def load(self) -> None:
        """Read the uploads that earlier processes left open."""
        for upload in await self._journal.open_uploads(self._uri):
            self._open[upload.key] = replace(upload, parts=())
            self._parts[upload.key] = {part.number: part for part in upload.parts}
        for key, line in (await self._journal.files_sent(self._uri)).items():
            with suppress(KeyError, TypeError, ValueError):  # an older version was less strict: the file is read again
                self._sent[key] = FileEntry.parse(json.loads(line))

    def find(self, key: str, part_size: int, kind: UploadKind = "multipart") -> Upload | None:
        """The open upload of ``key``, if it has this kind and part size. Another one is abandoned.

        The file may have changed since: the caller compares the checksum of every part.
        """
        known = self._open.get(key)
        if known is None:
            return None
        if (known.kind, known.part_size) == (kind, part_size):
            return Upload(key, known.upload_id)
        self.abandon_key(key)
        return None

    def part_size(self, key: str) -> int:
        """Part size of the multipart upload of ``key`` if the store has acknowledged a part of it; else 0. Such an
        upload is resumed with its own part size."""
        known, parts = self._open.get(key), self._parts.get(key, {}).values()
        resumed = known is not None and known.kind == "multipart" and any(part.resume_token is None for part in parts)
        return known.part_size if known is not None and resumed else 0

    def sent(self, key: str) -> FileEntry | None:
        """The entry of a file that is in the store and that no manifest names yet."""
        return self._sent.get(key)

    def file_sent(self, key: str, entry: FileEntry) -> None:
        """Record that a large file is in the store, until a manifest names it."""
        self._sent[key] = entry
        self._journal.file_sent(self._uri, key, entry.line())

    def files_named(self, prefix: str, paths: Container[str]) -> None:
        """Forget the files below ``prefix`` that a manifest names now."""
        for key in [key for key in self._sent if key.startswith(prefix) and key[len(prefix) :] in paths]:
            self.file_named(key)

    def file_named(self, key: str) -> None:
        """Forget a file that a manifest names now, or that is no longer in the store."""
        if self._sent.pop(key, None) is not None:
            self._journal.file_named(self._uri, key)

    def opened(self, upload: Upload, path: str, file: FileStat, part_size: int, kind: UploadKind = "multipart") -> None:
        """Record a new upload of the local file ``path``."""
        known = self._open[upload.key] = OpenUpload(
            self._uri, upload.key, upload.upload_id, kind, path, file.size, file.mtime_ns, file.inode, part_size
        )
        self._parts[upload.key] = {}
        self._journal.upload_opened(known)

    def part_done(self, upload: Upload, part: Part) -> None:
        """Record a part that the store has acknowledged."""
        self._record(upload, _recorded(part))

    def resume_token(self, upload: Upload, part: Part) -> ResumeToken:
        """For the body of a part that is about to be sent. The token of an earlier attempt counts only if that attempt
        sent the same bytes."""
        known = self._parts[upload.key].get(part.number)
        token = None
        if known is not None and replace(known, resume_token=None) == replace(_recorded(part), etag=""):
            token = known.resume_token
        return ResumeToken(token, lambda fresh: self._record(upload, replace(_recorded(part), resume_token=fresh)))

    def resume_token_of_file(self, key: str, path: str, file: FileStat, crc32c: int) -> ResumeToken:
        """The same for a file that is sent in one request. Call :meth:`file_put` once the store has acknowledged it."""
        known = self._open.get(key)
        if known is None or known.kind != "single":
            self.abandon_key(key)
            self.opened(Upload(key, ""), path, file, 0, "single")
        return self.resume_token(Upload(key, ""), Part(1, 0, file.size, "", crc32c))

    def file_put(self, key: str) -> None:
        """Record that a file sent in one request is acknowledged: there is nothing to resume."""
        self.closed(Upload(key, ""))

    def parts(self, upload: Upload, listed: Sequence[Part]) -> dict[int, Part]:
        """The parts that the store lists, by number, each with the CRC32C that the journal has for it. The CRC32C is
        None if a crash came before the journal was written, or if the store has another part than the one we sent."""
        known = self._parts.get(upload.key, {})
        found = {}
        for part in listed:
            ours = known.get(part.number)
            same = ours is not None and (ours.size, ours.etag, ours.resume_token) == (part.size, part.etag, None)
            found[part.number] = _part(ours) if ours is not None and same else part
        return found

    def closed(self, upload: Upload) -> None:
        """Record that an upload was completed or aborted."""
        self._open.pop(upload.key, None)
        self._parts.pop(upload.key, None)
        self._journal.upload_closed(self._uri, upload)

    async def intend(self, key: str) -> int:
        """Record, before the create request, that an upload of ``key`` may come to exist. The journal then knows of it
        even if the response is lost. Returns a number for :meth:`intention_done` or :meth:`unsure`."""
        number = self.in_hand(ABORT, key=key, upload_id="", nonce=self.nonce)
        self._requested[number] = key
        try:
            await self._journal.flush()
        except BaseException:
            self.intention_done(number)  # nothing was requested
            raise
        return number

    def in_hand(self, kind: str, **payload: str) -> int:
        """Record a clean-up that is due if this process dies. Call :meth:`intention_done` once it is done here."""
        number = self._journal.owe(self._uri, kind, json.dumps({**payload, "pid": process_id()}))
        self._in_hand.add(number)
        return number

    def intention_done(self, number: int) -> None:
        """The clean-up is no longer due: the upload is known by its ID, or was never created."""
        self._requested.pop(number, None)
        self._in_hand.discard(number)
        self._journal.paid(number)

    def unsure(self, number: int) -> None:
        """The response was lost: the janitor has to look for an upload whose ID nobody knows."""
        self._requested.pop(number, None)
        self._in_hand.discard(number)

    def is_in_hand(self, owed: Owed) -> bool:
        """Whether a live process still does this clean-up itself."""
        pid = json.loads(owed.payload).get("pid")
        return owed.id in self._in_hand if pid == process_id() else pid is not None and process_alive(pid)

    def is_open(self, key: str, upload_id: str) -> bool:
        """Whether this upload may still be completed."""
        return key in self._open and self._open[key].upload_id == upload_id

    def is_requested(self, key: str) -> bool:
        """Whether a create request for ``key`` is in flight: an upload may exist whose ID is not known yet."""
        return key in self._requested.values()

    def abandon_key(self, key: str) -> None:
        """Abandon the upload of ``key``, if there is one."""
        if key in self._open:
            self.abandon(Upload(key, self._open[key].upload_id))

    def abandon_below(self, prefix: str, *, keep: tuple[str, ...] = ()) -> None:
        """Abandon all uploads below ``prefix`` and forget the files sent there, except below ``keep``."""
        for key in [*self._open, *self._sent]:
            if key.startswith(prefix) and not key.startswith(keep):
                self.abandon_key(key)
                self.file_named(key)

    def abandon(self, upload: Upload) -> None:
        """Give up an upload: the janitor aborts it in the store."""
        if upload.upload_id:  # an upload of kind "single" has none: there is nothing to abort
            self._journal.owe(self._uri, ABORT, json.dumps({"key": upload.key, "upload_id": upload.upload_id}))
        self.closed(upload)

    def _record(self, upload: Upload, part: OpenPart) -> None:
        self._parts[upload.key][part.number] = part
        self._journal.part_recorded(self._uri, upload, part)


def _recorded(part: Part) -> OpenPart:
    return OpenPart(part.number, part.offset, part.size, part.etag, part.crc32c)


def _part(recorded: OpenPart) -> Part:
    return Part(recorded.number, recorded.offset, recorded.size, recorded.etag, recorded.crc32c)
