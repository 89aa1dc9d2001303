"""Open multipart uploads: known from the line on which they exist, so that they are continued or thrown away.

What is owed to the store is written to the journal by plain calls, before anything else is awaited.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from asyncsync.disk.files import ResumeToken
from asyncsync.disk.journal import Journal, OpenUpload, Owed
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.snapshot import FileStat
from asyncsync.runtime import process_alive, process_id
from asyncsync.stores.base import Part, Upload

ABORT = "abort"
WHOLE = "in one piece"
"""In place of the id of an upload: the store knows none, a file goes in one piece that can go on."""
_BEGUN = "begun "
"""In place of the ETag of a part that is not finished; what follows lets it go on."""


class OpenUploads:
    """The uploads of one store that nobody has completed yet, by key."""

    def __init__(self, uri: str, journal: Journal) -> None:
        self._uri, self._journal = uri, journal
        self._open: dict[str, OpenUpload] = {}
        self._parts: dict[str, dict[int, Part]] = {}
        self._in_hand: set[int] = set()
        self._asked_for: dict[int, str] = {}
        """Keys for which the store is just asked to begin an upload, by intention."""
        self.nonce = ""
        """Of the experiment, if it is one's."""
        self._sent: dict[str, FileEntry] = {}
        """Large files in the store that no manifest names yet, by key."""

    async def load(self) -> None:
        """Take over what an earlier process left open."""
        for upload in await self._journal.open_uploads(self._uri):
            self._open[upload.key] = upload
            self._parts[upload.key] = {
                part.number: Part(part.number, part.offset, part.size, part.etag, part.crc32c) for part in upload.parts
            }
        for key, line in (await self._journal.files_sent(self._uri)).items():
            with suppress(KeyError, TypeError, ValueError):  # an older asyncsync was less strict: it is read again
                self._sent[key] = FileEntry.parse(json.loads(line))

    def find(self, key: str, part_size: int) -> Upload | None:
        """The open upload of this key, if its parts are cut alike; else it is owed an abort.

        The file may have changed since: whoever goes on compares the checksum of every part.
        """
        known = self._open.get(key)
        if known is None:
            return None
        if known.part_size == part_size:
            return Upload(key, known.upload_id)
        self.abandon(Upload(key, known.upload_id))
        return None

    def part_size(self, key: str) -> int:
        """That of the open upload of this key, if the store has parts of it: it goes on as it was begun. Else 0."""
        known, parts = self._open.get(key), self._parts.get(key, {}).values()
        return known.part_size if known is not None and any(not part.etag.startswith(_BEGUN) for part in parts) else 0

    def sent(self, key: str) -> FileEntry | None:
        """What an earlier pass has sent of this key without a manifest to name it."""
        return self._sent.get(key)

    def file_sent(self, key: str, entry: FileEntry) -> None:
        """A large file is in the store: until a manifest names it, the journal remembers."""
        self._sent[key] = entry
        self._journal.file_sent(self._uri, key, entry.line())

    def file_named(self, key: str) -> None:
        """A manifest names it now, or it is gone."""
        if self._sent.pop(key, None) is not None:
            self._journal.file_named(self._uri, key)

    def opened(self, upload: Upload, path: str, stat: FileStat, part_size: int) -> None:
        """An upload exists from now on."""
        self._journal.upload_opened(
            self._uri, upload.key, upload.upload_id, path, stat.size, stat.mtime_ns, stat.inode, part_size
        )
        self._open[upload.key] = OpenUpload(
            uri=self._uri,
            key=upload.key,
            upload_id=upload.upload_id,
            local_path=path,
            size=stat.size,
            mtime_ns=stat.mtime_ns,
            inode=stat.inode,
            part_size=part_size,
            parts=(),
        )
        self._parts[upload.key] = {}

    def part_done(self, upload: Upload, part: Part) -> None:
        """A part is in the store."""
        self._parts[upload.key][part.number] = part
        self._journal.part_done(
            self._uri, upload.key, upload.upload_id, part.number, part.offset, part.size, part.etag, part.crc32c
        )

    def progress(self, upload: Upload, part: Part) -> ResumeToken:
        """For the body of a part that is about to be sent. An earlier attempt counts if it had the same bytes."""
        known = self._parts[upload.key].get(part.number)
        token = None
        if known is not None and known.etag.startswith(_BEGUN) and replace(known, etag=part.etag) == part:
            token = known.etag.removeprefix(_BEGUN)
        return ResumeToken(token, lambda fresh: self.part_done(upload, replace(part, etag=_BEGUN + fresh)))

    def progress_of_whole(self, key: str, path: str, file: FileStat, crc32c: int) -> ResumeToken:
        """The same for a file that goes in one piece; :meth:`whole_sent` once it is there."""
        if not self.is_open(key, WHOLE):
            self.abandon_key(key)
            self.opened(Upload(key, WHOLE), path, file, 0)
        return self.progress(Upload(key, WHOLE), Part(1, 0, file.size, "", crc32c))

    def whole_sent(self, key: str) -> None:
        """Nothing of it has to go on."""
        self.closed(Upload(key, WHOLE))

    def parts(self, upload: Upload, listed: Sequence[Part]) -> dict[int, Part]:
        """The parts that the store has, by number, with the CRC32C that we know; None where a crash came before the
        journal, or the store has another part than we sent."""
        known = self._parts.get(upload.key, {})
        found = {}
        for part in listed:
            ours = known.get(part.number)
            same = ours is not None and (ours.size, ours.etag) == (part.size, part.etag)
            found[part.number] = ours if ours is not None and same else part
        return found

    def closed(self, upload: Upload) -> None:
        """Completed, or gone."""
        self._forget(upload)
        self._journal.upload_closed(self._uri, upload.key, upload.upload_id)

    async def intend(self, key: str) -> int:
        """Before an upload is asked for: whatever becomes of the answer, the journal knows that there may be one.

        The result is for :meth:`settled`, once it is known.
        """
        number = self.in_hand(ABORT, key=key, upload_id="", nonce=self.nonce)
        self._asked_for[number] = key
        try:
            await self._journal.flush()
        except BaseException:
            self.settled(number)  # nothing was asked for
            raise
        return number

    def in_hand(self, kind: str, **payload: str) -> int:
        """Owed from the moment on at which this process is gone; for :meth:`settled` if it comes to that itself."""
        number = self._journal.owe(self._uri, kind, json.dumps({**payload, "pid": process_id()}))
        self._in_hand.add(number)
        return number

    def settled(self, intention: int) -> None:
        """It is known, or there is none."""
        self._asked_for.pop(intention, None)
        self._in_hand.discard(intention)
        self._journal.paid(intention)

    def unsure(self, intention: int) -> None:
        """The answer was lost: the janitor has to look for an upload that nobody knows by its id."""
        self._asked_for.pop(intention, None)
        self._in_hand.discard(intention)

    def is_in_hand(self, owed: Owed) -> bool:
        """Whether somebody who is alive still sees to it."""
        pid = json.loads(owed.payload).get("pid")
        return owed.id in self._in_hand if pid == process_id() else pid is not None and process_alive(pid)

    def is_open(self, key: str, upload_id: str) -> bool:
        """Whether somebody is still going to complete it."""
        return key in self._open and self._open[key].upload_id == upload_id

    def is_asked_for(self, key: str) -> bool:
        """Whether an upload may have begun that is not known yet."""
        return key in self._asked_for.values()

    def abandon_key(self, key: str) -> None:
        """Nobody will complete the upload of this key, if there is one."""
        if key in self._open:
            self.abandon(Upload(key, self._open[key].upload_id))

    def abandon_below(self, prefix: str, *, keep: tuple[str, ...] = ()) -> None:
        """Nobody will complete what is open below ``prefix``, nor name what was sent there, except below ``keep``."""
        for key in [*self._open, *self._sent]:
            if key.startswith(prefix) and not key.startswith(keep):
                self.abandon_key(key)
                self.file_named(key)

    def abandon(self, upload: Upload) -> None:
        """Nobody will complete it: the janitor owes the store an abort."""
        if upload.upload_id != WHOLE:
            self._journal.owe(self._uri, ABORT, json.dumps({"key": upload.key, "upload_id": upload.upload_id}))
        self.closed(upload)

    def _forget(self, upload: Upload) -> None:
        self._open.pop(upload.key, None)
        self._parts.pop(upload.key, None)
