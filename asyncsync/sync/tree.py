"""A tree: a local directory that is kept in sync with one prefix of a store.

The owner starts one pass at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from asyncsync.aio.tasks import for_each_limited, run_all
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.accepted_files import Accepted
from asyncsync.disk.mappings import mapped_and_when
from asyncsync.disk.scan import scan
from asyncsync.errors import ConcurrentWriterError, SyncFailedError
from asyncsync.planning.changes import Changes, Comparison, in_the_way
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.patterns import Rules
from asyncsync.planning.snapshot import FileStat, Snapshot
from asyncsync.report import SyncReport
from asyncsync.runtime import wall_time
from asyncsync.stores.base import KEYS_PER_DELETE, Lane, Store, delete_batches
from asyncsync.stores.guard.fenced import Fence
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.sync.preview import Preview, SyncPlan
from asyncsync.sync.ready_units import ReadyUnits, really_missing
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.session import Session, delete_prefix
from asyncsync.sync.tree_manifest import Packed, TreeManifest
from asyncsync.sync.unstorable_names import leave_out, refused_names, too_long, unstorable
from asyncsync.sync.upload.copy_sources import sources_of
from asyncsync.sync.upload.create_only import CollisionError, Creating, Replacing
from asyncsync.sync.upload.tree_upload import OnProgress, Tally, TreeUpload

DELETE_REQUESTS = 4
"""Delete requests of one tree in flight."""
MOST_PATHS_IN_ERROR = 5
QUICK_BYTES = 8 << 20
"""Up to so many bytes of a checkpoint are sent so quickly that a question asked beside them counts for its manifest."""
MANY_FILES = 10_000
"""Work on so many files at once takes a few milliseconds: it is done in a worker thread."""
NARROW_PART_SIZE = 5 << 20
"""Bytes per part of an upload that repeatedly ran out of time before any of its parts was done."""


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How a tree is read and written. ``delete``: remove files from the store that vanished locally."""

    rules: Callable[[], Rules] = Rules
    lane: Lane = Lane.ARTIFACT
    delete: bool = False
    removed: Callable[[], Collection[str]] = frozenset
    """Files and directories to delete from the store, if they vanished locally, also without ``delete``."""
    max_delete: int | None = None
    """Most files that one pass may delete; None: any number, but not all of them."""
    checksum: bool = False
    """Read every file, whatever its size and mtime."""
    whole: bool = False
    """All or nothing: no manifest unless every file is in the store."""
    fresh: bool = False
    """The prefix is new and written once: nothing is fetched before, and nothing is kept in the journal after."""
    disown: bool = False
    """Delete files from the store that were sent before their directory came under ``Rules.skip``: another tree keeps
    them now."""
    info: Mapping[str, Any] | None = None
    """Goes into the manifest, beside the files."""
    record: str = MANIFEST
    """Name of the manifest below the prefix; another one for a rank, where several write one checkpoint."""
    fence: Fence | None = None
    """Checked before every write, and again before a manifest that makes a new prefix exist."""
    doubted: bool = False
    """Compare a manifest that this process did not write with a listing: its writer may have been replaced, or what it
    names may have been deleted or overwritten since."""
    accepted: Accepted | None = None
    """Send exactly these files in exactly this state, or nothing; ``rules`` do not count then."""
    begun: bool = False
    """Whether an earlier process may have sent some of the tree."""


def pair(root: str, uri: str, prefix: str) -> str:
    """Names a directory and its prefix, for the journal and for locks."""
    return f"{root} -> {uri.rstrip('/')}/{prefix}"


