"""The storage of one address in this process: an event loop in its own thread, and calls to it that block.

It opens with the first call and stays open until the process ends. A killed process leaves nothing behind that the next
process of the machine does not clean up.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from asyncsync.integrations.ray.agent.address import Address

if TYPE_CHECKING:
    from asyncsync import Storage  # imports what a worker process that has an agent does not need

T = TypeVar("T")
CLOSE_SECONDS = 5.0
"""How long the end of the process waits for connections to close."""


class ProcessStorage:
    """Runs one :class:`asyncsync.Storage` for threads that are not async."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._ready: Future[tuple[asyncio.AbstractEventLoop, Storage]] = Future()
        self._thread = threading.Thread(target=self._run, name=f"asyncsync {address.uri}", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[Storage], Coroutine[Any, Any, T]]) -> T:
        """Run ``work`` on the storage and return its result. Blocks; call it from any other thread."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Callable[[Storage], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run ``work`` on the storage. Blocks only until that is open. Cancelling the result cancels the work."""
        loop, storage = self._ready.result()
        return asyncio.run_coroutine_threadsafe(work(storage), loop)

    def close(self) -> None:
        """Close connections, within CLOSE_SECONDS."""
        if self._ready.done() and self._ready.exception() is None:
            self._ready.result()[0].call_soon_threadsafe(self._stop.set)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:  # noqa: BLE001  the first call raises it
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _live(self) -> None:
        from asyncsync import Storage

        self._stop = asyncio.Event()
        options = json.loads(self._address.options)
        async with Storage(self._address.uri, storage_options=options) as storage:
            self._ready.set_result((asyncio.get_running_loop(), storage))
            await self._stop.wait()


_guard = threading.Lock()
_opened: dict[Address, ProcessStorage] = {}


def storage_of(address: Address) -> ProcessStorage:
    """The storage of ``address`` in this process. ConfigError from its first call if the address cannot be opened."""
    with _guard:
        if address not in _opened:
            _opened[address] = ProcessStorage(address)
        return _opened[address]


def close(address: Address) -> None:
    """Close the storage of ``address``, if it is open."""
    with _guard:
        opened = _opened.pop(address, None)
    if opened is not None:
        opened.close()


def close_all() -> None:
    """Close every storage; the next call opens a new one."""
    for address in list(_opened):
        close(address)


def _forget() -> None:
    """In a forked child: the threads are those of the parent, and one of them may have held the lock."""
    global _guard  # noqa: PLW0603
    _guard = threading.Lock()
    _opened.clear()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
