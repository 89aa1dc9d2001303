"""One record in the store, with one writer: replaced by conditional writes, never by two processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from copy import copy

from xxhash import xxh3_128_digest

from asyncsync.errors import ConcurrentWriterError, NotFoundError, PreconditionError, StoreError
from asyncsync.runtime import lease_time, token
from asyncsync.stores.base import MISSING, ObjectInfo, Store
from asyncsync.sync.records.model import WRITER


class RecordFile:
    """Writes what ``encode`` gives, when it differs from what was written last. ``encode`` is given the writer and
    revision that go into the document as ``WRITER``.

    ``version`` is that of the object we replace; ``MISSING`` if we are to create it.

    A write whose fate is not known may still land. It is settled by writing a further revision over the version that
    it wanted to replace: either that succeeds, and the earlier one is refused from then on, or the earlier one is there
    already, and is replaced.
    """

    __slots__ = (
        "_answer", "_asked", "_encode", "_heard", "_lock", "_lost", "_revision", "_token", "_unsure", "_written", "key",
        "version",
    )  # fmt: skip

    def __init__(self, key: str, encode: Callable[[str], bytes], version: str = MISSING) -> None:
        self.key, self.version = key, version
        self._encode = encode
        self._token, self._revision = token(), 0
        self._lock: asyncio.Lock | None = None
        self._written: bytes | None = None
        """Digest of what the store has: the record itself would double the memory of an idle trial."""
        self._unsure = False
        """Whether we tried to write without hearing the end of it."""
        self._lost = False
        self._heard = float("-inf")
        """When the store was last asked, on the lease's clock, and answered that it has ours."""
        self._asked = 0
        """How often the store was asked whether it still has ours."""
        self._answer: tuple[int, StoreError | None] = (0, None)
        """Which of these was heard of last, and why there was no answer, if there was none."""

    @property
    def exists(self) -> bool:
        """Whether the store has it."""
        return self.version != MISSING

    @property
    def lost(self) -> bool:
        """Whether somebody else writes it now."""
        return self._lost

    def replace(self, version: str) -> None:
        """Write over this version next, although another process wrote it: the caller knows that it was replaced."""
        self.version, self._lost, self._unsure = version, False, False

    def is_current(self) -> bool:
        """Whether the store has what ``encode`` gives now."""
        return not self._unsure and self._written == self._digest()

    async def save(self, store: Store) -> bool:
        """Write if anything changed, or if the fate of an earlier write is not known; whether it was written.
        ConcurrentWriterError if somebody else did: from then on nothing more is written."""
        self._lock = lock = self._lock or asyncio.Lock()
        async with lock:
            if self.is_current():
                return False
            if self._lost:
                raise self._conflict(store)
            await self._put(store)
            return True

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """ConcurrentWriterError if the store has another version than we wrote last: somebody has taken over. Who takes
        over leaves a record, so one that is gone is nobody's. Else when it was asked.

        No request if the store was asked after ``since``, on the lease's clock, and then had ours. Else one HEAD; those
        who ask while one is under way share the next one, and its failure: with a store that is gone they would wait
        for each other, each as long as its patience.
        """
        if self._heard > since and not self._unsure and not self._lost:
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
        began = lease_time()
        if self._unsure and not self._lost:
            await self._put(store)
        elif self._lost or await self._version_there(store) not in (self.version, MISSING):
            self._lost = True
            raise self._conflict(store)
        self._heard = began

    async def _version_there(self, store: Store) -> str:
        try:
            return (await store.head(self.key)).version
        except NotFoundError:
            return MISSING

    async def _put(self, store: Store) -> None:
        if not store.traits.conditional_writes and await self._version_there(store) not in (self.version, MISSING):
            await self._adopt_ours(store)  # the store itself would not refuse it
        unsure, self._unsure = self._unsure, True
        self._revision += 1
        digest, began = self._digest(), lease_time()
        try:
            info = await self._replace(store)
        except PreconditionError as error:
            if not unsure:
                self._lost = True
                raise self._conflict(store) from error
            await self._adopt_ours(store)
            info = await self._replace_ours(store)
        self.version, self._written, self._heard, self._unsure = info.version, digest, began, False

    async def _replace(self, store: Store) -> ObjectInfo:
        return await store.put(self.key, self._encode(self._stamp()), if_version=self.version)

    async def _replace_ours(self, store: Store) -> ObjectInfo:
        try:
            return await self._replace(store)
        except PreconditionError as error:
            self._lost = True
            raise self._conflict(store) from error

    async def _adopt_ours(self, store: Store) -> None:
        """An earlier write of ours has landed after all: take its version. ConcurrentWriterError if it is not ours."""
        try:
            data, info = await store.get(self.key)
        except NotFoundError as error:
            if self.version == MISSING:
                return
            self._lost = True  # it was there: who deleted it has deleted more
            raise self._conflict(store) from error
        if not self._is_ours(data):
            self._lost = True
            raise self._conflict(store)
        self.version = info.version

    def _is_ours(self, data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        stamp = document.get(WRITER) if isinstance(document, dict) else None
        return isinstance(stamp, str) and stamp.startswith(f"{self._token}/")

    def _stamp(self) -> str:
        return f"{self._token}/{self._revision}"

    def _digest(self) -> bytes:
        return xxh3_128_digest(self._encode(""))

    def _conflict(self, store: Store) -> ConcurrentWriterError:
        return ConcurrentWriterError(
            f"{store.uri.rstrip('/')}/{self.key} is written by another process, or deleted; nothing was overwritten."
            " Resume with resume=True only after the other one has ended"
        )
