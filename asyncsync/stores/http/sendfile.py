"""Sends files to a socket from worker threads. Over plain TCP the kernel copies the bytes (sendfile), which takes half
the CPU time of reading and writing them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from asyncsync.aio.threads import in_sender
from asyncsync.disk.files import FileRange

SendFunction = Callable[[FileRange, int, int], tuple[int, bool]]
"""Sends part of a file: ``(body, start, maximum)`` to ``(bytes that the socket took, whether it is full)``. Blocks on
the disk."""


class FileSocket:
    """Sends files on one connection. ``close`` frees ``descriptor``; it is called when no call uses it any more."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, descriptor: int, send: SendFunction, close: Callable[[], None]
    ) -> None:
        self._loop, self._descriptor = loop, descriptor
        self._send, self._close = send, close
        self._used = self._closing = False

    @staticmethod
    def plain(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> FileSocket:
        """Over plain TCP, through a duplicate descriptor: the loop's transport watches the original one."""
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        return FileSocket(loop, descriptor, partial(_send_plain, descriptor), partial(os.close, descriptor))

    async def offer(self, body: FileRange, start: int, maximum: int) -> tuple[int, bool]:
        """Send up to ``maximum`` bytes from ``start``; the bytes that the socket took, and whether it is full. OSError
        of the socket or the file."""
        with self._in_use():
            return await in_sender(partial(self._send, body, start, maximum))

    async def wait(self, ready: asyncio.Future[None]) -> None:
        """Wait for ``ready``. It is set when the socket accepts more data, or by the caller."""
        with self._in_use():
            self._loop.add_writer(self._descriptor, set_result, ready)
            try:
                await ready
            finally:
                self._loop.remove_writer(self._descriptor)

    def close(self) -> None:
        """Close the descriptor now, or after the call that uses it: its number must not be reused meanwhile."""
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


def _send_plain(descriptor: int, body: FileRange, start: int, maximum: int) -> tuple[int, bool]:
    return body.send_to(start, maximum, descriptor)


def set_result(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
