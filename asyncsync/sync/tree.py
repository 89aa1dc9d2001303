"""A tree: a local directory that is kept in step with one prefix of a store.

One pass at a time; the owner sees to that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncsync.aio.tasks import for_each
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.accepted_files import Accepted
from asyncsync.disk.mappings import mapped_and_when
from asyncsync.disk.scan import Rules, scan
from asyncsync.errors import (
    ConcurrentWriterError,
    NotFoundError,
    PreconditionError,
    SyncFailedError,
)
from asyncsync.planning.changes import SCANNED, Changes, Comparison, in_the_way
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import MANIFEST, FileEntry, Manifest
from asyncsync.planning.ranks import GENERATION, NONCE
from asyncsync.planning.snapshot import FileStat, Snapshot
from asyncsync.report import SyncReport
from asyncsync.runtime import wall_time
from asyncsync.stores.base import MISSING, Lane, Store
from asyncsync.stores.guard.fenced import Fence
from asyncsync.stores.guard.guarded import GuardedView
from asyncsync.stores.read import exists, versions_below
from asyncsync.sync.preview import Preview, SyncPlan
from asyncsync.sync.records.manifests import find_manifest, get_manifest
from asyncsync.sync.session import Session, delete_prefix
from asyncsync.sync.upload.create_only import CollisionError, Creating, Replacing
from asyncsync.sync.upload.tree_upload import OnProgress, Tally, TreeUpload

DELETED = 1000
"""Keys that one request deletes."""
DELETES_AT_ONCE = 4
SHOWN = 5
"""How many paths an error message names."""
NAMED = 20
"""How many files that are left out because of their names are named one by one."""
NARROW = 5 << 20
"""Bytes of the parts of an upload that was cut short before any of its parts was done."""


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How a tree is read and written. ``delete``: remove from the store what vanished locally."""

    rules: Callable[[], Rules] = Rules
    lane: Lane = Lane.ARTIFACT
    delete: bool = False
    max_delete: int | None = None
    """Most files that one pass may delete so; None: any number, but not all there are."""
    checksum: bool = False
    whole: bool = False
    """All or nothing: no manifest unless every file is in the store."""
    fresh: bool = False
    """The prefix is new and written once: nothing is fetched before, nothing kept in the journal after."""
    disown: bool = False
    """Delete from the store what was sent before its directory came under ``Rules.skip``: it is kept elsewhere now."""
    info: Mapping[str, Any] | None = None
    """What else goes into the manifest."""
    record: str = MANIFEST
    """Name of the manifest below the prefix; that of a rank where several write one checkpoint."""
    fence: Fence | None = None
    """Is asked before anything is written, and again before a manifest that makes a new prefix exist."""
    doubted: bool = False
    """A manifest that this process did not write is compared with a listing: its writer may have been replaced, or what
    it names may have been deleted or written over since."""
    accepted: Accepted | None = None
    """Just these files, in the state that this says, or nothing; ``rules`` do not count then."""
    begun: bool = False
    """Whether something of it may be in the store, sent by an earlier process."""


ID = "id"
"""Key in a manifest's info: tells a checkpoint from another one of the same name."""
IDENTITY = (ID, GENERATION, NONCE)
"""Keys of what must be the same in a manifest that is ours: a rank may have sent a part to another generation."""


def pair(root: str, uri: str, prefix: str) -> str:
    """Names a directory and the prefix that it is kept in step with, for the journal and for locks."""
    return f"{root} -> {uri.rstrip('/')}/{prefix}"


