"""The engine for training loops that are not async. It runs on an event loop in its own thread."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from asyncsync.aio.held_context import HeldContext
from asyncsync.blocking.blocking_trial import BlockingTrial
from asyncsync.config import RunConfig
from asyncsync.engine.drain import raise_failures
from asyncsync.engine.engine import LeftWithinError, SyncEngine, not_durable
from asyncsync.engine.signals import Signals, as_signals, check_thread
from asyncsync.engine.start import as_seconds
from asyncsync.errors import EngineClosedError
from asyncsync.events import Event, RequestEnded
from asyncsync.status import EngineStatus, FlushReport
from asyncsync.sync.event_stream import EventStream


class BlockingEngine:
    """See :class:`asyncsync.SyncEngine`. ``SyncEngine.blocking(run)`` creates it. Use it with a plain ``with``, or with
    :meth:`start` and :meth:`close` where a framework only offers callbacks.

    An engine that is never closed is closed when the interpreter ends, within ``exit_grace`` seconds. With
    ``handle_signals`` a signal raises in the main thread (KeyboardInterrupt for SIGINT, otherwise SystemExit), so that
    the block is left within ``exit_grace`` seconds.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        exit_grace: float = 30.0,
        handle_signals: bool | Collection[int] = False,
        **options: Any,
    ) -> None:
        self._wanted_signals = as_signals(handle_signals)
        self._signals: Signals | None = None
        self._engine = SyncEngine(run, exit_grace=exit_grace, **options)
        self._exit_grace = exit_grace
        self._leaving: LeftWithinError | None = None
        self._held: HeldContext[SyncEngine] | None = None
        self._process = os.getpid()
        self.local_dir: Path = self._engine.local_dir
        self.uri = self._engine.uri

    def __repr__(self) -> str:
        return repr(self._engine).replace("SyncEngine", "BlockingEngine", 1)

    def __enter__(self) -> BlockingEngine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def start(self) -> None:
        """Enter the engine, like ``with``. EngineClosedError if it was entered before."""
        if self._held is not None:
            raise EngineClosedError("an engine is entered once, and this one was entered already: create a new one")
        check_thread(self._wanted_signals)
        self._process = os.getpid()
        self._held = HeldContext("asyncsync engine", lambda: self._engine)
        _open.add(self)
        if self._wanted_signals:
            self._signals = Signals(self._wanted_signals, _raise, self._exit_grace)

    def close(self, grace: float | None = None) -> None:
        """Leave the engine. Without ``grace`` it is left normally; with ``grace`` (seconds) as by an exception, within
        that time. Raises an error that names everything that is not durable. Does nothing if the engine is not
        running."""
        if grace is None:
            self._leave(None)
            return
        seconds = as_seconds("close(grace)", grace)
        leaving = LeftWithinError(f"the engine was closed within {grace:g} s", seconds)
        self._leave(leaving)
        raise_failures(leaving.failures)

    def trial(self, name: str, *, params: Mapping[str, Any] | None = None) -> BlockingTrial:
        """See :meth:`asyncsync.SyncEngine.trial`."""
        loop = self._running()
        return BlockingTrial(loop, loop.call(partial(self._engine.trial, name, params=params)))

    def events(self) -> Iterator[Event]:
        """The events from now on; ends with the engine. Iterate in a separate thread."""
        loop = self._running()
        return _iterate(loop, loop.call(self._engine.events))

    @contextmanager
    def on_request(self, listener: Callable[[RequestEnded], None]) -> Iterator[None]:
        """See :meth:`asyncsync.SyncEngine.on_request`; ``listener`` is called in the thread of the event loop."""
        loop, held = self._running(), self._engine.on_request(listener)
        loop.call(held.__enter__)
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    def status(self) -> EngineStatus:
        """See :meth:`asyncsync.SyncEngine.status`."""
        status: EngineStatus = self._running().call(self._engine.status)
        return status

    def sync(self) -> None:
        """See :meth:`asyncsync.SyncEngine.sync`."""
        self._running().call(self._engine.sync)

    def flush(self, deadline: float | None = None) -> FlushReport:
        """See :meth:`asyncsync.SyncEngine.flush`."""
        report: FlushReport = self._running().call(self._engine.flush, deadline)
        return report

    def _running(self) -> HeldContext[SyncEngine]:
        if self._held is None:
            raise EngineClosedError("the engine is not running: use it inside its 'with' block")
        self._held.check()
        return self._held

    def _leave(self, error: BaseException | None) -> None:
        if self._held is None or self not in _open:
            return  # left already, or the engine of the parent process
        _open.discard(self)
        if self._signals is not None and error is not None:
            self._signals.begin_grace()
        try:
            self._held.leave(error)
        finally:
            if self._signals is not None:
                self._signals.restore()

    def _end_with_interpreter(self) -> float:
        """Start to leave, and return the grace in seconds."""
        grace = self._exit_grace
        _print(f"the engine of {self.uri} was never closed; closing it now, within exit_grace={grace:g} s")
        self._leaving = LeftWithinError("the interpreter ended before the engine was closed", grace)
        if self._held is not None:
            self._held.begin_to_leave(self._leaving)
        return grace

    def _report_end(self, seconds: float) -> None:
        """Wait at most ``seconds`` for the end, and print everything that is not durable."""
        left = None if self._held is None else self._held.left(seconds)
        if left is None:
            _print(f"the engine of {self.uri} did not end in time: {not_durable(self._engine)} may be lost")
        elif self._leaving is not None and self._leaving.failures:
            names = "; ".join(f"{key}: {why}" for key, why in self._leaving.failures.items())
            _print(f"not durable in {self.uri}: {names}")
        elif left.exception() is not None:
            _print(f"the engine of {self.uri} failed: {left.exception()!r}")


def _raise(number: signal.Signals, chain: Callable[[], None]) -> None:
    """Raise in the main thread, so that it leaves the engine's block."""
    chain()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _iterate(loop: HeldContext[SyncEngine], stream: EventStream) -> Iterator[Event]:
    while True:
        try:
            yield loop.call(stream.__anext__)
        except (StopAsyncIteration, EngineClosedError):
            return


_open: set[BlockingEngine] = set()
"""The running engines of this process."""
_EXIT_MARGIN = 5.0
"""Seconds beyond its grace that the end of the interpreter waits for an engine."""


def _close_all() -> None:
    """Close the engines that are still running when the interpreter ends, in parallel, each within its grace."""
    engines = list(_open)
    _open.clear()
    graces = [engine._end_with_interpreter() for engine in engines]  # noqa: SLF001  same module
    give_up = time.monotonic() + _EXIT_MARGIN + max(graces, default=0.0)
    for engine in engines:
        engine._report_end(max(0.0, give_up - time.monotonic()))  # noqa: SLF001


def _print(text: str) -> None:
    if sys.stderr is not None:
        print(f"asyncsync: {text}", file=sys.stderr, flush=True)


# Runs before the interpreter waits for threads and before executors refuse work; atexit runs after both.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
