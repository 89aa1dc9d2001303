"""An event loop in its own thread, for callers that are not async."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asyncsync.errors import ConfigError, EngineClosedError

log = logging.getLogger("asyncsync")

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """Runs one coroutine, and calls from other threads until it ends. The thread never keeps the process alive."""

    def __init__(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = main
        self._process = os.getpid()
        self._ready = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._ready.wait()

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call ``func``, a plain or a coroutine function, on the loop and return its result. Blocks; call it from any
        other thread. EngineClosedError if the loop has ended or ends before the call does."""
        self.check()
        future = asyncio.run_coroutine_threadsafe(_call(func, *args), self._loop)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        if self._ends.is_set():
            future.cancel()
        try:
            return future.result()
        except asyncio.CancelledError:
            raise EngineClosedError("the engine ended before this call did") from None

    def start(self, func: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start a coroutine function on the loop, before everything that is called after this, and do not wait for it.
        Its failure is logged. EngineClosedError if the loop has ended."""
        self.check()
        future = asyncio.run_coroutine_threadsafe(func(), self._loop)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        future.add_done_callback(_log_failure)

    def check(self) -> None:
        """EngineClosedError if the loop does not run in this process; ConfigError on the loop's own thread."""
        if os.getpid() != self._process:
            raise EngineClosedError(
                f"the engine runs in process {self._process}, and this one was forked from it: create a new engine here"
            )
        if threading.get_ident() == self._thread.ident:
            raise ConfigError(
                "a blocking engine cannot be called on its own event loop: the call would wait for itself"
            )
        if self._ends.is_set():
            raise EngineClosedError("the engine is not running: use it inside its 'with' block")

    def soon(self, func: Callable[..., object], *args: Any) -> None:
        """Schedule ``func`` on the loop and return at once; does nothing if the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(func, *args)

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the thread to end, at most ``seconds``; returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._calls: set[Future[Any]] = set()
            self._ready.set()
            try:
                runner.run(self._main())
            finally:
                self._ends.set()
                for call in list(self._calls):
                    call.cancel()


def _log_failure(call: Future[Any]) -> None:
    if not call.cancelled() and (error := call.exception()) is not None:
        log.error("a call that nobody waits for failed: %s", error, exc_info=error)


async def _call(func: Callable[..., Any], *args: Any) -> Any:
    result = func(*args)
    return await result if asyncio.iscoroutine(result) or asyncio.isfuture(result) else result


def run_to_end(func: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a coroutine function on an event loop of its own and return its result. In a thread that runs an event loop
    already, such as that of a notebook, the call runs in another thread, and this one waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(func, *args, **kwargs)
    with ThreadPoolExecutor(1, "asyncsync call") as pool:
        return pool.submit(partial(_run_here, func, *args, **kwargs)).result()


def _run_here(func: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    with asyncio.Runner() as runner:
        return runner.run(func(*args, **kwargs))
