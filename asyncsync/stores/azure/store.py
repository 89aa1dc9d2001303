"""The Azure Blob Storage store.

Requests are in :mod:`asyncsync.stores.azure.requests`, multipart uploads in
:mod:`asyncsync.stores.azure.block_uploads`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import google_crc32c

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import PIECE, FileRange, Lease, LeasedBytes, check_lease, lease_of
from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    StoreError,
)
from asyncsync.runtime import token as random_token
from asyncsync.stores.azure import block_ids
from asyncsync.stores.azure.auth import AzureAccess
from asyncsync.stores.azure.batch_delete import MAX_BATCH
from asyncsync.stores.azure.block_ids import BlockName
from asyncsync.stores.azure.block_uploads import BlockUploads, CopiedRange
from asyncsync.stores.azure.checksums import checksums_of, crc64_of
from asyncsync.stores.azure.options import AzureOptions, Location, account_of, check_no_proxy
from asyncsync.stores.azure.requests import AzureRequests, CopyRange, precondition
from asyncsync.stores.azure.responses import blob_length, info_of, range_length
from asyncsync.stores.azure.transport import AzureTransport
from asyncsync.stores.azure.xml import CRC_METADATA, ListedBlob, ListedPage
from asyncsync.stores.base import Body, ObjectInfo, Page, Part, Sink, Store, Traits, Upload, body_size
from asyncsync.stores.http.body import ChecksumSink, crc32c_to_text, read_body
from asyncsync.stores.http.response import Response
from asyncsync.stores.listing_position import ListingPosition
from asyncsync.stores.options import DEFAULT_LIMITS, ConnectionLimits

log = logging.getLogger("asyncsync")

MIB = 1 << 20
MAX_COPY = 256 * MIB
"""Largest blob that one Copy Blob From URL copies; larger ones are copied in blocks."""
COPY_RANGE = 64 * MIB
"""Bytes that one Put Block From URL copies of a larger blob."""
CONCURRENT_REQUESTS = 4
"""Concurrent batches of a deletion, or copies of one blob."""
CONCURRENT_DELETES = 16
"""Concurrent Delete Blob requests where the account has no Blob Batch."""
_DELETE_HEADERS = {"x-ms-delete-snapshots": "include"}
TRAITS = Traits(
    "az",
    min_range_source=0,
    min_part_size=1,
    max_part_size=4000 * MIB,
    max_parts=50_000,
    max_single_put=5000 * MIB,
    crc64=True,
    paced=True,
    checked_copies=True,
)
"""Limits of the service (Azure documentation, "Scalability and performance targets for Blob Storage")."""


@dataclass(frozen=True, slots=True)
class _OpenContainer:
    """An open store's parts."""

    requests: AzureRequests
    uploads: BlockUploads


