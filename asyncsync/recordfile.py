"""One record in the store, with one writer: replaced by conditional writes, never by two processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy

from xxhash import xxh3_128_digest

from asyncsync.errors import ConcurrentWriterError, NotFoundError, PreconditionError, StoreError
from asyncsync.stores.base import MISSING, Store


class RecordFile:
    """Writes what ``encode`` gives, when it differs from what was written last.

    ``version`` is that of the object we replace; ``MISSING`` if we are to create it.
    """

    __slots__ = ("_answer", "_asked", "_attempt", "_encode", "_heard", "_lock", "_lost", "_written", "key", "version")

    def __init__(self, key: str, encode: Callable[[], bytes], version: str = MISSING) -> None:
        self.key, self.version = key, version
        self._encode = encode
        self._lock: asyncio.Lock | None = None
        self._written: bytes | None = None
        """Digest of what the store has: the record itself would double the memory of an idle trial."""
        self._attempt: bytes | None = None
        """What we tried to write without hearing the end of it."""
        self._lost = False
        self._heard = float("-inf")
        """When the store was last asked, on the loop's clock, and answered that it has ours."""
        self._asked = 0
        """How often the store was asked whether it still has ours."""
        self._answer: tuple[int, StoreError | None] = (0, None)
        """Which of these was heard of last, and why there was no answer, if there was none."""

    @property
    def exists(self) -> bool:
        """Whether the store has it."""
        return self.version != MISSING

    def is_current(self) -> bool:
        """Whether the store has what ``encode`` gives now."""
        return self._written == xxh3_128_digest(self._encode())

    async def save(self, store: Store) -> bool:
        """Write if anything changed; whether it was written. ConcurrentWriterError if somebody else did: from then on
        nothing more is written."""
        self._lock = lock = self._lock or asyncio.Lock()
        async with lock:
            data = self._encode()
            if xxh3_128_digest(data) == self._written:
                return False
            if self._lost:
                raise self._conflict(store)
            if self._attempt is not None:
                await self._settle(store)
            await self._put(store, data)
            return True

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if the store has another version than we wrote last: somebody has taken over. Who takes
        over leaves a record, so one that is gone is nobody's. Else when it was asked.

        No request if the store was asked after ``since``, on the loop's clock, and then had ours. Else one HEAD; those
        who ask while one is under way share the next one, and its failure: with a store that is gone they would wait
        for each other, each as long as its patience.
        """
        if self._heard > since and self._attempt is None and not self._lost:
            return self._heard
        before = self._asked
        self._lock = lock = self._lock or asyncio.Lock()
        async with lock:
            asked, failure = self._answer
            if asked > before and failure is not None:
                raise copy(failure) from failure
            if asked > before:
                return self._heard
            self._asked = asking = self._asked + 1
            try:
                await self._ask(store)
            except StoreError as error:
                self._answer = asking, copy(error)  # without its traceback: that holds on to much
                raise
            self._answer = asking, None
            return self._heard

    async def _ask(self, store: Store) -> None:
        began = asyncio.get_running_loop().time()
        if self._attempt is not None and not self._lost:
            await self._settle(store)
        if self._lost or await self._version_there(store) not in (self.version, MISSING):
            self._lost = True
            raise self._conflict(store)
        self._heard = began

    async def _version_there(self, store: Store) -> str:
        try:
            return (await store.head(self.key)).version
        except NotFoundError:
            return MISSING

    async def _put(self, store: Store, data: bytes) -> None:
        self._attempt, began = data, asyncio.get_running_loop().time()
        try:
            self.version = (await store.put(self.key, data, if_version=self.version)).version
        except PreconditionError as error:
            self._lost = True
            raise self._conflict(store) from error
        self._written, self._attempt, self._heard = xxh3_128_digest(data), None, began

    async def _settle(self, store: Store) -> None:
        """An earlier write was cut off: find out whether it has landed."""
        try:
            data, info = await store.get(self.key)
        except NotFoundError:
            data, info = b"", None
        if info is not None and data == self._attempt:
            self.version, self._written = info.version, xxh3_128_digest(data)
        elif (info.version if info is not None else MISSING) != self.version:
            self._lost = True
            raise self._conflict(store)
        self._attempt = None

    def _conflict(self, store: Store) -> ConcurrentWriterError:
        return ConcurrentWriterError(
            f"{store.uri.rstrip('/')}/{self.key} is written by another process; nothing of it was overwritten. Resume "
            "with resume=True only after the other one has ended"
        )
