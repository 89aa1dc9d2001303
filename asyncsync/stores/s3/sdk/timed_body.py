"""A request body for aiobotocore, which has no time limit of its own for sending one."""

from __future__ import annotations

import asyncio
from io import BytesIO

from asyncsync.disk.files import Lease
from asyncsync.stores.http.watchdog import MIN_BODY_PROGRESS


class TimedBody(BytesIO):
    """Every piece needs the lease, and the pieces must leave at a minimum rate once :meth:`start` is called."""

    def __init__(self, data: bytes, lease: Lease | None) -> None:
        super().__init__(data)
        self._lease, self._size = lease, len(data)
        self._limit: asyncio.Timeout | None = None
        self._stall_timeout = 0.0
        self._moved = 0

    def start(self, limit: asyncio.Timeout, stall_timeout: float) -> None:
        """From now on ``limit`` expires if too few bytes are read for ``stall_timeout`` seconds."""
        self._limit, self._stall_timeout = limit, stall_timeout
        self._extend()

    def read(self, size: int | None = -1, /) -> bytes:
        if self._lease is not None:
            self._lease.check()
        data = super().read(size)
        self._moved += len(data)
        if self._moved >= MIN_BODY_PROGRESS or (data and self.tell() == self._size):
            self._extend()
        return data

    def _extend(self) -> None:
        self._moved = 0
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self._stall_timeout)
