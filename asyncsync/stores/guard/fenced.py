"""A view of the store that makes every attempt of a write under a lease.

A process that was stopped for a while may have a successor by now. So each attempt of a write needs a lease: the
store confirmed less than ``LEASE_SECONDS`` ago that this process is the writer, on a clock that keeps running while
the process is stopped. The lease is checked when the attempt begins, when the first byte of a body is handed to the
socket, and before its last piece. A confirmation that another view or the write of a record got before the pass counts
too, as long as it is valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy

from asyncsync.errors import LeaseExpiredError, StoreError
from asyncsync.runtime import lease_clock
from asyncsync.stores.base import Lane, Lease, Store
from asyncsync.stores.guard.guarded import Admission, GuardedStore, GuardedView
from asyncsync.stores.wrapped import Operation

LEASE_SECONDS = 10.0
"""Seconds for which a confirmation counts. A pass that has lost the right to write stops within that time."""

LEASE_OUTLIVED = LEASE_SECONDS + 5.0
"""Seconds after which nothing that a replaced writer handed to the network is still on its way."""

LEASE_RENEWAL_AGE = 5.0
"""Age in seconds from which a body that is still being sent renews the lease."""

LEASE_HEAD_START = LEASE_SECONDS - 0.5
"""A confirmation up to so many seconds older than the pass counts for it: what is left suffices to begin its writes."""

LEASE_RENEWED_AGE = 1.0
"""Seconds for which :meth:`FencedView.confirm_again` spares :meth:`FencedView.renew_lease` a question."""

Fence = Callable[[Store, float], Awaitable[float]]
"""Reads the current writer from the store. Returns the time of the request by :func:`asyncsync.runtime.lease_time`;
raises ConcurrentWriterError if it is another process. A confirmation from before the given time does not count."""


class FencedView(GuardedView):
    """A :class:`GuardedView` that asks ``fence`` before it changes anything; one for each pass. It is itself the
    :class:`~asyncsync.stores.base.Lease` of its writes."""

    def __init__(self, store: GuardedStore, lane: Lane, owner: str, fence: Fence) -> None:
        super().__init__(store.core, lane, owner)
        self._fence, self._now = fence, lease_clock()
        self._asker = GuardedView(store.core, lane, owner, slots=False)
        self._asking = asyncio.Lock()
        self._confirmed, self._not_before = float("-inf"), self._now() - LEASE_HEAD_START
        self._renewed = float("-inf")
        """When :meth:`confirm_again` asked."""
        self._failures = 0
        """How often the fence failed."""
        self._last_failure: StoreError | None = None

    @property
    def lease(self) -> Lease:  # type: ignore[override]  # a view without a lease has none; this one always has
        return self

    def renew_lease(self) -> None:
        now = self._now()
        if now - self._renewed >= LEASE_RENEWED_AGE:
            self._confirmed, self._not_before = float("-inf"), now

    async def confirm_again(self) -> None:
        await self._confirm(LEASE_SECONDS)
        await self._confirm(0.0)
        self._renewed = self._confirmed

    def check(self) -> None:
        """LeaseExpiredError if the last confirmation is too old. Plain call, from any thread."""
        if not self._is_confirmed():
            raise LeaseExpiredError(
                f"{self.uri}: nothing more was sent: for {LEASE_SECONDS:.0f} s the store has not confirmed that "
                "this process is the writer. Was the process stopped? The request is retried after a new confirmation"
            )

    async def keep(self) -> None:
        """Between the pieces of a body: renew the lease in good time; one piece asks for all bodies."""
        self.steps += 1
        age = self._now() - self._confirmed
        if age >= LEASE_SECONDS or (age >= LEASE_RENEWAL_AGE and not self._asking.locked()):
            await self._confirm(LEASE_RENEWAL_AGE)

    async def admit(self, operation: Operation, asked: float) -> Admission:
        """As for any view; a write also has a valid lease when this returns: the wait for a slot may outlast it."""
        if not operation.writes:
            return await super().admit(operation, asked)
        while True:
            if not self._is_confirmed():
                await self._confirm(LEASE_SECONDS)
            admission = await GuardedView.admit(self, operation, asked)
            if self._is_confirmed():
                return admission
            self.give_back(admission)

    def _is_confirmed(self) -> bool:
        return self._now() - self._confirmed < LEASE_SECONDS

    async def _confirm(self, max_age: float) -> None:
        """Get a confirmation younger than ``max_age``.

        Writes that wait while another one asks share its result, also a failure: with an unavailable store they would
        otherwise ask one after the other, each for as long as its patience lasts.
        """
        if self._now() - self._confirmed < max_age:
            return
        before = self._failures
        async with self._asking:
            if self._failures > before and self._last_failure is not None:
                raise copy(self._last_failure) from self._last_failure
            began = self._now()
            if began - self._confirmed < max_age:
                return
            await self._ask(max(self._not_before, began - max_age))

    async def _ask(self, since: float) -> None:
        before = self._asker.requests
        try:
            self._confirmed = await self._fence(self._asker, since)
        except StoreError as error:
            self._failures += 1
            self._last_failure = copy(error)  # without its traceback, which keeps much memory alive
            raise
        finally:
            self.requests += self._asker.requests - before
