"""Requests through aiobotocore, for buckets that :mod:`asyncsync.stores.s3.requests` does not support: access points
and other ARNs, S3 Express directory buckets, which need session credentials, and endpoints behind a proxy.

It is slower, and a whole part is in memory: ``slots x part size``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.watchdog import BodyReadLimit
from asyncsync.stores.s3.sdk.aiobotocore_client import AiobotocoreClient
from asyncsync.stores.s3.sdk.params import params_of
from asyncsync.stores.s3.sdk.timed_body import TimedBody

_READ_SIZE = 1 << 20
_OPERATIONS = {
    "PutObject": "put_object",
    "UploadPart": "upload_part",
    "CopyObject": "copy_object",
    "UploadPartCopy": "upload_part_copy",
}
_COPY_RESULTS = {"CopyObject": "CopyObjectResult", "UploadPartCopy": "CopyPartResult"}


class AiobotocoreRequests:
    """The same methods as :class:`asyncsync.stores.s3.requests.S3Requests`."""

    def __init__(self, client: AiobotocoreClient, bucket: str, *, multi_delete: bool) -> None:
        self._client = client
        self._bucket = bucket
        self._multi_delete = multi_delete
        """aiobotocore cannot send DeleteObjects without a checksum."""

    async def close(self) -> None:
        """The client belongs to the store."""

    def where(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def put(self, operation: str, key: str, query: str, headers: dict[str, str], body: Body) -> Mapping[str, str]:
        """PutObject or UploadPart; the headers of the response."""
        data = body if isinstance(body, bytes) else await in_thread(_read_whole, body)
        sent = TimedBody(data, lease_of(body))
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
        response = await self._client.call("delete_objects", self.where(""), Delete=document)
        return [(e.get("Key", ""), e.get("Code", ""), e.get("Message", "")) for e in response.get("Errors", ())]

    async def list_objects(self, prefix: str, delimiter: str, token: str) -> Mapping[str, Any]:
        """ListObjectsV2: one page."""
        given = {"ContinuationToken": token, "Delimiter": delimiter, "Prefix": prefix}
        params = {name: text for name, text in given.items() if text}
        return await self._client.call("list_objects_v2", self.where(prefix), **params)

    async def get(
        self, key: str, headers: dict[str, str], sink: Sink, expect: Callable[[int, Mapping[str, str]], int | None]
    ) -> Mapping[str, str]:
        """GetObject into ``sink``; the headers of the response."""
        if "range" in headers:  # some servers send the checksum of the whole object, which aiobotocore would compare
            headers = {name: text for name, text in headers.items() if name != "x-amz-checksum-mode"}
        response = await self._call("get_object", key, headers)
        found = _headers(response)
        expected, got = expect(int(response["ResponseMetadata"]["HTTPStatusCode"]), found), 0
        limit = BodyReadLimit(self._client.stall_timeout)
        async with response["Body"] as body:
            while True:
                try:
                    piece = await limit.read(partial(body.read, _READ_SIZE))
                except (BrokenError, BotoCoreError, aiohttp.ClientError, OSError) as error:
                    raise UnavailableError(f"GetObject {self.where(key)}: the body was cut off: {error!r}") from error
                if not piece:
                    break
                got += len(piece)
                await sink(piece)
        if expected not in (None, got):
            raise UnavailableError(f"GetObject {self.where(key)}: received {got} bytes instead of {expected}")
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
        return await self._client.call(operation, self.where(key), Key=key, **params_of(headers), **more)


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
