"""Open multipart uploads: known from the line on which they exist, so that they are continued or thrown away.

What is owed to the store is written to the journal by plain calls, before anything else is awaited.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from asyncsync.disk.journal import Journal, OpenUpload
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Part, Upload

ABORT = "abort"


class OpenUploads:
    """The uploads of one store that nobody has completed yet, by key."""

    def __init__(self, uri: str, journal: Journal) -> None:
        self._uri, self._journal = uri, journal
        self._open: dict[str, OpenUpload] = {}
        self._parts: dict[str, dict[int, Part]] = {}

    async def load(self) -> None:
        """Take over what an earlier process left open."""
        for upload in await self._journal.open_uploads(self._uri):
            self._open[upload.key] = upload
            self._parts[upload.key] = {
                part.number: Part(part.number, part.offset, part.size, part.etag, part.crc32c) for part in upload.parts
            }

    def find(self, key: str, path: str, stat: FileStat, part_size: int) -> Upload | None:
        """An open upload of this very file as it is now; one of another state of the file is owed an abort."""
        known = self._open.get(key)
        if known is None:
            return None
        wanted = (path, stat.size, stat.mtime_ns, stat.inode, part_size)
        if (known.local_path, known.size, known.mtime_ns, known.inode, known.part_size) == wanted:
            return Upload(key, known.upload_id)
        self.abandon(Upload(key, known.upload_id))
        return None

    def opened(self, upload: Upload, path: str, stat: FileStat, part_size: int) -> None:
        """An upload exists from now on."""
        self._journal.upload_opened(
            self._uri, upload.key, upload.upload_id, path, stat.size, stat.mtime_ns, stat.inode, part_size
        )
        self._open[upload.key] = OpenUpload(
            uri=self._uri, key=upload.key, upload_id=upload.upload_id, local_path=path, size=stat.size,
            mtime_ns=stat.mtime_ns, inode=stat.inode, part_size=part_size, parts=(),
        )  # fmt: skip
        self._parts[upload.key] = {}

    def part_done(self, upload: Upload, part: Part) -> None:
        """A part is in the store."""
        self._parts[upload.key][part.number] = part
        self._journal.part_done(
            self._uri, upload.key, upload.upload_id, part.number, part.offset, part.size, part.etag, part.crc32c
        )

    def parts(self, upload: Upload, listed: Sequence[Part]) -> dict[int, Part]:
        """The parts that we know to be right and the store still has, by number."""
        there = {(part.number, part.size, part.etag) for part in listed}
        known = self._parts.get(upload.key, {})
        return {number: part for number, part in known.items() if (number, part.size, part.etag) in there}

    def closed(self, upload: Upload) -> None:
        """Completed, or gone."""
        self._forget(upload)
        self._journal.upload_closed(self._uri, upload.key, upload.upload_id)

    def unsure(self, key: str) -> None:
        """The answer to the request for an upload was lost: there may be one that nobody knows by its id."""
        self._journal.owe(self._uri, ABORT, json.dumps({"key": key, "upload_id": ""}))

    def is_open(self, key: str, upload_id: str) -> bool:
        """Whether somebody is still going to complete it."""
        return key in self._open and self._open[key].upload_id == upload_id

    def abandon(self, upload: Upload) -> None:
        """Nobody will complete it: the janitor owes the store an abort."""
        self._journal.owe(self._uri, ABORT, json.dumps({"key": upload.key, "upload_id": upload.upload_id}))
        self.closed(upload)

    def _forget(self, upload: Upload) -> None:
        self._open.pop(upload.key, None)
        self._parts.pop(upload.key, None)
