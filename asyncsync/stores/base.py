"""The storage interface: what every store offers, in words that all of them keep.

A store is one bucket and prefix, or one directory. Keys are relative to it, use ``/``, and are plain text.

Promises that every store keeps, checked by one conformance suite:

- A write is atomic or nothing: a reader sees the old object or the whole new one, also after a cancel.
- A cancelled or failed call has stopped when it raises; nothing writes behind the caller's back.
- Errors are :class:`asyncsync.errors.StoreError`, mapped once, here at the edge; ``retryable`` says the rest.
- A store makes one attempt. Retries, limits and time-outs are :mod:`asyncsync.stores.guard.guarded`.
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
"""What can be sent: bytes in memory, or a range of a file that is streamed in pieces of about 1 MiB.
A FileRange can be read any number of times, so a request can be repeated."""

Piece = bytes | memoryview
"""Some bytes of a download. A view is good until the sink returns: then its memory is used again."""

Sink = Callable[[Piece], Awaitable[None]]
"""Takes the pieces of a download, in order."""

__all__ = [
    "MISSING", "UNSHARED", "Body", "Checks", "FileRange", "Lease", "LeasedBytes", "LeasedKey", "LeasedKeys",
    "ObjectInfo", "Page", "Part", "Piece", "Sink", "Store", "Traits", "Upload", "lease_of",
]  # fmt: skip

UNSHARED = 1 << 16
"""What a store says that has no limits to share."""
MISSING = ""
"""As ``if_version``: the object must not exist yet (create only)."""


Checks = Literal["crc32c", "etag", "none"]
"""How damage on the way to the store is found: the store refuses a wrong CRC32C; its answer tells the MD5 of what it
received; not at all."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a store can do, as data. Sizes in bytes."""

    scheme: str
    conditional_writes: bool = True
    conditional_copy: bool = True
    """A copy can be made to create only: :meth:`Store.copy` with ``if_version``. Where it cannot, that is refused."""
    multipart: bool = True
    range_copy: bool = True
    """``copy_part`` copies any range; else only whole objects."""
    min_range_source: int = 5 << 20
    """Ranges of objects up to this size cannot be copied."""
    crc32c: bool = True
    """The store checks a CRC32C sent with a body, and gives it back for the whole object."""
    etag_md5: bool = False
    """It does not, and the ETag of what is sent in one request is compared with its MD5 instead."""
    min_part_size: int = 5 << 20
    part_size: int | None = None
    """Bytes per part of a large file, unless the user wants others; None: 16 MiB."""
    max_part_size: int = 5 << 30
    max_parts: int = 10_000
    equal_parts: bool = False
    """All parts of an upload but the last must have the same size, and the last not more."""
    max_single_put: int = 5 << 30
    max_key_bytes: int = 1024
    paced: bool = False
    """The store awaits ``FileRange.pace`` before each step of a body; else the guard pays for it as a whole."""
    resumable_puts: bool = False
    """An interrupted part (or a file larger than ``part_size`` that is sent in one request) resumes from the last
    acknowledged byte: see :class:`asyncsync.disk.files.Progress`."""
    conditional_complete: bool = False
    """Retrying the completion of an upload is safe only if it names the version that it replaces. The guard looks that
    version up first: see :func:`asyncsync.stores.guard.lost_responses.complete_what_stands`."""
    local: bool = False
    """Objects are files on this machine; requests cost no round trip."""

    @property
    def checks(self) -> Checks:
        """See :data:`Checks`."""
        if self.crc32c:
            return "crc32c"
        return "etag" if self.etag_md5 else "none"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of one object. ``version`` is the ETag or generation, as the store spells it."""

    key: str
    size: int
    version: str
    crc32c: int | None = None
    modified: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a listing. ``prefixes`` are the common prefixes (ending in ``/``) when a delimiter was given."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...] = ()
    token: str | None = None
    """Pass it to the next call; None: this was the last page."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An open multipart upload."""

    key: str
    upload_id: str
    started: float | None = None
    lease: Lease | None = field(default=None, compare=False, repr=False)
    """Under which it is to be completed."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part; ``number`` counts from 1, ``offset`` is where it lies in the object (-1: not known)."""

    number: int
    offset: int
    size: int
    etag: str
    crc32c: int | None = None


