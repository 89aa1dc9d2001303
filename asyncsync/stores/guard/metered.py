"""Requests, bytes and seconds of a store by operation, for metrics."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.events import RequestEnded
from asyncsync.runtime import wall_time
from asyncsync.status import OperationTotals
from asyncsync.stores.base import ObjectInfo, Piece, Sink, Store
from asyncsync.stores.wrapped import Call, Operation, WrappedStore

T = TypeVar("T")
log = logging.getLogger("asyncsync")

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
        self.listeners: list[Callable[[RequestEnded], None]] = []
        """Called after each attempt. One that raises is removed: it must not end a transfer."""
        self._samples: deque[tuple[float, int]] = deque()
        """Event loop's clock and all bytes so far, at least a second apart."""
        self._bytes = 0

    def ended(self, operation: Operation, began: float, size: int, error: BaseException | None) -> None:
        """An attempt that ``began`` (event loop's clock) has ended; ``size``: bytes of bodies that it moved."""
        name, seconds = operation.name, asyncio.get_running_loop().time() - began
        totals = self.operations.get(name)
        if totals is None:
            totals = self.operations[name] = OperationTotals()
        totals.requests += 1
        totals.seconds += seconds
        totals.bytes += size
        self._bytes += size
        if error is not None:
            totals.failures += 1
        if error is not None and not isinstance(error, EXPECTED):
            self.errors[f"{name} {type(error).__name__}"] += 1
        if self.listeners:
            self._tell(operation, size, seconds, error)

    def _tell(self, operation: Operation, size: int, seconds: float, error: BaseException | None) -> None:
        ended = RequestEnded(
            operation=operation.name,
            key=operation.key.partition("\n")[0],
            bytes=size,
            seconds=seconds,
            error=None if error is None else type(error).__name__,
            time=wall_time(),
        )
        for listener in list(self.listeners):
            try:
                listener(ended)
            except Exception:
                log.exception("a listener to requests has failed and is not called again")
                self.listeners.remove(listener)

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