class AzureStore(Store):
    """One container and prefix.

    ``options`` are those of :class:`asyncsync.stores.azure.options.AzureOptions`: account, account_key, sas_token,
    connection_string, token, credential, client_id, tenant_id, anonymous, endpoint_url, access_tier, encryption_scope,
    verify; any other raises ConfigError. A request that exceeds a timeout of ``limits`` raises UnavailableError. The
    store opens at most ``limits.max_connections`` sockets, the first one on first use. The ``version`` of an object is
    its ETag without quotes.
    """

    def __init__(
        self,
        location: Location,
        *,
        options: Mapping[str, object],
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        self._options = AzureOptions.parse(options)
        self._account = account_of(self._options, location)
        check_no_proxy(self._account.endpoint)
        self._container = location.container
        self._prefix = f"{location.prefix}/" if location.prefix else ""
        self.uri = f"az://{self._container}/{self._prefix}".rstrip("/")
        self.traits = TRAITS
        self._limits = limits
        self._opened: _OpenContainer | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._has_batch = True
        self._hierarchical = False

    def __repr__(self) -> str:
        return f"AzureStore({self.uri!r}, account={self._account.name!r})"

    async def __aenter__(self) -> AzureStore:
        await self._open()
        return self

    async def _open(self) -> _OpenContainer:
        async with self._opening:
            if self._closed:
                raise StoreError(f"{self.uri} is closed")
            if self._opened is None:
                https = self._account.endpoint.startswith("https:")
                context = await in_thread(self._options.ssl_context) if https else None
                access = AzureAccess(self._account, self._options, self.uri)
                requests = AzureRequests(AzureTransport(self._container, access, context, self._limits))
                self._opened = _OpenContainer(requests, BlockUploads(requests, self._options, self._full))
            return self._opened

    async def _requests(self) -> AzureRequests:
        return (self._opened or await self._open()).requests

    async def _uploads(self) -> BlockUploads:
        return (self._opened or await self._open()).uploads

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
        opened = self._opened or await self._open()
        name, size = self._full(key), body_size(body)
        if size > self.traits.max_single_put:
            raise StoreError(f"{self.uri}: {key} has {size} bytes, too many for one request: send it in parts")
        body = await _small_in_memory(body)
        crc64, crc32c = await checksums_of(f"Put Blob {opened.requests.where(name)}", body, crc32c)
        headers = opened.uploads.blob_headers(key)
        headers[f"x-ms-meta-{CRC_METADATA}"] = crc32c_to_text(crc32c)
        if if_version is not None:
            headers |= precondition(if_version)
        version = await opened.requests.put_blob(name, body, crc64, headers)
        return ObjectInfo(key, size, version, crc32c)

    async def put_damaged(self, key: str, data: bytes) -> ObjectInfo:
        """With the CRC64 of other bytes: only the service can notice that."""
        opened = await self._open()
        headers = opened.uploads.blob_headers(key)
        headers[f"x-ms-meta-{CRC_METADATA}"] = crc32c_to_text(int(google_crc32c.value(data)))
        version = await opened.requests.put_blob(self._full(key), data, crc64_of(data + b"!"), headers)
        return ObjectInfo(key, len(data), version)

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if length == 0:
            return await self._head(key, if_version)
        requests, headers = await self._requests(), precondition(if_version)
        ranged = start > 0 or length is not None
        if ranged:
            headers["x-ms-range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        where = f"Get Blob {requests.where(self._full(key))}"
        total, checked = 0, None if ranged else ChecksumSink(sink)

        def expect(response: Response) -> int:
            nonlocal total
            expected, total = (
                range_length(where, response, start, length) if ranged else (blob_length(where, response),) * 2
            )
            info_of(where, key, response.headers, total)
            return expected

        try:
            response = await requests.get(self._full(key), headers, checked or sink, expect)
        except RangeNotSatisfiedError:
            return await self._head(key, if_version)  # the range starts beyond the end and has no bytes
        info = info_of(where, key, response, total)
        if checked is not None and info.crc32c not in (None, checked.crc32c):
            raise IntegrityError(
                f"{where}: received data has CRC32C {checked.crc32c:08x}, its metadata have {info.crc32c:08x}",
                retryable=True,
            )
        return info

    # Single objects

    async def head(self, key: str) -> ObjectInfo:
        return await self._head(key, None)

    async def _head(self, key: str, if_version: str | None) -> ObjectInfo:
        requests, name = await self._requests(), self._full(key)
        headers = await requests.head(name, precondition(if_version))
        return info_of(f"Get Blob Properties {requests.where(name)}", key, headers)

    async def delete(self, keys: Sequence[str]) -> None:
        lease = lease_of(keys)
        if len(keys) > 1 and self._has_batch:
            batches = [keys[at : at + MAX_BATCH] for at in range(0, len(keys), MAX_BATCH)]
            await for_each_limited(batches, lambda batch: self._delete_batch(batch, lease), CONCURRENT_REQUESTS)
        else:
            await self._delete_each(keys, lease)

    async def _delete_each(self, keys: Sequence[str], lease: Lease | None) -> None:
        await for_each_limited(keys, lambda key: self._delete_one(key, lease), min(CONCURRENT_DELETES, len(keys) or 1))

    async def _delete_one(self, key: str, lease: Lease | None) -> None:
        requests = await self._requests()
        try:
            await requests.delete(self._full(key), _DELETE_HEADERS, lease)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return

    async def _delete_batch(self, keys: Sequence[str], lease: Lease | None) -> None:
        """Some accounts (with hierarchical namespace, or behind some gateways) have no Blob Batch."""
        requests = await self._requests()
        try:
            return await requests.delete_many([self._full(key) for key in keys], _DELETE_HEADERS, lease)
        except (AccessDeniedError, NoSuchBucketError, PreconditionError):
            raise
        except StoreError as error:
            if error.retryable:
                raise
            log.warning("%s has no Blob Batch; objects are deleted one by one: %s", self.uri, error)
            self._has_batch = False
        return await self._delete_each(keys, lease)

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        """More than 256 MiB are copied in blocks."""
        self.check_copy_condition(key, if_version)
        opened = await self._open()
        found = await self._head(source, if_source_version)
        if found.size > self.traits.max_single_put:
            raise StoreError(f"{self.uri}: {source} has {found.size} bytes, too many for one copy: copy it in parts")
        headers = opened.uploads.blob_headers(key)
        headers.pop("x-ms-blob-content-type")  # a copy keeps that of its source
        if found.crc32c is not None:
            headers[f"x-ms-meta-{CRC_METADATA}"] = crc32c_to_text(found.crc32c)
        headers |= precondition(if_version)
        lease = lease_of(key)
        check_lease(lease)
        if found.size > MAX_COPY:
            version = await self._copy_in_blocks(opened.requests, found, self._full(key), headers, lease)
        else:
            name = self._full(source)
            version = await opened.requests.copy_blob(name, self._full(key), found.version, headers, lease)
        return ObjectInfo(key, found.size, version, found.crc32c)

    async def _copy_in_blocks(
        self, requests: AzureRequests, found: ObjectInfo, key: str, headers: dict[str, str], lease: Lease | None
    ) -> str:
        upload_id, offsets = random_token(), range(0, found.size, COPY_RANGE)
        names = {at: BlockName(upload_id, number, at, None).encoded() for number, at in enumerate(offsets, 1)}

        async def copy(at: int) -> None:
            copied = CopyRange(self._full(found.key), at, min(COPY_RANGE, found.size - at), found.version)
            await requests.copy_block(key, names[at], copied, self._options.block_headers())

        await for_each_limited(offsets, copy, CONCURRENT_REQUESTS)
        return await requests.put_block_list(key, [(False, names[at]) for at in offsets], headers, lease)

    # Listings

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        position = ListingPosition.parse(token)
        while True:
            page, following = await self._page(self._prefix + prefix, delimiter, position)
            skip = len(self._prefix)
            objects = tuple(_info(blob, blob.name[skip:]) for blob in page.blobs if self._is_shown(blob))
            prefixes = tuple(found[skip:] for found in page.prefixes if not block_ids.is_hidden(found[skip:]))
            if following is None:
                return Page(objects, prefixes)
            if objects or prefixes:  # a page with only hidden blobs is skipped
                return Page(objects, prefixes, following.text())
            position = following

    def _is_shown(self, blob: ListedBlob) -> bool:
        key = blob.name[len(self._prefix) :]
        if blob.is_directory and not self._hierarchical:
            self._hierarchical = True
            log.info("%s has a hierarchical namespace: directories stay when their last file is deleted", self.uri)
        return bool(key) and not blob.is_directory and not block_ids.is_hidden(key)

    async def _page(
        self, prefix: str, delimiter: str, position: ListingPosition
    ) -> tuple[ListedPage, ListingPosition | None]:
        """The page at a position, and the position of the next one."""
        requests = await self._requests()
        page = await requests.list(prefix, delimiter, position.token or None)
        if page.marker is None:
            return page, None
        first = next(iter([*(blob.name for blob in page.blobs), *page.prefixes]), "")
        return page, position.further(f"List Blobs {requests.where(prefix)}", page.marker, first)

    # Multipart

    async def create_multipart(self, key: str) -> Upload:
        return await (await self._uploads()).create(key)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        self._check_number(number)
        return await (await self._uploads()).put_part(upload, number, offset, await _small_in_memory(body), crc32c)

    def _check_number(self, number: int) -> None:
        if not 1 <= number <= self.traits.max_parts:
            raise StoreError(f"{self.uri}: part number {number} is not in 1-{self.traits.max_parts}")

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
        body: Body | None = None,
    ) -> Part:
        """Whole blocks of the blob that the upload replaces are not even copied: they are committed again."""
        self._check_number(number)
        copied = CopiedRange(source, start, length, if_source_version, body)
        return await (await self._uploads()).copy_part(upload, number, offset, copied)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        return await (await self._uploads()).complete(upload, parts, crc32c, if_version)

    async def abort_multipart(self, upload: Upload) -> None:
        """The service drops the blocks itself: with the next commit of the blob, or after a week."""
        await (await self._uploads()).abort(upload)

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await (await self._uploads()).list_parts(upload)

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        uploads: list[Upload] = []
        position: ListingPosition | None = ListingPosition()
        while position is not None:
            page, position = await self._page(self._prefix + block_ids.UPLOADS_PREFIX, "", position)
            for blob in page.blobs:
                upload_id = block_ids.upload_id_of(blob.name[len(self._prefix) :])
                key = block_ids.key_in(blob.metadata.get(block_ids.KEY_METADATA, ""))
                if upload_id and key and key.startswith(prefix):
                    uploads.append(Upload(key, upload_id, blob.modified))
        return uploads


def _info(blob: ListedBlob, key: str) -> ObjectInfo:
    return ObjectInfo(key, blob.size, blob.version, blob.crc32c, blob.modified)


async def _small_in_memory(body: Body) -> Body:
    """A small file is read once, and both checked and sent from memory."""
    if not isinstance(body, FileRange) or body.size > PIECE:
        return body
    lease, data = body.lease, await read_body(body)
    if lease is None:
        return data
    leased = LeasedBytes(data)
    leased.lease = lease
    return leased
