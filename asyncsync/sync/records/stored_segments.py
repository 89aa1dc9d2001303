"""The segments of one tree's manifest: in the store and in the journal, written before the head that names them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

import google_crc32c
from xxhash import xxh3_128_hexdigest

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher
from asyncsync.disk.journal import Journal
from asyncsync.errors import StoreError
from asyncsync.planning.manifest import FileEntry, Manifest, ManifestSegment
from asyncsync.planning.segments import Draft, join, paths_of, segment_key
from asyncsync.stores.base import Store, delete_batches

log = logging.getLogger("asyncsync")

SEGMENTS_AT_ONCE = 4
"""Segments of one manifest that are encoded and written at the same time: so many of their documents are in memory."""


class StoredSegments:
    """The segments of one tree's manifest. One pass at a time uses them.

    ``identity``: names the tree in the journal. ``journal``: None for a manifest that is written once.
    """

    __slots__ = ("_identity", "_journal", "_journaled", "_prefix", "_strays")

    def __init__(self, journal: Journal | None, identity: str, prefix: str) -> None:
        self._journal, self._identity, self._prefix = journal, identity, prefix
        self._journaled: set[str] = set()
        """Segments in the journal."""
        self._strays: set[str] = set()
        """Segments in the store that no head of this process names, or soon none will."""

    async def load(self, head: Manifest) -> Manifest | None:
        """The manifest of this head from the journal; None if the journal lacks a segment of it. DocumentError."""
        parts: list[Mapping[str, FileEntry]] = []
        for segment in head.segments:
            document = await self._journal.load_segment(self._identity, segment.name) if self._journal else None
            if document is None:
                return None
            parts.append((await in_hasher(Manifest.from_bytes, document)).files)
        self._journaled = {segment.name for segment in head.segments}
        return await in_hasher(join, head, parts)

    async def write(
        self, store: Store, files: Mapping[str, FileEntry], parts: Sequence[ManifestSegment | Draft]
    ) -> tuple[ManifestSegment, ...]:
        """Write the drafts among ``parts`` to the store, and to the journal. Returns the segments, in order."""
        segments = {part.name: part for part in parts if isinstance(part, ManifestSegment)}

        async def write(draft: Draft) -> None:
            segment, document = await in_hasher(draft.encode, files, xxh3_128_hexdigest)
            self._strays.add(draft.name)  # until a head names it
            key = self._prefix + segment_key(draft.name)
            await store.put(key, document, crc32c=int(google_crc32c.value(document)))
            segments[draft.name] = segment
            self._save(draft.name, document)

        await for_each_limited([part for part in parts if isinstance(part, Draft)], write, SEGMENTS_AT_ONCE)
        return tuple(segments[part.name] for part in parts)

    async def complete_journal(self, manifest: Manifest, outdated: Collection[str]) -> None:
        """Give the journal the segments of ``manifest`` that it lacks, and those that are ``outdated`` there."""
        if self._journal is None:
            return
        names = {segment.name for segment in manifest.segments}
        wanted = names - (self._journaled - set(outdated))
        drafts = await in_hasher(paths_of, manifest.files, manifest.segments, wanted) if wanted else []
        for number, draft in enumerate(drafts, 1):
            self._save(draft.name, (await in_hasher(draft.encode, manifest.files, xxh3_128_hexdigest))[1])
            if number % SEGMENTS_AT_ONCE == 0:
                await self._journal.flush()
        self._journal.forget_segments(self._identity, self._journaled - names)
        self._journaled &= names

    def replaced(self, segments: Iterable[ManifestSegment]) -> None:
        """Note that no head names these from now on."""
        self._strays |= {segment.name for segment in segments}

    async def delete_strays(self, store: Store, named: Iterable[ManifestSegment]) -> None:
        """Delete the segments that the stored head does not name: ``named`` are those that it does. Those that cannot
        be deleted stay until the next manifest, or until prune."""
        self._strays -= {segment.name for segment in named}
        if not self._strays:
            return
        names = sorted(self._strays)
        try:
            for batch in delete_batches([self._prefix + segment_key(name) for name in names]):
                await store.delete(batch)
        except StoreError as error:
            log.info("%d segments of a former manifest of %s remain: %s", len(names), self._prefix or "/", error)
        else:
            self._strays -= set(names)

    def _save(self, name: str, document: bytes) -> None:
        if self._journal is not None:
            self._journal.save_segment(self._identity, name, document)
            self._journaled.add(name)
