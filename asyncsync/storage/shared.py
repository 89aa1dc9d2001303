"""A checkpoint whose directory and name a framework chooses, and that any number of its processes write.

Every process records its intent to write before its first byte, and the files that it has written (its part) after its
last one. The process that knows which ones took part commits the checkpoint: it writes the manifest. A process
that writes a checkpoint alone commits it itself. Files are only ever created, so a late request of a replaced process
changes nothing that a manifest names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsync.aio.retry import RetryHooks, retry_transient
from asyncsync.aio.tasks import for_each_limited, run_all
from asyncsync.aio.threads import in_thread
from asyncsync.disk.accepted_files import Accepted
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    ConfigError,
    PreconditionError,
)
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.rank_agreement import SameFileError, merge
from asyncsync.report import SyncReport
from asyncsync.runtime import token, wall_time
from asyncsync.storage.entries import ATTEMPT, INTENTS, PARTS
from asyncsync.stores.base import MISSING, Lane, ObjectInfo, Store, delete_batches
from asyncsync.stores.read import exists, find, list_all, uri_of
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.sync.session import ABANDON, Session
from asyncsync.sync.tree import Tree, TreeOptions
from asyncsync.sync.tree_manifest import ID
from asyncsync.sync.upload.create_only import CollisionError

log = logging.getLogger("asyncsync")

READERS = 32
"""Parts or intents that are read in parallel."""
MOST_COLLISIONS = 100
"""Objects of earlier attempts that one upload replaces before it gives up."""
ALONE = "alone.json"
"""Below INTENTS: the record of a process that writes a checkpoint alone. One name for all of them, so that the next
attempt sees it without a listing."""
_IDENTITY = re.compile(r"[0-9A-Za-z_.-]{1,100}")


@dataclass(frozen=True, slots=True)
class Writer:
    """One of the processes that write a checkpoint together.

    ``attempt`` is the same for all of them and for no other group of processes, ever; ``process`` is different for
    every process. Both are 1 to 100 letters, digits, ``-``, ``_`` and ``.``; ConfigError for anything else.
    """

    attempt: str
    process: str
    rank: int = 0

    def __post_init__(self) -> None:
        for name in (self.attempt, self.process):
            if not _IDENTITY.fullmatch(name):
                raise ConfigError(f"{name!r} cannot identify a writer: must be 1 to 100 letters, digits, - _ .")

    @property
    def name(self) -> str:
        """Below INTENTS and PARTS: the name of its record."""
        return f"{self.attempt}/{self.rank:05d}-{self.process}.json"


@dataclass(slots=True)
class CheckpointUpload:
    """The upload of one process's files of a checkpoint. ``alone``: no other process takes part, so it commits."""

    session: Session
    prefix: str
    source: Accepted
    writer: Writer
    alone: bool
    info: Mapping[str, Any]
    patience: float
    """Seconds for which transient errors are retried."""
    may_replace: Callable[[], Awaitable[bool]] | None = None
    """Asked before anything of an earlier attempt is replaced, apart from what it never completed; None: it is."""

    async def run(self) -> SyncReport:
        """Upload, and commit if ``alone``.

        If the process is killed or this fails, its open uploads are aborted: here, or by the next process of this
        machine that has the storage path open.
        """
        uploads = self.session.uploads
        number = uploads.in_hand(ABANDON, prefix=self.prefix)
        try:
            report = await self._run()
        except BaseException:
            uploads.unsure(number)  # now due
            raise
        uploads.intention_done(number)
        return report

    async def _run(self) -> SyncReport:
        give_up = asyncio.get_running_loop().time() + self.patience
        hooks = RetryHooks(lambda _: asyncio.get_running_loop().time() < give_up, self.session.breaker.wait_to_retry)
        await retry_transient(self._begin, hooks)
        tree = Tree(self.session, self.source.root, self.prefix, self._options())
        return await retry_transient(lambda: self._send(tree), hooks)

    @property
    def record(self) -> str:
        """Below the prefix: the object that names our files."""
        return MANIFEST if self.alone else PARTS + self.writer.name

    @property
    def _store(self) -> Store:
        return self.session.view(Lane.CHECKPOINT, self.prefix)

    def _options(self) -> TreeOptions:
        info = {
            **self.info,
            ID: token(),
            "time": wall_time(),
            ATTEMPT: self.writer.attempt,
        }
        return TreeOptions(
            lane=Lane.CHECKPOINT,
            whole=True,
            fresh=True,
            info=info,
            record=self.record,
            accepted=self.source,
            begun=True,
        )

    async def _begin(self) -> None:
        """Record the intent, and remove objects of an earlier attempt that are in the way."""
        if self.alone:
            await self._begin_alone(self._store)
        else:
            await self._begin_together(self._store)

    async def _begin_alone(self, store: Store) -> None:
        """One request where no earlier attempt has left anything."""
        if store.traits.conditional_writes and await self._is_first():
            return
        await self._intend()  # first, so that an earlier process which still runs finds that it was replaced
        stored = await list_all(store, self.prefix)
        if self.prefix + MANIFEST in stored:
            await self._replace_manifest(store)
        stored.pop(self._intent, None)
        await delete_keys(store, self.prefix, stored)

    async def _is_first(self) -> bool:
        try:
            await self._intend(MISSING)
        except PreconditionError:
            return False
        return True

    async def _begin_together(self, store: Store) -> None:
        found: set[str] = set()

        async def look(name: str) -> None:
            if await exists(store, self.prefix + name):
                found.add(name)

        await run_all([self._intend(), look(MANIFEST), look(self.record)], "begin a checkpoint")
        if MANIFEST in found:
            await self._replace_manifest(store)
        if self.record in found:
            await store.delete([self.prefix + self.record])

    @property
    def _intent(self) -> str:
        return self.prefix + INTENTS + (ALONE if self.alone else self.writer.name)

    async def _intend(self, if_version: str | None = None) -> None:
        files = [file.path for file in self.source.files]
        document = {"rank": self.writer.rank, ATTEMPT: self.writer.attempt, "files": files}
        await self._store.put(self._intent, json.dumps(document).encode() + b"\n", if_version=if_version)

    async def _replace_manifest(self, store: Store) -> None:
        """Delete the manifest of an earlier attempt, so that nothing names the objects that this one replaces.
        ConcurrentWriterError if that is not allowed."""
        manifest = await find_manifest(store, self.prefix)
        if manifest is None:
            return
        uri = uri_of(store, self.prefix).rstrip("/")
        if manifest.info.get(ATTEMPT) == self.writer.attempt and not self.alone:
            raise ConcurrentWriterError(
                f"{uri} is committed already, by these processes: give every checkpoint a name of its own"
            )
        if self.may_replace is not None and not await self.may_replace():
            raise ConcurrentWriterError(
                f"{uri} is a registered checkpoint, which is never replaced: give this checkpoint another name"
            )
        await store.delete([self.prefix + MANIFEST])

    async def _send(self, tree: Tree) -> SyncReport:
        for _ in range(MOST_COLLISIONS):
            try:
                return await tree.sync_once()
            except CollisionError as error:
                if self.alone:
                    await self._check_not_replaced(error)
                if error.key:
                    await self._make_way(error)
                elif self.alone:
                    await self._replace_manifest(self._store)
                else:
                    raise
        raise ConcurrentWriterError(f"{tree.uri}: another process keeps writing there: end it, then report again")

    async def _check_not_replaced(self, collision: CollisionError) -> None:
        """ConcurrentWriterError unless ours is the last intent: otherwise a later process is the writer now."""
        data = await find(self._store, self._intent)
        if data is None or json.loads(data).get(ATTEMPT) != self.writer.attempt:
            raise ConcurrentWriterError(
                f"{uri_of(self._store, self.prefix).rstrip('/')} is written by a process that began later: end this one"
            ) from collision

    async def _make_way(self, collision: CollisionError) -> None:
        """Delete an object that an earlier attempt has left in the way of ours. ConcurrentWriterError if another rank
        of our attempt is writing it."""
        store, path = self._store, collision.key[len(self.prefix) :]
        for rank in await self._ranks_that_write(path):
            raise ConcurrentWriterError(
                f"{uri_of(store, self.prefix).rstrip('/')}: ranks {min(rank, self.writer.rank)} and "
                f"{max(rank, self.writer.rank)} both wrote {path!r} with different content: give the files of the "
                "ranks different names"
            ) from collision
        if self.may_replace is not None and not await self.may_replace():
            raise ConcurrentWriterError(
                f"{uri_of(store, collision.key)} was written by a process that must not be replaced: end this one"
            ) from collision
        await store.delete([collision.key])

    async def _ranks_that_write(self, path: str) -> list[int]:
        """The other ranks of our attempt that intend to write ``path``."""
        store, found = self._store, list[int]()

        async def read(key: str) -> None:
            data = await find(store, key)
            intent = json.loads(data) if data is not None else {}
            if intent.get("rank") != self.writer.rank and path in intent.get("files", ()):
                found.append(intent["rank"])

        keys = await list_all(store, f"{self.prefix}{INTENTS}{self.writer.attempt}/")
        await for_each_limited(list(keys), read, READERS)
        return sorted(found)