class Tree:
    """``prefix`` is relative to the session's store and ends in ``/`` (or is empty)."""

    __slots__ = (
        "_begun", "_files", "_from_journal", "_guessed", "_looked", "_manifest", "_mapped", "_narrow", "_options",
        "_reduced", "_sent", "_session", "_uncommitted", "_upload", "_version", "_view", "prefix", "root",
    )  # fmt: skip

    def __init__(self, session: Session, root: str, prefix: str, options: TreeOptions) -> None:
        self.root, self.prefix = root, prefix
        self._session, self._options = session, options
        self._manifest: Manifest | None = None
        self._version: str | None = MISSING if options.fresh else None
        self._from_journal = self._guessed = False
        self._uncommitted: Manifest | None = None
        """What earlier passes sent and no manifest names yet: they were cut short, and need not send it again."""
        self._upload: TreeUpload | None = None
        self._view: GuardedView | None = None
        self._mapped: frozenset[str] = frozenset()
        self._looked = 0
        """When the mappings were looked at; a file written since then may have been one of them."""
        self._narrow, self._begun = False, options.begun
        self._files: Sequence[FileStat] = ()
        self._reduced = False
        """Whether the stored manifest names what is not there as it says."""
        self._sent = 0
        """Bytes that the last pass sent, if it has ended well."""

    @property
    def identity(self) -> str:
        """Names this pair of directory and prefix in the journal."""
        return pair(self.root, self._session.uri, self.prefix)

    @property
    def uri(self) -> str:
        """Where the tree is stored."""
        return f"{self._session.uri.rstrip('/')}/{self.prefix}".rstrip("/")

    def progress(self) -> str:
        """How much of the running or last pass is done and what is missing, for people."""
        if self._upload is None:
            return f"{self.root} -> {self.uri}: nothing was sent yet"
        tally = self._upload.tally
        missing = tally.missing(self._files)
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        return (
            f"{self.root} -> {self.uri}: {tally.files_done} of {tally.files_total} files and {tally.bytes_sent} of "
            f"{tally.bytes_total} bytes were sent; missing: {names or 'only the manifest'}"
        )

    async def plan(self) -> SyncPlan:
        """What a sync would do now: reads the directory, what changed in it, and, at most, one manifest."""
        store = self._store()
        rules = self._options.rules()
        snapshot, changes = await self._compare(store, rules)
        known = self._known() or Manifest()
        preview = Preview(store, self.prefix, self.root, self._transfer(), known.files)
        files = await preview.of(changes.send)
        gone = sorted({*self._to_delete(changes, rules), *(await in_hasher(self._in_the_way, changes))})
        requests = store.requests + sum(file.requests for file in files) + -(-len(gone) // DELETED)
        if gone or self._manifest is None or any(file.action != "keep" for file in files):
            requests += 1  # the manifest
        unread = [f"{path}: it cannot be read: {error.strerror}" for path, error in snapshot.unread.items()]
        return SyncPlan(files, gone, changes.skip, snapshot.bytes_total, requests, (*snapshot.warnings, *unread))

    async def sync_once(self, on_progress: OnProgress | None = None) -> SyncReport:
        """Bring the prefix in step with the directory, one attempt.

        SyncFailedError names every file that is not durable (the others are); ConcurrentWriterError if somebody else
        wrote the prefix's manifest. A tree without changes costs a scan and no request.
        """
        started = time.monotonic()
        self._sent, store = 0, self._store()
        accepted = self._options.accepted
        scanned = int(wall_time() * 1e9) if accepted is None else accepted.looked
        rules = self._options.rules()
        snapshot, changes = await self._compare(store, rules)
        gone = self._to_delete(changes, rules)
        self._refuse_to_empty(gone, snapshot)
        scanned = min(scanned, self._looked) if self._looked else scanned
        if accepted is not None:
            await self._see_that_it_is_new(store)
        blocking = await in_hasher(self._in_the_way, changes) if changes.gone else []
        if blocking and store.traits.local:  # nothing can be written where they are
            await self._delete(store, blocking)
        gone = list(dict.fromkeys([*gone, *blocking]))
        tally = await self._send(store, changes.send, scanned, on_progress)
        _raise_if_lost(tally)
        tally.failures.update(snapshot.unread)
        if tally.failures and self._options.whole:
            await self._check_source(sent=False)
            raise self.failed(tally)
        await self._check_source(sent=True)
        if tally.entries or gone or self._manifest is None or self._uncommitted is not None or self._reduced:
            # an entry that was in doubt and could not be looked at again stays in doubt
            await self._commit(store, gone, self._scanned() if tally.failures else scanned)
        if gone:
            await self._delete(store, gone)
        if tally.failures:
            raise self.failed(tally)
        self._sent = self.moved
        self._upload, self._view, self._files = None, None, ()  # an idle tree holds no more than its manifest
        return self._report(snapshot, changes, tally, store, started, len(gone))

    async def delete_remote(self) -> int:
        """Delete the prefix: manifest first, then its data."""
        count = await delete_prefix(self._store(), self.prefix)
        self._forget()
        self._session.journal.forget_tree(self.identity)
        self._session.catalogue.forget(self.prefix)
        return count

    async def manifest(self) -> Manifest | None:
        """The prefix's manifest as the store has it now."""
        self._forget()
        self._from_journal = False
        await self._fetch(self._store())
        return self._manifest

    def say(self, info: Mapping[str, Any]) -> None:
        """What else goes into the manifest that is not written yet."""
        self._options = replace(self._options, info=info)

    async def recheck(self) -> None:
        """Somebody who was replaced may have written over what we sent: what is not there as the last manifest says is
        sent again by the next pass. One listing."""
        store = self._store()
        await self._load(store)
        await self._drop_what_differs(store)

    async def _drop_what_differs(self, store: Store) -> None:
        if self._manifest is None:
            return
        there = await versions_below(store, self.prefix)
        files = {path: entry for path, entry in self._manifest.files.items() if there.get(path) == entry.version}
        self._reduced = self._reduced or len(files) < len(self._manifest.files)
        self._manifest = Manifest(files, self._manifest.info, self._manifest.extra)

    def adopt(self, manifest: Manifest, version: str) -> None:
        """Take over a manifest that was just read from the store."""
        self._manifest, self._version = manifest, version
        self._from_journal = self._guessed = False

    async def has_below(self, name: str) -> bool:
        """Whether something that was sent and not deleted lies in this directory of the prefix."""
        known = [self._known()]
        if self._manifest is None:
            known.append(await find_manifest(self._session.view(self._options.lane, self.prefix), self.prefix))
        paths = (path for manifest in known if manifest is not None for path in manifest.files)
        return any(path == name or path.startswith(f"{name}/") for path in paths)

    def expect_nothing(self) -> None:
        """The prefix is new, as far as its owner knows: no manifest is looked for before there is one to write. Should
        one be there, the conditional write finds it, and it is taken over then."""
        if self._version is None and self._session.store.traits.conditional_writes:
            self._version, self._guessed = MISSING, True

    def failed(self, tally: Tally) -> SyncFailedError:
        """The error that names what is not durable."""
        lines = [f"{path}: {error}" for path, error in list(tally.failures.items())[:SHOWN]]
        more = len(tally.failures) - len(lines)
        text = "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
        count = len(tally.failures)
        return SyncFailedError(f"{count} file(s) of {self.root} are not in {self.uri}: {text}", tally.failures)

    @property
    def _key(self) -> str:
        return self.prefix + self._options.record

    def _forget(self) -> None:
        self._manifest = self._version = None

    def _store(self) -> GuardedView:
        store = self._view = self._session.view(self._options.lane, self.prefix, self._options.fence)
        return store

    @property
    def moved(self) -> int:
        """Bytes of the running or last pass that the store has acknowledged."""
        if self._upload is None:
            return self._sent
        return self._upload.tally.bytes_sent + self._upload.tally.bytes_copied

    @property
    def moves(self) -> bool:
        """Whether bytes of the running or last pass were on their way."""
        return self.moved > 0 or (self._view is not None and self._view.steps > 0)

    def send_less_at_once(self) -> None:
        """From now on one file at a time, in the smallest parts, so that some are done before the time is over."""
        self._narrow = True

    async def _check_source(self, *, sent: bool) -> None:
        """That a checkpoint's files still are what was accepted, and what was ``sent``, if everything was."""
        accepted = self._options.accepted
        if accepted is None:
            return
        entries = self._uncommitted.files if self._uncommitted is not None else {}

        def check() -> None:
            accepted.check({path: entry.crc32c for path, entry in entries.items()} if sent else None)

        await in_hasher(check)

    async def _load(self, store: Store) -> None:
        """Know the last manifest: from memory, else the journal, else the store."""
        if self._version is not None:
            return
        self._guessed = False
        if self._options.fresh:
            await self._fetch(store)
            return
        state = await self._session.journal.load_tree(self.identity)
        if state.manifest is not None and state.version is not None:
            try:
                self._manifest = await in_hasher(Manifest.from_bytes, state.manifest)
            except DocumentError:
                self._session.journal.forget_tree(self.identity)
            else:
                self._version, self._from_journal = state.version, True
                return
        await self._fetch(store)

    async def _fetch(self, store: Store) -> None:
        try:
            await store.head(self._key)  # most often there is none, and a HEAD says so for less
            found = await get_manifest(store, self._key)
        except NotFoundError:
            found = None
        self._manifest, self._version = found if found is not None else (None, MISSING)
        if self._options.doubted:
            await self._drop_what_differs(store)

    async def _compare(self, store: Store, rules: Rules) -> tuple[Snapshot, Changes]:
        """The directory beside the last manifest."""
        await self._load(store)
        if self._options.accepted is not None:
            return self._rest(self._options.accepted, store)
        snapshot, changes = await in_hasher(self._look, rules, self._known())
        if self._from_journal:
            snapshot, changes = await self._confirm(store, snapshot, changes)
        return snapshot, self._leave_out_names(snapshot, changes, store, single=rules.only is not None)

    def _rest(self, accepted: Accepted, store: Store) -> tuple[Snapshot, Changes]:
        """What was accepted and has not been sent yet."""
        sent = self._uncommitted.files if self._uncommitted is not None else {}
        files = [file for file in accepted.files if file.path not in sent]
        snapshot = Snapshot(files, list(accepted.warnings), same=len(accepted.files) - len(files))
        snapshot.bytes_total = accepted.size
        self._refuse_names(snapshot, store)
        return snapshot, Changes(files, snapshot.same, [])

    async def _confirm(self, store: Store, snapshot: Snapshot, changes: Changes) -> tuple[Snapshot, Changes]:
        """Ask once a process whether the manifest in the journal still stands.

        It may be out of date, or of another server under the same name; who trusts it calls an emptied store in step.
        """
        self._from_journal = False
        try:
            stands = (await store.head(self._key)).version == self._version
        except NotFoundError:
            stands = False
        if stands:
            return snapshot, changes
        self._forget()
        await self._fetch(store)
        return await in_hasher(self._look, self._options.rules(), self._known())

    def _to_delete(self, changes: Changes, rules: Rules) -> list[str]:
        if self._options.delete or not self._options.disown:
            return changes.gone if self._options.delete else []
        return [path for path in changes.gone if any(path.startswith(f"{skipped}/") for skipped in rules.skip)]

    def _in_the_way(self, changes: Changes) -> list[str]:
        """What goes in any case: it was a file where a directory is now, or the other way round."""
        gone, known = set(changes.gone), self._known()
        kept = (path for path in (known.files if known is not None else ()) if path not in gone)
        return in_the_way(changes.gone, [*kept, *(file.path for file in changes.send)])

    def _refuse_to_empty(self, gone: Sequence[str], snapshot: Snapshot) -> None:
        """SyncFailedError if more is to be deleted than may be."""
        if not gone or not self._options.delete:
            return
        most = self._options.max_delete
        if most is None and (snapshot.files or snapshot.same):
            return
        if most is None or len(gone) > most:
            why = f"max_delete is {most}." if most is not None else "no file is left in it: is a disk not mounted?"
            raise SyncFailedError(
                f"{self.root}: {len(gone)} file(s) that are in {self.uri} vanished, and {why} Nothing was sent or "
                f"deleted; allow it with SyncConfig(max_delete={len(gone)})"
            )

    def _leave_out_names(self, snapshot: Snapshot, changes: Changes, store: Store, *, single: bool) -> Changes:
        """What no store could hold is named and left out, and the rest goes. SyncFailedError if it is a ``single`` file
        that was to be sent."""
        bad = dict.fromkeys(snapshot.refused, "the name is not UTF-8, or longer than a path may be")
        bad |= self._too_long(snapshot.files, store)
        if not bad:
            return changes
        if single:
            raise _refused_names(self.root, bad)
        snapshot.warnings += [f"{path!r}: left out, {why}" for path, why in list(bad.items())[:NAMED]]
        if len(bad) > NAMED:
            snapshot.warnings.append(f"{len(bad) - NAMED} more files were left out because of their names")
        snapshot.left_out = len(bad)
        snapshot.bytes_total -= sum(file.size for file in snapshot.files if file.path in bad)
        snapshot.files = [file for file in snapshot.files if file.path not in bad]
        return replace(changes, send=snapshot.files)

    def _too_long(self, files: Iterable[FileStat], store: Store) -> dict[str, str]:
        most = longest_path(store, self.prefix)
        why = f"the name is longer than the store allows ({most} bytes here)"
        return {file.path: why for file in files if len(file.path) * 4 > most and len(file.path.encode()) > most}

    def _refuse_names(self, snapshot: Snapshot, store: Store) -> None:
        """A checkpoint leaves nothing out; SyncFailedError."""
        bad = self._too_long(snapshot.files, store)
        if bad:
            raise _refused_names(self.root, bad)

    def _transfer(self) -> TransferConfig:
        config = self._session.transfer
        if self._options.checksum or self._options.accepted is not None:
            config = replace(config, append_only=())
        if self._narrow:
            config = replace(config, max_concurrency=1, part_size=self._narrowest(config))
        return config

    def _narrowest(self, config: TransferConfig) -> int:
        least = max(NARROW, self._session.store.traits.min_part_size)
        return min(least, config.part_size or least)

    async def _see_that_it_is_new(self, store: Store) -> None:
        """Where the store cannot create only, nothing may be there before the first byte of ours; CollisionError."""
        if store.traits.conditional_writes or self._begun:
            return
        if (await store.list(self.prefix)).objects:
            raise CollisionError(
                f"{self.uri} holds something already: another process writes a checkpoint of this name"
            )
        self._begun = True

    def _known(self) -> Manifest | None:
        """The last manifest, and what has been sent since."""
        if self._uncommitted is None:
            return self._manifest
        files = self._manifest.files if self._manifest is not None else {}
        return Manifest({**files, **self._uncommitted.files}, self._uncommitted.info)

    def _scanned(self) -> int:
        """When the scan was that the last manifest goes back to; 0: every file is in doubt."""
        return int(self._manifest.info.get(SCANNED, 0)) if self._manifest is not None else 0

    def _look(self, rules: Rules, known: Manifest | None) -> tuple[Snapshot, Changes]:
        """In a worker thread: what is there, and what of it is new."""
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
        return snapshot, Changes(snapshot.files, snapshot.same, _gone(comparison.gone(), snapshot))

    async def _send(self, store: Store, files: list[FileStat], scanned: int, on_progress: OnProgress | None) -> Tally:
        session = self._session
        upload = self._upload = TreeUpload(
            store,
            self.prefix,
            self.root,
            self._transfer(),
            session.uploads,
            known=self._known(),
            catalogue=session.catalogue,
            on_progress=on_progress,
            writes=Replacing(store) if self._options.accepted is None else Creating(store),
        )
        self._files = files
        try:
            if files:
                await upload.run(files)
        finally:
            if upload.tally.entries:
                earlier = self._uncommitted or Manifest({}, {SCANNED: scanned})
                self._uncommitted = Manifest({**earlier.files, **upload.tally.entries}, earlier.info)
        return upload.tally

    async def _commit(self, store: GuardedView, gone: list[str], scanned: int) -> None:
        """Replace the manifest, after everything that it names. Nothing is written if only times have changed."""
        fresh = self._uncommitted.files if self._uncommitted is not None else {}
        new, data, differs = await in_hasher(self._next, gone, scanned)
        version = self._version
        if differs:
            try:
                version = await self._write(store, data)
            except ConcurrentWriterError:
                if not self._guessed:
                    raise
                self._guessed = False
                await self._fetch(store)
                await self._commit(store, gone, scanned)
                return
        self._guessed = self._reduced = False
        self._manifest, self._version, self._uncommitted = new, version, None
        self._session.catalogue.remember(self.prefix, new.files)
        for path in fresh:
            self._session.uploads.file_named(self.prefix + path)
        if not self._options.fresh:
            self._session.journal.save_tree(self.identity, data, version or MISSING)

    def _next(self, gone: list[str], scanned: int) -> tuple[Manifest, bytes, bool]:
        """In a worker thread: the next manifest, its document, and whether more than times differ from the last."""
        last = self._manifest
        old = last.files if last is not None else {}
        fresh = self._uncommitted.files if self._uncommitted is not None else {}
        files = {**old, **fresh}
        for path in gone:
            files.pop(path, None)
        for path in self._mapped & files.keys():
            files[path] = replace(files[path], inode=0)  # its time says nothing while it is written through memory
        info = last.info if last is not None else self._options.info or {}
        differs = (
            last is None
            or self._reduced
            or bool(gone)
            or any(_differs(old.get(path), entry) for path, entry in fresh.items())
        )
        new = Manifest(files, {**info, SCANNED: scanned}, last.extra if last is not None else {})
        return new, new.to_bytes(), differs

    async def _write(self, store: GuardedView, data: bytes) -> str:
        self._begun = True
        if self._options.fresh:
            store.renew_lease()
        version, self._version = self._version, None  # not known while it is written: a broken off put may have landed
        try:
            if self._options.accepted is not None:
                return await self._create(store, data)
            return (await store.put(self._key, data, if_version=version)).version
        except PreconditionError as error:
            self._session.journal.forget_tree(self.identity)
            where = f"{store.uri}/{self.prefix}"
            raise ConcurrentWriterError(
                f"{where}: somebody else has written its manifest since we read it; only one process may sync a prefix"
            ) from error

    async def _create(self, store: Store, data: bytes) -> str:
        """The manifest that makes a checkpoint exist; CollisionError if another checkpoint has one there."""
        try:
            if not store.traits.conditional_writes and await exists(store, self._key):
                raise PreconditionError(f"{self._key} is there already")
            return (await store.put(self._key, data, if_version=MISSING)).version
        except PreconditionError as error:
            there = await find_manifest(store, self.prefix, self._options.record)
            ours = self._options.info or {}
            if there is None or ID not in ours or any(there.info.get(key) != ours.get(key) for key in IDENTITY):
                raise CollisionError(
                    f"{self.uri} is a checkpoint of another process: nothing of it was written over"
                ) from error
            return (await store.head(self._key)).version

    async def _delete(self, store: Store, paths: list[str]) -> None:
        keys = [self.prefix + path for path in paths]
        batches = [keys[start : start + DELETED] for start in range(0, len(keys), DELETED)]
        await for_each(batches, store.delete, min(DELETES_AT_ONCE, len(batches)))

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


def longest_path(store: Store, prefix: str) -> int:
    """Bytes that a path below ``prefix`` may have; what the store's own prefix takes is not there for it."""
    above = store.uri.partition("://")[2].partition("/")[2]
    return store.traits.max_key_bytes - len(f"{above}/{prefix}".encode())


def _gone(paths: list[str], snapshot: Snapshot) -> list[str]:
    """Of those that were not met, the ones that cannot lie where the scan could not look."""
    hidden = tuple(f"{path}/" for path in [*snapshot.unread, *snapshot.refused])
    return [path for path in paths if not f"{path}/".startswith(hidden)] if hidden else paths


def _refused_names(root: str, bad: Mapping[str, str]) -> SyncFailedError:
    names = ", ".join(repr(path) for path in list(bad)[:SHOWN])
    text = f"{root}: nothing was sent, the store could not hold these names: {names}"
    return SyncFailedError(text, {path: ValueError(why) for path, why in bad.items()})


def _raise_if_lost(tally: Tally) -> None:
    """Not one file's failure but everybody's: the fence says that somebody else is the writer."""
    for error in tally.failures.values():
        if isinstance(error, ConcurrentWriterError):
            raise error


def _differs(old: FileEntry | None, new: FileEntry) -> bool:
    return old is None or (old.size, old.crc32c, old.parts, old.version) != (
        new.size,
        new.crc32c,
        new.parts,
        new.version,
    )
