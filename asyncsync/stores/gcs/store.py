"""The Google Cloud Storage store, on the JSON API.

Requests are in :mod:`asyncsync.stores.gcs.requests`, the layout of multipart uploads in
:mod:`asyncsync.stores.gcs.multipart_layout`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

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
from asyncsync.planning.crc32c import crc32c_if_known
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Page, Part, Sink, Store, Traits, Upload, body_size
from asyncsync.stores.gcs import multipart_layout as layout
from asyncsync.stores.gcs.auth import GcsAccess
from asyncsync.stores.gcs.batch_delete import BatchDelete, ToDelete
from asyncsync.stores.gcs.compose import Composer, Rewriter
from asyncsync.stores.gcs.options import GcsObjectKind, GcsOptions, proxy_for
from asyncsync.stores.gcs.requests import GcsRequests
from asyncsync.stores.gcs.responses import (
    Document,
    ListingPage,
    ObjectResource,
    check_version,
    document_of,
    generation_in,
    generation_of,
    info_from_headers,
    listing_of,
    media_bytes,
    range_bytes,
    refuse_response,
    resource_of,
    unix_of_rfc3339,
    written_of,
)
from asyncsync.stores.gcs.resumable import CHUNK_SIZE, ResumableUpload, ResumableUploads
from asyncsync.stores.gcs.transport import DirectTransport, Transport
from asyncsync.stores.gcs.unsure_writes import UnsureWrites
from asyncsync.stores.http.body import ChecksumSink, crc32c_of, crc32c_to_text
from asyncsync.stores.listing_position import ListingPosition
from asyncsync.stores.options import DEFAULT_LIMITS, ConnectionLimits, kind_of

log = logging.getLogger("asyncsync")

TRAITS = Traits(
    "gs",
    range_copy=False,
    min_part_size=1 << 18,
    part_size=CHUNK_SIZE,
    max_part_size=5 << 30,
    max_parts=10_000,
    max_single_put=5 << 40,
    conditional_copy=True,
    paced=True,
    resumable_puts=True,
    conditional_complete=True,
)
_ITEM_FIELDS = "name,size,generation,crc32c,updated"
_RESOURCE_FIELDS = f"bucket,{_ITEM_FIELDS}"


@dataclass(frozen=True, slots=True)
class _OpenBucket:
    """An open store's parts."""

    requests: GcsRequests
    resumable: ResumableUploads
    unsure: UnsureWrites
    deletions: BatchDelete
    composer: Composer
    rewriter: Rewriter

    @staticmethod
    def of(requests: GcsRequests, options: GcsOptions) -> _OpenBucket:
        unsure = UnsureWrites(requests)
        return _OpenBucket(
            requests,
            ResumableUploads(requests),
            unsure,
            BatchDelete(requests, unsure),
            Composer(requests, options, _RESOURCE_FIELDS),
            Rewriter(requests, options, _RESOURCE_FIELDS),
        )


