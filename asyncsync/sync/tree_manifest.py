"""The manifest of one tree: the knowledge of the stored one, and its replacement.

The knowledge is one of four states. ``Unknown``: ask the journal, then the store. ``FromJournal``: an earlier process
wrote or read this version; the store has to confirm it. ``Absent``: the store has none, or none is assumed there.
``Present``: the store has this version. While a manifest is being written the state is ``Unknown``: a write whose
response is lost may have succeeded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import structs

from asyncsync.aio.threads import in_hasher
from asyncsync.disk.journal import Journal
from asyncsync.errors import ConcurrentWriterError, NotFoundError, PreconditionError
from asyncsync.planning.changes import SCANNED
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import MANIFEST, FileEntry, Manifest, ManifestSegment
from asyncsync.planning.rank_agreement import GENERATION, NONCE
from asyncsync.planning.segments import Draft, divide, encode_head, is_segmented, names_with, parse_head
from asyncsync.runtime import token
from asyncsync.stores.base import MISSING, Store
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.stores.read import exists, versions_below
from asyncsync.sync.records.manifests import find_manifest, get_manifest
from asyncsync.sync.records.stored_segments import StoredSegments
from asyncsync.sync.upload.create_only import CollisionError

ID = "id"
"""Key in a manifest's info: distinguishes a checkpoint from another one of the same name."""
IDENTITY = (ID, GENERATION, NONCE)
"""Keys in a manifest's info that must agree if the manifest is ours: a rank may have sent a part to another
generation."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing was read yet, or the response to the last write was lost."""


@dataclass(frozen=True, slots=True)
class FromJournal:
    """The journal holds this version. The store may have another one by now, or be another server."""

    version: str


@dataclass(frozen=True, slots=True)
class Absent:
    """The store has no manifest. ``assumed``: the store was not asked; a conditional write will notice one."""

    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Present:
    """The store has this version."""

    version: str


State = Unknown | FromJournal | Absent | Present
Packed = tuple[bytes, str]
"""A manifest that the store has, and its version."""
MAX_PACKED_FILES = 16
"""Files of a manifest that is kept as a document. Parsing as many takes 0.1 ms."""


@dataclass(frozen=True, slots=True)
class _Following:
    """The manifest to write next."""

    manifest: Manifest
    parts: Sequence[ManifestSegment | Draft]
    """Its segments, if it has any; drafts have to be written before."""
    outdated: Collection[str]
    """Segments of the journal in which only times have changed."""
    differs: bool
    """Whether more than times differ from the last manifest."""


