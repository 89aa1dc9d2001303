"""Requests to S3 for one bucket: PutObject, GetObject, HeadObject, copies, deletes and multipart uploads.

Endpoint, addressing and credentials come from :mod:`asyncsync.stores.s3.static_endpoint` or
:mod:`asyncsync.stores.s3.sdk.aiobotocore_client`. Listings of parts and uploads are rare and go
through aiobotocore.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from asyncsync.disk.files import PIECE, FileRange, Lease
from asyncsync.errors import UnavailableError
from asyncsync.stores.base import MISSING, Body, Part, Sink, Upload
from asyncsync.stores.http.body import read_body
from asyncsync.stores.http.response import Response
from asyncsync.stores.s3.header_negotiation import OptionalHeaders
from asyncsync.stores.s3.responses import check_result, has_etag
from asyncsync.stores.s3.transport import S3Request, SignedTransport
from asyncsync.stores.s3.xml import complete_document, delete_document, failed_deletes, object_page
from asyncsync.stores.xml_reader import text_of

_MAX_DELETE_RESPONSE = 8 << 20
"""Bytes of a response that names a thousand keys."""
_MAX_LIST_RESPONSE = 16 << 20
"""The same with each byte of a key as three, and everything else that a listing has of an object."""


class S3Requests:
    """The requests of one bucket, over a :class:`asyncsync.stores.s3.transport.SignedTransport`."""

    def __init__(self, transport: SignedTransport) -> None:
        self.transport = transport

    async def close(self) -> None:
        await self.transport.close()

    def where(self, key: str) -> str:
        return self.transport.where(key)

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """PutObject or UploadPart; the headers of the response."""
        lease = None
        if isinstance(body, FileRange) and body.size <= PIECE:
            lease, body = body.lease, await read_body(body)
        request = S3Request(operation, "PUT", key, query, headers, body, lease)
        response = await self.transport.send(request)
        if not has_etag(response.status, response.headers):
            self._check(request, response)
        return response.headers

    async def head(self, key: str, headers: dict[str, str]) -> Mapping[str, str]:
        """HeadObject; the headers of the response."""
        return (await self.transport.send(S3Request("HeadObject", "HEAD", key, "", headers, None))).headers

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``; the headers of the response. ``expect`` takes status and headers, and returns the
        expected length; None: unknown."""
        request = S3Request("GetObject", "GET", key, "", headers, None)
        return (await self.transport.fetch(request, sink, expect)).headers

    async def create(self, key: str, headers: dict[str, str]) -> tuple[str, Mapping[str, str]]:
        """CreateMultipartUpload; the upload id, and the headers of the response."""
        request = S3Request("CreateMultipartUpload", "POST", key, "uploads=", headers, b"")
        response = await self.transport.send(request)
        return text_of(self._document(request, response), "UploadId"), response.headers

    async def complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        headers: dict[str, str],
        lease: Lease | None = None,
        *,
        checksums: bool,
    ) -> Mapping[str, str]:
        """CompleteMultipartUpload; ETag, ChecksumCRC32C and ChecksumType of the response, empty where missing."""
        body = complete_document(parts, checksums=checksums)
        headers |= {"content-type": "application/xml", "x-amz-content-sha256": sha256(body).hexdigest()}
        query = _upload_query(upload_id)
        return await self._result(S3Request("CompleteMultipartUpload", "POST", key, query, headers, body, lease))

    async def copy(
        self, operation: str, key: str, query: str, source: str, headers: dict[str, str], lease: Lease | None = None
    ) -> Mapping[str, str]:
        """CopyObject or UploadPartCopy from the key ``source``; the result as for :meth:`complete`."""
        headers["x-amz-copy-source"] = quote(f"{self.transport.bucket}/{source}", safe="/~")
        return await self._result(S3Request(operation, "PUT", key, query, headers, b"", lease))

    async def delete(self, key: str, lease: Lease | None = None) -> None:
        """DeleteObject."""
        request = S3Request("DeleteObject", "DELETE", key, "", {}, None, lease)
        self._check(request, await self.transport.send(request))

    async def delete_many(self, keys: Sequence[str], lease: Lease | None = None) -> list[tuple[str, str, str]]:
        """DeleteObjects; key, code and message of each object that could not be deleted."""
        body = delete_document(keys)
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = {"content-type": "application/xml", "content-md5": md5}
        headers["x-amz-content-sha256"] = sha256(body).hexdigest()
        request = S3Request("DeleteObjects", "POST", "", "delete=", headers, body, lease)
        return failed_deletes(self._document(request, await self.transport.send(request, _MAX_DELETE_RESPONSE)))

    async def list_objects(self, prefix: str, delimiter: str, token: str) -> Mapping[str, Any]:
        """ListObjectsV2: one page below ``prefix``, which is the bucket's, as botocore gives it."""
        given = {"continuation-token": token, "delimiter": delimiter, "prefix": prefix}
        named = {"encoding-type": "url", "list-type": "2", **{name: text for name, text in given.items() if text}}
        query = "&".join(f"{name}={quote(text, safe='-_.~')}" for name, text in sorted(named.items()))
        request = S3Request("ListObjectsV2", "GET", "", query, {}, None)
        document = self._document(request, await self.transport.send(request, _MAX_LIST_RESPONSE))
        try:
            return object_page(document)
        except ValueError as error:
            raise UnavailableError(
                f"ListObjectsV2 {self.where(prefix)}: an entry of the list is unreadable: {error}"
            ) from error

    async def abort(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload."""
        request = S3Request("AbortMultipartUpload", "DELETE", key, _upload_query(upload_id), {}, None)
        self._check(request, await self.transport.send(request))

    async def _result(self, request: S3Request) -> Mapping[str, str]:
        document = self._document(request, await self.transport.send(request))
        return {name: text_of(document, name) for name in ("ETag", "ChecksumCRC32C", "ChecksumType")}

    def _document(self, request: S3Request, response: Response) -> Element:
        document = self._check(request, response)
        assert document is not None
        return document

    def _check(self, request: S3Request, response: Response) -> Element | None:
        """See :func:`check_result`."""
        where = self.where(request.key)
        return check_result(request.operation, where, response.status, response.headers, response.content)


def supports_bucket(bucket: str) -> bool:
    """Whether S3Requests can address this bucket: not ARNs and directory buckets."""
    return not bucket.startswith("arn:") and not bucket.endswith(("--x-s3", "--xa-s3"))


def precondition(if_version: str | None) -> dict[str, str]:
    """Headers that require a version of the object; MISSING: that there is none."""
    if if_version is None:
        return {}
    return {"if-none-match": "*"} if if_version == MISSING else {"if-match": f'"{if_version}"'}


def source_precondition(if_version: str | None) -> dict[str, str]:
    """The same for the source of a copy."""
    return {} if if_version is None else {"x-amz-copy-source-if-match": f'"{if_version}"'}


def checksum_mode(optional: OptionalHeaders) -> dict[str, str]:
    """The header that requests the stored checksum."""
    return {"x-amz-checksum-mode": "ENABLED"} if optional.checksum else {}


def part_query(upload: Upload, number: int) -> str:
    return f"partNumber={number}&{_upload_query(upload.upload_id)}"


def _upload_query(upload_id: str) -> str:
    return f"uploadId={quote(upload_id, safe='')}"
