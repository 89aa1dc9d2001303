"""One record in the store with one writer: replaced by conditional writes, never by two processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any, Protocol

from xxhash import xxh3_128_digest

from asyncsync.aio.lazy import LazyLock
from asyncsync.errors import ConcurrentWriterError, NotFoundError, PreconditionError, StoreError
from asyncsync.runtime import lease_time, token
from asyncsync.stores.base import MISSING, ObjectInfo, Store
from asyncsync.sync.records.model import WRITER

WRITE_ATTEMPTS = 8
"""Attempts of one write; between two of them another process has marked the record."""


class Encoding(Protocol):
    """The content of a record."""

    def encode(self, stamp: str) -> bytes:
        """The document to store with this stamp of writer and revision as its WRITER. Without a stamp: anything that
        differs if the content differs."""

    def adopt(self, stored: bytes) -> None:
        """Take over what other processes have marked in the stored document."""


class RecordFile:
    """Writes what ``source`` encodes whenever it differs from the last write.

    ``prepare`` is called before a write, and does in portions what would take ``encode`` long.

    ``version`` is the version of the object to replace; ``MISSING`` to create it. If another process has marked the
    record, see :mod:`asyncsync.sync.records.marks`, the stored document still carries our stamp: ``source`` adopts the
    marks, and is written over it.

    A write whose response was lost may still succeed later. This is decided by writing one more revision over the
    version that it was to replace. If that succeeds, the store refuses the earlier write from then on. Otherwise the
    earlier write is in the store, and is replaced.
    """

    __slots__ = (
        "_asked",
        "_heard",
        "_last_check",
        "_lock",
        "_lost",
        "_prepare",
        "_revision",
        "_source",
        "_token",
        "_unsure",
        "_written",
        "key",
        "last_write",
        "version",
    )

    def __init__(
        self,
        key: str,
        source: Encoding,
        version: str = MISSING,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.key, self.version = key, version
        self.last_write = float("-inf")
        """When this process last wrote it, on the event loop's clock."""
        self._source, self._prepare = source, prepare
        self._token, self._revision = "", 0  # the token is made for the first write
        self._lock: Any = None
        """A lock while it is used."""
        self._written: bytes | None = None
        """Digest of the record in the store: the record itself would double the memory of an idle trial."""
        self._unsure = False
        """Whether the outcome of the last write is unknown."""
        self._lost = False
        self._heard = float("-inf")
        """When the store last confirmed that it has our version, on the lease's clock."""
        self._asked = 0
        """Number of requests that checked whether the store still has our version."""
        self._last_check: tuple[int, StoreError | None] = (0, None)
        """The number of the last such request whose outcome is known, and its error, if it failed."""

    @property
    def exists(self) -> bool:
        """Whether the store has the record."""
        return self.version != MISSING

    @property
    def unsure(self) -> bool:
        """Whether the outcome of the last write is unknown. The next :meth:`confirm` writes then."""
        return self._unsure

    @property
    def lost(self) -> bool:
        """Whether another process writes the record now."""
        return self._lost

    def replace(self, version: str) -> None:
        """Write over this version next, although another process wrote it: the caller knows that it was replaced."""
        self.version, self._lost, self._unsure = version, False, False

    def is_current(self) -> bool:
        """Whether the store has the present content."""
        return not self._unsure and self._written == self._digest()

    async def save(self, store: Store, *, force: bool = False) -> bool:
        """Write if anything changed, if the outcome of an earlier write is unknown, or with ``force``. Returns whether
        it was written. ConcurrentWriterError if another process wrote the record: nothing is written from then on."""
        async with LazyLock(self, "_lock"):
            digest = self._digest()
            if digest == self._written and not (self._unsure or force):
                return False
            if self._lost:
                raise self._conflict(store)
            if self._prepare is not None:
                await self._prepare()
            await self._put(store, digest)
            return True

    async def confirm(self, store: Store, since: float = float("inf")) -> float:
        """The time when the store confirmed our version. ConcurrentWriterError if the store has another version:
        another process has taken over. A process that takes over leaves a record, so a missing record belongs to
        nobody.

        Sends no request if the store confirmed it after ``since``, on the lease's clock. Otherwise one HEAD request.
        Callers that arrive while one is in flight share the next one and its failure: with an unreachable store they
        would otherwise wait one after the other, each for its full patience.
        """
        if self._heard > since and not self._unsure and not self._lost:
            return self._heard
        before = self._asked
        async with LazyLock(self, "_lock"):
            asked, failure = self._last_check
            if asked > before and failure is not None:
                raise copy(failure) from failure
            if asked > before:
                return self._heard
            self._asked = asking = self._asked + 1
            try:
                await self._ask(store)
            except StoreError as error:
                self._last_check = asking, copy(error)  # without the traceback, which would keep much alive
                raise
            self._last_check = asking, None
            return self._heard

    async def _ask(self, store: Store) -> None:
        began = lease_time()
        if self._unsure and not self._lost:
            await self._put(store, self._digest())
        elif self._lost:
            raise self._conflict(store)
        elif await self._version_there(store) not in (self.version, MISSING):
            await self._adopt_ours(store)  # the next save writes it
        self._heard = began

    async def _version_there(self, store: Store) -> str:
        try:
            return (await store.head(self.key)).version
        except NotFoundError:
            return MISSING

    async def _put(self, store: Store, digest: bytes) -> None:
        """``digest``: of the record that is written. It may change while this waits; then it is not current after."""
        if not store.traits.conditional_writes and await self._version_there(store) not in (self.version, MISSING):
            await self._adopt_ours(store)  # the store itself would not refuse the write
            digest = self._digest() if self._prepare is None else digest  # what is prepared has no marks to adopt
        for attempts_left in reversed(range(WRITE_ATTEMPTS)):
            self._unsure = True
            self._revision += 1
            began = lease_time()
            try:
                info = await self._replace(store)
                break
            except PreconditionError as error:
                if not attempts_left:
                    self._lost = True
                    raise self._conflict(store) from error
                await self._adopt_ours(store)
                digest = self._digest()
        self.version, self._written, self._heard, self._unsure = info.version, digest, began, False
        self.last_write = asyncio.get_running_loop().time()

    async def _replace(self, store: Store) -> ObjectInfo:
        return await store.put(self.key, self._source.encode(self._stamp()), if_version=self.version)

    async def _adopt_ours(self, store: Store) -> None:
        """Take the version of an earlier write of ours that succeeded after all, or that another process marked.
        ConcurrentWriterError if it is not ours."""
        try:
            data, info = await store.get(self.key)
        except NotFoundError as error:
            if self.version == MISSING:
                return
            self._lost = True  # the record existed: the process that deleted it has deleted more
            raise self._conflict(store) from error
        if not self._is_ours(data):
            self._lost = True
            raise self._conflict(store)
        self.version = info.version
        self._source.adopt(data)

    def _is_ours(self, data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        stamp = document.get(WRITER) if isinstance(document, dict) else None
        return isinstance(stamp, str) and bool(self._token) and stamp.startswith(f"{self._token}/")

    def _stamp(self) -> str:
        self._token = self._token or token()
        return f"{self._token}/{self._revision}"

    def _digest(self) -> bytes:
        return xxh3_128_digest(self._source.encode(""))

    def _conflict(self, store: Store) -> ConcurrentWriterError:
        return ConcurrentWriterError(
            f"{store.uri.rstrip('/')}/{self.key} is written by another process, or deleted; nothing was overwritten."
            " Resume with resume=True only after the other one has ended"
        )
