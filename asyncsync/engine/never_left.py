"""Engines that nobody leaves: an exception in a notebook, a framework that never calls back. When the interpreter ends,
they are left within their grace, or at least named with everything that is not durable."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Protocol

from asyncsync.runtime import process_identity


class Leavable(Protocol):
    """An engine that is open."""

    @property
    def uri(self) -> str:
        """Names it in messages."""

    @property
    def grace(self) -> float:
        """Seconds within which it is left."""

    def leave_at_exit(self) -> Coroutine[Any, Any, dict[str, BaseException]]:
        """Leave within the grace; the items that are not durable, and why."""

    def open_items(self) -> list[str]:
        """Items that are not durable now. Callable from any thread."""


_open: dict[Leavable, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}
"""The open engines of this process, and the loops and threads that entered them."""
_MARGIN = 5.0
"""Seconds beyond its grace that the end of the interpreter waits for an engine on the loop of another thread."""


def entered(engine: Leavable) -> None:
    """Call it on the engine's loop. An engine of a simulated process is not registered: that process can be killed."""
    if process_identity() is None:
        _open[engine] = asyncio.get_running_loop(), threading.current_thread()


def left(engine: Leavable) -> None:
    _open.pop(engine, None)


def _leave_all() -> None:
    """A loop that still runs belongs to another thread, which leaves its engine itself; but a daemon is about to be
    stopped."""
    engines = dict(_open)
    _open.clear()
    for engine, (loop, thread) in engines.items():
        if loop.is_closed():
            _print(f"the engine of {engine.uri} was never left, and its event loop is closed; {_open_items(engine)}")
        elif thread.daemon or not loop.is_running():
            _print(f"the engine of {engine.uri} was never left; leaving it now, within exit_grace")
            _leave(engine, loop)


def _leave(engine: Leavable, loop: asyncio.AbstractEventLoop) -> None:
    try:
        if loop.is_running():
            leaving = asyncio.run_coroutine_threadsafe(engine.leave_at_exit(), loop)
            failures = leaving.result(engine.grace + _MARGIN)
        else:
            failures = loop.run_until_complete(engine.leave_at_exit())
    except BaseException as error:  # noqa: BLE001  the interpreter is ending; nobody else can report it
        _print(f"leaving the engine of {engine.uri} failed with {error!r}; {_open_items(engine)}")
        return
    if failures:
        _print(f"not durable in {engine.uri}: " + "; ".join(f"{key}: {why}" for key, why in failures.items()))


def _open_items(engine: Leavable) -> str:
    items = engine.open_items()
    if not items:
        return "everything that was reported is durable"
    return f"not durable: {', '.join(items)}. An engine with resume=True continues them"


def _print(text: str) -> None:
    if sys.stderr is not None:
        print(f"asyncsync: {text}", file=sys.stderr, flush=True)


# Runs before the interpreter waits for threads and before executors refuse work; atexit runs after both.
getattr(threading, "_register_atexit", atexit.register)(_leave_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