async def commit(session: Session, prefix: str, attempt: str, processes: Mapping[int, str]) -> Manifest:
    """Write the manifest of a checkpoint from the parts of one attempt. See :meth:`Storage.commit_checkpoint`."""
    store = session.view(Lane.CHECKPOINT, prefix)
    stored = await list_all(store, prefix)
    where = uri_of(store, prefix).rstrip("/")
    if prefix + MANIFEST in stored:
        manifest = await find_manifest(store, prefix)
        if manifest is not None and manifest.info.get(ATTEMPT) == attempt:
            return manifest
        raise ConcurrentWriterError(f"{where} was committed by another attempt: nothing of it was replaced")
    parts = await _read_parts(store, prefix, attempt, processes, stored)
    if not parts:
        raise CheckpointIncompleteError(
            f"checkpoint {where} is incomplete: no rank of attempt {attempt} has completed its part. Report it again"
        )
    try:
        manifest = merge(parts)
    except SameFileError as error:
        raise ConcurrentWriterError(f"{where} was not committed: {error}") from error
    if not manifest.files:
        raise CheckpointIncompleteError(
            f"checkpoint {where} is incomplete: no rank of attempt {attempt} reported a file. Report files"
        )
    _check_stored(where, prefix, manifest, stored)
    await _put_manifest(store, prefix, manifest)
    session.copy_sources.remember(prefix, manifest.files)
    await _remove_strays(store, prefix, manifest, stored)
    return manifest


