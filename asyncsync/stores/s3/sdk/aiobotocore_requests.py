"""Requests through aiobotocore, for buckets that :mod:`asyncsync.stores.s3.requests` does not support: access points
and other ARNs, S3 Express directory buckets, which need session credentials, and endpoints behind a proxy.

It is slower, and a whole part is in memory: ``slots x part size``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from botocore.exceptions import BotoCoreError
from multidict import CIMultiDict

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import FileRange, Lease, check_lease, lease_of
from asyncsync.errors import UnavailableError, UnsupportedError
from asyncsync.stores.base import Body, Part, Sink
from asyncsync.stores.http.body import crc32c_to_text, source_too_short
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.sdk.aiobotocore_client import AiobotocoreClient

_READ_SIZE = 1 << 20
_PARAMS = {
    "if-match": "IfMatch",
    "if-none-match": "IfNoneMatch",
    "range": "Range",
    "x-amz-copy-source-if-match": "CopySourceIfMatch",
    "x-amz-copy-source-range": "CopySourceRange",
    "x-amz-checksum-crc32c": "ChecksumCRC32C",
    "x-amz-checksum-mode": "ChecksumMode",
    "x-amz-checksum-algorithm": "ChecksumAlgorithm",
    "x-amz-checksum-type": "ChecksumType",
    "x-amz-mp-object-size": "MpuObjectSize",
    "x-amz-acl": "ACL",
    "x-amz-storage-class": "StorageClass",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
}
_OPERATIONS = {
    "PutObject": "put_object",
    "UploadPart": "upload_part",
    "CopyObject": "copy_object",
    "UploadPartCopy": "upload_part_copy",
}
_COPY_RESULTS = {"CopyObject": "CopyObjectResult", "UploadPartCopy": "CopyPartResult"}


class AiobotocoreRequests:
    """The same methods as :class:`asyncsync.stores.s3.requests.S3Requests`."""

    def __init__(self, client: AiobotocoreClient, bucket: str, options: S3Options) -> None:
        self._client = client
        self._bucket = bucket
        self._common_params = options.request_params()
        self._multi_delete = options.checksum != "none"
        """aiobotocore cannot send DeleteObjects without a checksum."""

    async def close(self) -> None:
        """The client belongs to the store."""

    def where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """PutObject or UploadPart; the headers of the response."""
        data = body if isinstance(body, bytes) else await in_thread(_read_whole, body)
        lease = lease_of(body)
        sent = data if lease is None else _LeasedBody(data, lease)
        return _headers(await self._call(_OPERATIONS[operation], key, headers, Body=sent, **_part_params(query)))

    async def copy(
        self, operation: str, key: str, query: str, source: str, headers: dict[str, str], lease: Lease | None = None
    ) -> Mapping[str, str]:
        """CopyObject or UploadPartCopy from the key ``source``; the result of the response."""
        check_lease(lease)
        origin = {"Bucket": self._bucket, "Key": source}
        response = await self._call(_OPERATIONS[operation], key, headers, CopySource=origin, **_part_params(query))
        result: Mapping[str, str] = response.get(_COPY_RESULTS[operation], {})
        return result

    async def delete(self, key: str, lease: Lease | None = None) -> None:
        """DeleteObject."""
        check_lease(lease)
        await self._call("delete_object", key, {})

    async def delete_many(self, keys: Sequence[str], lease: Lease | None = None) -> list[tuple[str, str, str]]:
        """DeleteObjects; key, code and message of each object that could not be deleted."""
        check_lease(lease)
        if not self._multi_delete:
            raise UnsupportedError('aiobotocore cannot send DeleteObjects with checksum="none"')
        document = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        response = await self._client.call("delete_objects", self.where(""), Delete=document, **self._common_params)
        return [(e.get("Key", ""), e.get("Code", ""), e.get("Message", "")) for e in response.get("Errors", ())]

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``; the headers of the response."""
        response = await self._call("get_object", key, headers)
        found = _headers(response)
        expected, got = expect(int(response["ResponseMetadata"]["HTTPStatusCode"]), found), 0
        async with response["Body"] as body:
            while True:
                try:
                    piece = await body.read(_READ_SIZE)
                except (BotoCoreError, aiohttp.ClientError, OSError) as error:
                    raise UnavailableError(f"GetObject {self.where(key)}: the body was cut off: {error!r}") from error
                if not piece:
                    break
                got += len(piece)
                await sink(piece)
        if expected not in (None, got):
            raise UnavailableError(f"GetObject {self.where(key)}: {got} bytes came instead of {expected}")
        return found

    async def head(self, key: str, headers: dict[str, str]) -> Mapping[str, str]:
        """HeadObject; the headers of the response."""
        return _headers(await self._call("head_object", key, headers))

    async def create(self, key: str, headers: dict[str, str]) -> tuple[str, Mapping[str, str]]:
        """CreateMultipartUpload; the upload id, and the headers of the response."""
        response = await self._call("create_multipart_upload", key, headers)
        return str(response["UploadId"]), _headers(response)

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
        """CompleteMultipartUpload; the result of the response."""
        check_lease(lease)
        listed = [_part_document(part, checksums=checksums) for part in parts]
        return await self._call(
            "complete_multipart_upload", key, headers, UploadId=upload_id, MultipartUpload={"Parts": listed}
        )

    async def abort(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload."""
        await self._call("abort_multipart_upload", key, {}, UploadId=upload_id)

    async def _call(self, operation: str, key: str, headers: dict[str, str], **more: Any) -> dict[str, Any]:
        params: dict[str, Any] = {_PARAMS[name]: value for name, value in headers.items()}
        if "MpuObjectSize" in params:
            params["MpuObjectSize"] = int(params["MpuObjectSize"])
        return await self._client.call(operation, self.where(key), Key=key, **params, **more, **self._common_params)


class _LeasedBody(BytesIO):
    """A body whose every piece needs the lease."""

    def __init__(self, data: bytes, lease: Lease) -> None:
        super().__init__(data)
        self._lease = lease

    def read(self, size: int | None = -1, /) -> bytes:
        self._lease.check()
        return super().read(size)


def _part_params(query: str) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in parse_qsl(query):
        params["UploadId" if name == "uploadId" else "PartNumber"] = int(value) if name == "partNumber" else value
    return params


def _part_document(part: Part, *, checksums: bool) -> dict[str, Any]:
    listed: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
    if checksums and part.crc32c is not None:
        listed["ChecksumCRC32C"] = crc32c_to_text(part.crc32c)
    return listed


def _headers(response: Mapping[str, Any]) -> Mapping[str, str]:
    return CIMultiDict(response["ResponseMetadata"]["HTTPHeaders"])


def _read_whole(body: FileRange) -> bytes:
    data = b"".join(body.pieces())
    if len(data) < body.size:
        raise source_too_short(body, len(data))
    return data
