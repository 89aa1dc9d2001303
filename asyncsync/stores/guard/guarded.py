"""Retries, limits and time-outs around any store: the one place that has them.

A :class:`GuardedStore` shares one budget and one circuit breaker; a :class:`GuardedView` of it is bound to a lane
and an owner and counts what it did. A request holds a slot for one attempt at a time, never while it waits to try
again. A sink of :meth:`GuardedView.read` runs while the slot is held: it must not make requests of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TypeVar

from asyncsync.errors import (
    IntegrityError,
    LeaseExpiredError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.runtime import dice
from asyncsync.stores.base import Body, Lane, ObjectInfo, Page, Part, Piece, Sink, Store, Traits, Upload, body_size
from asyncsync.stores.guard.bandwidth import STEP, Payer
from asyncsync.stores.guard.breaker import Breaker, GoneError
from asyncsync.stores.guard.budget import Budget, Grant, Outcome
from asyncsync.stores.guard.lost_answers import complete_what_stands, completed_is_ours, written_is_ours
from asyncsync.stores.http.dates import MOST_WAIT

T = TypeVar("T")

HOLD = 1 << 20
"""Reads of up to this many bytes are held back until they are whole; longer ones are pinned to a version."""
SLOW_COPY = 15.0
"""Seconds after which a copy without an answer counts as slow; a store that is gone shows earlier."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a request is tried again. Full jitter: the pause is random between 0 and the bound, so that many clients
    that failed together do not come back together (Brooker, "Exponential Backoff And Jitter", AWS, 2015)."""

    attempts: int = 6
    """Attempts in all."""
    base: float = 0.2
    """Bound of the first pause, seconds; doubled each time."""
    cap: float = 20.0
    """Largest bound, seconds. A longer Retry-After of the store is still kept, up to MOST_WAIT."""
    patience: float = 120.0
    """Most seconds that a request waits for a store that is gone, beside its own attempts."""

    def pause(self, attempt: int, error: StoreError, rng: Random) -> float:
        """Seconds to wait after the ``attempt``-th attempt (from 1) failed with ``error``."""
        jitter = rng.uniform(0, min(self.cap, self.base * 2.0 ** (attempt - 1)))
        asked = error.retry_after if isinstance(error, ThrottledError) else None
        return jitter if asked is None else min(max(asked, 0.0), MOST_WAIT) + min(jitter, self.base)


class _Core:
    """What all views of one store share."""

    __slots__ = ("breaker", "budget", "inner", "retry", "rng", "timeout")

    def __init__(self, inner: Store, budget: Budget, retry: RetryPolicy, timeout: float | None, rng: Random) -> None:
        self.inner = inner
        self.budget = budget
        self.breaker = Breaker(inner.uri)
        self.retry = retry
        self.timeout = timeout
        self.rng = rng


class _Resume:
    """A sink that knows how far a read has come, so that it can go on from there."""

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


class GuardedView(Store):
    """The store as one tree uses it. Cheap; closing it does nothing. Raises what the store raises, after all
    attempts, with a note of how many there were. Without ``slots`` its requests take none: they are those that
    others wait for who may hold them all."""

    def __init__(self, core: _Core, lane: Lane, owner: str, *, slots: bool = True) -> None:
        self.uri = core.inner.uri
        self.lane = lane
        self.owner = owner
        self.requests = 0
        """Attempts made, the repeated ones too."""
        self.retries = 0
        """Attempts beyond the first of their request."""
        self.bytes_sent = 0
        """Bytes of bodies that the store acknowledged."""
        self._core = core
        self._inner = core.inner
        self._slots = slots

    @property
    def traits(self) -> Traits:  # type: ignore[override]  # those of the store inside, which may find out more later
        return self._inner.traits

    @property
    def share(self) -> int:
        """So many requests that every slot is taken again at once, and every tree has its turn."""
        return self._core.budget.share(self.lane)

    async def close(self) -> None:
        """Nothing to free: the store belongs to the :class:`GuardedStore`."""

    async def pay(self, nbytes: int) -> None:
        """Wait until the bandwidth limit allows ``nbytes`` more."""
        if self._core.budget.paced:
            await self._core.budget.pay(nbytes, self.lane)

    # -- bodies

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        size = body_size(body)
        paced, ahead = self._paced(body, size)
        once = partial(self._inner.put, key, paced, crc32c=crc32c, if_version=if_version)
        landed = None if if_version is None else partial(written_is_ours, self, key, body, crc32c)
        info = await self._run("put", key, once, size, ahead, landed=landed, writes=True)
        self.bytes_sent += size - (0 if isinstance(body, bytes) else body.there)
        return info

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        size = body_size(body)
        paced, ahead = self._paced(body, size)
        once = partial(self._inner.put_part, upload, number, offset, paced, crc32c=crc32c)
        part = await self._run("put part of", upload.key, once, size, ahead, writes=True)
        self.bytes_sent += size - (0 if isinstance(body, bytes) else body.there)
        return part

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if if_version is None and length is not None and length <= HOLD:
            data, info = await self._read_whole(key, start, length)
            if data:
                await sink(data)
            return info
        if if_version is None:
            # A read that goes on after a cut must go on in the same object.
            if_version = (await self.head(key)).version
        ahead = HOLD if length is None else min(HOLD, length)
        resume = _Resume(sink, self._core.budget.payer(ahead) if self._core.budget.paced else None)

        def once() -> Awaitable[ObjectInfo]:
            at = resume.delivered
            rest = None if length is None else length - at
            return self._inner.read(key, resume, start=start + at, length=rest, if_version=if_version)

        return await self._run("read", key, once, 0, ahead, moved=resume)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        data, info = await self._run("get", key, partial(self._inner.get, key))
        await self.pay(len(data))
        return data, info

    async def _read_whole(self, key: str, start: int, length: int) -> tuple[bytes, ObjectInfo]:
        """A short range: all of it from one answer, or the next attempt begins anew."""

        async def once() -> tuple[bytes, ObjectInfo]:
            pieces: list[bytes] = []

            async def keep(piece: Piece) -> None:
                pieces.append(bytes(piece))

            info = await self._inner.read(key, keep, start=start, length=length)
            return b"".join(pieces), info

        data, info = await self._run("read", key, once)
        await self.pay(len(data))
        return data, info

    def _paced(self, body: Body, size: int) -> tuple[Body, int]:
        """The body as it is sent, and how many bytes of it are paid for before: all, unless it pays on its way."""
        if not self._core.budget.paced or isinstance(body, bytes) or size <= HOLD or not self.traits.paced:
            return body, size
        return replace(body, pace=self._core.budget.payer(STEP).pay), STEP

    # -- control

    async def head(self, key: str) -> ObjectInfo:
        return await self._control("head", key, partial(self._inner.head, key))

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        return await self._control("list", prefix, partial(self._inner.list, prefix, delimiter=delimiter, token=token))

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            await self._control("delete", keys[0], partial(self._inner.delete, keys), writes=True)

    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        only = {} if if_version is None else {"if_version": if_version}
        once = partial(self._inner.copy, source, key, if_source_version=if_source_version, size=size, **only)
        return await self._run("copy", source, self._copying(self._timed(once)), writes=True)

    async def create_multipart(self, key: str) -> Upload:
        return await self._control("create upload of", key, partial(self._inner.create_multipart, key), writes=True)

    async def copy_part(
        self, upload: Upload, number: int, offset: int, source: str, start: int, length: int, *,
        if_source_version: str | None = None,
    ) -> Part:  # fmt: skip
        once = partial(
            self._inner.copy_part, upload, number, offset, source, start, length, if_source_version=if_source_version
        )
        return await self._run("copy part of", source, self._copying(self._timed(once)), writes=True)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if if_version is None and self.traits.conditional_complete:
            return await complete_what_stands(self, upload, parts, crc32c)
        once = partial(self._inner.complete_multipart, upload, parts, crc32c=crc32c, if_version=if_version)
        landed = partial(completed_is_ours, self, upload, parts, crc32c)
        return await self._run("complete upload of", upload.key, self._timed(once), landed=landed, writes=True)

    async def abort_multipart(self, upload: Upload) -> None:
        await self._control("abort upload of", upload.key, partial(self._inner.abort_multipart, upload))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await self._control("list parts of", upload.key, partial(self._inner.list_parts, upload))

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        return await self._control("list uploads of", prefix, partial(self._inner.list_multiparts, prefix))

    # -- the guard

    async def _permit(self) -> None:
        """Before each attempt that writes; raises if there is no right to."""

    def _permitted(self) -> bool:
        """Whether the right still stands after the attempt has waited for its turn."""
        return True

    async def _control(self, verb: str, key: str, once: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        return await self._run(verb, key, self._timed(once), writes=writes)

    def _timed(self, once: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """A request without a body shows no progress that a store could watch: it gets a time limit."""
        if (limit := self._core.timeout) is None:
            return once

        async def timed() -> T:
            try:
                async with asyncio.timeout(limit) as scope:
                    return await once()
            except TimeoutError as error:
                if not scope.expired() or isinstance(error, StoreError):
                    raise
                raise UnavailableError(f"{self.uri}: no answer within {limit:.0f} s") from error

        return timed

    def _copying(self, once: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """A copy that is not answered in time says that the store copies slowly, not that it is gone: it is not tried
        again, and the circuit breaker does not hear of it. The caller has the bytes and can send them."""

        async def copied() -> T:
            began = asyncio.get_running_loop().time()
            try:
                return await once()
            except UnavailableError as error:
                seconds = asyncio.get_running_loop().time() - began
                if seconds < SLOW_COPY:
                    raise
                raise StoreError(f"{self.uri}: no answer to a copy within {seconds:.0f} s: {error}") from error

        return copied

    async def _run(
        self, verb: str, key: str, once: Callable[[], Awaitable[T]], size: int = 0, ahead: int = 0, *,
        moved: _Resume | None = None, landed: Callable[[], Awaitable[T | None]] | None = None, writes: bool = False,
    ) -> T:  # fmt: skip
        """Attempts until one succeeds. ``ahead``: bytes that each of them pays for before it starts. ``landed`` looks
        whether a write whose answer was lost is in the store. ``writes``: each attempt needs the right to."""
        policy = self._core.retry
        attempt, asked = 1, asyncio.get_running_loop().time()
        while True:
            try:
                return await self._attempt(once, size, ahead, moved, asked, writes=writes)
            except StoreError as error:
                last = attempt >= policy.attempts or _is_final(error, moved)
                if landed is not None and _may_have_landed(error, attempt, last=last):
                    ours = await landed()
                    if ours is not None:
                        return ours
                if last:
                    error.add_note(f"{self.uri}: {verb} {key!r}, attempt {attempt} of {policy.attempts}")
                    raise
                pause = policy.pause(attempt, error, self._core.rng)
            await asyncio.sleep(pause)
            attempt += 1
            self.retries += 1

    async def _attempt(
        self, once: Callable[[], Awaitable[T]], size: int, ahead: int, moved: _Resume | None, asked: float, *,
        writes: bool,
    ) -> T:  # fmt: skip
        """One attempt, with a slot. ``asked``: when the request was made."""
        core = self._core
        if ahead and core.budget.paced:
            await core.budget.pay(ahead, self.lane)
        grant, probe = await (self._admitted(size, asked) if writes else self._enter(size, asked))
        before = 0 if moved is None else moved.delivered
        outcome = Outcome.FAILED
        answered = False
        self.requests += 1
        try:
            result = await once()
            outcome, answered = Outcome.DONE, True
            core.breaker.failing_since[writes] = None
        except LeaseExpiredError:
            raise  # says nothing of the store
        except UnavailableError as error:
            core.breaker.failed(error, probe=probe)
            probe = False
            core.breaker.refused(error, writes=writes)
            raise
        except ThrottledError as error:
            outcome, answered = Outcome.THROTTLED, True
            core.breaker.refused(error, writes=writes)
            raise
        except StoreError:
            outcome, answered = Outcome.DONE, True
            core.breaker.failing_since[writes] = None
            raise
        finally:
            if answered:
                core.breaker.answered()
            elif probe:
                core.breaker.abandoned(probe=True)
            self._release(grant, size if moved is None else moved.delivered - before, outcome)
        return result

    async def _admitted(self, size: int, asked: float) -> tuple[Grant | None, bool]:
        """As :meth:`_enter`, with the right to write when this returns: the wait for a slot may outlast it."""
        while True:
            await self._permit()
            grant, probe = await self._enter(size, asked)
            if self._permitted():
                return grant, probe
            self._core.breaker.abandoned(probe=probe)
            self._release(grant, 0, Outcome.FAILED)

    def _release(self, grant: Grant | None, size: int, outcome: Outcome) -> None:
        if grant is not None:
            self._core.budget.release(grant, size, outcome)

    async def _enter(self, size: int, asked: float) -> tuple[Grant | None, bool]:
        """Wait for the store to be there, and for a slot. Returns the slot, and whether the attempt is a probe."""
        breaker = self._core.breaker
        while True:
            probe = False
            if breaker.open:
                give_up = max(asked, breaker.since) + self._core.retry.patience
                probe = await breaker.enter(give_up - asyncio.get_running_loop().time())
            try:
                grant = await self._core.budget.acquire(self.lane, self.owner, size) if self._slots else None
            except BaseException:
                breaker.abandoned(probe=probe)
                raise
            if probe or not breaker.open:
                return grant, probe
            self._release(grant, 0, Outcome.FAILED)  # it went away while we waited for the slot


def _may_have_landed(error: StoreError, attempt: int, *, last: bool) -> bool:
    """Whether an attempt may have done what was wanted: an earlier one whose answer was lost, if this one is refused;
    any of them, if there will be no further one and the store is there to be asked."""
    if isinstance(error, PreconditionError | NotFoundError):
        return attempt > 1
    return last and error.retryable and not isinstance(error, GoneError)


def _is_final(error: StoreError, moved: _Resume | None) -> bool:
    """Whether no further attempt can help."""
    if isinstance(error, IntegrityError) and moved is not None and moved.delivered:
        return True  # the sink has damaged bytes, and nobody knows which
    return not error.retryable or isinstance(error, GoneError)


class GuardedStore(GuardedView):
    """A store with retries, limits and a circuit breaker; see :meth:`view`. Used directly it has the lowest lane.

    ``request_timeout`` (seconds) ends an attempt of a request without body, such as head or complete; None: no
    limit. Bodies have the store's own watch on progress.
    """

    def __init__(
        self, inner: Store, budget: Budget, *, retry: RetryPolicy | None = None,
        request_timeout: float | None = 120.0, random: Random | None = None,
    ) -> None:  # fmt: skip
        rng = random or dice()
        core = _Core(inner, budget, retry or RetryPolicy(), request_timeout, rng)
        super().__init__(core, Lane.ARTIFACT, "")

    @property
    def healthy(self) -> bool:
        """False while the store counts as gone and requests wait for it."""
        return not self._core.breaker.open

    @property
    def last_error(self) -> UnavailableError | None:
        """The last failure to reach the store."""
        return self._core.breaker.last_error

    @property
    def core(self) -> _Core:
        """What all views share, for further kinds of them."""
        return self._core

    def view(self, lane: Lane, owner: str) -> GuardedView:
        """The store for the requests of one tree, counted for itself."""
        return GuardedView(self._core, lane, owner)

    async def close(self) -> None:
        """Close the store inside."""
        self._core.breaker.close()
        await self._inner.close()
