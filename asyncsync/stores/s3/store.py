"""The S3 store: AWS, or any server that speaks its protocol.

Most operations use :mod:`asyncsync.stores.s3.requests`; listings of parts and uploads use aiobotocore, which is
imported on first use.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from asyncsync.aio.tasks import for_each_limited
from asyncsync.disk.files import Lease, lease_of
from asyncsync.errors import (
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    StoreError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.runtime import token as random_token
from asyncsync.stores.base import (
    MISSING,
    Body,
    Checks,
    ObjectInfo,
    Page,
    Part,
    Piece,
    Sink,
    Store,
    Traits,
    Upload,
    body_size,
    check_etag,
)
from asyncsync.stores.http.body import crc32c_of, crc32c_to_text, md5_of
from asyncsync.stores.http.response import is_number
from asyncsync.stores.options import DEFAULT_LIMITS, ConnectionLimits, ObjectKind, kind_of
from asyncsync.stores.s3.bucket import S3Bucket
from asyncsync.stores.s3.errors import ContentMd5RequiredError, InvalidPartError, MalformedError
from asyncsync.stores.s3.header_negotiation import HeaderNegotiation, OptionalHeaders
from asyncsync.stores.s3.listing import S3Listings
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.requests import checksum_mode, part_query, precondition, source_precondition, supports_bucket
from asyncsync.stores.s3.responses import GetObjectBody, check_deleted, check_has_etag, object_crc32c, object_info
from asyncsync.stores.s3.xml import is_xml_text
from asyncsync.stores.xml_reader import unquoted_etag

log = logging.getLogger("asyncsync")

CONCURRENT_DELETES = 16
"""Concurrent DeleteObject requests where the store has no DeleteObjects."""
_ALGORITHM = {"x-amz-sdk-checksum-algorithm": "CRC32C"}
COPY_PROBE_PREFIX = ".asyncsync/probe-copy"
"""Name prefix of the objects that test whether a copy can only create. They are removed at once."""


class S3Store(Store):
    """One bucket and prefix.

    ``options`` are those of :class:`asyncsync.stores.s3.options.S3Options`: endpoint_url, region, profile,
    credentials, TLS, encryption, properties of new objects, and switches for features that some stores lack; any other
    raises ConfigError. A request that exceeds a timeout of ``limits`` raises UnavailableError. The store opens at most
    ``limits.max_connections`` sockets for bulk data, and as many for the rest, the first one on first use. The
    ``version`` of an object is its ETag without quotes.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        options: Mapping[str, object],
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        self._options = S3Options.parse(options)
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._bucket = S3Bucket(self.uri, bucket, self._options, limits)
        self._listings = S3Listings(self._bucket, self._prefix)
        headers, insist = self._options.optional_headers(), self._options.checksum == "crc32c"
        self._optional = HeaderNegotiation(self.uri, headers, insist=insist, changed=self._headers_changed)
        conditional = self._options.conditional_writes
        self.traits = Traits(
            "s3",
            conditional_writes=conditional,
            conditional_copy=conditional,
            crc32c=headers.checksum,
            paced=supports_bucket(bucket),
            equal_parts=self._options.equal_parts,
        )
        self._object_headers: dict[ObjectKind, dict[str, str]] = {}
        self._locks = self._options.locks
        """Whether new objects are locked. Then each body needs a Content-MD5, or its checksum the algorithm's name."""
        self._conditional_copy: bool | None = None
        """Whether a copy can only create; None: not tested yet."""
        self._probing = asyncio.Lock()
        self._multi_delete = self._options.multi_delete

    async def __aenter__(self) -> S3Store:
        try:
            await self._bucket.requests()
        except StoreError as error:  # of the source of the credentials; the first request tries again
            if not error.retryable:
                raise
            log.info("%s is opened later: %s", self.uri, error)
        return self

    async def close(self) -> None:
        """Close all connections. Safe to call twice; the store cannot be used again."""
        await self._bucket.close()

    def _full(self, key: str) -> str:
        return self._prefix + key

    def _where(self, operation: str, key: str) -> str:
        return f"{operation} s3://{self._bucket.name}/{self._full(key)}"

    def _headers_of(self, key: str) -> dict[str, str]:
        """Headers of a request that writes this object."""
        kind = kind_of(key)
        headers = self._object_headers.get(kind)
        if headers is None:
            headers = self._object_headers[kind] = self._options.object_headers(kind)
        return headers

    def _condition(self, if_version: str | None) -> dict[str, str]:
        return precondition(if_version) if self._options.conditional_writes else {}

    def lower_checks(self, checks: Checks) -> None:
        if self._options.checksum == "auto":  # else the user insists on it
            self._optional.current = self._optional.current.without("checksum")
            self.traits = replace(self.traits, crc32c=False, etag_md5=checks == "etag")

    def _headers_changed(self) -> None:
        if self._optional.current.checksum != self.traits.crc32c:
            self.traits = replace(self.traits, crc32c=self._optional.current.checksum)

    # Bulk

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        headers = {**self._headers_of(key), **self._condition(if_version)}
        version, crc32c = await self._send("PutObject", key, "", headers, body, crc32c)
        return ObjectInfo(key, body_size(body), version, crc32c)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        query = part_query(upload, number)
        version, crc32c = await self._send("UploadPart", upload.key, query, {}, body, crc32c)
        return Part(number, offset, body_size(body), version, crc32c)

    async def _send(
        self, operation: str, key: str, query: str, headers: dict[str, str], body: Body, crc32c: int | None
    ) -> tuple[str, int | None]:
        """Send a body; its ETag, and its CRC32C if the store checked that."""
        used = self._optional.current
        try:
            return await self._send_once(operation, key, query, headers, body, crc32c, used)
        except UnsupportedError as error:
            once = partial(self._send_once, operation, key, query, headers, body, crc32c)
            return await self._optional.retry_with_fewer(error, operation, used, headers, once)

    async def _send_once(
        self,
        operation: str,
        key: str,
        query: str,
        headers: dict[str, str],
        body: Body,
        crc32c: int | None,
        optional: OptionalHeaders,
    ) -> tuple[str, int | None]:
        requests = await self._bucket.requests()
        sent = ""
        if optional.checksum:
            crc32c = await crc32c_of(body) if crc32c is None else crc32c
            sent = crc32c_to_text(crc32c)
            headers = headers | {"x-amz-checksum-crc32c": sent}
        if self._locks:
            headers = headers | (_ALGORITHM if sent else {"content-md5": b64encode(await md5_of(body)).decode()})
        try:
            response = await requests.put(operation, self._full(key), query, headers, body)
        except ContentMd5RequiredError:
            if self._locks:
                raise
            self._locks = True  # the bucket locks every new object
            return await self._send_once(operation, key, query, headers, body, crc32c, optional)
        version = unquoted_etag(response["etag"])
        if not optional.checksum:
            if self.traits.etag_md5:
                await check_etag(self._where(operation, key), version, body)
            return version, None
        stored = response.get("x-amz-checksum-crc32c", sent)
        if stored != sent:
            where = self._where(operation, key)
            raise IntegrityError(f"{where}: sent CRC32C {sent}, the store has {stored}", retryable=True)
        return version, crc32c

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if length == 0:
            return await self._head(key, if_version)
        requests = await self._bucket.requests()
        headers = precondition(if_version)
        ranged = start > 0 or length is not None
        if ranged:
            headers["range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        body = GetObjectBody(self._where("GetObject", key), start, length if ranged else None, sink)

        def once(optional: OptionalHeaders) -> Awaitable[Mapping[str, str]]:
            return requests.get(self._full(key), checksum_mode(optional) | headers, body.take, body.expect)

        try:
            response = await self._optional.run("GetObject", {}, once)
        except RangeNotSatisfiedError:
            if ranged:
                return await self._head(key, if_version)  # the range starts behind the end and has no bytes
            raise
        return object_info(key, body.total, response)

    # Single objects

    async def head(self, key: str) -> ObjectInfo:
        return await self._head(key, None)

    async def _head(self, key: str, if_version: str | None) -> ObjectInfo:
        requests, condition = await self._bucket.requests(), precondition(if_version)

        def once(optional: OptionalHeaders) -> Awaitable[Mapping[str, str]]:
            return requests.head(self._full(key), checksum_mode(optional) | condition)

        response = await self._optional.run("HeadObject", {}, once)
        check_has_etag(self._where("HeadObject", key), response)
        text = response.get("content-length", "")
        size = int(text) if is_number(text) else await self._measure(key, if_version)
        return object_info(key, size, response)

    async def _measure(self, key: str, if_version: str | None) -> int:
        """The size of an object whose HEAD has no Content-Length, from the range of its first byte. StoreError if that
        does not give it either: an unknown size is not zero."""
        requests = await self._bucket.requests()
        body = GetObjectBody(self._where("GetObject", key), 0, 1, _drop)
        headers = {"range": "bytes=0-0"} | precondition(if_version)
        try:
            await requests.get(self._full(key), headers, body.take, body.expect)
        except RangeNotSatisfiedError:
            return 0  # there is no first byte
        except StoreError as error:
            if error.retryable:
                raise
            raise StoreError(
                f"{self._where('HeadObject', key)}: the response has no Content-Length, and a range of one byte does "
                f"not give the size of the object: {error}"
            ) from error
        return body.total

    async def delete(self, keys: Sequence[str]) -> None:
        lease = lease_of(keys)
        if len(keys) == 1:
            await self._delete_one(keys[0], lease)
            return
        batch = [key for key in keys if is_xml_text(key)] if self._multi_delete and len(keys) > 1 else []
        if len(batch) > 1:
            others = [key for key in keys if not is_xml_text(key)]
            await self._delete_many(batch, lease)
        else:
            others = list(keys)
        await for_each_limited(
            others, lambda key: self._delete_one(key, lease), min(CONCURRENT_DELETES, len(others) or 1)
        )

    async def _delete_one(self, key: str, lease: Lease | None) -> None:
        requests = await self._bucket.requests()
        try:
            await requests.delete(self._full(key), lease)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return

    async def _delete_many(self, keys: Sequence[str], lease: Lease | None) -> None:
        requests = await self._bucket.requests()
        try:
            failed = await requests.delete_many([self._full(key) for key in keys], lease)
        except NoSuchBucketError:
            raise
        except (UnsupportedError, NotFoundError) as error:
            if self._multi_delete:
                log.warning(
                    "%s has no DeleteObjects; objects are deleted one by one, as with multi_delete=False: %s",
                    self.uri,
                    error,
                )
            self._multi_delete = False
        except MalformedError:
            pass  # the server's XML parser refuses one of the keys; single deletes need no document
        else:
            return check_deleted(self._bucket.name, failed)
        await for_each_limited(keys, lambda key: self._delete_one(key, lease), CONCURRENT_DELETES)
        return None

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        if if_version is not None:
            await self._probe_conditional_copy(key, if_version)
        if size is None:
            found = await self._head(source, if_source_version)
            size, if_source_version = found.size, found.version
        if size > self.traits.max_single_put:
            raise StoreError(
                f"{self.uri}: {source} has {size} bytes, too many for a copy in one request: copy it in parts"
            )
        requests = await self._bucket.requests()
        headers = self._options.copy_headers(kind_of(key)) | source_precondition(if_source_version)
        headers |= self._condition(if_version)

        def once(optional: OptionalHeaders) -> Awaitable[Mapping[str, str]]:
            algorithm = {"x-amz-checksum-algorithm": "CRC32C"} if optional.checksum else {}
            full, origin = self._full(key), self._full(source)
            return requests.copy("CopyObject", full, "", origin, headers | algorithm, lease_of(key))

        result = await self._optional.run("CopyObject", headers, once)
        version = unquoted_etag(result["ETag"])
        crc = object_crc32c(result.get("ChecksumCRC32C"), result.get("ChecksumType"), version)
        if crc is None and version != if_source_version:
            return await self._check_copy(key, size, version)
        return ObjectInfo(key, size, version, crc)  # its CRC32C or its ETag proves that it is the requested object

    async def _check_copy(self, key: str, size: int, version: str) -> ObjectInfo:
        """The object that a copy has just made. UnavailableError if another one is there."""
        found = await self.head(key)
        if (found.size, found.version) != (size, version):
            raise UnavailableError(
                f"CopyObject {self.uri}/{key}: the store reported a copy of {size} bytes with ETag {version!r}, but "
                f"has {found.size} bytes with ETag {found.version!r}"
            )
        return found

    async def _probe_conditional_copy(self, key: str, if_version: str) -> None:
        """Some servers ignore the condition of a copy, and overwrite: test it before trusting it. StoreError where it
        is ignored."""
        async with self._probing:
            if self._conditional_copy is None:
                self._conditional_copy = await self._refuses_second_copy()
                self.traits = replace(self.traits, conditional_copy=self._conditional_copy)
        self.check_copy_condition(key, if_version)

    async def _refuses_second_copy(self) -> bool:
        """Whether a small object can be copied to a new name once, and not a second time. Transient errors are raised:
        they prove nothing."""
        name = f"{COPY_PROBE_PREFIX}-{random_token()}"
        requests = await self._bucket.requests()

        async def copy() -> StoreError | None:
            headers = self._options.copy_headers("document") | precondition(MISSING)
            try:
                await requests.copy("CopyObject", self._full(name), "", self._full(f"{name}-source"), headers)
            except StoreError as error:
                if error.retryable:
                    raise
                return error
            return None

        await self.put(f"{name}-source", b"asyncsync")
        creates = await copy() is None and isinstance(await copy(), PreconditionError)
        await self.delete([name, f"{name}-source"])
        return creates

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        return await self._listings.objects(prefix, delimiter, token)

    # Multipart

    async def create_multipart(self, key: str) -> Upload:
        requests = await self._bucket.requests()

        def once(optional: OptionalHeaders) -> Awaitable[tuple[str, Mapping[str, str]]]:
            headers = dict(self._headers_of(key))
            if optional.checksum:
                headers["x-amz-checksum-algorithm"] = "CRC32C"
            if optional.whole:
                headers["x-amz-checksum-type"] = "FULL_OBJECT"
            return requests.create(self._full(key), headers)

        upload_id, response = await self._optional.run("CreateMultipartUpload", {}, once)
        self._learn_checksum_type(response.get("x-amz-checksum-type"))
        return Upload(key, upload_id)

    def _learn_checksum_type(self, checksum_type: str | None) -> None:
        """Some servers have checksums of parts only, and would refuse the correct one of the whole object."""
        optional = self._optional.current
        if self._options.checksum == "auto" and checksum_type and optional.checksum:
            whole = checksum_type == "FULL_OBJECT" and self._options.full_object_checksum
            self._optional.current = replace(optional, whole=whole)

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
        requests = await self._bucket.requests()
        headers = {"x-amz-copy-source-range": f"bytes={start}-{start + length - 1}"}
        headers |= source_precondition(if_source_version)
        query = part_query(upload, number)
        result = await requests.copy("UploadPartCopy", self._full(upload.key), query, self._full(source), headers)
        version = unquoted_etag(result["ETag"])
        return Part(number, offset, length, version, object_crc32c(result.get("ChecksumCRC32C"), None, ""))

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        key, size = self._full(upload.key), sum(part.size for part in parts)
        requests = await self._bucket.requests()
        condition = self._condition(if_version)

        def once(optional: OptionalHeaders) -> Awaitable[Mapping[str, str]]:
            headers = dict(condition)
            if optional.size:
                headers["x-amz-mp-object-size"] = str(size)
            if optional.whole and crc32c is not None:
                headers |= {"x-amz-checksum-type": "FULL_OBJECT", "x-amz-checksum-crc32c": crc32c_to_text(crc32c)}
            lease = lease_of(upload)
            return requests.complete(key, upload.upload_id, parts, headers, lease, checksums=optional.checksum)

        try:
            result = await self._optional.run("CompleteMultipartUpload", condition, once)
        except InvalidPartError as error:
            self._learn_equal_parts(parts, error)
            raise
        return ObjectInfo(upload.key, size, unquoted_etag(result["ETag"]), self._check_crc32c(upload, result, crc32c))

    def _check_crc32c(self, upload: Upload, result: Mapping[str, str], crc32c: int | None) -> int | None:
        """The CRC32C of a completed object. IntegrityError if the store has another one."""
        expected = crc32c if self._optional.current.whole else None
        version = unquoted_etag(result["ETag"])
        stored = object_crc32c(result.get("ChecksumCRC32C"), result.get("ChecksumType"), version)
        if expected is not None and stored is not None and stored != expected:
            raise IntegrityError(
                f"{self._where('CompleteMultipartUpload', upload.key)}: the parts' CRC32C is {expected:08x}, the store "
                f"has {stored:08x}"
            )
        return expected if stored is None else stored

    def _learn_equal_parts(self, parts: Sequence[Part], error: InvalidPartError) -> None:
        """Some stores require parts of one size, and check it only when an upload is completed."""
        sizes = [part.size for part in parts]
        if not self.traits.equal_parts and (len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]):
            self.traits = replace(self.traits, equal_parts=True)
            log.warning(
                "%s requires parts of one size; they are equal from now on, as with equal_parts=True: %s",
                self.uri,
                error,
            )

    async def abort_multipart(self, upload: Upload) -> None:
        requests = await self._bucket.requests()
        try:
            await requests.abort(self._full(upload.key), upload.upload_id)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await self._listings.parts(upload, self._learn_checksum_type)

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        return await self._listings.uploads(prefix)


async def _drop(piece: Piece) -> None:
    """Ignore a byte that was read only to learn the object's size."""
