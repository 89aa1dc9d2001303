"""Private: the experiment's own files and record. Only the driver keeps them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from asyncsync.engine.trials.context import EXPERIMENT_KEY, EngineContext
from asyncsync.planning.patterns import Rules
from asyncsync.report import SyncReport
from asyncsync.runtime import lease_time
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.fenced import LEASE_OUTLIVED
from asyncsync.sync.tree import Tree, TreeOptions

log = logging.getLogger("asyncsync")


class OwnFiles:
    """The experiment's own tree, a member of the schedule beside the trials."""

    key = EXPERIMENT_KEY

    def __init__(self, context: EngineContext, rules: Callable[[], Rules], *, predecessor_may_write: bool) -> None:
        """``predecessor_may_write``: whether another driver may still be running."""
        self._context = context
        options = TreeOptions(rules, Lane.ARTIFACT, fence=context.confirm, doubted=True)
        self._tree = Tree(context.session, str(context.local_dir), "", options)
        self._recheck_at = lease_time() + LEASE_OUTLIVED if predecessor_may_write else None
        """When the other driver's lease is over, on the lease's clock: then the files are compared with the store."""

    async def sync_once(self) -> SyncReport:
        """Sync files and record; one attempt."""
        if self._recheck_at is not None and lease_time() >= self._recheck_at:
            await self._tree.recheck()
            self._recheck_at = None
        report = await self._tree.sync_once(self._context.progress_of(EXPERIMENT_KEY))
        await self._context.record_file.save(self._context.session.view(Lane.RECORD, EXPERIMENT_KEY))
        return report

    def has_nothing_to_sync(self) -> bool:
        """Never known: the files are the user's."""
        return False

    def progress(self) -> str:
        """The progress of the running or last sync, for people."""
        return self._tree.progress()

    async def wait_for_predecessor(self) -> None:
        """Wait until no request of the other driver can be in flight."""
        if self._recheck_at is not None:
            await asyncio.sleep(max(0.0, self._recheck_at - lease_time()))
