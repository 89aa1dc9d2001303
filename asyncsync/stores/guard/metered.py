"""Requests, bytes and seconds of a store by operation, for metrics."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TypeVar

from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.status import OperationTotals
from asyncsync.stores.base import ObjectInfo, Piece, Sink, Store
from asyncsync.stores.wrapped import Call, Operation, WrappedStore

T = TypeVar("T")

EXPECTED = (NotFoundError, PreconditionError)
"""Answers that callers ask for: whether something is there, and whether it is still the same."""
RATE_WINDOW = 10.0
"""Seconds over which :meth:`RequestMeter.rate` averages."""


class RequestMeter:
    """The attempts of all views of one guarded store."""

    def __init__(self) -> None:
        self.operations: dict[str, OperationTotals] = {}
        """By name of the operation."""
        self.errors: Counter[str] = Counter()
        """Failed attempts by ``operation ErrorClass``."""
        self.retries = 0
        self._samples: deque[tuple[float, int]] = deque()
        """Event loop's clock and all bytes so far, at least a second apart."""
        self._bytes = 0

    def ended(self, name: str, began: float, size: int, error: BaseException | None) -> None:
        """An attempt that ``began`` (event loop's clock) has ended; ``size``: bytes of bodies that it moved."""
        totals = self.operations.get(name)
        if totals is None:
            totals = self.operations[name] = OperationTotals()
        totals.requests += 1
        totals.seconds += asyncio.get_running_loop().time() - began
        totals.bytes += size
        self._bytes += size
        if error is not None:
            totals.failures += 1
        if error is not None and not isinstance(error, EXPECTED):
            self.errors[f"{name} {type(error).__name__}"] += 1

    def rate(self) -> float:
        """Bytes per second since the oldest of the samples that the last RATE_WINDOW seconds of calls left."""
        now = asyncio.get_running_loop().time()
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_WINDOW:
            self._samples.popleft()
        if not self._samples or now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, self._bytes))
        since, before = self._samples[0]
        return (self._bytes - before) / (now - since) if now > since else 0.0


class MeteredStore(WrappedStore):
    """Counts the calls of the store inside. Inside a guard it counts attempts, around one it counts requests::

    store = MeteredStore(open_store("s3://bucket/prefix"))
    ...
    store.totals["put"].requests, store.totals["read"].bytes
    """

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.requests = 0
        self.totals: dict[str, OperationTotals] = {}
        """By name of the operation; those that were never called are missing."""

    async def around(self, operation: Operation, call: Call[T]) -> T:
        totals = self.totals.setdefault(operation.name, OperationTotals())
        self.requests += 1
        totals.requests += 1
        began = asyncio.get_running_loop().time()
        try:
            result = await call()
        except BaseException:
            totals.failures += 1
            raise
        finally:
            totals.seconds += asyncio.get_running_loop().time() - began
        totals.bytes += operation.size
        return result

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        async def counted(piece: Piece) -> None:
            size = len(piece)
            await sink(piece)
            self.totals["read"].bytes += size

        return await super().read(key, counted, start=start, length=length, if_version=if_version)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        data, info = await super().get(key)
        self.totals["read"].bytes += len(data)
        return data, info
