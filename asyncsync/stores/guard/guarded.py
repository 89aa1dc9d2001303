"""Retries, limits and time-outs around any store: the only place that has them.

A :class:`GuardedStore` owns one budget and one circuit breaker. A :class:`GuardedView` of it belongs to a lane and an
owner and counts its own requests. A request holds a slot for one attempt at a time, never during the pause before a
retry. The sink of :meth:`GuardedView.read` runs while the slot is held: it must not make requests of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TypeVar

from asyncsync.errors import LeaseExpiredError, StoreError, ThrottledError, UnavailableError
from asyncsync.runtime import dice
from asyncsync.stores.base import Body, Lane, ObjectInfo, Part, Piece, Sink, Store, Upload, body_size
from asyncsync.stores.guard.bandwidth import PAID_STEP, Payer
from asyncsync.stores.guard.breaker import Breaker
from asyncsync.stores.guard.budget import AttemptOutcome, Budget, Grant
from asyncsync.stores.guard.lost_responses import complete_over_present, completed_is_ours, written_is_ours
from asyncsync.stores.guard.metered import RequestMeter
from asyncsync.stores.guard.retry_policy import RetryPolicy, is_final, may_have_succeeded
from asyncsync.stores.wrapped import Call, Operation, WrappedStore, under_lease

T = TypeVar("T")

BUFFERED_READ = 1 << 20
"""Reads of up to this many bytes are buffered until they are complete; longer ones are pinned to a version."""
SLOW_COPY = 15.0
"""Seconds after which a copy without a response counts as slow; an unavailable store shows earlier."""
_COPIES = frozenset({"copy", "copy_part"})


class _Core:
    """State that all views of one store share."""

    __slots__ = ("breaker", "budget", "inner", "meter", "retry", "rng", "timeout")

    def __init__(self, inner: Store, budget: Budget, retry: RetryPolicy, timeout: float | None, rng: Random) -> None:
        self.inner = inner
        self.budget = budget
        self.breaker = Breaker(inner.uri)
        self.meter = RequestMeter()
        self.retry = retry
        self.timeout = timeout
        self.rng = rng


class _ResumableSink:
    """A sink that counts delivered bytes, so that the next attempt of a read resumes after them."""

    __slots__ = ("_payer", "_sink", "delivered")

    def __init__(self, sink: Sink, payer: Payer | None) -> None:
        self._sink = sink
        self._payer = payer
        self.delivered = 0

    async def __call__(self, piece: Piece) -> None:
        if self._payer is not None:
            await self._payer.pay(len(piece))
        await self._sink(piece)
        self.delivered += len(piece)


Admission = tuple[Grant | None, bool]
"""The right to make one attempt: its slot (None where the view takes none), and whether it probes an unavailable store.
"""


class GuardedView(WrappedStore):
    """The store as one tree uses it. Cheap; closing it does nothing.

    It raises the error of the last attempt, with a note of how many there were. ``slots=False``: its requests take no
    slot, because requests that may hold all of them wait for these.
    """

    def __init__(self, core: _Core, lane: Lane, owner: str, *, slots: bool = True) -> None:
        super().__init__(core.inner)
        self.lane = lane
        self.owner = owner
        self.requests = 0
        """Attempts made, retries included."""
        self.retries = 0
        """Attempts beyond the first of their request."""
        self.bytes_sent = 0
        """Bytes of bodies that the store acknowledged."""
        self.steps = 0
        """Pieces of bodies that were sent one by one under a lease."""
        self._core = core
        self._slots = slots

    @property
    def share(self) -> int:
        """As many requests as keep every slot busy and still give every tree its turn."""
        return self._core.budget.share(self.lane)

    def renew_lease(self) -> None:
        """Confirm the lease again before the next write, however recent the last confirmation, unless
        :meth:`confirm_again` did so within the last second. No lease: nothing."""

    async def confirm_again(self) -> None:
        """Confirm the lease once more while the first writes are in flight: far away, the question costs no time there.
        Raises the errors of the fence. No lease: nothing."""

    async def close(self) -> None:
        """Nothing to free: the store belongs to the :class:`GuardedStore`."""

    async def pay(self, nbytes: int) -> None:
        """Wait until the bandwidth limit allows ``nbytes`` more."""
        if self._core.budget.paced:
            await self._core.budget.pay(nbytes, self.lane)

    async def around(self, operation: Operation, call: Call[T]) -> T:
        return await self._retried(operation, call)

    # -- calls that need more than retries

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        size = body_size(body)
        if (lease := self.lease) is not None:
            body = under_lease(lease, body)
        paced, prepaid = self._paced(body, size)
        call = partial(self.inner.put, key, paced, crc32c=crc32c, if_version=if_version)
        find = None if if_version is None else partial(written_is_ours, self, key, body, crc32c)
        operation = Operation("put", key, size, True, True)
        info = await self._retried(operation, call, prepaid, find=find)
        self.bytes_sent += size - (0 if isinstance(body, bytes) else body.there)
        return info

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        size = body_size(body)
        if (lease := self.lease) is not None:
            body = under_lease(lease, body)
        paced, prepaid = self._paced(body, size)
        call = partial(self.inner.put_part, upload, number, offset, paced, crc32c=crc32c)
        operation = Operation("put_part", upload.key, size, writes=True, body=True)
        part = await self._retried(operation, call, prepaid)
        self.bytes_sent += size - (0 if isinstance(body, bytes) else body.there)
        return part

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if if_version is None and length is not None and length <= BUFFERED_READ:
            data, info = await self._read_buffered(key, start, length)
            if data:
                await sink(data)
            return info
        if if_version is None:
            # After a cut the read must resume in the same object.
            if_version = (await self.head(key)).version
        prepaid = BUFFERED_READ if length is None else min(BUFFERED_READ, length)
        resumable = _ResumableSink(sink, self._core.budget.payer(prepaid) if self._core.budget.paced else None)

        def call() -> Awaitable[ObjectInfo]:
            done = resumable.delivered
            rest = None if length is None else length - done
            return self.inner.read(key, resumable, start=start + done, length=rest, if_version=if_version)

        return await self._retried(Operation("read", key, body=True), call, prepaid, sink=resumable)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        data, info = await super().get(key)
        await self.pay(len(data))
        return data, info

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            await super().delete(keys)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        upload = under_lease(self.lease, upload)
        if if_version is None and self.traits.conditional_complete:
            return await complete_over_present(self, upload, parts, crc32c)
        call = partial(self.inner.complete_multipart, upload, parts, crc32c=crc32c, if_version=if_version)
        find = partial(completed_is_ours, self, upload, parts, crc32c)
        return await self._retried(Operation("complete_multipart", upload.key, writes=True), call, find=find)

    async def _read_buffered(self, key: str, start: int, length: int) -> tuple[bytes, ObjectInfo]:
        """A short range, all of it from one response; each attempt starts over."""

        async def call() -> tuple[bytes, ObjectInfo]:
            pieces: list[bytes] = []

            async def keep(piece: Piece) -> None:
                pieces.append(bytes(piece))

            info = await self.inner.read(key, keep, start=start, length=length)
            return b"".join(pieces), info

        data, info = await self._retried(Operation("read", key, body=True), call)
        await self.pay(len(data))
        return data, info

    def _paced(self, body: Body, size: int) -> tuple[Body, int]:
        """The body to send, and how many bytes of it to pay for before: all, unless the store pays step by step."""
        if not self._core.budget.paced or isinstance(body, bytes) or size <= BUFFERED_READ or not self.traits.paced:
            return body, size
        return replace(body, pace=self._core.budget.payer(PAID_STEP).pay), PAID_STEP

    # -- the guard

    async def _retried(
        self,
        operation: Operation,
        call: Call[T],
        prepaid: int = 0,
        *,
        sink: _ResumableSink | None = None,
        find: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T:
        """Attempts until one succeeds. Each pays for ``prepaid`` bytes before it starts. ``find`` looks in the store
        for the result of a write whose response was lost."""
        policy = self._core.retry
        attempt, asked = 1, asyncio.get_running_loop().time()
        while True:
            try:
                return await self._attempt(operation, call, prepaid, sink, asked)
            except StoreError as error:
                last = attempt >= policy.attempts or is_final(error, 0 if sink is None else sink.delivered)
                if find is not None and may_have_succeeded(error, attempt, last=last):
                    ours = await find()
                    if ours is not None:
                        return ours
                if last:
                    error.add_note(f"{self.uri}: {operation}, attempt {attempt} of {policy.attempts}")
                    raise
                pause = policy.pause(attempt, error, self._core.rng)
            await asyncio.sleep(pause)
            attempt += 1
            self.retries += 1
            self._core.meter.retries += 1

    async def _attempt(
        self, operation: Operation, call: Call[T], prepaid: int, sink: _ResumableSink | None, asked: float
    ) -> T:
        """One attempt, with a slot. ``asked``: when the request was made (event loop's clock)."""
        core = self._core
        if prepaid and core.budget.paced:
            await core.budget.pay(prepaid, self.lane)
        grant, probe = await self.admit(operation, asked)
        before, failure = 0 if sink is None else sink.delivered, None
        self.requests += 1
        began = asyncio.get_running_loop().time()
        try:
            return await (call() if operation.body else self._timed(operation, call))
        except BaseException as error:
            failure = error
            raise
        finally:
            moved = sink.delivered - before if sink is not None else operation.size
            core.meter.ended(operation, began, moved if failure is None or sink is not None else 0, failure)
            outcome = self._note_outcome(failure, probe=probe, writes=operation.writes)
            if grant is not None:
                core.budget.release(grant, moved, outcome)

    def _note_outcome(self, failure: BaseException | None, *, probe: bool, writes: bool) -> AttemptOutcome:
        """Tell the breaker how an attempt ended."""
        breaker = self._core.breaker
        if isinstance(failure, UnavailableError) and not isinstance(failure, LeaseExpiredError):
            breaker.failed(failure, probe=probe)
            breaker.refused(failure, writes=writes)
            return AttemptOutcome.FAILED
        if isinstance(failure, ThrottledError):
            breaker.refused(failure, writes=writes)
            breaker.responded()
            return AttemptOutcome.THROTTLED
        if failure is None or (isinstance(failure, StoreError) and not isinstance(failure, LeaseExpiredError)):
            breaker.failing_since[writes] = None
            breaker.responded()
            return AttemptOutcome.DONE
        if probe:  # a cancel or an expired lease is not evidence about the store
            breaker.abandoned(probe=True)
        return AttemptOutcome.FAILED

    async def admit(self, operation: Operation, asked: float) -> Admission:
        """Wait until an attempt may start: the store is available and there is a slot. For layers to override."""
        breaker = self._core.breaker
        while True:
            probe = False
            if breaker.open:
                give_up = max(asked, breaker.since) + self._core.retry.patience
                probe = await breaker.enter(give_up - asyncio.get_running_loop().time())
            try:
                grant = await self._core.budget.acquire(self.lane, self.owner, operation.size) if self._slots else None
            except BaseException:
                breaker.abandoned(probe=probe)
                raise
            if probe or not breaker.open:
                return grant, probe
            self._release_unused(grant)  # the store became unavailable while we waited for the slot

    def give_back(self, admission: Admission) -> None:
        """An attempt was admitted and does not start after all."""
        grant, probe = admission
        self._core.breaker.abandoned(probe=probe)
        self._release_unused(grant)

    def _release_unused(self, grant: Grant | None) -> None:
        if grant is not None:
            self._core.budget.release(grant, 0, AttemptOutcome.FAILED)

    async def _timed(self, operation: Operation, call: Call[T]) -> T:
        """A request without a body shows no progress that a store could watch: it gets a time limit.

        A copy without a response in time means that the store copies slowly, not that it is unavailable. It is not
        retried and the circuit breaker does not count it: the caller has the bytes and can send them.
        """
        began = asyncio.get_running_loop().time()
        try:
            return await self._within_timeout(call)
        except UnavailableError as error:
            if operation.name not in _COPIES:
                raise
            seconds = asyncio.get_running_loop().time() - began
            if seconds < SLOW_COPY:
                raise
            raise StoreError(
                f"{self.uri}: no response to a copy within {seconds:.0f} s: {error}. Its bytes can be sent instead"
            ) from error

    async def _within_timeout(self, call: Call[T]) -> T:
        if (limit := self._core.timeout) is None:
            return await call()
        try:
            async with asyncio.timeout(limit) as scope:
                return await call()
        except TimeoutError as error:
            if not scope.expired() or isinstance(error, StoreError):
                raise
            raise UnavailableError(f"{self.uri}: no response within {limit:.0f} s") from error


class GuardedStore(GuardedView):
    """A store with retries, limits and a circuit breaker; :meth:`view` makes one for a tree. Used directly it has the
    lowest lane.

    ``request_timeout`` (seconds) ends an attempt of a request without body, such as head or complete; None: no limit.
    The store itself watches the progress of bodies.
    """

    def __init__(
        self,
        inner: Store,
        budget: Budget,
        *,
        retry: RetryPolicy | None = None,
        request_timeout: float | None = 120.0,
        random: Random | None = None,
    ) -> None:
        rng = random or dice()
        core = _Core(inner, budget, retry or RetryPolicy(), request_timeout, rng)
        super().__init__(core, Lane.ARTIFACT, "")

    @property
    def healthy(self) -> bool:
        """False while the store counts as unavailable and requests wait for it."""
        return not self._core.breaker.open

    @property
    def last_error(self) -> UnavailableError | None:
        """The last failure to reach the store."""
        return self._core.breaker.last_error

    @property
    def core(self) -> _Core:
        """The state that all views share, for further kinds of views."""
        return self._core

    def view(self, lane: Lane, owner: str) -> GuardedView:
        """The store for the requests of one tree, which are counted separately."""
        return GuardedView(self._core, lane, owner)

    async def close(self) -> None:
        """Close the store inside."""
        self._core.breaker.close()
        await self.inner.close()
