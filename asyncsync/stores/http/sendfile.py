"""Files that worker threads give to a socket; where nothing has to be encrypted, the kernel sends them by itself: half
the processor time of reading and writing them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from asyncsync.aio.threads import in_sender
from asyncsync.disk.files import FileRange

Give = Callable[[FileRange, int, int], tuple[int, bool]]
"""Blocking on the disk: gives up to so many bytes of a file, from a place on, to a socket; how many it took, and
whether it is full."""


class FileSocket:
    """What sends files on a connection. ``close`` frees ``descriptor`` once nobody uses it any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, give: Give, close: Callable[[], None]) -> None:
        self._loop, self._descriptor = loop, descriptor
        self._give, self._close = give, close
        self._used = self._closing = False

    @staticmethod
    def plain(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> FileSocket:
        """By a second descriptor of the socket: the loop's transport watches the first one."""
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        give = partial(_give_plain, descriptor)
        return FileSocket(loop, descriptor, give, partial(os.close, descriptor))

    async def offer(self, body: FileRange, start: int, most: int) -> tuple[int, bool]:
        """How many bytes the socket took, and whether it is full. OSError of the socket, or of the file."""
        with self._in_use():
            return await in_sender(partial(self._give, body, start, most))

    async def wait(self, ready: asyncio.Future[None]) -> None:
        """Wait for ``ready``, which is set when the socket takes more, or by the caller."""
        with self._in_use():
            self._loop.add_writer(self._descriptor, set_result, ready)
            try:
                await ready
            finally:
                self._loop.remove_writer(self._descriptor)

    def close(self) -> None:
        """Now, or when nobody uses it any more: its number must not become another's meanwhile."""
        if not (self._used or self._closing):
            self._close()
        self._closing = True

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._used = True
        try:
            yield
        finally:
            self._used = False
            if self._closing:
                self._close()


def _give_plain(descriptor: int, body: FileRange, start: int, most: int) -> tuple[int, bool]:
    return body.send_to(start, most, descriptor)


def set_result(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
