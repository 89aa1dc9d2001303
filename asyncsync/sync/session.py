"""The parts that the trees of an engine or syncer share: the store, the journal, the open uploads, the copy sources."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from asyncsync.aio.descriptors import within_descriptors
from asyncsync.aio.tasks import run_all
from asyncsync.aio.threads import worker_threads
from asyncsync.config import TransferConfig, split_sas
from asyncsync.disk.journal import Journal, journal_path
from asyncsync.disk.locks import TreeLocks
from asyncsync.errors import AccessDeniedError, NotFoundError, StoreError
from asyncsync.planning.manifest import MANIFEST, META_DIR
from asyncsync.runtime import need_asyncio, process_id
from asyncsync.status import EngineStatus
from asyncsync.stores import open_store
from asyncsync.stores.base import Lane, Store
from asyncsync.stores.guard.breaker import Breaker
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.checksum_probe import probe_checks
from asyncsync.stores.guard.fenced import Fence, FencedView
from asyncsync.stores.guard.guarded import GuardedStore, GuardedView
from asyncsync.stores.guard.retry_policy import RetryPolicy
from asyncsync.sync.upload.copy_sources import CopySources
from asyncsync.sync.upload.open_uploads import OpenUploads

log = logging.getLogger("asyncsync")
DELETE, SWEEP, ABANDON = "delete", "sweep", "abandon"
"""Kinds of clean-ups: delete a checkpoint that its trial gave up; remove temporary files of a killed process; abort the
uploads below a prefix that a killed process was sending."""
SYNC_PATIENCE = 20.0
"""Seconds, see :func:`open_guarded`."""
READ_PATIENCE = RetryPolicy().patience
"""Seconds, see :func:`open_guarded`."""
PROBE = f"{META_DIR}/probe"
"""Key of the object that :meth:`Session.probe` writes and reads."""
PROBE_CONTENT = b"asyncsync was here to see whether it may write and read\n"


def open_guarded(
    uri: str, transfer: TransferConfig, storage_options: Mapping[str, object] | None, *, patience: float
) -> GuardedStore:
    """The store at ``uri`` with its limits and retries; nothing is connected yet. ConfigError for an unknown URI or
    option, and where asyncio does not run. Close it after use.

    ``patience``: seconds that a request waits for an unreachable store. A sync passes SYNC_PATIENCE, because the
    scheduler retries whole syncs: a longer wait would only hold the slot of another tree. A reader passes
    READ_PATIENCE, because nobody retries it: its caller would see the error.
    """
    need_asyncio()
    inner = open_store(uri, options=dict(storage_options or {}), transfer=transfer)
    budget = Budget(
        max_concurrency=within_descriptors(transfer.max_concurrency),
        bandwidth_limit=transfer.bandwidth_limit,
        memory_limit=transfer.memory_limit,
    )
    return GuardedStore(inner, budget, retry=RetryPolicy(attempts=transfer.max_attempts, patience=patience))


@dataclass(slots=True)
class Session:
    """Open with :meth:`open`, free with :meth:`close`."""

    uri: str
    transfer: TransferConfig
    store: GuardedStore
    journal: Journal
    uploads: OpenUploads
    locks: TreeLocks
    """The trees of this machine that only this process may work on."""
    copy_sources: CopySources
    """Files written in this session that may serve as copy sources."""
    resources: ExitStack
    presence: int | None = None
    """Number of the clean-up that is due if this process is killed."""
    nonce: str = ""
    """Nonce of the experiment; empty outside of one."""
    fence_of: Callable[[str], Fence | None] = field(default=lambda _: None)
    """Returns the fence that confirms our right to write a key; None if no fence is known."""
    fence_of_given_up: Callable[[str, str, str], Fence | None] = field(default=lambda _trial, _name, _nonce: None)
    """Returns the fence of the trial of this nonce, if this process wrote its stored record and that gives up the
    checkpoint of this name."""
    on_deleted: Callable[[str, str], None] = field(default=lambda _trial, _name: None)
    """Called with trial and name when the janitor has deleted a checkpoint."""
    on_warning: Callable[[str], None] = field(default=lambda message: log.warning("%s", message))
    """Called when a clean-up failed; it remains due."""

    @classmethod
    async def open(
        cls,
        uri: str,
        transfer: TransferConfig,
        storage_options: Mapping[str, object] | None = None,
        *,
        patience: float = SYNC_PATIENCE,
    ) -> Session:
        """Connects nothing yet. ``patience`` as for :func:`open_guarded`. ConfigError for an unknown URI or option, and
        where asyncio does not run."""
        uri, options = split_sas(uri, storage_options)
        store = open_guarded(uri, transfer, options, patience=patience)
        journal = Journal.open(journal_path())
        uploads = OpenUploads(uri, journal)
        with ExitStack() as resources:
            resources.enter_context(worker_threads(transfer.threads))
            await journal.__aenter__()
            locks = TreeLocks()
            resources.callback(locks.close)
            held = resources.pop_all()
            session = cls(uri, transfer, store, journal, uploads, locks, CopySources(), held)
        try:
            await uploads.load()
        except BaseException:
            await session.close()
            raise
        if store.traits.local:  # if this process is killed, the next one removes its temporary files
            session.presence = uploads.in_hand(SWEEP)
        return session

    async def close(self) -> None:
        """Free connections, and the journal's thread once everything recorded is on disk."""
        with self.resources:
            try:
                if self.presence is not None:
                    self.uploads.intention_done(self.presence)
                await self.store.close()
            finally:
                await self.journal.__aexit__(None, None, None)

    @property
    def budget(self) -> Budget:
        """Limits the requests of all trees together."""
        return self.store.core.budget

    @property
    def inner(self) -> Store:
        """The store without retries and limits."""
        return self.store.core.inner

    @property
    def breaker(self) -> Breaker:
        """Knows whether the store is reachable."""
        return self.store.core.breaker

    def view(self, lane: Lane, owner: str, fence: Fence | None = None) -> GuardedView:
        """The store for one tree: its requests are counted, and queue by ``lane`` and ``owner``. ``fence`` is checked
        before every write."""
        return self.store.view(lane, owner) if fence is None else FencedView(self.store, lane, owner, fence)

    async def probe(self) -> None:
        """Write and read a small object, so that a wrong bucket or a missing permission shows at the start."""
        await self.probe_write()
        await self.probe_read()

    async def probe_write(self) -> None:
        """The first half of :meth:`probe`."""
        await self._require("write", partial(self.view(Lane.RECORD, "").put, PROBE, PROBE_CONTENT))

    async def probe_read(self) -> None:
        """The second half of :meth:`probe`, which also finds out how the store checks what it receives."""
        read = self._require("read", partial(self.view(Lane.RECORD, "").get, PROBE))
        await run_all((read, self._probe_checksums()), "probe")

    async def _probe_checksums(self) -> None:
        checks = await probe_checks(self.inner, PROBE, PROBE_CONTENT)
        if checks != "crc32c" and not self.store.traits.local:
            instead = "the MD5 in its response is compared" if checks == "etag" else "files are checked when read back"
            log.warning("%s does not check the CRC32C of uploads: %s instead", self.uri, instead)

    async def _require(self, verb: str, request: Callable[[], Awaitable[object]]) -> None:
        try:
            await request()
        except (AccessDeniedError, NotFoundError) as error:
            error.add_note(f"asyncsync must be able to {verb} below {self.uri}: check the address and the permissions")
            raise

    async def watch(self) -> None:
        """Send requests while the store is unreachable, so that its return is noticed even while every tree backs off.
        Ends only by cancel."""
        store = self.view(Lane.RECORD, "")
        while True:
            await self.breaker.opened.wait()
            with suppress(StoreError):  # unreachable or an error response: the breaker knows either way
                await store.head(PROBE)

    def owe_delete(self, trial: str, name: str, nonce: str) -> None:
        """Make the janitor delete a checkpoint that the record of this very trial has given up.

        Other live processes of this machine leave it to this one, which knows when the name is used again.
        """
        prefix, payload = f"{trial}/{name}/", {"trial": trial, "name": name, "nonce": nonce, "pid": process_id()}
        self.journal.owe(self.uri, DELETE, json.dumps(payload))
        self.uploads.abandon_below(prefix)
        self.copy_sources.forget(prefix)