class Tree:
    """``prefix`` is relative to the session's store and ends in ``/`` (or is empty)."""

    __slots__ = (
        "_begun",
        "_files",
        "_looked",
        "_manifest",
        "_mapped",
        "_narrow",
        "_options",
        "_sent",
        "_session",
        "_upload",
        "_view",
        "prefix",
        "root",
    )

    def __init__(self, session: Session, root: str, prefix: str, options: TreeOptions) -> None:
        self.root, self.prefix = root, prefix
        self._session, self._options = session, options
        self._manifest = TreeManifest(
            session.journal,
            self.identity,
            prefix,
            record=options.record,
            info=options.info,
            once=options.fresh,
            doubted=options.doubted,
            create_only=options.accepted is not None,
        )
        self._upload: TreeUpload | None = None
        self._view: GuardedView | None = None
        self._mapped: frozenset[str] = frozenset()
        """Paths of files that are written through memory."""
        self._looked = 0
        """When the memory mappings were read (ns). A file written since may have been mapped meanwhile."""
        self._narrow, self._begun = False, options.begun
        self._files: Sequence[FileStat] = ()
        self._sent = 0
        """Bytes that the last pass sent, if it succeeded."""

    @property
    def identity(self) -> str:
        """Names this pair of directory and prefix in the journal."""
        return pair(self.root, self._session.uri, self.prefix)

    @property
    def uri(self) -> str:
        """Where the tree is stored."""
        return f"{self._session.uri.rstrip('/')}/{self.prefix}".rstrip("/")

    @property
    def moved(self) -> int:
        """Bytes of the running or last pass that the store has acknowledged."""
        if self._upload is None:
            return self._sent
        return self._upload.tally.bytes_sent + self._upload.tally.bytes_copied

    @property
    def moves(self) -> bool:
        """Whether any bytes of the running or last pass were handed to the network."""
        return self.moved > 0 or (self._view is not None and self._view.steps > 0)

    def progress(self) -> str:
        """How far the running or last pass is and what is missing, for people."""
        if self._upload is None:
            return f"{self.root} -> {self.uri}: nothing was sent yet"
        tally = self._upload.tally
        missing = tally.missing(self._files)
        more = len(missing) - MOST_PATHS_IN_ERROR
        names = ", ".join(missing[:MOST_PATHS_IN_ERROR]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{self.root} -> {self.uri}: {tally.files_done} of {tally.files_total} files and {tally.bytes_sent} of "
            f"{tally.bytes_total} bytes were sent; missing: {names or 'only the manifest'}"
        )

    async def plan(self) -> SyncPlan:
        """The actions of a sync if it ran now. Reads the directory, the changed files and at most one manifest."""
        store = self._store()
        rules = self._options.rules()
        snapshot, changes = await self._compare(store, rules)
        known = self._manifest.known or Manifest()
        preview = Preview(store, self.prefix, self.root, self._transfer(), known.files)
        files = await preview.of(changes.send)
        deleted = sorted({*self._to_delete(changes, rules), *(await in_hasher(self._in_the_way, changes))})
        requests = store.requests + sum(file.requests for file in files)
        requests += -(-len(deleted) // KEYS_PER_DELETE)
        if deleted or self._manifest.stored is None or any(file.action != "keep" for file in files):
            requests += 1  # the manifest
        unread = [f"{path}: it cannot be read: {error.strerror}" for path, error in snapshot.unread.items()]
        return SyncPlan(files, deleted, changes.skip, snapshot.bytes_total, requests, (*snapshot.warnings, *unread))

    async def sync_once(self, on_progress: OnProgress | None = None) -> SyncReport:
        """Bring the prefix in sync with the directory, in one attempt.

        SyncFailedError names every file that is not durable (the others are); ConcurrentWriterError if another process
        wrote the prefix's manifest. A tree without changes costs a scan and no request.
        """
        started = time.monotonic()
        self._sent, store = 0, self._store()
        accepted = self._options.accepted
        scanned = int(wall_time() * 1e9) if accepted is None else accepted.looked
        rules = self._options.rules()
        snapshot, changes = await self._compare(store, rules)
        deleted = self._to_delete(changes, rules)
        self._refuse_to_empty(deleted, snapshot)
        scanned = min(scanned, self._looked) if self._looked else scanned
        if accepted is not None:
            await self._check_that_it_is_new(store)
        blocking = await in_hasher(self._in_the_way, changes) if changes.missing else []
        if blocking and store.traits.local:  # nothing can be written in their place before they are deleted
            await self._delete(store, blocking)
        deleted = list(dict.fromkeys([*deleted, *blocking]))
        units = ReadyUnits(snapshot.units, changes.send, self._manifest.known)
        tally, dropped = await self._send(store, units, scanned, on_progress)
        _raise_if_replaced(tally)
        tally.failures.update(snapshot.unread)
        if tally.failures and self._options.whole:
            await self._check_source(sent=False)
            raise self.failed(tally)
        await self._check_source(sent=True)
        if tally.entries or deleted or self._manifest.is_outdated:
            # a file that was in doubt and could not be read stays in doubt
            await self._commit(store, deleted, self._manifest.scanned if tally.failures else scanned)
        if deleted:
            await self._delete(store, deleted)
        if self._options.delete and tally.vanished:
            await self._delete_vanished(store, dropped, tally)
        if tally.failures:
            raise self.failed(tally)
        self._sent = self.moved
        self._upload, self._view, self._files = None, None, ()  # an idle tree holds only its manifest
        report = self._report(snapshot, changes, tally, store, started, len(deleted))
        if len(snapshot.files) >= MANY_FILES:
            await in_hasher(_drop, snapshot.files)
        return replace(report, not_ready=(*snapshot.unready, *units.incomplete(tally)))

    async def delete_remote(self) -> int:
        """Delete the prefix: manifest first, then its data. Returns the number of deleted objects."""
        count = await delete_prefix(self._store(), self.prefix)
        self._manifest.forget()
        self._session.copy_sources.forget(self.prefix)
        return count

    async def manifest(self) -> Manifest | None:
        """The prefix's manifest as the store has it now."""
        await self._manifest.fetch(self._store())
        return self._manifest.stored

    def packed(self) -> Packed | None:
        """All that a new object for this tree would have to know, if that is little and no pass is unfinished."""
        return None if self._narrow or self._upload is not None else self._manifest.packed()

    def unpack(self, packed: Packed) -> None:
        """Know what another object for this tree has known."""
        self._manifest.unpack(packed)

    def forget(self) -> None:
        """The tree is not synced any more: the journal keeps nothing of it."""
        self._manifest.forget()

    def replace_info(self, info: Mapping[str, Any]) -> None:
        """Replace the info of a manifest that is not written yet."""
        self._manifest.info = info

    async def recheck(self) -> None:
        """Make the next pass send again each file that the store lacks or has in another version. One listing."""
        await self._manifest.recheck(self._store())

    async def has_below(self, name: str) -> bool:
        """Whether a file that was sent and not deleted lies in this directory of the prefix."""
        known = [self._manifest.known]
        if self._manifest.stored is None:
            known.append(await find_manifest(self._session.view(self._options.lane, self.prefix), self.prefix))
        paths = (path for manifest in known if manifest is not None for path in manifest.files)
        return any(path == name or path.startswith(f"{name}/") for path in paths)

    def expect_nothing(self) -> None:
        """The prefix is new, as far as the owner knows: do not look for a manifest before the first one is written."""
        self._manifest.expect_nothing(self._session.store)

    def send_less_at_once(self) -> None:
        """From now on send one file at a time in the smallest parts, so that some are done before the timeout."""
        self._narrow = True

    def failed(self, tally: Tally) -> SyncFailedError:
        """The error that names the files that are not durable."""
        lines = [f"{path}: {error}" for path, error in list(tally.failures.items())[:MOST_PATHS_IN_ERROR]]
        more = len(tally.failures) - len(lines)
        text = "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
        count = len(tally.failures)
        return SyncFailedError(f"{count} file(s) of {self.root} are not in {self.uri}: {text}", tally.failures)

    def _store(self) -> GuardedView:
        store = self._view = self._session.view(self._options.lane, self.prefix, self._options.fence)
        return store

    async def _check_source(self, *, sent: bool) -> None:
        """Check that a checkpoint's files are still those accepted and, if all were ``sent``, those sent."""
        accepted = self._options.accepted
        if accepted is None:
            return
        unnamed = self._manifest.unnamed
        entries = unnamed.files if unnamed is not None else {}

        def check() -> None:
            accepted.check({path: entry.crc32c for path, entry in entries.items()} if sent else None)

        await in_hasher(check)

    async def _compare(self, store: Store, rules: Rules) -> tuple[Snapshot, Changes]:
        """Scan the directory and compare it with the last manifest."""
        await self._manifest.load(store)
        if self._options.accepted is not None:
            return self._rest(self._options.accepted, store)
        snapshot, changes = await in_hasher(self._look, rules, self._manifest.known)
        if not await self._manifest.confirm(store):
            snapshot, changes = await in_hasher(self._look, self._options.rules(), self._manifest.known)
        look = partial(unstorable, snapshot, store, self.prefix)
        bad = look() if len(snapshot.files) < MANY_FILES else await in_hasher(look)
        if not bad:
            return snapshot, changes
        if rules.only is not None:
            raise refused_names(self.root, bad)
        leave_out(snapshot, bad)
        return snapshot, replace(changes, send=snapshot.files)

    def _rest(self, accepted: Accepted, store: Store) -> tuple[Snapshot, Changes]:
        """The accepted files that are not sent yet. A checkpoint leaves nothing out: SyncFailedError for a name that
        the store cannot hold."""
        unnamed = self._manifest.unnamed
        sent = unnamed.files if unnamed is not None else {}
        files = [file for file in accepted.files if file.path not in sent]
        snapshot = Snapshot(files, list(accepted.warnings), same=len(accepted.files) - len(files))
        snapshot.bytes_total = accepted.size
        if bad := too_long(files, store, self.prefix):
            raise refused_names(self.root, bad)
        return snapshot, Changes(files, snapshot.same, [])

    def _look(self, rules: Rules, known: Manifest | None) -> tuple[Snapshot, Changes]:
        """In a worker thread: scan the directory and find what is new."""
        comparison = Comparison(known, checksum=self._options.checksum)
        mapped, self._looked = mapped_and_when(self.root)
        self._mapped = mapped

        def same(path: str, size: int, mtime_ns: int, inode: int) -> bool:
            return comparison.same(path, size, mtime_ns, inode) and path not in mapped

        try:
            snapshot = scan(self.root, rules, same if mapped else comparison.same)
        except OSError as error:
            text = f"{self.root} cannot be read, nothing was sent or deleted: {error.strerror}"
            raise SyncFailedError(text, {self.root: error}) from error
        missing = really_missing(_vanished(comparison.missing(), snapshot), snapshot, known)
        return snapshot, Changes(snapshot.files, snapshot.same, missing)

    def _to_delete(self, changes: Changes, rules: Rules) -> list[str]:
        if self._options.delete:
            return changes.missing
        removed = tuple(
            f"{path}/" for path in (*self._options.removed(), *(rules.skip if self._options.disown else ()))
        )
        return [path for path in changes.missing if f"{path}/".startswith(removed)] if removed else []

    def _in_the_way(self, changes: Changes) -> list[str]:
        """Objects that are deleted in any case: a directory took the place of the file, or the reverse."""
        missing, known = set(changes.missing), self._manifest.known
        kept = (path for path in (known.files if known is not None else ()) if path not in missing)
        return in_the_way(changes.missing, [*kept, *(file.path for file in changes.send)])

    def _refuse_to_empty(self, deleted: Sequence[str], snapshot: Snapshot) -> None:
        """SyncFailedError if a pass would delete more files than it may."""
        if not deleted or not self._options.delete:
            return
        most = self._options.max_delete
        if most is None and (snapshot.files or snapshot.same):
            return
        if most is None or len(deleted) > most:
            why = f"max_delete is {most}." if most is not None else "no file is left in it: is a disk not mounted?"
            raise SyncFailedError(
                f"{self.root}: {len(deleted)} file(s) that are in {self.uri} vanished, and {why} Nothing was sent or "
                f"deleted; allow it with SyncConfig(max_delete={len(deleted)})"
            )

    def _transfer(self) -> TransferConfig:
        config = self._session.transfer
        if self._options.checksum or self._options.accepted is not None:
            config = replace(config, append_only=())
        if self._narrow:
            config = replace(config, max_concurrency=1, part_size=self._narrowest(config))
        return config

    def _narrowest(self, config: TransferConfig) -> int:
        least = max(NARROW_PART_SIZE, self._session.store.traits.min_part_size)
        return min(least, config.part_size or least)

    async def _check_that_it_is_new(self, store: Store) -> None:
        """CollisionError if the store cannot create only, and holds something below the prefix before our first
        byte."""
        if store.traits.conditional_writes or self._begun:
            return
        if (await store.list(self.prefix)).objects:
            raise CollisionError(
                f"{self.uri} holds something already: another process writes a checkpoint of this name"
            )
        self._begun = True

    async def _send(
        self, store: GuardedView, units: ReadyUnits, scanned: int, on_progress: OnProgress | None
    ) -> tuple[Tally, list[str]]:
        """Send the files of the pass. Returns the paths, too, that were sent and that no manifest may name yet."""
        session = self._session
        upload = self._upload = TreeUpload(
            store,
            self.prefix,
            self.root,
            self._transfer(),
            session.uploads,
            known=self._manifest.known,
            copy_sources=session.copy_sources,
            on_progress=on_progress,
            writes=Replacing(store) if self._options.accepted is None else Creating(store),
        )
        self._files = units.files
        works = [self._send_units(upload, units)]
        if self._options.fresh and sum(file.size for file in units.files) <= QUICK_BYTES:
            works.append(store.confirm_again())
        try:
            await run_all(works, "send")
        finally:
            dropped = units.settle(upload.tally)
            if upload.tally.entries:
                self._manifest.add_sent(upload.tally.entries, scanned)
        return upload.tally, dropped

    @staticmethod
    async def _send_units(upload: TreeUpload, units: ReadyUnits) -> None:
        for files in units.batches(upload.tally):
            if files:
                await upload.run(files)

    async def _commit(self, store: GuardedView, deleted: list[str], scanned: int) -> None:
        manifest, named = await self._manifest.commit(store, deleted, scanned, self._mapped)
        self._session.uploads.files_named(self.prefix, named)
        work = partial(sources_of, self.prefix, manifest.files)
        self._session.copy_sources.replace(
            self.prefix, work() if len(manifest.files) < MANY_FILES else await in_hasher(work)
        )

    async def _delete(self, store: Store, paths: list[str]) -> None:
        batches = delete_batches([self.prefix + path for path in paths])
        await for_each_limited(batches, store.delete, min(DELETE_REQUESTS, len(batches)))

    async def _delete_vanished(self, store: Store, dropped: list[str], tally: Tally) -> None:
        """Delete what was sent before it vanished, and ``dropped``, the rest of such units: no manifest names them."""
        uploads, known = self._session.uploads, self._manifest.known
        named = known.files if known is not None else {}
        sent = [path for path in tally.vanished if path not in named and uploads.sent(self.prefix + path) is not None]
        await self._delete(store, [*dropped, *sent])
        uploads.files_named(self.prefix, sent)

    def _report(
        self, snapshot: Snapshot, changes: Changes, tally: Tally, store: Store, started: float, deleted: int
    ) -> SyncReport:
        warnings = [*snapshot.warnings, *(f"{path}: vanished before it was read" for path in tally.vanished)]
        return SyncReport(
            files_sent=tally.files_sent,
            files_skipped=changes.skip + tally.files_unchanged,
            bytes_total=snapshot.bytes_total,
            bytes_sent=tally.bytes_sent,
            bytes_copied=tally.bytes_copied,
            files_copied=tally.files_copied,
            requests=store.requests,
            seconds=time.monotonic() - started,
            warnings=tuple(warnings),
            files_vanished=len(tally.vanished),
            files_left_out=snapshot.left_out,
            files_deleted=deleted,
        )


def _vanished(paths: list[str], snapshot: Snapshot) -> list[str]:
    """Of the paths that the scan did not find, those that cannot lie where the scan could not look."""
    hidden = tuple(f"{path}/" for path in [*snapshot.unread, *snapshot.refused, *snapshot.unready])
    return [path for path in paths if not f"{path}/".startswith(hidden)] if hidden else paths


def _drop(files: list[FileStat]) -> None:
    """In a worker thread: to free a million at once holds the interpreter, and with it the event loop, for 94 ms."""
    while files:
        del files[-MANY_FILES:]


def _raise_if_replaced(tally: Tally) -> None:
    """ConcurrentWriterError if the fence found another writer: that fails the pass, not one file."""
    for error in tally.failures.values():
        if isinstance(error, ConcurrentWriterError):
            raise error
