"""Objects in a Google Cloud Storage bucket, by its JSON API.

Requests are :mod:`asyncsync.stores.gcs.requests`, uploads in parts :mod:`asyncsync.stores.gcs.multipart_layout`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import FileRange, check_lease, lease_of
from asyncsync.errors import (
    IntegrityError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    StoreError,
    UnavailableError,
)
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Page, Part, Sink, Store, Traits, Upload, body_size
from asyncsync.stores.gcs import multipart_layout as layout
from asyncsync.stores.gcs.auth import Access
from asyncsync.stores.gcs.batch_delete import Deletions, Doomed
from asyncsync.stores.gcs.compose import Composes, Rewrites
from asyncsync.stores.gcs.options import GcsOptions, proxy_for
from asyncsync.stores.gcs.requests import Wire
from asyncsync.stores.gcs.responses import (
    Checked,
    Document,
    Listing,
    Resource,
    check_version,
    crc_to_text,
    document_of,
    generation_in,
    generation_of,
    info_from_headers,
    listing_of,
    media_bytes,
    range_bytes,
    refuse,
    resource_of,
    unix_of,
    written_of,
)
from asyncsync.stores.gcs.resumable import CHUNK, Insert, Sessions
from asyncsync.stores.gcs.transport import OwnPlane, Plane
from asyncsync.stores.gcs.unsure_writes import Repeats

log = logging.getLogger("asyncsync")

TRAITS = Traits(
    "gs", range_copy=False, min_part_size=1 << 18, part_size=CHUNK, max_part_size=5 << 30, max_parts=10_000,
    max_single_put=5 << 40, conditional_copy=True, paced=True, resumable_puts=True, conditional_complete=True,
)  # fmt: skip
_ITEM = "name,size,generation,crc32c,updated"
_RESOURCE = f"bucket,{_ITEM}"


class GcsStore(Store):
    """One bucket and prefix.

    ``options`` are those of :class:`asyncsync.stores.gcs.options.GcsOptions`: endpoint_url, credentials, token,
    anonymous, user_project, storage_class, kms_key_name, predefined_acl, cache_control, verify; any other raises
    ConfigError. ``stall_timeout`` and ``connect_timeout`` in seconds: a request that moves no byte for so long, or
    finds no connection, raises UnavailableError. At most ``max_connections`` sockets. Nothing is opened before the
    first use. The ``version`` of an object is its generation.
    """

    def __init__(
        self, bucket: str, prefix: str, *, options: Mapping[str, object], stall_timeout: float = 30.0,
        connect_timeout: float = 10.0, max_connections: int = 256,
    ) -> None:  # fmt: skip
        self._options = GcsOptions.parse(options)
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"gs://{bucket}/{self._prefix}".rstrip("/")
        self.traits = TRAITS
        self._limits: dict[str, Any] = {
            "stall_timeout": stall_timeout,
            "connect_timeout": connect_timeout,
            "max_connections": max_connections,
        }
        self._wire: Wire | None = None
        self._sessions: Sessions | None = None
        self._repeats: Repeats | None = None
        self._deletions: Deletions | None = None
        self._composes: Composes | None = None
        self._rewrites: Rewrites | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._properties = json.dumps(self._options.properties())[:-1].encode()
        self._insert_targets: dict[str | None, str] = {}

    async def __aenter__(self) -> GcsStore:
        await self._open()
        return self

    async def _open(self) -> Wire:
        async with self._opening:
            if self._closed:
                raise StoreError(f"{self.uri} is closed")
            if self._wire is None:
                plane = await self._new_plane()
                access = Access(self._options, f"gs://{self._bucket}")
                base = urlsplit(self._options.endpoint()).path
                self._wire = Wire(self._bucket, access, plane, self._options.user_project, base)
                self._sessions, self._repeats = Sessions(self._wire), Repeats(self._wire)
                self._deletions = Deletions(self._wire, self._repeats)
                self._composes = Composes(self._wire, self._options, _RESOURCE)
                self._rewrites = Rewrites(self._wire, self._options, _RESOURCE)
            return self._wire

    async def _new_plane(self) -> Plane:
        endpoint = self._options.endpoint()
        proxy = proxy_for(endpoint)
        context = await in_thread(self._options.ssl_context)
        if proxy is None:
            return OwnPlane(endpoint, context, **self._limits)
        from asyncsync.stores.gcs.proxy_transport import SdkPlane

        return SdkPlane(endpoint, context, proxy, **self._limits)

    async def close(self) -> None:
        """Free all connections. Safe to call twice; the store cannot be used again."""
        self._closed = True
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    def _full(self, key: str) -> str:
        return self._prefix + key

    # Bulk

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        return await self._insert(key, body, crc32c, if_version, b"")

    async def _insert(
        self, key: str, body: Body, crc32c: int | None, if_version: str | None, more: bytes
    ) -> ObjectInfo:
        """Metadata and bytes in one request; ``more`` are further properties, rendered."""
        wire = self._wire or await self._open()
        if crc32c is None:
            crc32c = google_crc32c.value(body) if isinstance(body, bytes) else await in_thread(_crc_of, body)
        name, sent = self._full(key), crc_to_text(crc32c)
        own = f', "name": {json.dumps(name)}, "crc32c": "{sent}"}}'.encode()
        document = b"".join((self._properties, more, own))
        if isinstance(body, FileRange) and (body.size > CHUNK or body.progress is not None):
            assert self._sessions is not None  # made with the wire
            target = self._insert_target(wire, if_version, "resumable")
            made = await self._sessions.upload(Insert(name, target, document, body, crc32c))
        else:
            made = await self._insert_once(wire, name, document, body, crc32c, if_version)
        return made.info(key)

    async def _insert_once(
        self, wire: Wire, name: str, document: bytes, body: Body, crc32c: int, if_version: str | None
    ) -> Resource:
        assert self._repeats is not None  # made with the wire
        met = None if if_version is not None else (await self._repeats.standing([name])).get(name)
        try:
            with self._repeats.writing([name]):
                target = self._small_target(wire, if_version if met is None else met)
                said = await wire.upload(name, target, document, body)
                return written_of(f"insert {wire.where(name)}", said, name, self._bucket, body_size(body), crc32c)
        except PreconditionError as error:
            if met is None:
                raise
            raise UnavailableError(f"{error}: it was written while we asked for it") from error

    def _small_target(self, wire: Wire, if_version: str | None) -> str:
        found = self._insert_targets.get(if_version)
        if found is None:
            found = self._insert_target(wire, if_version, "multipart")
            if not if_version:
                self._insert_targets[if_version] = found  # two at most: any version, and none
        return found

    def _insert_target(self, wire: Wire, if_version: str | None, kind: str) -> str:
        return wire.upload_target(
            wire.params(
                uploadType=kind, fields=_RESOURCE, ifGenerationMatch=generation_of(if_version),
                **self._options.object_query(),
            )
        )  # fmt: skip

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if length == 0:
            return await self._head(key, if_version)
        wire = self._wire or await self._open()
        ranged = start > 0 or length is not None
        bounds = f"bytes={start}-{'' if length is None else start + length - 1}" if ranged else ""
        where = wire.where(self._full(key))
        total, seen = 0, None if ranged else Checked(sink)

        def expect(answer: Mapping[str, str]) -> int | None:
            nonlocal total
            check_version(where, if_version, generation_in(answer))
            if not ranged:
                return media_bytes(answer)
            come, total = range_bytes(where, answer, start, length)
            return come

        params = wire.params(ifGenerationMatch=generation_of(if_version))
        try:
            answer = await wire.read(self._full(key), params, bounds, seen or sink, expect)
        except RangeNotSatisfiedError:
            return await self._head(key, if_version)  # the range begins behind the end: there is nothing to give
        info = info_from_headers(key, total if seen is None else seen.size, answer)
        if seen is not None and info.crc32c not in (None, seen.crc32c):
            raise IntegrityError(
                f"get {where}: CRC32C {seen.crc32c:08x} came, {info.crc32c:08x} was said", retryable=True
            )
        if info.version or (ranged and if_version is None):  # who takes a part of whatever there is asks no further
            return info
        return await self._head(key, if_version)

    # Single objects

    async def head(self, key: str) -> ObjectInfo:
        return await self._head(key, None)

    async def _head(self, key: str, if_version: str | None) -> ObjectInfo:
        wire = self._wire or await self._open()
        name = self._full(key)
        target = wire.target(wire.object_path(name), wire.params(fields=_RESOURCE, ifGenerationMatch=if_version))
        where, said = wire.where(name), await wire.ask("get", "GET", name, target)
        found = resource_of(f"get {where}", document_of(f"get {where}", said), name, self._bucket)
        check_version(where, if_version, found.generation)
        return found.info(key)

    async def delete(self, keys: Sequence[str]) -> None:
        deletions = await self._open_deletions()
        check_lease(lease_of(keys))
        await deletions.delete([Doomed(self._full(key)) for key in keys])

    async def _open_deletions(self) -> Deletions:
        await self._open()
        assert self._deletions is not None  # made with the wire
        return self._deletions

    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        """Without ``if_version`` it replaces what is there when it begins, and nothing else."""
        self.check_copy_condition(key, if_version)
        wire = self._wire or await self._open()
        assert self._rewrites is not None  # made with the wire
        name = self._full(key)
        met = await wire.generation(name) if if_version is None else "0"
        check_lease(lease_of(key))
        return (await self._rewrites.run(self._full(source), name, if_source_version, met, size)).info(key)

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        seen: set[str | None] = set()
        while True:
            page = await self._page(self._prefix + prefix, _ITEM, seen, delimiter, token)
            skip, token = len(self._prefix), page.token
            items = (item for item in page.items if len(item["name"]) > skip)
            objects = (self._item(item).info(item["name"][skip:]) for item in items)
            shown = tuple(info for info in objects if not layout.is_hidden(info.key))
            prefixes = tuple(found[skip:] for found in page.prefixes if not layout.is_hidden(found[skip:]))
            if shown or prefixes or token is None:  # a page of hidden objects only is no page
                return Page(shown, prefixes, token)

    def _item(self, item: Document) -> Resource:
        return resource_of(f"list {self.uri}", item, item["name"], None)

    async def _page(
        self, prefix: str, fields: str, seen: set[str | None], delimiter: str = "", token: str | None = None
    ) -> Listing:
        """``seen`` are the tokens of the pages before: one that comes again would make a circle of them."""
        wire = self._wire or await self._open()
        params = wire.params(
            prefix=prefix or None, delimiter=delimiter or None, pageToken=token, maxResults="1000",
            fields=f"kind,items({fields}),prefixes,nextPageToken",
        )  # fmt: skip
        said = await wire.ask("list", "GET", prefix, wire.target(f"/storage/v1/b/{self._bucket}/o", params))
        page = listing_of(f"list {wire.where(prefix)}", said, prefix)
        seen.add(token)
        if page.token is not None and page.token in seen:
            refuse(f"list {wire.where(prefix)}", "'nextPageToken' is that of a page before")
        return page

    # Multipart

    async def create_multipart(self, key: str) -> Upload:
        upload_id = secrets.token_hex(8)
        await self._insert(layout.marker_key(upload_id), b"", 0, MISSING, layout.belongs_to(key))
        return Upload(key, upload_id)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        if not 1 <= number <= self.traits.max_parts:
            raise StoreError(f"{self.uri}: part number {number} is not in 1-{self.traits.max_parts}")
        key = layout.part_key(upload.upload_id, number)
        info = await self._insert(key, body, crc32c, None, layout.belongs_to(upload.key))
        return Part(number, offset, info.size, info.version, info.crc32c)

    async def copy_part(
        self, upload: Upload, number: int, offset: int, source: str, start: int, length: int, *,
        if_source_version: str | None = None,
    ) -> Part:  # fmt: skip
        """A whole object only: it is composed where it lies, and no byte moves."""
        info = await self._head(source, if_source_version)
        if (start, length) != (0, info.size):
            raise StoreError(
                f"{self.uri}: {source!r} has {info.size} bytes; GCS composes whole objects, not {length} from {start}"
            )
        etag = layout.copied(layout.Source(self._full(source), info.version))
        return Part(number, offset, length, etag, info.crc32c)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        whole = layout.combined(parts)
        if None not in (crc32c, whole) and crc32c != whole:
            raise IntegrityError(f"{self.uri}: the parts of {upload.key!r} have CRC32C {whole:08x}, not {crc32c:08x}")
        await self._open()
        assert self._composes is not None  # made with the wire
        own = partial(layout.part_key, upload.upload_id)
        sources = [layout.source_of(part, self._full(own(part.number))) for part in parts]
        home = self._full(layout.home_of(upload.upload_id))
        check_lease(upload.lease)
        made = await self._composes.run(self._full(upload.key), sources, home, if_version)
        info, size = made.info(upload.key), sum(part.size for part in parts)
        expected = whole if crc32c is None else crc32c
        if None not in (info.crc32c, expected) and info.crc32c != expected:
            raise IntegrityError(f"compose {self.uri}/{upload.key}: CRC32C {info.crc32c:08x}, not {expected:08x}")
        if info.size != size:
            refuse(f"compose {self.uri}/{upload.key}", f"it has 'size' {info.size}, the parts have {size}")
        try:
            await self.abort_multipart(upload)
        except StoreError as error:
            if error.retryable:
                raise  # whoever repeats this finds the object made, and removes what is left
            log.warning("%s: parts of %r stay until they are pruned: %s", self.uri, upload.key, error)
        return info

    async def abort_multipart(self, upload: Upload) -> None:
        deletions = await self._open_deletions()
        found = await self._objects_below(layout.home_of(upload.upload_id), _ITEM)
        items = [self._item(item) for item in found]
        await deletions.delete([Doomed(item.name, item.generation) for item in items])

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        found = await self._objects_below(layout.home_of(upload.upload_id), _ITEM)
        if not any(item["name"].endswith(layout.marker_key(upload.upload_id)) for item in found):
            raise NotFoundError(f"{self.uri}: there is no upload {upload.upload_id} of {upload.key!r}")
        parts: list[Part] = []
        for item in found:
            number = layout.number_of(item["name"])
            if number is not None:
                info = self._item(item)
                parts.append(Part(number, -1, info.size, info.generation, info.crc32c))
        return sorted(parts, key=lambda part: part.number)

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        uploads: dict[str, Upload] = {}
        for item in await self._objects_below(layout.HOME, "name,metadata,timeCreated"):
            key = layout.owner_in(item)
            upload_id = layout.upload_of(item["name"][len(self._prefix) :])
            if key and key.startswith(prefix):
                started = unix_of(item.get("timeCreated"))
                known = uploads.get(upload_id)
                if known is None or (started or 0) < (known.started or 0):
                    uploads[upload_id] = Upload(key, upload_id, started)
        return list(uploads.values())

    async def _objects_below(self, prefix: str, fields: str) -> Sequence[Document]:
        found: list[Document] = []
        seen: set[str | None] = set()
        token: str | None = None
        while True:
            page = await self._page(self._prefix + prefix, fields, seen, token=token)
            found += page.items
            token = page.token
            if token is None:
                return found


def _crc_of(body: FileRange) -> int:
    crc = 0
    for piece in body.pieces():
        crc = google_crc32c.extend(crc, piece)
    return crc