class TreeManifest:
    """The manifest of one tree. One pass at a time uses it.

    ``once``: the prefix is new and its manifest is written once: the journal keeps nothing of it. ``doubted``: a
    manifest that this process did not write is compared with a listing. ``create_only``: another manifest is never
    replaced.
    """

    __slots__ = (
        "_create_only",
        "_doubted",
        "_identity",
        "_journal",
        "_once",
        "_prefix",
        "_record",
        "_reduced",
        "_segments",
        "info",
        "state",
        "stored",
        "unnamed",
    )

    def __init__(
        self,
        journal: Journal,
        identity: str,
        prefix: str,
        *,
        record: str = MANIFEST,
        info: Mapping[str, Any] | None = None,
        once: bool = False,
        doubted: bool = False,
        create_only: bool = False,
    ) -> None:
        self._journal, self._identity, self._prefix, self._record = journal, identity, prefix, record
        self._once, self._doubted, self._create_only = once, doubted, create_only
        self.info = info
        """Goes into the first manifest, beside the files."""
        self.state: State = Absent() if once else Unknown()
        self.stored: Manifest | None = None
        """The last manifest that was read or written. It may be outdated while the state is Unknown."""
        self.unnamed: Manifest | None = None
        """Files that are in the store and that no manifest names yet: earlier passes that were cut short sent them."""
        self._segments: StoredSegments | None = None
        """Only for a manifest that has segments, or had some."""
        self._reduced = False
        """Whether ``stored`` has lost entries because the store did not have their versions."""

    @property
    def _key(self) -> str:
        return self._prefix + self._record

    @property
    def known(self) -> Manifest | None:
        """The last manifest together with the files sent since."""
        if self.unnamed is None:
            return self.stored
        files = self.stored.files if self.stored is not None else {}
        return Manifest({**files, **self.unnamed.files}, self.unnamed.info)

    @property
    def is_outdated(self) -> bool:
        """Whether a new manifest is due even if no file was sent or deleted."""
        return self.stored is None or self.unnamed is not None or self._reduced

    @property
    def scanned(self) -> int:
        """Time of the scan behind the last manifest (ns); 0 = re-check every file."""
        return int(self.stored.info.get(SCANNED, 0)) if self.stored is not None else 0

    def expect_nothing(self, store: Store) -> None:
        """Assume that the store has no manifest, because the prefix is new. If it has one, the conditional write
        notices it, and it is read then."""
        if isinstance(self.state, Unknown) and store.traits.conditional_writes:
            self.state = Absent(assumed=True)

    def forget(self) -> None:
        """The prefix was deleted."""
        self.stored, self.state = None, Unknown()
        self._journal.forget_tree(self._identity)

    def add_sent(self, entries: dict[str, FileEntry], scanned: int) -> None:
        """Files are in the store; the caller changes ``entries`` no more. ``scanned``: time of their scan (ns)."""
        earlier = self.unnamed
        if earlier is None:
            self.unnamed = Manifest(entries, {SCANNED: scanned})
        else:
            self.unnamed = Manifest({**earlier.files, **entries}, earlier.info)

    def packed(self) -> Packed | None:
        """The last manifest of an idle tree, if it is small: a document costs less memory than its objects."""
        if not isinstance(self.state, Present) or self.is_outdated or self.stored is None:
            return None
        if len(self.stored.files) > MAX_PACKED_FILES:
            return None
        return self.stored.to_bytes(), self.state.version

    def unpack(self, packed: Packed) -> None:
        """Take over the manifest that another object for the same tree has packed."""
        self.stored, self.state = Manifest.from_bytes(packed[0]), Present(packed[1])

    async def load(self, store: Store) -> None:
        """Know the last manifest: from memory, else from the journal, else from the store."""
        if not isinstance(self.state, Unknown):
            return
        if self._once or not await self._load_from_journal():
            await self.fetch(store)

    async def _load_from_journal(self) -> bool:
        saved = await self._journal.load_tree(self._identity)
        if saved.manifest is None or saved.version is None:
            return False
        try:
            head = await in_hasher(parse_head, saved.manifest)
            whole = in_hasher(Manifest.from_bytes, saved.manifest) if head is None else self._segmented().load(head)
            stored = await whole
        except DocumentError:
            stored = None
        if stored is None:
            self._journal.forget_tree(self._identity)
            return False
        self.stored, self.state = stored, FromJournal(saved.version)
        return True

    def _segmented(self) -> StoredSegments:
        journal = None if self._once else self._journal
        self._segments = self._segments or StoredSegments(journal, self._identity, self._prefix)
        return self._segments

    async def fetch(self, store: Store) -> None:
        """Read the manifest from the store."""
        try:
            await store.head(self._key)  # usually there is none, and a HEAD request is cheaper
            found = await get_manifest(store, self._key)
        except NotFoundError:
            found = None
        self.stored, self.state = (None, Absent()) if found is None else (found[0], Present(found[1]))
        if self._doubted:
            await self._drop_missing(store)

    async def confirm(self, store: Store) -> bool:
        """Ask the store, once per process, whether it still has the manifest from the journal; if not, read the
        store's. Whether the manifest is the same as before.

        The journal's manifest may be outdated, or belong to another server of the same name. Without this check an
        emptied store would count as in sync.
        """
        if not isinstance(self.state, FromJournal):
            return True
        version = self.state.version
        try:
            same = (await store.head(self._key)).version == version
        except NotFoundError:
            same = False
        if same:
            self.state = Present(version)
        else:
            await self.fetch(store)
        return same

    async def recheck(self, store: Store) -> None:
        """Make the next pass repair the files and the manifest that a replaced writer has overwritten. One listing.

        Entries whose version the store does not have are dropped, so that their files are sent again. A manifest of
        another version is replaced."""
        await self.load(store)
        there = await self._drop_missing(store)
        if isinstance(self.state, Present) and there.get(self._record) != self.state.version:
            version = there.get(self._record)
            self.state, self._reduced = Absent() if version is None else Present(version), True

    async def _drop_missing(self, store: Store) -> Mapping[str, str]:
        """The versions below the prefix, by path."""
        if self.stored is None:
            return {}
        there = await versions_below(store, self._prefix)
        files = {path: entry for path, entry in self.stored.files.items() if there.get(path) == entry.version}
        if len(files) < len(self.stored.files):
            self._reduced = True
            if self.stored.segments:  # nobody knows which: all are written again
                self._segmented().replaced(self.stored.segments)
            self.stored = Manifest(files, self.stored.info, self.stored.extra)
        return there

    async def commit(
        self, store: GuardedView, deleted: Sequence[str], scanned: int, mapped: Collection[str]
    ) -> tuple[Manifest, Collection[str]]:
        """Replace the manifest, after everything that it names; nothing is written if only times have changed.

        ``deleted``: paths that it no longer names. ``mapped``: paths of files that are written through memory. Returns
        the manifest, and the paths that it names and no manifest named before. ConcurrentWriterError if another process
        has written it.
        """
        while True:
            following = await in_hasher(self._next, store, deleted, scanned, mapped)
            before = self.state
            assert not isinstance(before, Unknown)
            version = MISSING if isinstance(before, Absent) else before.version
            manifest, data = await self._encode(store, following)
            if not following.differs:
                break
            self.state = Unknown()
            try:
                version = await self._write(store, data, version)
                break
            except ConcurrentWriterError:
                if before != Absent(assumed=True):
                    raise
                await self.fetch(store)  # there was a manifest after all: its files count too
        named = self.unnamed.files if self.unnamed is not None else ()
        self.stored, self.state, self.unnamed, self._reduced = manifest, Present(version), None, False
        if self._segments is not None:
            await self._segments.complete_journal(manifest, following.outdated)
        if not self._once:
            self._journal.save_tree(self._identity, data, version)
        if self._segments is not None:
            await self._segments.delete_strays(store, manifest.segments)
        return manifest, named

    async def _encode(self, store: GuardedView, following: _Following) -> tuple[Manifest, bytes]:
        """The next manifest and its document, or its head once its new segments are stored."""
        manifest, parts = following.manifest, following.parts
        if self.stored is not None and self.stored.segments:
            self._segmented().replaced(self.stored.segments)
        if not parts:
            return manifest, await in_hasher(manifest.to_bytes)
        manifest.segments = await self._segmented().write(store, manifest.files, parts)
        return manifest, encode_head(manifest)

    def _next(self, store: Store, deleted: Sequence[str], scanned: int, mapped: Collection[str]) -> _Following:
        """In a worker thread: the next manifest, and whether more than times differ from the last."""
        last = self.stored
        old = last.files if last is not None else {}
        fresh = self.unnamed.files if self.unnamed is not None else {}
        files = fresh  # which nobody changes any more
        if old or deleted or mapped:
            files = {**old, **fresh} if old else dict(fresh)  # a copy of a million takes 33 ms
        changed = {*fresh, *deleted} if last is not None and last.segments else set(deleted)  # of segments only
        for path in deleted:
            files.pop(path, None)
        for path in mapped:
            if path in files and files[path].inode:  # its mtime proves nothing while it is written through memory
                files[path] = structs.replace(files[path], inode=0)
                changed.add(path)
        info = last.info if last is not None else self.info or {}
        differs = (
            last is None
            or self._reduced
            or bool(deleted)
            or any(_differs(old.get(path), entry) for path, entry in fresh.items())
        )
        new = Manifest(files, {**info, SCANNED: scanned}, last.extra if last is not None else {})
        return self._divided(store, new, changed, differs=differs)

    def _divided(self, store: Store, new: Manifest, changed: Collection[str], *, differs: bool) -> _Following:
        """Only the tree's own manifest has segments, and only where the store refuses to replace a head that somebody
        else wrote: its segments would be deleted."""
        segments = self.stored.segments if self.stored is not None else ()
        wanted = self._record == MANIFEST and store.traits.conditional_writes and is_segmented(len(new.files), segments)
        if segments and not differs:  # the store keeps its segments, the journal learns the times
            return _Following(new, segments, names_with(segments, changed), differs)
        if not wanted or not differs:
            return _Following(new, (), frozenset(), differs)
        return _Following(new, divide(new.files, segments, changed, partial(token, 12)), frozenset(), differs)

    async def _write(self, store: GuardedView, data: bytes, version: str) -> str:
        """Write the document over ``version``; the new version."""
        if self._once:
            store.renew_lease()
        try:
            if self._create_only:
                return await self._create(store, data)
            return (await store.put(self._key, data, if_version=version)).version
        except PreconditionError as error:
            self._journal.forget_tree(self._identity)
            raise ConcurrentWriterError(
                f"{store.uri}/{self._prefix}: another process has written its manifest since we read it; only one "
                "process may sync a prefix: stop the other one, then sync again"
            ) from error

    async def _create(self, store: Store, data: bytes) -> str:
        """Create the manifest that makes a checkpoint exist. CollisionError if another checkpoint has one there."""
        try:
            if not store.traits.conditional_writes and await exists(store, self._key):
                raise PreconditionError(f"{self._key} exists already")
            return (await store.put(self._key, data, if_version=MISSING)).version
        except PreconditionError as error:
            there = await find_manifest(store, self._prefix, self._record)
            ours = self.info or {}
            if there is None or ID not in ours or any(there.info.get(key) != ours.get(key) for key in IDENTITY):
                where = f"{store.uri.rstrip('/')}/{self._prefix}".rstrip("/")
                raise CollisionError(
                    f"{where} is a checkpoint of another process: nothing of it was overwritten"
                ) from error
            return (await store.head(self._key)).version


def _differs(old: FileEntry | None, new: FileEntry) -> bool:
    return old is None or (old.size, old.crc32c, old.parts, old.version) != (
        new.size,
        new.crc32c,
        new.parts,
        new.version,
    )
