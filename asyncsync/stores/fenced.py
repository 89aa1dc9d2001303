"""A view of the store that writes nothing for somebody who is no longer the writer.

A process that was stopped for a while may have a successor by now. It is asked for at the first write of every pass,
again whenever the last answer is older than ``TRUSTED``, and before what makes a checkpoint exist. What the store said
a moment before the pass began, to another or to the write of a record, answers the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy

from asyncsync.errors import StoreError
from asyncsync.stores.base import Body, ObjectInfo, Part, Store, Upload
from asyncsync.stores.guarded import GuardedStore, GuardedView
from asyncsync.stores.waiting import Lane

TRUSTED = 10.0
"""Seconds for which an answer counts; so long may a pass go on that has lost its right to."""

JUST_NOW = 1.0
"""Seconds before a pass in which the store may have been asked for it by others."""

Fence = Callable[[Store, float], Awaitable[float]]
"""Raises ConcurrentWriterError if somebody else is the writer; else when the store was asked, on the loop's clock. What
it was asked before the time given does not count."""


class FencedView(GuardedView):
    """A :class:`GuardedView` that asks ``fence`` before it changes anything. One for each pass."""

    def __init__(self, store: GuardedStore, lane: Lane, owner: str, fence: Fence) -> None:
        super().__init__(store.core, lane, owner)
        self._fence = fence
        self._asking = asyncio.Lock()
        self._confirmed, self._from = float("-inf"), asyncio.get_running_loop().time() - JUST_NOW
        self._unanswered = 0
        """How often the fence got no answer."""
        self._why: StoreError | None = None
        """The last time."""

    def doubt(self) -> None:
        """Ask again before the next write, however new the last answer is."""
        self._confirmed, self._from = float("-inf"), asyncio.get_running_loop().time()

    async def _confirm(self) -> None:
        """Who waits while another write asks shares its answer, or that there was none: with a store that is gone they
        would ask one after the other, each for as long as its patience."""
        loop = asyncio.get_running_loop()
        before = self._unanswered
        if loop.time() - self._confirmed < TRUSTED:
            return
        async with self._asking:
            if self._unanswered > before and self._why is not None:
                raise copy(self._why) from self._why
            began = loop.time()
            if began - self._confirmed < TRUSTED:
                return
            try:
                self._confirmed = await self._fence(self, max(self._from, began - TRUSTED))
            except StoreError as error:
                self._unanswered += 1
                self._why = copy(error)  # without its traceback: that holds on to much
                raise

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        await self._confirm()
        return await super().put(key, body, crc32c=crc32c, if_version=if_version)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        await self._confirm()
        return await super().put_part(upload, number, offset, body, crc32c=crc32c)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._confirm()
        await super().delete(keys)

    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        await self._confirm()
        return await super().copy(
            source, key, if_source_version=if_source_version, size=size, if_version=if_version
        )

    async def create_multipart(self, key: str) -> Upload:
        await self._confirm()
        return await super().create_multipart(key)

    async def copy_part(
        self, upload: Upload, number: int, offset: int, source: str, start: int, length: int, *,
        if_source_version: str | None = None,
    ) -> Part:  # fmt: skip
        await self._confirm()
        return await super().copy_part(
            upload, number, offset, source, start, length, if_source_version=if_source_version
        )

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        await self._confirm()
        return await super().complete_multipart(upload, parts, crc32c=crc32c, if_version=if_version)
