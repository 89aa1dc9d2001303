"""What the trees of one engine share: the store behind its guard, the budget, the journal, the open uploads."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync.aio.tasks import together
from asyncsync.aio.threads import worker_threads
from asyncsync.config import TransferConfig
from asyncsync.disk.journal import Journal, state_dir
from asyncsync.disk.locks import TreeLocks
from asyncsync.errors import AccessDeniedError, ConcurrentWriterError, NotFoundError, StoreError
from asyncsync.planning.manifest import MANIFEST, META_DIR
from asyncsync.runtime import lease_time, need_asyncio
from asyncsync.stores import open_store
from asyncsync.stores.base import Lane, Store, Upload
from asyncsync.stores.guard.breaker import Breaker
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.checksum_probe import probe_checks
from asyncsync.stores.guard.fenced import Fence, FencedView
from asyncsync.stores.guard.guarded import GuardedStore, GuardedView
from asyncsync.stores.guard.retry import RetryPolicy
from asyncsync.stores.read import find
from asyncsync.sync.records.model import TRIAL_RECORD, TrialRecord
from asyncsync.sync.upload.copy_sources import Catalogue
from asyncsync.sync.upload.open_uploads import ABORT, OpenUploads

log = logging.getLogger("asyncsync")
DELETE, SWEEP = "delete", "sweep"
PATIENCE = 20.0
"""Seconds that a request waits for a store that is gone; whole syncs are tried again after that by the engine."""
PROBE = f"{META_DIR}/probe"
MARKER = b"asyncsync was here to see whether it may write and read\n"


@dataclass(slots=True)
class Session:
    """Open with :meth:`open`, free with :meth:`close`."""

    uri: str
    transfer: TransferConfig
    inner: Store
    """The store without retries and limits: for asking what it does."""
    store: GuardedStore
    budget: Budget
    journal: Journal
    uploads: OpenUploads
    locks: TreeLocks
    """The trees of this machine that only this process may work on."""
    catalogue: Catalogue
    """What was written in this session and may be copied from."""
    resources: ExitStack
    local: Store | None = None
    """The store itself, if it is a directory of this machine."""
    presence: int | None = None
    """What the journal says of this process for as long as it is there."""
    nonce: str = ""
    """Of the experiment, if it is one's."""
    fence_of: Callable[[str], Fence | None] = field(default=lambda _: None)
    """For a key: what says whether we may write there; None: nobody is known to ask."""
    on_deleted: Callable[[str, str], None] = field(default=lambda _trial, _name: None)
    """Hears of a trial's checkpoint that is gone from the store, as it was owed."""
    on_warning: Callable[[str], None] = field(default=lambda message: log.warning("%s", message))
    """Hears of clean-up that failed and stays owed."""

    @classmethod
    async def open(
        cls,
        uri: str,
        transfer: TransferConfig,
        storage_options: Mapping[str, object] | None = None,
        *,
        journal_path: Path | None = None,
    ) -> Session:
        """Connects nothing yet; ConfigError for a URI or option that is not known, and where asyncio does not run."""
        need_asyncio()
        inner = open_store(uri, options=dict(storage_options or {}), transfer=transfer)
        budget = Budget(
            max_concurrency=transfer.max_concurrency,
            bandwidth_limit=transfer.bandwidth_limit,
            memory_limit=transfer.memory_limit,
        )
        store = GuardedStore(inner, budget, retry=RetryPolicy(attempts=transfer.max_attempts, patience=PATIENCE))
        journal = Journal.open(journal_path or state_dir() / "journal.sqlite3")
        uploads = OpenUploads(uri, journal)
        with ExitStack() as resources:
            resources.enter_context(worker_threads(transfer.threads))
            await journal.__aenter__()
            locks = TreeLocks()
            resources.callback(locks.close)
            held = resources.pop_all()
            session = cls(uri, transfer, inner, store, budget, journal, uploads, locks, Catalogue(), held)
        try:
            await uploads.load()
        except BaseException:
            await session.close()
            raise
        if inner.traits.local:  # if this process is killed, the next one sweeps up after it
            session.local, session.presence = inner, uploads.in_hand(SWEEP)
        return session

    async def close(self) -> None:
        """Free connections, and the journal's thread after what it holds is on disk."""
        with self.resources:
            try:
                if self.presence is not None:
                    self.uploads.settled(self.presence)
                await self.store.close()
            finally:
                await self.journal.__aexit__(None, None, None)

    def view(self, lane: Lane, owner: str, fence: Fence | None = None) -> GuardedView:
        """The store for one tree: its requests are counted and take their turn by ``lane`` and ``owner``. ``fence`` is
        asked before anything is written."""
        return self.store.view(lane, owner) if fence is None else FencedView(self.store, lane, owner, fence)

    async def probe(self) -> None:
        """Write and read a marker, so that a wrong bucket or a missing permission shows at start."""
        store = self.view(Lane.RECORD, "")
        await self._may("write", store.put(PROBE, MARKER))
        await together((self._may("read", store.get(PROBE)), self._see_what_it_checks()), "probe")

    async def _see_what_it_checks(self) -> None:
        checks = await probe_checks(self.inner, PROBE, MARKER)
        if checks != "crc32c" and not self.store.traits.local:
            best = "the MD5 that it answers is compared" if checks == "etag" else "its files are checked when read back"
            log.warning("%s does not check the CRC32C of what is sent: %s", self.uri, best)

    async def _may(self, verb: str, request: Awaitable[object]) -> None:
        try:
            await request
        except (AccessDeniedError, NotFoundError) as error:
            error.add_note(f"asyncsync must be able to {verb} below {self.uri}: check the address and the permissions")
            raise

    @property
    def breaker(self) -> Breaker:
        """Knows whether the store is there."""
        return self.store.core.breaker

    async def watch(self) -> None:
        """While the store is gone, one request of ours waits for its turn to ask, so that it is noticed that it is back
        when everybody else waits out a failure, too. Ends only by cancel."""
        store = self.view(Lane.RECORD, "")
        while True:
            await self.breaker.opened.wait()
            with suppress(StoreError):  # still gone, or there is an answer: either way the breaker knows
                await store.head(PROBE)

    def owe_delete(self, trial: str, name: str, nonce: str) -> None:
        """A checkpoint that the record of this very trial gives up is to go, as soon as the janitor comes to it."""
        prefix = f"{trial}/{name}/"
        self.journal.owe(self.uri, DELETE, json.dumps({"trial": trial, "name": name, "nonce": nonce}))
        self.uploads.abandon_below(prefix)
        self.catalogue.forget(prefix)

    async def clean_up(self) -> int:
        """Pay what is owed to the store: aborts, deletions, sweeping up after a killed process. What fails stays owed.
        Returns how many were paid."""
        store = self.view(Lane.ARTIFACT, "janitor")
        paid = 0
        for owed in await self.journal.owed(self.uri):
            payload = json.loads(owed.payload)
            if self.uploads.is_in_hand(owed):
                continue
            try:
                if owed.kind == ABORT:
                    await self._abort(store, payload)
                elif owed.kind == DELETE:
                    await self._delete(payload)
                elif owed.kind == SWEEP and self.local is not None:
                    await self.local.sweep()
            except (StoreError, ConcurrentWriterError) as error:
                self.on_warning(f"cleaning up {self.uri} ({owed.kind}) failed, it stays owed: {error}")
                continue
            self.journal.paid(owed.id)
            paid += 1
        return paid

    async def _delete(self, payload: Mapping[str, str]) -> None:
        """Delete a checkpoint that its trial's record gives up, and nothing else: the experiment may be another one by
        now, or somebody may have taken it in again."""
        trial, name = payload.get("trial"), payload.get("name")
        if trial is None or name is None:
            return  # written by a version that did not say whose it is: prune knows
        given_up = GivenUp(trial, name, payload["nonce"])
        store = self.view(Lane.ARTIFACT, "janitor", given_up.confirm)
        try:
            await delete_prefix(store, f"{trial}/{name}/")
        except NotGivenUpError as error:
            log.info("%s/%s/%s is not deleted: %s", self.uri, trial, name, error)
        else:
            self.on_deleted(trial, name)

    async def _abort(self, store: Store, payload: Mapping[str, str]) -> None:
        """Abort one upload; without an id, all of that key that nobody is going to complete, if we are who writes
        there. An upload without an id of an earlier experiment is nobody's."""
        key, upload_id = payload["key"], payload["upload_id"]
        if upload_id:
            await store.abort_multipart(Upload(key, upload_id))
            return
        if payload.get("nonce", "") != self.nonce:
            return
        fence = self.fence_of(key)
        if fence is not None:
            await fence(store, float("inf"))
        elif self.nonce:
            raise ConcurrentWriterError(f"{key} is not ours to write just now")
        for upload in await store.list_multiparts(key):
            if upload.key != key or self.uploads.is_open(key, upload.upload_id):
                continue
            if self.uploads.is_asked_for(key):
                raise ConcurrentWriterError(f"an upload of {key} is just being opened: this may be it")
            await store.abort_multipart(upload)


