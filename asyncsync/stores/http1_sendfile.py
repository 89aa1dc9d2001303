"""Files that the kernel sends by itself: half the processor time of reading and writing them, none on the loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from asyncsync.disk.files import FileRange, in_sender


class FileSocket:
    """A second descriptor of a connection's socket: the loop's transport watches the first one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self._used = self._closing = False

    @staticmethod
    def serves(transport: asyncio.Transport) -> bool:
        """Not where the bytes have to be encrypted first."""
        return hasattr(os, "sendfile") and transport.get_extra_info("sslcontext") is None

    async def offer(self, body: FileRange, start: int, most: int) -> tuple[int, bool]:
        """How many bytes the socket took, and whether it is full. OSError of the socket, or of the file."""
        with self._in_use() as descriptor:
            return await in_sender(lambda: body.send_to(start, most, descriptor))

    async def wait(self, ready: asyncio.Future[None]) -> None:
        """Wait for ``ready``, which is set when the socket takes more, or by the caller."""
        with self._in_use() as descriptor:
            self._loop.add_writer(descriptor, _set, ready)
            try:
                await ready
            finally:
                self._loop.remove_writer(descriptor)

    def close(self) -> None:
        """Now, or when nobody uses it any more: its number must not become another's meanwhile."""
        self._closing = True
        if not self._used and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        self._used = True
        try:
            yield self._descriptor
        finally:
            self._used = False
            if self._closing:
                self.close()


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
