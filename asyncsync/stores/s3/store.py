"""Objects in an S3 bucket: AWS, or any server that speaks its protocol.

What a transfer needs travels by :mod:`asyncsync.stores.s3.requests`; everything else by aiobotocore
(:mod:`asyncsync.stores.s3.aiobotocore_client`), which is imported when it is first needed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import google_crc32c

from asyncsync.aio.tasks import for_each
from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import FileRange, Lease, lease_of
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
from asyncsync.runtime import token
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
    check_etag,
)
from asyncsync.stores.http.dates import unix_of
from asyncsync.stores.http.response import is_number
from asyncsync.stores.s3.endpoint import Access, Target
from asyncsync.stores.s3.errors import (
    Failure,
    InvalidPartError,
    MalformedError,
)
from asyncsync.stores.s3.listing import Place, below, is_more, number_in, text_in
from asyncsync.stores.s3.options import Features, S3Options, advice
from asyncsync.stores.s3.requests import Wire, wire_serves
from asyncsync.stores.s3.responses import Incoming
from asyncsync.stores.s3.signer import crc_from_text, crc_to_text
from asyncsync.stores.s3.static_endpoint import DirectAccess, direct
from asyncsync.stores.s3.xml import is_xml_text

if TYPE_CHECKING:
    from asyncsync.stores.s3.aiobotocore_client import S3Client
    from asyncsync.stores.s3.aiobotocore_requests import SdkPlane

log = logging.getLogger("asyncsync")
_T = TypeVar("_T")
DELETED_AT_ONCE = 16
"""Objects that are deleted side by side where the store has no DeleteObjects."""
PROBE_COPY = ".asyncsync/probe-copy"
"""How the names of objects begin that find out whether a copy can create only. They are removed at once."""
_NO_ETAG = (
    "the response has no ETag; without ETags nobody can tell one version of an object from another, so that this store "
    "cannot be written to safely"
)


class S3Store(Store):
    """One bucket and prefix.

    ``options`` are those of :class:`asyncsync.stores.s3.options.S3Options`: endpoint_url, region, profile,
    access_key, secret_key, session_token, anonymous, addressing_style, verify, sse, sse_kms_key_id, storage_class,
    acl, request_payer, checksum and switches for what some stores do not know; any other raises ConfigError.
    ``stall_timeout`` and ``connect_timeout`` in seconds:
    a request that moves no byte for so long, or finds no connection, raises UnavailableError. At most
    ``max_connections`` sockets for bulk and as many for the rest. Nothing is opened before the first use. The
    ``version`` of an object is its ETag without quotes.
    """

    def __init__(
        self, bucket: str, prefix: str, *, options: Mapping[str, object], stall_timeout: float = 30.0,
        connect_timeout: float = 10.0, max_connections: int = 256,
    ) -> None:  # fmt: skip
        self._options = S3Options.parse(options)
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._features = self._options.features()
        """Of the optional headers, those that the store has not refused yet."""
        conditional = self._options.conditional_writes
        self.traits = Traits(
            "s3", conditional_writes=conditional, conditional_copy=conditional, crc32c=self._features.checksum,
            paced=wire_serves(bucket), equal_parts=self._options.equal_parts,
        )  # fmt: skip
        self._limits: dict[str, Any] = {
            "stall_timeout": stall_timeout,
            "connect_timeout": connect_timeout,
            "max_connections": max_connections,
        }
        self._plane: Wire | SdkPlane | None = None
        self._client: S3Client | None = None
        self._opening = asyncio.Lock()
        self._opening_client = asyncio.Lock()
        self._closed = False
        self._object_headers = self._options.object_headers()
        self._meta_headers = self._options.object_headers(data=False)
        self._common = self._options.request_params()
        self._conditional_copy: bool | None = None
        """Whether a copy can create only; None: nobody has asked."""
        self._probing = asyncio.Lock()
        self._batches = self._options.multi_delete

    async def __aenter__(self) -> S3Store:
        try:
            await self._open_plane()
        except UnavailableError as error:  # where the credentials come from; the first request asks again
            log.info("%s is opened later: %s", self.uri, error)
        return self

    async def _open_plane(self) -> Wire | SdkPlane:
        async with self._opening:
            self._check_open()
            if self._plane is None:
                self._plane = await self._new_plane()
            return self._plane

    async def _open_client(self) -> S3Client:
        async with self._opening_client:
            self._check_open()
            if self._client is None:
                # Half a second of work, which would hold up the event loop.
                await in_thread(importlib.import_module, "asyncsync.stores.s3.aiobotocore_client")
                from asyncsync.stores.s3.aiobotocore_client import S3Client

                client = S3Client(self._bucket, self._options, **self._limits)
                try:
                    await client.open()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.uri} is closed")

    async def _new_plane(self) -> Wire | SdkPlane:
        known = direct(self._bucket, self._options) if wire_serves(self._bucket) else None
        if known is not None:
            access = DirectAccess(known, self._open_client)
            return self._wire(known.target, access, await in_thread(known.ssl_context))
        client = await self._open_client()
        target = await client.locate() if wire_serves(self._bucket) else None
        if target is not None and target.proxy is None:
            context = await client.ssl_context() if target.base.startswith("https:") else None
            return self._wire(target, client, context)
        from asyncsync.stores.s3.aiobotocore_requests import SdkPlane

        return SdkPlane(client, self._bucket, self._options)

    def _wire(self, target: Target, access: Access, context: ssl.SSLContext | None) -> Wire:
        headers = self._options.request_headers()
        return Wire(self._bucket, target, access, ssl_context=context, headers=headers, **self._limits)

    async def close(self) -> None:
        """Free all connections. Safe to call twice; the store cannot be used again."""
        self._closed = True
        plane, client, self._plane, self._client = self._plane, self._client, None, None
        if plane is not None:
            await plane.close()
        if client is not None:
            await client.close()

    async def _call(self, operation: str, key: str, **params: Any) -> dict[str, Any]:
        client = self._client or await self._open_client()
        return await client.call(operation, f"s3://{self._bucket}/{key}", **params, **self._common)

    def _full(self, key: str) -> str:
        return self._prefix + key

    def _headers_of(self, key: str) -> dict[str, str]:
        """Of a request that makes this object."""
        if ".asyncsync/" in key and (key.startswith(".asyncsync/") or "/.asyncsync/" in key):
            return self._meta_headers
        return self._object_headers

    def _condition(self, if_version: str | None) -> dict[str, str]:
        if if_version is None or not self._options.conditional_writes:
            return {}
        return _condition(if_version)

    def lower_checks(self, checks: Checks) -> None:
        if self._options.checksum == "auto":  # else somebody insists on it
            self._features = replace(self._features, checksum=False, whole=False)
            self.traits = replace(self.traits, crc32c=False, etag_md5=checks == "etag")

    async def _with_less(
        self, error: UnsupportedError, operation: str, used: Features, headers: Mapping[str, str],
        once: Callable[[Features], Awaitable[_T]],
    ) -> _T:  # fmt: skip
        """The request again without headers that the store may not know. What it succeeds without is never sent again:
        nothing is remembered of a request that is refused in any case."""
        insist = self._options.checksum == "crc32c"
        now = self._features  # another request may have found it out meanwhile
        steps = used.below(operation, str(error), insist=insist)
        for less in steps if now == used else (now, *steps):
            try:
                done = await once(less)
            except UnsupportedError:
                continue
            self._do_without(less, error)
            return done
        raise UnsupportedError(f"{error}{advice(headers, insist=insist)}") from error

    def _do_without(self, less: Features, error: UnsupportedError) -> None:
        before, self._features = self._features, self._features.common(less)
        if self._features.checksum != self.traits.crc32c:
            self.traits = replace(self.traits, crc32c=self._features.checksum)
        if lost := before.lost(self._features):
            log.warning("%s refuses a header, which is left out from now on as with %s: %s", self.uri, lost, error)

    # Bulk

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        headers = {**self._headers_of(key), **self._condition(if_version)}
        answer, crc32c = await self._send("PutObject", self._full(key), "", headers, body, crc32c)
        return ObjectInfo(key, _size(body), _version(answer["etag"]), crc32c)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        query = _part_query(upload, number)
        answer, crc32c = await self._send("UploadPart", self._full(upload.key), query, {}, body, crc32c)
        return Part(number, offset, _size(body), _version(answer["etag"]), crc32c)

    async def _send(
        self, operation: str, key: str, query: str, headers: dict[str, str], body: Body, crc32c: int | None,
        less: Features | None = None,
    ) -> tuple[Mapping[str, str], int | None]:  # fmt: skip
        plane = self._plane or await self._open_plane()
        features = less or self._features
        sent = ""
        if features.checksum:
            if crc32c is None:
                crc32c = google_crc32c.value(body) if isinstance(body, bytes) else await in_thread(_crc_of, body)
            sent = headers["x-amz-checksum-crc32c"] = crc_to_text(crc32c)
        try:
            answer = await plane.put(operation, key, query, headers, body)
        except UnsupportedError as error:
            headers.pop("x-amz-checksum-crc32c", None)
            if less is not None:
                raise
            return await self._with_less(
                error, operation, features, headers,
                lambda less: self._send(operation, key, query, headers, body, crc32c, less),
            )  # fmt: skip
        if not features.checksum:
            if self.traits.etag_md5:
                await check_etag(f"{operation} s3://{self._bucket}/{key}", _version(answer["etag"]), body)
            return answer, None
        stored = answer.get("x-amz-checksum-crc32c", sent)
        if stored != sent:
            raise IntegrityError(
                f"{operation} s3://{self._bucket}/{key}: sent CRC32C {sent}, the store has {stored}", retryable=True
            )
        return answer, crc32c

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        if length == 0:
            return await self._head(key, if_version)
        plane = self._plane or await self._open_plane()
        features = self._features
        headers = _mode(features) | _condition(if_version)
        ranged = start > 0 or length is not None
        if ranged:
            headers["range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        incoming = Incoming(f"GetObject {plane.where(self._full(key))}", start, length if ranged else None, sink)
        try:
            answer = await plane.get(self._full(key), headers, incoming.take, incoming.expect)
        except UnsupportedError as error:
            bare = _condition(if_version) | ({"range": headers["range"]} if ranged else {})
            answer = await self._with_less(
                error, "GetObject", features, {},
                lambda less: plane.get(self._full(key), _mode(less) | bare, incoming.take, incoming.expect),
            )  # fmt: skip
        except RangeNotSatisfiedError:
            if not ranged:
                raise
            return await self._head(key, if_version)  # the range begins after the end: there is nothing to return
        return _info(key, incoming.total, answer)

    # Single objects

    async def head(self, key: str) -> ObjectInfo:
        return await self._head(key, None)

    async def _head(self, key: str, if_version: str | None) -> ObjectInfo:
        plane = self._plane or await self._open_plane()
        features, condition = self._features, _condition(if_version)
        try:
            answer = await plane.head(self._full(key), _mode(features) | condition)
        except UnsupportedError as error:
            answer = await self._with_less(
                error, "HeadObject", features, {}, lambda less: plane.head(self._full(key), _mode(less) | condition)
            )
        if not _version(answer.get("etag")):
            raise StoreError(f"HeadObject {plane.where(self._full(key))}: {_NO_ETAG}")
        text = answer.get("content-length", "")
        size = int(text) if is_number(text) else await self._measure(key, if_version)
        return _info(key, size, answer)

    async def _measure(self, key: str, if_version: str | None) -> int:
        """How long an object is whose HEAD does not tell: the range of one of its bytes does. StoreError if neither
        does: unknown is not empty."""
        plane = self._plane or await self._open_plane()
        incoming = Incoming(f"GetObject {plane.where(self._full(key))}", 0, 1, _drop)
        try:
            await plane.get(
                self._full(key), {"range": "bytes=0-0"} | _condition(if_version), incoming.take, incoming.expect
            )
        except RangeNotSatisfiedError:
            return 0  # not even a first byte is there
        except StoreError as error:
            if error.retryable:
                raise
            raise StoreError(
                f"HeadObject {plane.where(self._full(key))}: the response has no Content-Length, and a range of one "
                f"byte does not tell how long the object is: {error}"
            ) from error
        return incoming.total

    async def delete(self, keys: Sequence[str]) -> None:
        lease = lease_of(keys)
        if len(keys) == 1:
            await self._delete_one(keys[0], lease)
            return
        together = [key for key in keys if is_xml_text(key)] if self._batches and len(keys) > 1 else []
        if len(together) > 1:
            singly = [key for key in keys if not is_xml_text(key)]
            await self._delete_many(together, lease)
        else:
            singly = list(keys)
        await for_each(singly, lambda key: self._delete_one(key, lease), min(DELETED_AT_ONCE, len(singly) or 1))

    async def _delete_one(self, key: str, lease: Lease | None) -> None:
        plane = self._plane or await self._open_plane()
        try:
            await plane.delete(self._full(key), lease)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            pass

    async def _delete_many(self, keys: Sequence[str], lease: Lease | None) -> None:
        plane = self._plane or await self._open_plane()
        try:
            failed = await plane.delete_many([self._full(key) for key in keys], lease)
        except NoSuchBucketError:
            raise
        except (UnsupportedError, NotFoundError) as error:
            if self._batches:
                log.warning("%s has no DeleteObjects; objects are deleted singly, as with multi_delete=False: %s",
                            self.uri, error)  # fmt: skip
            self._batches = False
        except MalformedError:
            pass  # it holds something that its parser does not read: whatever that is, alone it is no document
        else:
            return self._check_deleted(failed)
        await for_each(keys, lambda key: self._delete_one(key, lease), DELETED_AT_ONCE)
        return None

    def _check_deleted(self, failed: Sequence[tuple[str, str, str]]) -> None:
        for key, code, message in failed:
            if code not in ("NoSuchKey", "NotFound"):
                status = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}.get(code, 400)
                raise Failure("DeleteObjects", f"s3://{self._bucket}/{key}", status, code, message, {}).error()

    async def copy(
        self, source: str, key: str, *, if_source_version: str | None = None, size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:  # fmt: skip
        if if_version is not None:
            await self._learn_to_create_by_copy(key, if_version)
        if size is None:
            found = await self._head(source, if_source_version)
            size, if_source_version = found.size, found.version
        if size > self.traits.max_single_put:
            raise StoreError(f"{self.uri}: {source} has {size} bytes, more than one request copies: copy it in parts")
        plane = self._plane or await self._open_plane()
        headers = self._headers_of(key) | _source_condition(if_source_version) | self._condition(if_version)

        def once(features: Features) -> Awaitable[Mapping[str, str]]:
            asked = headers | ({"x-amz-checksum-algorithm": "CRC32C"} if features.checksum else {})
            return plane.copy("CopyObject", self._full(key), "", self._full(source), asked, lease_of(key))

        used = self._features
        try:
            said = await once(used)
        except UnsupportedError as error:
            said = await self._with_less(error, "CopyObject", used, headers, once)
        version = _version(said["ETag"])
        crc = crc_from_text(said.get("ChecksumCRC32C"), said.get("ChecksumType"), version)
        if crc is None and version != if_source_version:
            return await self._see_copy(key, size, version)
        return ObjectInfo(key, size, version, crc)  # it is known to be what was asked for

    async def _see_copy(self, key: str, size: int, version: str) -> ObjectInfo:
        """What the store says of a copy that it has just made. UnavailableError if something else is there: what was
        there before proves nothing."""
        found = await self.head(key)
        if (found.size, found.version) != (size, version):
            raise UnavailableError(
                f"CopyObject {self.uri}/{key}: the store says that it made {size} bytes with ETag {version!r}, but has "
                f"{found.size} bytes with ETag {found.version!r}"
            )
        return found

    async def _learn_to_create_by_copy(self, key: str, if_version: str) -> None:
        """Some servers do not know this condition of a copy, and overwrite: ours is tried out before it is trusted.
        StoreError where it does not hold."""
        async with self._probing:
            if self._conditional_copy is None:
                self._conditional_copy = await self._creates_by_copy()
                self.traits = replace(self.traits, conditional_copy=self._conditional_copy)
        self.check_copy_condition(key, if_version)

    async def _creates_by_copy(self) -> bool:
        """Whether a small object is copied to a new name once, and is refused the second time. Transient errors are
        raised: they tell nothing."""
        name = f"{PROBE_COPY}-{token()}"
        plane = self._plane or await self._open_plane()

        async def copy() -> StoreError | None:
            headers = self._headers_of(name) | _condition(MISSING)
            try:
                await plane.copy("CopyObject", self._full(name), "", self._full(f"{name}-source"), headers)
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
        params: dict[str, Any] = {"Prefix": self._prefix + prefix}
        if delimiter:
            params["Delimiter"] = delimiter
        place = Place.parse(token)
        if place.token:
            params["ContinuationToken"] = place.token
        answer = await self._call("list_objects_v2", params["Prefix"], **params)
        where = f"ListObjectsV2 {self.uri}/{prefix}"
        named = [(below(where, text_in(where, one, "Key"), self._prefix), one) for one in answer.get("Contents", ())]
        folded = [text_in(where, one, "Prefix") for one in answer.get("CommonPrefixes", ())]
        objects = tuple(
            ObjectInfo(
                key, number_in(where, one, "Size"), _version(one.get("ETag")), None, _unix(one.get("LastModified"))
            )
            for key, one in named
            if key
        )
        prefixes = tuple(below(where, one, self._prefix) for one in folded)
        if not is_more(answer):
            return Page(objects, prefixes)
        following = place.further(where, answer.get("NextContinuationToken") or "", empty=not (named or folded))
        return Page(objects, prefixes, following.text())

    # Multipart

    async def create_multipart(self, key: str) -> Upload:
        plane = self._plane or await self._open_plane()

        def once(features: Features) -> Awaitable[tuple[str, Mapping[str, str]]]:
            headers = dict(self._headers_of(key))
            if features.checksum:
                headers["x-amz-checksum-algorithm"] = "CRC32C"
            if features.whole:
                headers["x-amz-checksum-type"] = "FULL_OBJECT"
            return plane.create(self._full(key), headers)

        used = self._features
        try:
            upload_id, answer = await once(used)
        except UnsupportedError as error:
            upload_id, answer = await self._with_less(error, "CreateMultipartUpload", used, {}, once)
        self._learn(answer.get("x-amz-checksum-type"))
        return Upload(key, upload_id)

    def _learn(self, kind: str | None) -> None:
        """Some servers know checksums of parts only, and would call the right one of the whole wrong."""
        if self._options.checksum == "auto" and kind and self._features.checksum:
            whole = kind == "FULL_OBJECT" and self._options.full_object_checksum
            self._features = replace(self._features, whole=whole)

    async def copy_part(
        self, upload: Upload, number: int, offset: int, source: str, start: int, length: int, *,
        if_source_version: str | None = None,
    ) -> Part:  # fmt: skip
        plane = self._plane or await self._open_plane()
        headers = {"x-amz-copy-source-range": f"bytes={start}-{start + length - 1}"}
        headers |= _source_condition(if_source_version)
        query = _part_query(upload, number)
        said = await plane.copy("UploadPartCopy", self._full(upload.key), query, self._full(source), headers)
        version = _version(said["ETag"])
        return Part(number, offset, length, version, crc_from_text(said.get("ChecksumCRC32C"), None, ""))

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        key, size = self._full(upload.key), sum(part.size for part in parts)
        plane = self._plane or await self._open_plane()
        condition = self._condition(if_version)

        def once(features: Features) -> Awaitable[Mapping[str, str]]:
            headers = dict(condition)
            if features.size:
                headers["x-amz-mp-object-size"] = str(size)
            if features.whole and crc32c is not None:
                headers |= {"x-amz-checksum-type": "FULL_OBJECT", "x-amz-checksum-crc32c": crc_to_text(crc32c)}
            lease = lease_of(upload)
            return plane.complete(key, upload.upload_id, parts, headers, lease, checksums=features.checksum)

        used = self._features
        try:
            answer = await once(used)
        except UnsupportedError as error:
            answer = await self._with_less(error, "CompleteMultipartUpload", used, condition, once)
        except InvalidPartError as error:
            self._learn_equal_parts(parts, error)
            raise
        whole = crc32c if self._features.whole else None
        version = _version(answer["ETag"])
        stored = crc_from_text(answer.get("ChecksumCRC32C"), answer.get("ChecksumType"), version)
        if whole is not None and stored is not None and stored != whole:
            raise IntegrityError(
                f"CompleteMultipartUpload s3://{self._bucket}/{key}: the parts' CRC32C is {whole:08x}, the store has "
                f"{stored:08x}"
            )
        return ObjectInfo(upload.key, size, version, whole if stored is None else stored)

    def _learn_equal_parts(self, parts: Sequence[Part], error: InvalidPartError) -> None:
        """Some stores do not say so before an upload is complete."""
        sizes = [part.size for part in parts]
        if not self.traits.equal_parts and (len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]):
            self.traits = replace(self.traits, equal_parts=True)
            log.warning("%s wants parts of one size, which it gets from now on as with equal_parts=True: %s",
                        self.uri, error)  # fmt: skip

    async def abort_multipart(self, upload: Upload) -> None:
        plane = self._plane or await self._open_plane()
        try:
            await plane.abort(self._full(upload.key), upload.upload_id)
        except NoSuchBucketError:
            raise
        except NotFoundError:
            pass

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        found: dict[int, Part] = {}
        where, last = f"ListParts {self.uri}/{upload.key}", 0
        params: dict[str, Any] = {"Key": self._full(upload.key), "UploadId": upload.upload_id}
        while True:
            answer = await self._call("list_parts", self._full(upload.key), **params)
            self._learn(answer.get("ChecksumType"))
            for item in answer.get("Parts", ()):
                number, size = number_in(where, item, "PartNumber", 1), number_in(where, item, "Size")
                crc = crc_from_text(item.get("ChecksumCRC32C"), None, "")
                found[number] = Part(number, -1, size, _version(text_in(where, item, "ETag")), crc)
            if not answer.get("IsTruncated"):
                return [found[number] for number in sorted(found)]
            following = answer.get("NextPartNumberMarker")
            if not isinstance(following, int) or following <= last:
                raise UnavailableError(f"{where}: there is more behind part {last}, and it goes on at {following!r}")
            params["PartNumberMarker"] = last = following

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        found: list[Upload] = []
        where, place = f"ListMultipartUploads {self.uri}/{prefix}", Place()
        params: dict[str, Any] = {"Prefix": self._prefix + prefix}
        while True:
            answer = await self._call("list_multipart_uploads", params["Prefix"], **params)
            uploads = answer.get("Uploads", ())
            for item in uploads:
                key = below(where, text_in(where, item, "Key"), self._prefix)
                found.append(Upload(key, text_in(where, item, "UploadId"), _unix(item.get("Initiated"))))
            if not answer.get("IsTruncated"):
                return found
            key, upload_id = answer.get("NextKeyMarker") or "", answer.get("NextUploadIdMarker") or ""
            place = place.further(where, f"{key}\n{upload_id}" if key and upload_id else "", empty=not uploads)
            params |= {"KeyMarker": key, "UploadIdMarker": upload_id}


async def _drop(piece: Piece) -> None:
    """A byte that nobody asked for."""


def _mode(features: Features) -> dict[str, str]:
    return {"x-amz-checksum-mode": "ENABLED"} if features.checksum else {}


def _condition(if_version: str | None) -> dict[str, str]:
    if if_version is None:
        return {}
    return {"if-none-match": "*"} if if_version == MISSING else {"if-match": f'"{if_version}"'}


def _source_condition(if_version: str | None) -> dict[str, str]:
    return {} if if_version is None else {"x-amz-copy-source-if-match": f'"{if_version}"'}


def _part_query(upload: Upload, number: int) -> str:
    return f"partNumber={number}&uploadId={quote(upload.upload_id, safe='')}"


def _version(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')


def _size(body: Body) -> int:
    return len(body) if isinstance(body, bytes) else body.size


def _unix(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()


def _crc_of(body: FileRange) -> int:
    crc = 0
    for piece in body.pieces():
        crc = google_crc32c.extend(crc, piece)
    return crc


def _info(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    version = _version(headers.get("etag"))
    crc = crc_from_text(headers.get("x-amz-checksum-crc32c"), headers.get("x-amz-checksum-type"), version)
    return ObjectInfo(key, size, version, crc, unix_of(headers.get("last-modified", "")))