async def delete_prefix(store: Store, prefix: str) -> int:
    """Delete the manifest below ``prefix`` first, so that no reader trusts the rest, then everything else. Returns how
    many objects were deleted beside the manifest."""
    await store.delete([prefix + MANIFEST])
    deleted = 0
    while True:
        page = await store.list(prefix)
        keys = [item.key for item in page.objects]
        if not keys:
            return deleted
        await store.delete(keys)
        deleted += len(keys)
        if page.token is None:
            return deleted


def session_status(session: Session) -> EngineStatus:
    """Status of an engine with this session that has no trials. Synchronous: it reads only memory."""
    meter, traits = session.store.core.meter, session.store.traits
    return EngineStatus(
        trials={},
        durability_lag=0.0,
        bytes_at_risk=0,
        syncs_running=0,
        inbox=0,
        requests_running=session.budget.in_use,
        requests_waiting=session.budget.waiting,
        request_limit=session.budget.limit,
        store_healthy=session.store.healthy,
        conditional_writes=traits.conditional_writes,
        checks=traits.checks,
        not_kept=traits.not_kept,
        operations={name: replace(item) for name, item in meter.operations.items()},
        errors=dict(meter.errors),
        retries=meter.retries,
        bytes_per_second=meter.rate(),
        waiting_for=_waiting_for(session),
    )


def _waiting_for(session: Session) -> str:
    """The reason why requests or syncs wait now; empty if nothing waits."""
    breaker, budget = session.breaker, session.budget
    if breaker.open:
        seconds = asyncio.get_running_loop().time() - breaker.since
        return f"the store, unavailable for {seconds:.0f} s: {breaker.last_error}"
    if budget.waiting:
        return f"{budget.waiting} requests for a slot ({budget.in_use} of {budget.limit} in flight)"
    return f"{budget.in_use} requests for the store" if budget.in_use else ""