class GcsStore(Store):
    """One bucket and prefix.

    ``options`` are those of :class:`asyncsync.stores.gcs.options.GcsOptions`: endpoint_url, credentials, TLS,
    encryption and properties of new objects; any other raises ConfigError. A request that exceeds a timeout of
    ``limits`` raises UnavailableError. The store opens at most ``limits.max_connections`` sockets, the first one on
    first use. The ``version`` of an object is its generation.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        options: Mapping[str, object],
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        self._options = GcsOptions.parse(options)
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"gs://{bucket}/{self._prefix}".rstrip("/")
        self.traits = TRAITS
        self._limits = limits
        self._opened: _OpenBucket | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._properties: dict[GcsObjectKind, bytes] = {}
        """Rendered, by kind, without the closing brace."""
        self._insert_targets: dict[str | None, str] = {}

    async def __aenter__(self) -> GcsStore:
        await self._open()
        return self

    async def _open(self) -> _OpenBucket:
        async with self._opening:
            if self._closed:
                raise StoreError(f"{self.uri} is closed")
            if self._opened is None:
                transport = await self._new_transport()
                access = GcsAccess(self._options, f"gs://{self._bucket}")
                base = urlsplit(self._options.endpoint()).path
                requests = GcsRequests(self._bucket, access, transport, self._options, base)
                self._opened = _OpenBucket.of(requests, self._options)
            return self._opened

    async def _requests(self) -> GcsRequests:
        return (self._opened or await self._open()).requests

    async def _new_transport(self) -> Transport:
        endpoint = self._options.endpoint()
        proxy = proxy_for(endpoint)
        context = await in_thread(self._options.ssl_context)
        if proxy is None:
            return DirectTransport(endpoint, context, self._limits)
        from asyncsync.stores.gcs.proxy_transport import ProxyTransport

        return ProxyTransport(endpoint, context, proxy, self._limits)

    async def close(self) -> None:
        """Close all connections. Safe to call twice; the store cannot be used again."""
        self._closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.requests.close()

    def _full(self, key: str) -> str:
        return self._prefix + key

    # Bulk

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        return await self._insert(key, body, crc32c, if_version, b"")

    async def _insert(
        self, key: str, body: Body, crc32c: int | None, if_version: str | None, metadata: bytes
    ) -> ObjectInfo:
        """Write an object with its metadata. ``metadata``: further properties, rendered."""
        opened = self._opened or await self._open()
        if crc32c is None:
            crc32c = await crc32c_of(body)
        name = self._full(key)
        own = f', "name": {json.dumps(name)}, "crc32c": "{crc32c_to_text(crc32c)}"}}'.encode()
        document = b"".join((self._properties_of(key), metadata, own))
        if isinstance(body, FileRange) and (body.size > CHUNK_SIZE or body.progress is not None):
            target = self._insert_target(opened.requests, if_version, "resumable")
            made = await opened.resumable.upload(ResumableUpload(name, target, document, body, crc32c))
        else:
            made = await self._insert_once(opened, name, document, body, crc32c, if_version)
        return made.info(key)

    def _properties_of(self, key: str) -> bytes:
        kind: GcsObjectKind = "part" if layout.is_hidden(key) else kind_of(key)
        found = self._properties.get(kind)
        if found is None:
            found = self._properties[kind] = json.dumps(self._options.properties(kind))[:-1].encode()
        return found

    async def _insert_once(
        self, opened: _OpenBucket, name: str, document: bytes, body: Body, crc32c: int, if_version: str | None
    ) -> ObjectResource:
        """Metadata and bytes in one request. A retry without ``if_version`` names the live generation."""
        requests, live = opened.requests, None
        if if_version is None:
            live = (await opened.unsure.live_generations([name])).get(name)
        try:
            with opened.unsure.tracking([name]):
                target = self._single_insert_target(requests, if_version if live is None else live)
                content = await requests.upload(name, target, document, body)
                where = f"insert {requests.where(name)}"
                return written_of(where, content, name, self._bucket, body_size(body), crc32c)
        except PreconditionError as error:
            if live is None:
                raise
            raise UnavailableError(f"{error}: it was written after its generation was read") from error

    def _single_insert_target(self, requests: GcsRequests, if_version: str | None) -> str:
        found = self._insert_targets.get(if_version)
        if found is None:
            found = self._insert_target(requests, if_version, "multipart")
            if not if_version:
                self._insert_targets[if_version] = found  # at most two: any version, and none
        return found

    def _insert_target(self, requests: GcsRequests, if_version: str | None, kind: str) -> str:
        query, generation = self._options.object_query(), generation_of(if_version)
        return requests.upload_target(
            requests.params(uploadType=kind, fields=_RESOURCE_FIELDS, ifGenerationMatch=generation, **query)
        )

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if length == 0:
            return await self._head(key, if_version)
        requests = await self._requests()
        ranged = start > 0 or length is not None
        byte_range = f"bytes={start}-{'' if length is None else start + length - 1}" if ranged else ""
        where = requests.where(self._full(key))
        total, checked = 0, None if ranged else ChecksumSink(sink)

        def expect(headers: Mapping[str, str]) -> int | None:
            nonlocal total
            check_version(where, if_version, generation_in(headers))
            if not ranged:
                return media_bytes(headers)
            expected, total = range_bytes(where, headers, start, length)
            return expected

        params = requests.params(ifGenerationMatch=generation_of(if_version))
        try:
            headers = await requests.read(self._full(key), params, byte_range, checked or sink, expect)
        except RangeNotSatisfiedError:
            return await self._head(key, if_version)  # the range starts behind the end and has no bytes
        info = info_from_headers(key, total if checked is None else checked.size, headers)
        if checked is not None and info.crc32c not in (None, checked.crc32c):
            raise IntegrityError(
                f"get {where}: received data has CRC32C {checked.crc32c:08x}, the store reported {info.crc32c:08x}",
                retryable=True,
            )
        if info.version or (ranged and if_version is None):  # a part of any version needs no version
            return info
        return await self._head(key, if_version)

    # Single objects

    async def head(self, key: str) -> ObjectInfo:
        return await self._head(key, None)

    async def _head(self, key: str, if_version: str | None) -> ObjectInfo:
        requests, name = await self._requests(), self._full(key)
        params = requests.params(fields=_RESOURCE_FIELDS, ifGenerationMatch=if_version)
        where = requests.where(name)
        target = requests.target(requests.object_path(name), params)
        content = await requests.request("get", "GET", name, target, requests.key_headers)
        found = resource_of(f"get {where}", document_of(f"get {where}", content), name, self._bucket)
        check_version(where, if_version, found.generation)
        return found.info(key)

    async def delete(self, keys: Sequence[str]) -> None:
        opened = await self._open()
        check_lease(lease_of(keys))
        await opened.deletions.delete([ToDelete(self._full(key)) for key in keys])

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        """Without ``if_version`` it replaces only the generation that is live when it starts."""
        self.check_copy_condition(key, if_version)
        opened = self._opened or await self._open()
        name = self._full(key)
        replaces = await opened.requests.generation(name) if if_version is None else "0"
        check_lease(lease_of(key))
        made = await opened.rewriter.run(self._full(source), name, if_source_version, replaces, size)
        return made.info(key)

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        position = ListingPosition.parse(token)
        while True:
            page, following = await self._page(self._prefix + prefix, _ITEM_FIELDS, position, delimiter)
            skip = len(self._prefix)
            items = (item for item in page.items if len(item["name"]) > skip)
            objects = (self._resource(item).info(item["name"][skip:]) for item in items)
            shown = tuple(info for info in objects if not layout.is_hidden(info.key))
            prefixes = tuple(found[skip:] for found in page.prefixes if not layout.is_hidden(found[skip:]))
            if following is None:
                return Page(shown, prefixes)
            if shown or prefixes:  # a page with only hidden objects is skipped
                return Page(shown, prefixes, following.text())
            position = following

    def _resource(self, item: Document) -> ObjectResource:
        return resource_of(f"list {self.uri}", item, item["name"], None)

    async def _page(
        self, prefix: str, fields: str, position: ListingPosition, delimiter: str = ""
    ) -> tuple[ListingPage, ListingPosition | None]:
        """The page at a position, and the position of the next one."""
        requests = await self._requests()
        params = requests.params(
            prefix=prefix or None,
            delimiter=delimiter or None,
            pageToken=position.token or None,
            maxResults="1000",
            fields=f"kind,items({fields}),prefixes,nextPageToken",
        )
        target = requests.target(f"/storage/v1/b/{self._bucket}/o", params)
        where = f"list {requests.where(prefix)}"
        page = listing_of(where, await requests.request("list", "GET", prefix, target), prefix)
        if page.token is None:
            return page, None
        first = next(iter([*(item["name"] for item in page.items), *page.prefixes]), "")
        return page, position.further(where, page.token, first)

    # Multipart

    async def create_multipart(self, key: str) -> Upload:
        upload_id = secrets.token_hex(8)
        await self._insert(layout.marker_key(upload_id), b"", 0, MISSING, layout.owner_metadata(key))
        return Upload(key, upload_id)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        if not 1 <= number <= self.traits.max_parts:
            raise StoreError(f"{self.uri}: part number {number} is not in 1-{self.traits.max_parts}")
        key = layout.part_key(upload.upload_id, number)
        info = await self._insert(key, body, crc32c, None, layout.owner_metadata(upload.key))
        return Part(number, offset, info.size, info.version, info.crc32c)

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
        """Only a whole object: complete composes it in place, so no byte moves now."""
        info = await self._head(source, if_source_version)
        if (start, length) != (0, info.size):
            raise StoreError(
                f"{self.uri}: cannot copy {length} bytes at {start} of {source!r}, which has {info.size} bytes: "
                "Cloud Storage composes whole objects only"
            )
        etag = layout.copied_part_etag(layout.ComposeSource(self._full(source), info.version))
        return Part(number, offset, length, etag, info.crc32c)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        combined = crc32c_if_known((part.crc32c, part.size) for part in parts)
        if None not in (crc32c, combined) and crc32c != combined:
            raise IntegrityError(
                f"{self.uri}: the parts of {upload.key!r} have CRC32C {combined:08x}, not {crc32c:08x}"
            )
        opened = await self._open()
        part_key = partial(layout.part_key, upload.upload_id)
        sources = [layout.source_of(part, self._full(part_key(part.number))) for part in parts]
        home = self._full(layout.upload_prefix(upload.upload_id))
        check_lease(upload.lease)
        made = await opened.composer.run(self._full(upload.key), sources, home, if_version)
        info, size = made.info(upload.key), sum(part.size for part in parts)
        expected = combined if crc32c is None else crc32c
        if None not in (info.crc32c, expected) and info.crc32c != expected:
            raise IntegrityError(f"compose {self.uri}/{upload.key}: CRC32C {info.crc32c:08x}, not {expected:08x}")
        if info.size != size:
            refuse_response(f"compose {self.uri}/{upload.key}", f"it has 'size' {info.size}, the parts have {size}")
        await self._remove_parts(upload)
        return info

    async def _remove_parts(self, upload: Upload) -> None:
        """After a compose. A transient error is raised: a retry finds the object and removes the parts."""
        try:
            await self.abort_multipart(upload)
        except StoreError as error:
            if error.retryable:
                raise
            log.warning("%s: parts of %r remain until they are pruned: %s", self.uri, upload.key, error)

    async def abort_multipart(self, upload: Upload) -> None:
        opened = await self._open()
        found = await self._objects_below(layout.upload_prefix(upload.upload_id), _ITEM_FIELDS)
        items = [self._resource(item) for item in found]
        await opened.deletions.delete([ToDelete(item.name, item.generation) for item in items])

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        found = await self._objects_below(layout.upload_prefix(upload.upload_id), _ITEM_FIELDS)
        if not any(item["name"].endswith(layout.marker_key(upload.upload_id)) for item in found):
            raise NotFoundError(f"{self.uri}: there is no upload {upload.upload_id} of {upload.key!r}")
        parts: list[Part] = []
        for item in found:
            number = layout.part_number_of(item["name"])
            if number is not None:
                info = self._resource(item)
                parts.append(Part(number, -1, info.size, info.generation, info.crc32c))
        return sorted(parts, key=lambda part: part.number)

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        uploads: dict[str, Upload] = {}
        for item in await self._objects_below(layout.PARTS_PREFIX, "name,metadata,timeCreated"):
            key = layout.owner_of(item)
            upload_id = layout.upload_id_of(item["name"][len(self._prefix) :])
            if key and key.startswith(prefix):
                started = unix_of_rfc3339(item.get("timeCreated"))
                known = uploads.get(upload_id)
                if known is None or (started or 0) < (known.started or 0):
                    uploads[upload_id] = Upload(key, upload_id, started)
        return list(uploads.values())

    async def _objects_below(self, prefix: str, fields: str) -> Sequence[Document]:
        found: list[Document] = []
        position: ListingPosition | None = ListingPosition()
        while position is not None:
            page, position = await self._page(self._prefix + prefix, fields, position)
            found += page.items
        return found
