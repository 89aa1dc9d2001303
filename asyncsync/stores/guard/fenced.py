"""A view of the store that writes nothing for somebody who is no longer the writer.

A process that was stopped for a while may have a successor by now. So every attempt of a write is made under a lease:
the store said less than ``TRUSTED`` seconds ago, on a clock that goes on while the process is stopped, that we are the
writer. That is so when the attempt begins, when the first byte of a body is handed to the socket, and when its last
piece is. What the store said a moment before the pass began, to another or to the write of a record, counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import replace

from asyncsync.errors import LeaseExpiredError, StoreError
from asyncsync.runtime import lease_clock
from asyncsync.stores.base import Body, Lane, LeasedBytes, LeasedKey, LeasedKeys, ObjectInfo, Part, Store, Upload
from asyncsync.stores.guard.guarded import GuardedStore, GuardedView

TRUSTED = 10.0
"""Seconds for which an answer counts; so long may a pass go on that has lost its right to."""

OUTLIVED = TRUSTED + 5.0
"""Seconds after which nothing that a replaced writer has handed to the network is still on its way."""

RENEWED = 5.0
"""Seconds after which a body that is still being sent asks again."""

JUST_NOW = 1.0
"""Seconds before a pass in which the store may have been asked for it by others."""

Fence = Callable[[Store, float], Awaitable[float]]
"""Raises ConcurrentWriterError if somebody else is the writer; else when the store was asked, as
:func:`asyncsync.runtime.lease_time` says. What it was asked before the time given does not count."""


class FencedView(GuardedView):
    """A :class:`GuardedView` that asks ``fence`` before it changes anything. One for each pass. It is the
    :class:`asyncsync.stores.base.Lease` of what it sends."""

    def __init__(self, store: GuardedStore, lane: Lane, owner: str, fence: Fence) -> None:
        super().__init__(store.core, lane, owner)
        self._fence, self._now = fence, lease_clock()
        self._asker = GuardedView(store.core, lane, owner, slots=False)
        self._asking = asyncio.Lock()
        self._confirmed, self._from = float("-inf"), self._now() - JUST_NOW
        self._unanswered = 0
        """How often the fence got no answer."""
        self._why: StoreError | None = None
        """The last time."""
        self.steps = 0
        """Pieces of bodies that were handed to the socket one by one."""

    def doubt(self) -> None:
        """Ask again before the next write, however new the last answer is."""
        self._confirmed, self._from = float("-inf"), self._now()

    def check(self) -> None:
        """LeaseExpiredError if the last answer is too old. Plain, from any thread."""
        if self._now() - self._confirmed >= TRUSTED:
            raise LeaseExpiredError(
                f"{self.uri}: nothing more was sent, it is {TRUSTED:.0f} s or more since the store said who the writer "
                "is: was this process stopped?"
            )

    async def keep(self) -> None:
        """Between the pieces of a body: ask again in good time; one asks for all."""
        self.steps += 1
        age = self._now() - self._confirmed
        if age >= TRUSTED or (age >= RENEWED and not self._asking.locked()):
            await self._confirm(RENEWED)

    async def _permit(self) -> None:
        await self._confirm(TRUSTED)

    def _permitted(self) -> bool:
        return self._now() - self._confirmed < TRUSTED

    async def _confirm(self, most: float) -> None:
        """An answer that is younger than ``most``. Who waits while another write asks shares its answer, or that there
        was none: with a store that is gone they would ask one after the other, each for as long as its patience."""
        before = self._unanswered
        if self._now() - self._confirmed < most:
            return
        async with self._asking:
            if self._unanswered > before and self._why is not None:
                raise copy(self._why) from self._why
            began = self._now()
            if began - self._confirmed < most:
                return
            await self._ask(max(self._from, began - most))

    async def _ask(self, since: float) -> None:
        before = self._asker.requests
        try:
            self._confirmed = await self._fence(self._asker, since)
        except StoreError as error:
            self._unanswered += 1
            self._why = copy(error)  # without its traceback: that holds on to much
            raise
        finally:
            self.requests += self._asker.requests - before

    def _leased(self, body: Body) -> Body:
        if not isinstance(body, bytes):
            return replace(body, lease=self)
        leased = LeasedBytes(body)
        leased.lease = self
        return leased

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        return await super().put(key, self._leased(body), crc32c=crc32c, if_version=if_version)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        return await super().put_part(upload, number, offset, self._leased(body), crc32c=crc32c)

    async def delete(self, keys: Sequence[str]) -> None:
        leased = LeasedKeys(keys)
        leased.lease = self
        await super().delete(leased)

    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        leased = LeasedKey(key)
        leased.lease = self
        return await super().copy(source, leased, if_source_version=if_source_version, size=size, if_version=if_version)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        return await super().complete_multipart(
            replace(upload, lease=self), parts, crc32c=crc32c, if_version=if_version
        )
