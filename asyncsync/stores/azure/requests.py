"""Requests to Azure Blob Storage for one container. Each checks the result of its own operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

from asyncsync.disk.files import Lease, lease_of
from asyncsync.errors import NoSuchBucketError, NotFoundError, StoreError
from asyncsync.stores.azure.batch_delete import batch_body, batch_results
from asyncsync.stores.azure.block_ids import BlockList
from asyncsync.stores.azure.checksums import crc64_of
from asyncsync.stores.azure.responses import (
    check_batch,
    check_copied,
    check_crc64,
    check_status,
    written_version,
)
from asyncsync.stores.azure.transport import AzureRequest, AzureTransport
from asyncsync.stores.azure.xml import ListedPage, block_list_document, block_list_of, page_of
from asyncsync.stores.base import MISSING, Body, Sink
from asyncsync.stores.http.response import Response, is_number
from asyncsync.stores.xml_reader import unquoted_etag

PAGE_SIZE = 1000


class CopyRange(NamedTuple):
    """A range of another blob. ``crc64``: of the bytes that it must have; empty: not known."""

    source: str
    start: int
    length: int
    if_version: str | None = None
    crc64: str = ""


class AzureRequests:
    """The requests of one container, over an :class:`asyncsync.stores.azure.transport.AzureTransport`. Keys are names
    of blobs."""

    def __init__(self, transport: AzureTransport) -> None:
        self.transport = transport

    async def close(self) -> None:
        await self.transport.close()

    def where(self, key: str) -> str:
        return self.transport.where(key)

    async def put_blob(self, key: str, body: Body, crc64: str, headers: dict[str, str]) -> str:
        """Put Blob; the blob's version."""
        sent = {"x-ms-blob-type": "BlockBlob", "x-ms-content-crc64": crc64, **headers}
        request = AzureRequest("Put Blob", "PUT", key, "", sent, body, lease_of(body))
        response = await self.transport.send(request)
        check_crc64("Put Blob", self.where(key), response.headers, crc64)
        return written_version("Put Blob", self.where(key), response)

    async def put_block(self, key: str, name: str, body: Body, crc64: str, headers: dict[str, str]) -> None:
        """Put Block."""
        sent = {"x-ms-content-crc64": crc64, **headers}
        request = AzureRequest("Put Block", "PUT", key, _block_query(name), sent, body, lease_of(body))
        response = await self.transport.send(request)
        check_status("Put Block", self.where(key), response)
        check_crc64("Put Block", self.where(key), response.headers, crc64)

    async def copy_block(self, key: str, name: str, copied: CopyRange, headers: dict[str, str]) -> None:
        """Put Block From URL."""
        sent = await self.transport.copy_source(copied.source)
        sent |= {"x-ms-source-range": f"bytes={copied.start}-{copied.start + copied.length - 1}", **headers}
        sent |= _source_precondition(copied.if_version)
        if copied.crc64:
            sent["x-ms-source-content-crc64"] = copied.crc64
        request = AzureRequest("Put Block From URL", "PUT", key, _block_query(name), sent, b"", patient=True)
        response = await self.transport.send(request)
        check_status("Put Block From URL", self.where(key), response)
        if copied.crc64:
            check_crc64("Put Block From URL", self.where(key), response.headers, copied.crc64)

    async def put_block_list(
        self, key: str, blocks: Sequence[tuple[bool, str]], headers: dict[str, str], lease: Lease | None
    ) -> str:
        """Put Block List; the blob's version. ``blocks``: whether each is committed already, and its name."""
        body = block_list_document(blocks)
        sent = {"content-type": "application/xml", "x-ms-content-crc64": crc64_of(body), **headers}
        request = AzureRequest("Put Block List", "PUT", key, "comp=blocklist", sent, body, lease, patient=True)
        return written_version("Put Block List", self.where(key), await self.transport.send(request))

    async def get_block_list(self, key: str) -> BlockList:
        """Get Block List, with both kinds of blocks; an empty one if there is no blob and no block."""
        request = AzureRequest("Get Block List", "GET", key, "comp=blocklist&blocklisttype=all")
        try:
            response = await self.transport.send(request)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return BlockList((), ())
        check_status("Get Block List", self.where(key), response)
        size = response.headers.get("x-ms-blob-content-length", "")
        version = unquoted_etag(response.headers.get("etag"))
        where = f"Get Block List {self.where(key)}"
        return block_list_of(where, response.content, version, int(size) if is_number(size) and version else None)

    async def copy_blob(
        self, source: str, key: str, if_source_version: str | None, headers: dict[str, str], lease: Lease | None
    ) -> str:
        """Copy Blob From URL; the version of the copy."""
        sent = await self.transport.copy_source(source)
        sent |= {"x-ms-requires-sync": "true", **_source_precondition(if_source_version), **headers}
        request = AzureRequest("Copy Blob From URL", "PUT", key, "", sent, b"", lease, patient=True)
        response = await self.transport.send(request)
        version = written_version("Copy Blob From URL", self.where(key), response)
        check_copied(self.where(key), response.headers)
        return version

    async def head(self, key: str, headers: dict[str, str]) -> Mapping[str, str]:
        """Get Blob Properties; the headers of the response."""
        response = await self.transport.send(AzureRequest("Get Blob Properties", "HEAD", key, "", headers))
        check_status("Get Blob Properties", self.where(key), response)
        return response.headers

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[Response], int | None]
    ) -> Mapping[str, str]:
        """Get Blob into ``sink``; the headers of the response."""
        return (await self.transport.fetch(AzureRequest("Get Blob", "GET", key, "", headers), sink, expect)).headers

    async def list(self, prefix: str, delimiter: str, marker: str | None) -> ListedPage:
        """List Blobs: one page, with metadata."""
        query = {"restype": "container", "comp": "list", "include": "metadata", "maxresults": str(PAGE_SIZE)}
        given = {"prefix": prefix, "delimiter": delimiter, "marker": marker or ""}
        query |= {name: value for name, value in given.items() if value}
        request = AzureRequest("List Blobs", "GET", "", urlencode(query, quote_via=quote))
        response = await self.transport.send(request)
        where = f"List Blobs {self.where(prefix)}"
        check_status("List Blobs", self.where(prefix), response)
        return page_of(where, response.content, prefix)

    async def delete(self, key: str, headers: dict[str, str], lease: Lease | None) -> None:
        """Delete Blob."""
        request = AzureRequest("Delete Blob", "DELETE", key, "", headers, lease=lease)
        check_status("Delete Blob", self.where(key), await self.transport.send(request))

    async def delete_many(self, keys: Sequence[str], headers: Mapping[str, str], lease: Lease | None) -> None:
        """Blob Batch: delete at most 256 blobs; missing ones are ignored."""
        parts = [await self.transport.part_of_batch("DELETE", key, headers) for key in keys]
        body, content_type = batch_body("DELETE", parts)
        query = "restype=container&comp=batch"
        request = AzureRequest("Blob Batch", "POST", "", query, {"content-type": content_type}, body, lease)
        response = await self.transport.send(request)
        where = f"Blob Batch {self.where('')}"
        check_status("Blob Batch", self.where(""), response)
        results = batch_results(response.content, response.headers.get("content-type", ""))
        if results is None:
            raise StoreError(f"{where}: the response is not a batch")
        check_batch(where, results, len(keys))


def precondition(if_version: str | None) -> dict[str, str]:
    """Headers that require a version of the blob; MISSING: that there is none."""
    if if_version is None:
        return {}
    return {"if-none-match": "*"} if if_version == MISSING else {"if-match": f'"{if_version}"'}


def _source_precondition(if_version: str | None) -> dict[str, str]:
    return {} if if_version is None else {"x-ms-source-if-match": f'"{if_version}"'}


def _block_query(name: str) -> str:
    return f"comp=block&blockid={quote(name, safe='')}"
