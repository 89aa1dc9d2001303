"""An object store in memory that behaves like S3, for tests without a server."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, Lease, check_lease
from asyncsync.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    SourceChangedError,
    StoreError,
)
from asyncsync.stores.base import (
    KEYS_PER_DELETE,
    MISSING,
    Body,
    ObjectInfo,
    Page,
    Part,
    Sink,
    Store,
    Traits,
    Upload,
    lease_of,
)

PAGE_SIZE = 1000
"""Largest page of a listing."""


class Request(NamedTuple):
    """One request in the log; equal to the plain tuple ``(operation, key)``.

    ``key`` is the full key in the bucket, the prefix of a listing, or the keys of a delete joined by newlines.
    """

    operation: str
    key: str


@dataclass(slots=True)
class _Object:
    data: bytes
    version: str
    crc32c: int
    modified: float

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.data), self.version, self.crc32c, self.modified)


@dataclass(slots=True)
class _OpenUpload:
    key: str
    started: float
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """State that all stores of one name share."""

    objects: dict[str, _Object] = field(default_factory=dict)
    uploads: dict[str, _OpenUpload] = field(default_factory=dict)
    completed: dict[str, str] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    clock: Callable[[], float] = time.time
    """Gives the time of a write; replace it to make objects old."""


_buckets: dict[str, Bucket] = {}


def forget_buckets() -> None:
    """Forget all named buckets; open stores keep theirs."""
    _buckets.clear()


class MemoryStore(Store):
    """A bucket in memory that behaves like S3.

    Versions are ETags: the MD5 of the content, or ``md5-n`` for n parts, so equal bytes have equal versions. Listings
    are in byte order, with pages of ``page_size``. CRC32Cs are checked. Parts below ``min_part_size`` bytes are
    refused, except the last. ListParts returns no offsets. Completing an upload twice succeeds.

    Stores of the same ``name`` see the same objects, also through ``memory://name/prefix``; without a name the bucket
    is private. A request takes ``latency`` seconds of the loop's time and yields to the loop at least once before it
    takes effect, so that it can be cancelled there. ``log`` has the requests of all stores of the bucket.
    """

    def __init__(
        self,
        name: str = "",
        prefix: str = "",
        *,
        min_part_size: int = 5 << 20,
        page_size: int = PAGE_SIZE,
        latency: float = 0.0,
    ) -> None:
        prefix = prefix.strip("/")
        self.uri = f"memory://{name}/{prefix}" if prefix else f"memory://{name}"
        traits = Traits("memory", min_part_size=min_part_size, min_range_source=min_part_size)
        self.traits = replace(traits, conditional_copy=traits.conditional_writes)
        self.latency = latency
        self.bucket = _buckets.setdefault(name, Bucket()) if name else Bucket()
        self._root = prefix + "/" if prefix else ""
        self._page_size = page_size

    @property
    def log(self) -> list[Request]:
        """Every request to the bucket so far, oldest first; clear it freely."""
        return self.bucket.log

    @property
    def contents(self) -> dict[str, bytes]:
        """A copy of all objects below the prefix: key to bytes. Not a request."""
        root = self._root
        return {key[len(root) :]: obj.data for key, obj in self.bucket.objects.items() if key.startswith(root)}

    def damage(self, key: str, data: bytes) -> None:
        """Change the bytes of an object but not its metadata, as a failing disk does. Not a request."""
        self._object(key).data = data

    async def close(self) -> None:
        """Nothing to free; the objects remain."""

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        data = await self._begin("put", key, body=body)
        _check_crc(self._where(key), data, crc32c)
        self._check_version(key, if_version)
        return self._store(key, data, _etag(data))

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        await self._begin("read", key)
        found = self._object(key)
        if if_version is not None and if_version != found.version:
            raise PreconditionError(f"{self._where(key)} has version {found.version}, not {if_version}")
        info, data = found.info(key), found.data
        end = len(data) if length is None else min(start + length, len(data))
        for at in range(start, end, PIECE):
            await sink(data[at : min(at + PIECE, end)])
        return info

    async def head(self, key: str) -> ObjectInfo:
        await self._begin("head", key)
        return self._object(key).info(key)

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        await self._begin("list", prefix)
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        last = None
        for key in self._keys(prefix):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            entry = key if cut < 0 else key[: cut + len(delimiter)]
            if token is not None and entry.encode() <= token.encode():
                continue
            if prefixes and prefixes[-1] == entry:
                continue
            if len(objects) + len(prefixes) == self._page_size:
                return Page(tuple(objects), tuple(prefixes), last)
            last = entry
            if cut < 0:
                objects.append(self._object(key).info(key))
            else:
                prefixes.append(entry)
        return Page(tuple(objects), tuple(prefixes))

    async def delete(self, keys: Sequence[str]) -> None:
        if len(keys) > KEYS_PER_DELETE:
            raise StoreError(f"{self.uri}: {len(keys)} keys in one delete; the limit is {KEYS_PER_DELETE}")
        await self._begin("delete", *keys, lease=lease_of(keys))
        for key in keys:
            self.bucket.objects.pop(self._root + key, None)

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        self.check_copy_condition(key, if_version)
        await self._begin("copy", key, lease=lease_of(key))
        found = self._source(source, if_source_version)
        self._check_version(key, if_version)
        return self._store(key, found.data, found.version)

    async def create_multipart(self, key: str) -> Upload:
        await self._begin("create_multipart", key)
        upload_id = f"upload-{next(self.bucket.ids)}"
        self.bucket.uploads[upload_id] = _OpenUpload(self._root + key, self.bucket.clock())
        return Upload(key, upload_id, self.bucket.uploads[upload_id].started)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        data = await self._begin("put_part", upload.key, body=body)
        _check_crc(self._where(upload.key), data, crc32c)
        return self._keep_part(upload, number, offset, data)

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
        await self._begin("copy_part", upload.key)
        data = self._source(source, if_source_version).data
        if start < 0 or length < 1 or start + length > len(data):
            raise StoreError(f"{self._where(source)}: no range of {length} bytes at {start} in {len(data)} bytes")
        return self._keep_part(upload, number, offset, data[start : start + length])

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        await self._begin("complete_multipart", upload.key, lease=upload.lease)
        if upload.upload_id in self.bucket.completed:
            return self._object(upload.key).info(upload.key)
        data, etag = self._assemble(upload, parts)
        _check_crc(self._where(upload.key), data, crc32c)
        self._check_version(upload.key, if_version)
        del self.bucket.uploads[upload.upload_id]
        self.bucket.completed[upload.upload_id] = self._root + upload.key
        return self._store(upload.key, data, etag)

    async def abort_multipart(self, upload: Upload) -> None:
        await self._begin("abort_multipart", upload.key)
        self.bucket.uploads.pop(upload.upload_id, None)

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        await self._begin("list_parts", upload.key)
        kept = self._upload(upload).parts
        return [Part(number, -1, part.size, part.etag, part.crc32c) for number, (part, _) in sorted(kept.items())]

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        await self._begin("list_multiparts", prefix)
        full, cut = self._root + prefix, len(self._root)
        uploads = self.bucket.uploads.items()
        return [Upload(up.key[cut:], name, up.started) for name, up in uploads if up.key.startswith(full)]

    async def _begin(self, operation: str, *key: str, body: Body = b"", lease: Lease | None = None) -> bytes:
        """Log the request, check its keys, read the body, and let time pass.

        The lease is checked once everything is handed over: ``latency`` stands for the network and the server.
        """
        self.log.append(Request(operation, "\n".join(self._root + one for one in key)))
        for one in key:
            self._check_key(one, operation)
        data = bytes(body) if isinstance(body, bytes) else await self._read_body(body)  # without its lease
        check_lease(lease or lease_of(body))
        await asyncio.sleep(self.latency)
        return data

    @staticmethod
    async def _read_body(body: FileRange) -> bytes:
        data = await in_thread(lambda: b"".join(body.pieces()))
        if len(data) != body.size:
            raise SourceChangedError(f"{body.path} became shorter: {len(data)} of {body.size} bytes are left")
        return data

    def _check_key(self, key: str, operation: str) -> None:
        if not key and operation in ("list", "list_multiparts"):
            return
        try:
            size = len((self._root + key).encode())
        except UnicodeEncodeError as error:
            raise StoreError(f"{self.uri}: the key {key!r} is not UTF-8") from error
        if not key or size > self.traits.max_key_bytes:
            raise StoreError(f"{self.uri}: the key {key!r} has {size} bytes; 1-{self.traits.max_key_bytes} are allowed")

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _keys(self, prefix: str) -> Sequence[str]:
        full, cut = self._root + prefix, len(self._root)
        return sorted((key[cut:] for key in self.bucket.objects if key.startswith(full)), key=str.encode)

    def _object(self, key: str) -> _Object:
        try:
            return self.bucket.objects[self._root + key]
        except KeyError:
            raise NotFoundError(f"no object {self._where(key)}") from None

    def _source(self, key: str, if_version: str | None) -> _Object:
        found = self._object(key)
        if if_version is not None and if_version != found.version:
            raise PreconditionError(f"{self._where(key)} has version {found.version}, not {if_version}")
        return found

    def _check_version(self, key: str, if_version: str | None) -> None:
        if if_version is None:
            return
        found = self.bucket.objects.get(self._root + key)
        version = MISSING if found is None else found.version
        if version != if_version:
            raise PreconditionError(f"{self._where(key)} has version {version!r}, expected {if_version!r}")

    def _store(self, key: str, data: bytes, etag: str) -> ObjectInfo:
        new = _Object(data, etag, google_crc32c.value(data), self.bucket.clock())
        self.bucket.objects[self._root + key] = new
        return new.info(key)

    def _upload(self, upload: Upload) -> _OpenUpload:
        found = self.bucket.uploads.get(upload.upload_id)
        if found is None or found.key != self._root + upload.key:
            raise NotFoundError(f"no upload {upload.upload_id} of {self._where(upload.key)}")
        return found

    def _keep_part(self, upload: Upload, number: int, offset: int, data: bytes) -> Part:
        kept = self._upload(upload).parts
        if not 1 <= number <= self.traits.max_parts:
            raise StoreError(f"{self._where(upload.key)}: part number {number} is not in 1-{self.traits.max_parts}")
        part = Part(number, offset, len(data), _etag(data), google_crc32c.value(data))
        kept[number] = (part, data)
        return part

    def _assemble(self, upload: Upload, parts: Sequence[Part]) -> tuple[bytes, str]:
        kept, where = self._upload(upload).parts, self._where(upload.key)
        numbers = [part.number for part in parts]
        if not numbers or numbers != sorted(set(numbers)):
            raise StoreError(f"{where}: parts must be given once each, in order; got {numbers[:20]}")
        for part in parts:
            have = kept.get(part.number)
            if have is None or have[0].etag != part.etag:
                raise StoreError(f"{where}: part {part.number} was not uploaded, or was replaced")
            if part.number != numbers[-1] and have[0].size < self.traits.min_part_size:
                raise StoreError(f"{where}: part {part.number} has {have[0].size} bytes, too small")
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
        return b"".join(kept[number][1] for number in numbers), f"{digest.hexdigest()}-{len(parts)}"


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _check_crc(where: str, data: bytes, crc32c: int | None) -> None:
    if crc32c is None:
        return
    actual = google_crc32c.value(data)
    if actual != crc32c:
        raise IntegrityError(f"{where}: received data has CRC32C {actual:08x}, not {crc32c:08x}", retryable=True)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of ``memory://bucket/prefix``."""
    name, _, prefix = uri.partition("://")[2].partition("/")
    if not name:
        raise ConfigError(f"storage path {uri!r} has no name; it must be memory://name/prefix")
    return name, prefix