class Store(ABC):
    """One bucket and prefix, or one directory. Use as ``async with``; :meth:`open_store` makes one."""

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
        """Write one whole object.

        ``crc32c`` of the body goes with it and is checked by the store where ``traits.crc32c``: a mismatch raises
        IntegrityError. ``if_version``: None writes in any case, ``MISSING`` only creates, another value only
        replaces exactly that version; otherwise PreconditionError, and nothing is changed.
        """

    @abstractmethod
    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        """Feed the bytes ``start .. start+length`` to ``sink`` in pieces of at most about 1 MiB; return what the
        store says of the object. NotFoundError if there is none; PreconditionError if ``if_version`` differs;
        UnavailableError if the body was cut. A length past the end gives what there is; length 0 gives nothing. The
        version may be empty after a range without ``if_version``, where the server does not tell it."""

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """What is known of one object; NotFoundError."""

    @abstractmethod
    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        """One page (at most 1,000) of what lies below ``prefix``. Order is the store's own. A missing prefix is
        an empty page. With ``delimiter="/"`` deeper keys are folded into ``prefixes``."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, at most 1,000; those already gone are no error."""

    @abstractmethod
    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        """Copy one object inside the store without moving its bytes through us, in one request. ``size`` of the source,
        where it is known, may save another; NotFoundError, PreconditionError, StoreError for more bytes than
        ``traits.max_single_put``: those take an upload and :meth:`copy_part`, so that its caller knows of it.
        ``if_version``: ``MISSING`` only creates, where ``traits.conditional_copy``; other values are refused."""

    @abstractmethod
    async def create_multipart(self, key: str) -> Upload:
        """Open a multipart upload. Whoever opens it owes a complete or an abort."""

    @abstractmethod
    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        """Send one part; the same number again replaces it."""

    @abstractmethod
    async def copy_part(
        self, upload: Upload, number: int, offset: int, source: str, start: int, length: int, *,
        if_source_version: str | None = None,
    ) -> Part:  # fmt: skip
        """Fill one part with a range of another object, inside the store. NotFoundError, PreconditionError."""

    @abstractmethod
    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        """Publish the object made of ``parts`` (in order). ``crc32c`` is that of the whole object; a store with
        ``traits.crc32c`` refuses a wrong one with IntegrityError. ``if_version`` as for put."""

    @abstractmethod
    async def abort_multipart(self, upload: Upload) -> None:
        """Throw an upload and its parts away; one that is already gone is no error."""

    @abstractmethod
    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        """All finished parts, by number; NotFoundError if the upload is gone."""

    @abstractmethod
    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        """All open uploads below ``prefix``."""

    @property
    def share(self) -> int:
        """How many requests at once are of use to whoever holds this view; it may change with every request."""
        return UNSHARED

    async def sweep(self) -> int:
        """Remove what killed writers have left beside the objects, where such a thing is possible; how much."""
        return 0

    def check_copy_condition(self, key: str, if_version: str | None) -> None:
        """StoreError unless a copy to ``key`` can be made on that condition: see :meth:`copy`. Plain call."""
        if if_version not in (None, MISSING):
            raise StoreError(f"{self.uri}: a copy to {key!r} can only create, not replace version {if_version!r}")
        if if_version == MISSING and not self.traits.conditional_copy:
            raise StoreError(f"{self.uri} cannot copy on the condition that {key!r} is missing: send its bytes instead")

    def lower_checks(self, checks: Checks) -> None:
        """The store turned out not to check a CRC32C: say so in ``traits``, and do what helps instead. Plain call."""
        self.traits = replace(self.traits, crc32c=False)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A whole small object in memory, with what is known of it.

        IntegrityError if the bytes that came have not the CRC32C that the store says: nothing else would notice a
        damaged digit in a record.
        """
        pieces: list[bytes] = []

        async def keep(piece: Piece) -> None:
            pieces.append(bytes(piece))

        info = await self.read(key, keep)
        data = b"".join(pieces)
        if info.crc32c is not None and google_crc32c.value(data) != info.crc32c:
            raise IntegrityError(
                f"{self.uri.rstrip('/')}/{key}: the bytes that came do not have the CRC32C that the store says",
                retryable=True,
            )
        return data, info


class Lane(IntEnum):
    """What a request is for; the lower value goes first."""

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
        raise IntegrityError(f"{where}: the MD5 of what was sent is {md5}, the store has {etag}", retryable=True)


def body_size(body: Body) -> int:
    """Bytes of a body."""
    return len(body) if isinstance(body, bytes) else body.size
