"""The interface of every store.

A store is one bucket and prefix, or one directory. Keys are relative to it, use ``/`` and are plain text.

Every store keeps these promises; :class:`asyncsync.testing.conformance.StoreConformance` tests them:

- A write is atomic: a reader sees the old object or the complete new one, also after a cancel.
- A cancelled or failed call has stopped when it raises; nothing continues in the background.
- Errors are :class:`asyncsync.errors.StoreError`, each mapped once by the store; ``retryable`` marks transient ones.
- A store makes one attempt. :mod:`asyncsync.stores.guard.guarded` adds retries, limits and time-outs.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.digests import md5_range
from asyncsync.disk.files import FileRange, Lease, LeasedBytes, LeasedKey, LeasedKeys, lease_of
from asyncsync.errors import IntegrityError, StoreError

Body = bytes | FileRange
"""Bytes in memory, or a range of a file that is streamed in pieces of about 1 MiB. Both can be read any number of
times, so that a request can be retried."""

Piece = bytes | memoryview
"""Some bytes of a download. A memoryview is valid until the sink returns: then its memory is reused."""

Sink = Callable[[Piece], Awaitable[None]]
"""Takes the pieces of a download, in order."""

__all__ = [
    "KEYS_PER_DELETE",
    "MISSING",
    "UNSHARED",
    "Body",
    "Checks",
    "FileRange",
    "Lease",
    "LeasedBytes",
    "LeasedKey",
    "LeasedKeys",
    "ObjectInfo",
    "Page",
    "Part",
    "Piece",
    "Sink",
    "Store",
    "Traits",
    "Upload",
    "lease_of",
]

KEYS_PER_DELETE = 1000
"""Keys of one :meth:`Store.delete`: as many as S3 allows."""

UNSHARED = 1 << 16
"""Value of ``share`` for a store without limits."""
MISSING = ""
"""As ``if_version``: the object must not exist yet (create only)."""


Checks = Literal["crc32c", "etag", "none"]
"""How damage in transit is detected: ``crc32c``, the store refuses a wrong CRC32C; ``etag``, its response has the MD5
of the bytes that it received; ``none``, not at all."""


@dataclass(frozen=True, slots=True)
class Traits:
    """Abilities and limits of a store. Sizes in bytes."""

    scheme: str
    conditional_writes: bool = True
    conditional_copy: bool = True
    """A copy can create only: :meth:`Store.copy` with ``if_version=MISSING``. Without this trait that is refused."""
    multipart: bool = True
    """Without it, every object is sent in one request, whatever its size, and the calls of multipart uploads raise
    UnsupportedError."""
    range_copy: bool = True
    """``copy_part`` copies any range; else only complete objects."""
    min_range_source: int = 5 << 20
    """Ranges of objects up to this size cannot be copied."""
    crc32c: bool = True
    """The store checks the CRC32C that is sent with a body, and returns that of the complete object."""
    crc64: bool = False
    """The store sends the CRC64-NVME of each body, too: it is computed with the other checksums of a large file."""
    etag_md5: bool = False
    """Without ``crc32c``: the ETag of a body that is sent in one request is its MD5, which is compared instead."""
    min_part_size: int = 5 << 20
    part_size: int | None = None
    """Default size of the parts of a large file; None: 16 MiB."""
    max_part_size: int = 5 << 30
    max_parts: int = 10_000
    equal_parts: bool = False
    """All parts of an upload but the last must have the same size; the last must not be larger."""
    max_single_put: int = 5 << 30
    max_key_bytes: int = 1024
    paced: bool = False
    """The store awaits ``FileRange.pace`` before each step of a body; else the guard pays for it as a whole."""
    resumable_puts: bool = False
    """An interrupted part (or a file larger than ``part_size`` that is sent in one request) resumes from the last
    acknowledged byte: see :class:`asyncsync.disk.files.ResumeToken`."""
    conditional_complete: bool = False
    """Retrying the completion of an upload is safe only if it names the version that it replaces. The guard looks that
    version up first: see :func:`asyncsync.stores.guard.lost_responses.complete_over_present`."""
    checked_copies: bool = False
    """:meth:`Store.copy_part` takes the bytes that the range must have as ``body``, and the service compares them."""
    not_kept: tuple[str, ...] = ()
    """Promises of this interface that the store cannot keep, one sentence each."""
    local: bool = False
    """Objects are files of this machine; requests cost no round trip."""

    def in_one_request(self, size: int, threshold: int) -> bool:
        """Whether an object of ``size`` bytes is sent in one request. ``threshold``: the largest that should be."""
        return not self.multipart or size <= min(threshold, self.max_single_put)

    @property
    def checks(self) -> Checks:
        """See :data:`Checks`."""
        if self.crc32c:
            return "crc32c"
        return "etag" if self.etag_md5 else "none"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Metadata of one object. ``version`` is its ETag or generation, as the store spells it."""

    key: str
    size: int
    version: str
    crc32c: int | None = None
    modified: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing. ``prefixes``: the common prefixes (ending in ``/``) if a delimiter was given."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...] = ()
    token: str | None = None
    """For the call for the next page; None: this is the last page."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An open multipart upload."""

    key: str
    upload_id: str
    started: float | None = None
    lease: Lease | None = field(default=None, compare=False, repr=False)
    """The lease under which it is completed."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part. ``number`` counts from 1; ``offset`` is its place in the object (-1: unknown)."""

    number: int
    offset: int
    size: int
    etag: str
    crc32c: int | None = None


