"""Requests, bytes and seconds of a store by operation, for metrics."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from asyncsync.stores.base import ObjectInfo, Piece, Sink, Store
from asyncsync.stores.wrapped import Call, Operation, WrappedStore

T = TypeVar("T")


@dataclass(slots=True)
class OperationTotals:
    """The calls of one operation so far."""

    requests: int = 0
    failures: int = 0
    """Those that raised, cancelled ones included."""
    bytes: int = 0
    """Bytes of bodies that the store acknowledged, or that the sinks of reads took."""
    seconds: float = 0.0
    """Event loop's clock, summed over requests that may run at the same time; the time of sinks included."""


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