async def _read_parts(
    store: Store, prefix: str, attempt: str, processes: Mapping[int, str], stored: Mapping[str, ObjectInfo]
) -> dict[int, Manifest]:
    """The parts of the processes that took part, by rank."""
    parts: dict[int, Manifest] = {}

    async def read(rank: int) -> None:
        key = PARTS + Writer(attempt, processes[rank], rank).name
        part = await find_manifest(store, prefix, key) if prefix + key in stored else None
        if part is not None:
            parts[rank] = part

    await for_each_limited(sorted(processes), read, READERS)
    return parts


def _check_stored(where: str, prefix: str, manifest: Manifest, stored: Mapping[str, ObjectInfo]) -> None:
    """CheckpointIncompleteError unless the listing has every file as it was written. A process of an earlier attempt
    that still runs may have replaced one, by another of the same size."""
    for path, entry in manifest.files.items():
        info = stored.get(prefix + path)
        if info is None:
            wrong = "is missing"
        elif info.size != entry.size:
            wrong = f"has {info.size} bytes instead of {entry.size}"
        elif info.version != entry.version:
            wrong = "was replaced by another process"
        else:
            continue
        raise CheckpointIncompleteError(f"checkpoint {where} is incomplete: {path} {wrong}. Report it again")


async def _put_manifest(store: Store, prefix: str, manifest: Manifest) -> None:
    data = await in_thread(manifest.to_bytes)
    try:
        await store.put(prefix + MANIFEST, data, if_version=MISSING)
    except PreconditionError as error:
        if await find(store, prefix + MANIFEST) != data:
            raise ConcurrentWriterError(
                f"{uri_of(store, prefix).rstrip('/')} was not committed: another process wrote a different manifest"
            ) from error


async def _remove_strays(store: Store, prefix: str, manifest: Manifest, stored: Mapping[str, ObjectInfo]) -> None:
    """Delete objects of earlier attempts, and the records of this one: the manifest has replaced them."""
    named = {prefix + path for path in manifest.files}
    try:
        await delete_keys(store, prefix, [key for key in stored if key not in named])
    except AsyncsyncError as error:
        log.warning("%s: files of earlier attempts remain, no manifest names them: %s", uri_of(store, prefix), error)


async def delete_keys(store: Store, prefix: str, keys: Mapping[str, ObjectInfo] | Sequence[str]) -> None:
    """Delete these keys of a checkpoint. The manifest goes first, the intents last: a checkpoint that is deleted in
    part still counts as incomplete."""
    if prefix + MANIFEST in keys:
        await store.delete([prefix + MANIFEST])
    intents = [key for key in keys if key.startswith(prefix + INTENTS)]
    others = [key for key in keys if key != prefix + MANIFEST and not key.startswith(prefix + INTENTS)]
    for group in (others, intents):
        for batch in delete_batches(group):
            await store.delete(batch)