class Store(ABC):
    """One bucket and prefix, or one directory. Use it as ``async with``; :func:`asyncsync.stores.open_store` makes
    one."""

    uri: str
    traits: Traits
    requests: int = 0
    """Requests made through this object, retries included; 0 where the store does not count them."""

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Free connections and threads. Safe to call twice."""

    @abstractmethod
    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        """Write one object.

        ``crc32c`` is that of the body; a store with ``traits.crc32c`` checks it and raises IntegrityError if it
        differs. ``if_version``: None writes in any case, ``MISSING`` only creates, another value only replaces that
        version. If the condition does not hold: PreconditionError, and nothing has changed.
        """

    @abstractmethod
    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        """Pass the bytes ``start .. start+length`` to ``sink`` in pieces of at most about 1 MiB; return the metadata.

        NotFoundError for a missing object; PreconditionError if ``if_version`` differs; UnavailableError if the body
        was cut. A range that extends past the end is shortened; length 0 passes nothing. The version may be empty after
        a range without ``if_version``, if the server does not send it.
        """

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """Metadata of one object; NotFoundError if it is missing."""

    @abstractmethod
    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        """One page (at most 1,000 entries) of the keys that begin with ``prefix``, in the store's own order.

        A missing prefix is an empty page. With ``delimiter="/"`` deeper keys are folded into ``prefixes``.
        """

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Delete at most :data:`KEYS_PER_DELETE` objects; missing ones are ignored."""

    @abstractmethod
    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        """Copy one object inside the store, in one request.

        Knowing the ``size`` of the source may save a request. ``if_version=MISSING`` only creates, and needs
        ``traits.conditional_copy``; other values are refused. NotFoundError, PreconditionError; StoreError for more
        than ``traits.max_single_put`` bytes, which need an upload and :meth:`copy_part`.
        """

    @abstractmethod
    async def create_multipart(self, key: str) -> Upload:
        """Open a multipart upload. Its caller must complete or abort it."""

    @abstractmethod
    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        """Send one part; the same number again replaces the part."""

    @abstractmethod
    async def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: str,
        start: int,
        length: int,
        *,
        if_source_version: str | None = None,
    ) -> Part:
        """Fill one part with a range of another object inside the store. NotFoundError, PreconditionError.

        A store with ``traits.checked_copies`` has one more argument: ``body=None``, the bytes that the range must have.
        IntegrityError if it has others.
        """

    @abstractmethod
    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        """Publish the object that consists of ``parts`` (in order).

        ``crc32c`` is that of the complete object; a store with ``traits.crc32c`` refuses a wrong one with
        IntegrityError. ``if_version`` as for :meth:`put`.
        """

    @abstractmethod
    async def abort_multipart(self, upload: Upload) -> None:
        """Delete an upload and its parts; a missing one is ignored."""

    @abstractmethod
    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        """All finished parts, by number; NotFoundError if the upload is missing."""

    @abstractmethod
    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        """All open uploads below ``prefix``."""

    async def put_damaged(self, key: str, data: bytes) -> ObjectInfo:
        """Write ``data`` as if it had been damaged on its way. IntegrityError if the store notices it. For probes."""
        return await self.put(key, data, crc32c=google_crc32c.value(data) ^ 1)

    @property
    def share(self) -> int:
        """Requests in flight that are useful to the caller; it may change with every request."""
        return UNSHARED

    async def sweep(self) -> int:
        """Remove temporary files of killed writers, in stores that have any; returns how many."""
        return 0

    def check_copy_condition(self, key: str, if_version: str | None) -> None:
        """StoreError unless :meth:`copy` to ``key`` supports ``if_version``. Plain call."""
        if if_version not in (None, MISSING):
            raise StoreError(f"{self.uri}: a copy to {key!r} can only create, it cannot replace version {if_version!r}")
        if if_version == MISSING and not self.traits.conditional_copy:
            raise StoreError(f"{self.uri} cannot copy on the condition that {key!r} is missing: send its bytes instead")

    def lower_checks(self, checks: Checks) -> None:
        """The store turned out not to check a CRC32C: lower ``traits`` accordingly. Plain call."""
        self.traits = replace(self.traits, crc32c=False)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A small object in memory, with its metadata.

        IntegrityError if the received bytes do not have the CRC32C that the store reports: nothing else would notice a
        damaged digit in a record.
        """
        pieces: list[bytes] = []

        async def keep(piece: Piece) -> None:
            pieces.append(bytes(piece))

        info = await self.read(key, keep)
        data = b"".join(pieces)
        if info.crc32c is not None and google_crc32c.value(data) != info.crc32c:
            raise IntegrityError(
                f"{self.uri.rstrip('/')}/{key}: received data does not have the CRC32C that the store reported",
                retryable=True,
            )
        return data, info


class Lane(IntEnum):
    """Purpose of a request; lower values are served first."""

    CHECKPOINT = 0
    RECORD = 1
    ARTIFACT = 2


async def check_etag(where: str, etag: str, body: Body) -> None:
    """Compare the ETag of a body that was sent in one request with its MD5; IntegrityError."""
    if isinstance(body, bytes):
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    else:
        md5 = await in_thread(md5_range, body)
    if etag != md5:
        raise IntegrityError(f"{where}: sent data has MD5 {md5}, the store reported {etag}", retryable=True)


def delete_batches(keys: Sequence[str]) -> list[Sequence[str]]:
    """The keys in the order given, as many at once as one :meth:`Store.delete` takes."""
    return [keys[start : start + KEYS_PER_DELETE] for start in range(0, len(keys), KEYS_PER_DELETE)]


def body_size(body: Body) -> int:
    """Size of a body in bytes."""
    return len(body) if isinstance(body, bytes) else body.size