class NotGivenUpError(Exception):
    """A checkpoint is not to be deleted after all."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A checkpoint that the record of its trial gives up: numbers are never used again by that trial, so who finds it
    there may delete it, whoever runs the trial now."""

    trial: str
    name: str
    nonce: str

    async def confirm(self, store: Store, since: float) -> float:
        """NotGivenUpError unless the record says so; else when it was asked."""
        asked = lease_time()
        data = await find(store, f"{self.trial}/{TRIAL_RECORD}")
        if data is None:
            raise NotGivenUpError("the trial has no record any more")
        try:
            record = TrialRecord.from_bytes(data)
        except ValueError as error:
            raise NotGivenUpError(f"the trial's record cannot be read: {error}") from error
        if record.nonce != self.nonce:
            raise NotGivenUpError("the trial is another one of the same name")
        if self.name not in record.given_up or self.name in {item.name for item in record.checkpoints}:
            raise NotGivenUpError("the trial's record does not give it up")
        return asked


async def delete_prefix(store: Store, prefix: str) -> int:
    """Delete the manifest below ``prefix`` first, so that no reader trusts the rest, then everything else."""
    await store.delete([prefix + MANIFEST])
    deleted = 0
    while True:
        page = await store.list(prefix)
        keys = [item.key for item in page.objects]
        if not keys:
            return deleted
        await store.delete(keys)
        deleted += len(keys)
