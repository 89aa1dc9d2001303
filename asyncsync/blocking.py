"""The engine for training loops that are not async: the same methods without ``await``.

The engine runs on an event loop in a thread of its own (anyio's blocking portal); calls wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncsync.checkpoints import Checkpoint, CheckpointHandle
from asyncsync.config import RunConfig, UploadMode
from asyncsync.engine import SyncEngine
from asyncsync.errors import EngineClosedError
from asyncsync.events import Event
from asyncsync.report import SyncReport
from asyncsync.status import EngineStatus, FlushReport
from asyncsync.stream import EventStream
from asyncsync.trial import Report, Trial


class BlockingCheckpoint:
    """A reported checkpoint; ``durable()`` blocks."""

    def __init__(self, portal: BlockingPortal, handle: CheckpointHandle) -> None:
        self._portal, self._handle = portal, handle
        self.name, self.uri = handle.name, handle.uri

    @property
    def is_durable(self) -> bool:
        """Whether it is in the store as a whole."""
        return self._handle.is_durable

    def durable(self) -> None:
        """Wait until it is; raises why it is not."""
        self._portal.call(self._handle.durable)


class BlockingReport:
    """What one ``report`` did."""

    def __init__(self, portal: BlockingPortal, report: Report) -> None:
        self.metrics = report.metrics
        self.checkpoint = None if report.checkpoint is None else BlockingCheckpoint(portal, report.checkpoint)


class BlockingTrial:
    """A trial; see :class:`asyncsync.Trial`."""

    def __init__(self, portal: BlockingPortal, trial: Trial) -> None:
        self._portal, self._trial = portal, trial
        self.name, self.dir, self.uri = trial.name, trial.dir, trial.uri

    def report(
        self,
        metrics: Mapping[str, Any],
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        *,
        step: int | None = None,
        name: str | None = None,
        upload: UploadMode = UploadMode.SYNC,
        delete_local: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReport:
        """See :meth:`asyncsync.Trial.report`."""

        async def call() -> Report:
            return await self._trial.report(
                metrics, checkpoint, step=step, name=name, upload=upload, delete_local=delete_local, metadata=metadata
            )

        return BlockingReport(self._portal, self._portal.call(call))

    def skip(self, step: int, reason: str) -> None:
        """See :meth:`asyncsync.Trial.skip`."""
        self._portal.call(self._trial.skip, step, reason)

    def sync(self) -> SyncReport:
        """See :meth:`asyncsync.Trial.sync`."""
        return self._portal.call(self._trial.sync)

    def finish(self, status: str = "finished", error: object = None) -> None:
        """See :meth:`asyncsync.Trial.finish`."""
        self._portal.call(self._trial.finish, status, error)


class BlockingEngine:
    """See :class:`asyncsync.SyncEngine`; made by ``SyncEngine.blocking(run)``, used with a plain ``with``."""

    def __init__(self, run: RunConfig, **options: Any) -> None:
        self._engine = SyncEngine(run, **options)
        self._open: ExitStack | None = None
        self._portal: BlockingPortal | None = None
        self.local_dir: Path = self._engine.local_dir
        self.uri = self._engine.uri

    def __enter__(self) -> BlockingEngine:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._engine))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            try:
                stack.__exit__(kind, error, trace)
            finally:
                self._portal = None

    def trial(self, name: str, *, params: Mapping[str, Any] | None = None) -> BlockingTrial:
        """See :meth:`asyncsync.SyncEngine.trial`."""

        async def call() -> Trial:
            return self._engine.trial(name, params=params)

        portal = self._running()
        return BlockingTrial(portal, portal.call(call))

    def events(self) -> Iterator[Event]:
        """What happens from now on; ends when the engine does. For a thread of your own."""
        portal = self._running()

        async def listen() -> EventStream:
            return self._engine.events()

        return _iterate(portal, portal.call(listen))

    def status(self) -> EngineStatus:
        """See :meth:`asyncsync.SyncEngine.status`."""

        async def call() -> EngineStatus:
            return self._engine.status()

        return self._running().call(call)

    def sync(self) -> None:
        """See :meth:`asyncsync.SyncEngine.sync`."""
        self._running().call(self._engine.sync)

    def flush(self, deadline: float | None = None) -> FlushReport:
        """See :meth:`asyncsync.SyncEngine.flush`."""
        return self._running().call(self._engine.flush, deadline)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise EngineClosedError("the engine is not running: use it inside its 'with' block")
        return self._portal


def _iterate(portal: BlockingPortal, stream: EventStream) -> Iterator[Event]:
    while True:
        try:
            yield portal.call(stream.__anext__)
        except (StopAsyncIteration, RuntimeError):  # the end, or the portal's end
            return
