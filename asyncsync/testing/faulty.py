"""A store that fails, hangs or is cancelled at the n-th call, to test every place where a request can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asyncsync.config import TransferConfig
from asyncsync.errors import UnavailableError
from asyncsync.stores import register_scheme
from asyncsync.stores.base import Store
from asyncsync.stores.wrapped import Call, Operation, WrappedStore
from asyncsync.testing.memory import MemoryStore, Request, forget_buckets, split_uri

T = TypeVar("T")


class Hang:
    """A call that hangs. ``reached`` is set once it hangs; set ``release`` to let it continue."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()


@dataclass(slots=True)
class Fault:
    """One planned fault; the methods of :class:`Faults` make them."""

    at: int
    action: Callable[[], Awaitable[None]]
    after: bool = False
    operation: str | None = None
    key: str | None = None
    times: int | None = 1
    seen: int = 0

    def strikes(self, request: Request) -> bool:
        """Count the call if it matches the fault; returns whether the fault strikes it."""
        if self.operation not in (None, request.operation) or (self.key is not None and self.key not in request.key):
            return False
        self.seen += 1
        return self.seen >= self.at and (self.times is None or self.seen < self.at + self.times)


@dataclass(slots=True)
class Faults:
    """Planned faults, and a log of all requests. Several stores may share one.

    Every method takes ``at``, the number of the call to strike: counted from 1, from now on, over the calls that match
    ``operation`` (the name of a :class:`~asyncsync.stores.base.Store` method; ``get`` counts as ``read``) and ``key``
    (part of the key). ``times``: how many such calls in a row are struck; None: all from then on. ``after=True``: the
    call takes effect and only its response is lost.
    """

    requests: list[Request] = field(default_factory=list)
    active: int = 0
    """Calls in flight."""
    planned: list[Fault] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Number of calls so far, struck ones included."""
        return len(self.requests)

    def count(self, operation: str) -> int:
        """Number of calls of one operation so far."""
        return sum(request.operation == operation for request in self.requests)

    def fail(
        self,
        at: int = 1,
        error: BaseException | None = None,
        *,
        after: bool = False,
        operation: str | None = None,
        key: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Raise ``error`` (default: UnavailableError) at the call."""

        async def act() -> None:
            raise error if error is not None else UnavailableError(f"injected at call {at}")

        return self._plan(Fault(at, act, after, operation, key, times))

    def hook(
        self,
        at: int,
        func: Callable[[], object],
        *,
        after: bool = False,
        operation: str | None = None,
        key: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Call the plain function ``func`` at the call, for example ``task.cancel``; a cancel takes effect there."""

        async def act() -> None:
            func()
            await asyncio.sleep(0)

        return self._plan(Fault(at, act, after, operation, key, times))

    def hang(
        self,
        at: int = 1,
        *,
        after: bool = False,
        operation: str | None = None,
        key: str | None = None,
        times: int | None = 1,
    ) -> Hang:
        """Hang at the call until it is released or cancelled."""
        hang = Hang()

        async def act() -> None:
            hang.reached.set()
            await hang.release.wait()

        self._plan(Fault(at, act, after, operation, key, times))
        return hang

    def clear(self) -> None:
        """Remove all planned faults; the log stays."""
        self.planned.clear()

    def _plan(self, fault: Fault) -> Fault:
        if fault.at < 1:
            raise ValueError(f"calls are counted from 1, not {fault.at}")
        self.planned.append(fault)
        return fault

    async def run(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call, with the faults that are planned for it."""
        self.requests.append(request)
        struck = [fault for fault in self.planned if fault.strikes(request)]
        self.active += 1
        try:
            for fault in struck:
                if not fault.after:
                    await fault.action()
            result = await call()
            for fault in struck:
                if fault.after:
                    await fault.action()
        finally:
            self.active -= 1
        return result


class FaultyStore(WrappedStore):
    """Any store, with :class:`Faults` in front of it::

    store = FaultyStore(MemoryStore())
    store.faults.fail(3)                                     # the third call, before it takes effect
    store.faults.fail(1, after=True, operation="put")        # the first put takes effect, its response is lost
    store.faults.hook(5, task.cancel)

    Closing it closes the inner store and does not count as a call.
    """

    def __init__(self, inner: Store, faults: Faults | None = None) -> None:
        super().__init__(inner)
        self.faults = faults if faults is not None else Faults()

    async def around(self, operation: Operation, call: Call[T]) -> T:
        return await self.faults.run(Request(operation.name, operation.key), call)


_injected: dict[str, Faults] = {}


def inject_faults(name: str) -> Faults:
    """The faults of a named bucket. They apply to every store that is opened as ``memory://name/...`` from now on."""
    return _injected.setdefault(name, Faults())


def reset_memory() -> None:
    """Forget all named buckets and their faults; open stores keep theirs."""
    forget_buckets()
    _injected.clear()


def _open(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> MemoryStore | FaultyStore:
    """The factory of ``memory://``; ``options`` are the keyword arguments of MemoryStore."""
    del transfer
    name, prefix = split_uri(uri)
    store = MemoryStore(name, prefix, **options)
    faults = _injected.get(name)
    return store if faults is None else FaultyStore(store, faults)


register_scheme("memory", _open)
