"""The data plane through aiobotocore, for what our own wire does not serve: access points and other ARNs, S3 Express
directory buckets, which sign with a session of their own, and endpoints that are reached through a proxy.

Slower, and a part is in memory as a whole: ``slots x part size``.
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
from asyncsync.stores.http.client import too_short
from asyncsync.stores.s3.aiobotocore_client import S3Client
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.signer import crc_to_text

_READ = 1 << 20
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
_COPIED = {"CopyObject": "CopyObjectResult", "UploadPartCopy": "CopyPartResult"}


class SdkPlane:
    """The same calls as :class:`asyncsync.stores.s3.requests.Wire`."""

    def __init__(self, client: S3Client, bucket: str, options: S3Options) -> None:
        self._client = client
        self._bucket = bucket
        self._common = options.request_params()
        self._batches = options.checksum != "none"
        """aiobotocore does not send DeleteObjects without a checksum."""

    async def close(self) -> None:
        """The client belongs to the store."""

    def where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """Send one body; the headers of the answer."""
        data = body if isinstance(body, bytes) else await in_thread(_read, body)
        lease = lease_of(body)
        sent = data if lease is None else _LeasedBody(data, lease)
        return _headers(await self._call(_OPERATIONS[operation], key, headers, Body=sent, **_of_part(query)))

    async def copy(
        self, operation: str, key: str, query: str, source: str, headers: dict[str, str], lease: Lease | None = None
    ) -> Mapping[str, str]:
        """CopyObject, UploadPartCopy from the key ``source``; what the answer says."""
        check_lease(lease)
        origin = {"Bucket": self._bucket, "Key": source}
        answer = await self._call(_OPERATIONS[operation], key, headers, CopySource=origin, **_of_part(query))
        said: Mapping[str, str] = answer.get(_COPIED[operation], {})
        return said

    async def delete(self, key: str, lease: Lease | None = None) -> None:
        """DeleteObject."""
        check_lease(lease)
        await self._call("delete_object", key, {})

    async def delete_many(self, keys: Sequence[str], lease: Lease | None = None) -> list[tuple[str, str, str]]:
        """DeleteObjects; key, code and message of those that the store could not delete."""
        check_lease(lease)
        if not self._batches:
            raise UnsupportedError('with checksum="none"')
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await self._client.call("delete_objects", self.where(""), Delete=wanted, **self._common)
        return [(e.get("Key", ""), e.get("Code", ""), e.get("Message", "")) for e in answer.get("Errors", ())]

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``."""
        answer = await self._call("get_object", key, headers)
        found = _headers(answer)
        expected, got = expect(int(answer["ResponseMetadata"]["HTTPStatusCode"]), found), 0
        async with answer["Body"] as body:
            while True:
                try:
                    piece = await body.read(_READ)
                except (BotoCoreError, aiohttp.ClientError, OSError) as error:
                    raise UnavailableError(f"GetObject {self.where(key)}: the body broke off: {error!r}") from error
                if not piece:
                    break
                got += len(piece)
                await sink(piece)
        if expected not in (None, got):
            raise UnavailableError(f"GetObject {self.where(key)}: {got} bytes came instead of {expected}")
        return found

    async def head(self, key: str, headers: dict[str, str]) -> Mapping[str, str]:
        """HeadObject; the headers of the answer."""
        return _headers(await self._call("head_object", key, headers))

    async def create(self, key: str, headers: dict[str, str]) -> tuple[str, Mapping[str, str]]:
        """CreateMultipartUpload; the upload's id and the headers of the answer."""
        answer = await self._call("create_multipart_upload", key, headers)
        return str(answer["UploadId"]), _headers(answer)

    async def complete(
        self, key: str, upload_id: str, parts: Sequence[Part], headers: dict[str, str], lease: Lease | None = None, *,
        checksums: bool,
    ) -> Mapping[str, str]:  # fmt: skip
        """CompleteMultipartUpload; what the answer says."""
        check_lease(lease)
        listed = [_listed(part, checksums=checksums) for part in parts]
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
        return await self._client.call(operation, self.where(key), Key=key, **params, **more, **self._common)


class _LeasedBody(BytesIO):
    """A body that aiobotocore takes in pieces, none of them without the lease."""

    def __init__(self, data: bytes, lease: Lease) -> None:
        super().__init__(data)
        self._lease = lease

    def read(self, size: int | None = -1, /) -> bytes:
        self._lease.check()
        return super().read(size)


def _of_part(query: str) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in parse_qsl(query):
        params["UploadId" if name == "uploadId" else "PartNumber"] = int(value) if name == "partNumber" else value
    return params


def _listed(part: Part, *, checksums: bool) -> dict[str, Any]:
    listed: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
    if checksums and part.crc32c is not None:
        listed["ChecksumCRC32C"] = crc_to_text(part.crc32c)
    return listed


def _headers(answer: Mapping[str, Any]) -> Mapping[str, str]:
    return CIMultiDict(answer["ResponseMetadata"]["HTTPHeaders"])


def _read(body: FileRange) -> bytes:
    data = b"".join(body.pieces())
    if len(data) < body.size:
        raise too_short(body, len(data))
    return data
