"""A syncer for programs that are not async."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from functools import partial
from types import TracebackType
from typing import Any, Self

from asyncsync.aio.held_context import HeldContext
from asyncsync.config import SyncConfig
from asyncsync.errors import EngineClosedError
from asyncsync.planning.manifest import Manifest
from asyncsync.report import SyncReport
from asyncsync.sync.preview import SyncPlan
from asyncsync.sync.syncer import Syncer


class BlockingSyncer:
    """Keeps a directory and a URI in sync: ``with Syncer(local_dir, uri) as syncer``, or :meth:`start` and
    :meth:`close`. See :class:`asyncsync.Syncer`, whose arguments it has.

    ``on_event`` is called on the event loop's thread. A call that waits may come from any thread.
    """

    def __init__(
        self,
        local_dir: str | os.PathLike[str],
        uri: str | os.PathLike[str],
        sync_config: SyncConfig = SyncConfig(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        self._make = partial(Syncer, local_dir, uri, sync_config, **options)
        self._syncer = self._make()
        self.local_dir, self.uri = self._syncer.local_dir, self._syncer.uri
        self._held: HeldContext[Syncer] | None = None
        self._leaving = threading.Lock()

    def __repr__(self) -> str:
        return repr(self._syncer).replace("Syncer", "BlockingSyncer", 1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def start(self) -> None:
        """Enter the syncer, like ``with``. EngineClosedError if it is running."""
        if self._held is not None:
            raise EngineClosedError("the syncer is running already")
        syncer = self._syncer = self._make()
        self._held = HeldContext("asyncsync syncer", lambda: syncer)
        _open.add(self)

    def close(self) -> None:
        """Wait for the running sync, and leave. Raises the error of a requested sync that failed and that nobody has
        seen. Does nothing if the syncer is not running."""
        self._leave(None)

    def sync_up(self) -> SyncReport:
        """See :meth:`asyncsync.Syncer.sync_up`."""
        report: SyncReport = self._running().call(self._syncer.sync_up)
        return report

    def sync_up_if_needed(self) -> SyncReport | None:
        """See :meth:`asyncsync.Syncer.sync_up_if_needed`."""
        report: SyncReport | None = self._running().call(self._syncer.sync_up_if_needed)
        return report

    def sync_down(self) -> SyncReport:
        """See :meth:`asyncsync.Syncer.sync_down`."""
        report: SyncReport = self._running().call(self._syncer.sync_down)
        return report

    def request(self) -> None:
        """See :meth:`asyncsync.Syncer.request`: ask for a sync, and do not wait for it."""
        self._running().start(self._syncer.request)

    def remove(self, path: str) -> None:
        """See :meth:`asyncsync.Syncer.remove`."""
        self._running().call(self._syncer.remove, path)

    def delete(self) -> int:
        """See :meth:`asyncsync.Syncer.delete`."""
        count: int = self._running().call(self._syncer.delete)
        return count

    def wait(self) -> None:
        """See :meth:`asyncsync.Syncer.wait`."""
        self._running().call(self._syncer.wait)

    def plan(self) -> SyncPlan:
        """See :meth:`asyncsync.Syncer.plan`."""
        plan: SyncPlan = self._running().call(self._syncer.plan)
        return plan

    def probe(self) -> None:
        """See :meth:`asyncsync.Syncer.probe`."""
        self._running().call(self._syncer.probe)

    def manifest(self) -> Manifest | None:
        """See :meth:`asyncsync.Syncer.manifest`."""
        found: Manifest | None = self._running().call(self._syncer.manifest)
        return found

    def progress(self) -> str:
        """See :meth:`asyncsync.Syncer.progress`."""
        progress: str = self._running().call(self._syncer.progress)
        return progress

    def _running(self) -> HeldContext[Syncer]:
        if self._held is None:
            raise EngineClosedError("the syncer is not running: use it inside its 'with' block")
        self._held.check()
        return self._held

    def _leave(self, error: BaseException | None, seconds: float | None = None) -> None:
        with self._leaving:
            held, self._held = self._held, None
        _open.discard(self)
        if held is not None:
            held.leave(error, seconds)

    def _end_with_interpreter(self) -> None:
        try:
            self._leave(None, EXIT_SECONDS)
        except Exception as error:  # noqa: BLE001  nobody is left to raise it to
            print(f"asyncsync: the last sync to {self.uri} failed: {error}", file=sys.stderr, flush=True)


EXIT_SECONDS = 30.0
"""Seconds that the end of the interpreter waits for the requested syncs of a syncer that was never closed."""
_open: set[BlockingSyncer] = set()
"""The running syncers of this process."""


def _close_all() -> None:
    for syncer in list(_open):
        syncer._end_with_interpreter()  # noqa: SLF001  same module


# Runs before the interpreter waits for threads and before executors refuse work; atexit runs after both.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
