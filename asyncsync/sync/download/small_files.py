"""Small files on their way to the disk: those that have come meanwhile go there in one visit to a worker thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial

from asyncsync.aio.threads import begin_in_thread
from asyncsync.disk.landing import Landing

MANY = 16
"""Files that wait until a further thread is visited. A fast disk needs one, and each that works takes the interpreter's
lock from the event loop: 1,000 files of 16 KiB from fake-gcs-server took 0.38 s with a visit each, 0.33 s like this (2
cores). A slow disk gets as many as there are."""
MOST = 64
"""Files that are saved in one visit."""

_Waiting = tuple[Landing, bytes, "asyncio.Future[bool]"]


class SmallFileWriter:
    """Where whole small files wait to be saved."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._visits = 0

    async def save(self, landing: Landing, data: bytes) -> bool:
        """As :meth:`asyncsync.disk.landing.Landing.save`."""
        mine: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((landing, data, mine))
        self._visit()
        return await mine

    def _visit(self) -> None:
        while self._waiting and (not self._visits or len(self._waiting) >= MANY):
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            self._visits += 1
            begin_in_thread(_save, batch).add_done_callback(partial(self._done, batch))

    def _done(self, batch: Sequence[_Waiting], visit: asyncio.Future[list[bool | Exception]]) -> None:
        self._visits -= 1
        self._visit()
        for (_, _, mine), result in zip(batch, visit.result(), strict=True):
            if mine.done():  # whoever waited for it was cancelled
                continue
            if isinstance(result, Exception):
                mine.set_exception(result)
            else:
                mine.set_result(result)


def _save(batch: Sequence[_Waiting]) -> list[bool | Exception]:
    """In a worker thread. What is wrong with one file is no matter of the others."""
    results: list[bool | Exception] = []
    for landing, data, _ in batch:
        try:
            results.append(landing.save(data))
        except Exception as error:  # noqa: BLE001  # it is raised where the file is waited for
            results.append(error)
    return results
