"""Checks the responses of S3. A success counts only with the documented result of its operation: any other 2xx comes
from another kind of server, or from a store that did not carry out the request. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from asyncsync.errors import StoreError, UnavailableError
from asyncsync.stores.base import ObjectInfo, Piece, Sink
from asyncsync.stores.http.body import crc32c_from_text
from asyncsync.stores.http.dates import unix_of
from asyncsync.stores.http.response import is_number
from asyncsync.stores.s3.errors import S3Failure, failure_in
from asyncsync.stores.xml_reader import document, local_name, text_of, unquoted_etag

_ETAG_HEADER = frozenset({"PutObject", "UploadPart"})
"""Operations whose result is the ETag header."""
_NO_CONTENT = frozenset({"DeleteObject", "AbortMultipartUpload"})
_DOCUMENTS = {
    "CreateMultipartUpload": ("InitiateMultipartUploadResult", "UploadId"),
    "CompleteMultipartUpload": ("CompleteMultipartUploadResult", "ETag"),
    "CopyObject": ("CopyObjectResult", "ETag"),
    "UploadPartCopy": ("CopyPartResult", "ETag"),
    "DeleteObjects": ("DeleteResult", ""),
    "ListObjectsV2": ("ListBucketResult", ""),
    "ListParts": ("ListPartsResult", ""),
    "ListMultipartUploads": ("ListMultipartUploadsResult", ""),
}
"""Root element of the result, and its required child element."""
_OTHER_ROOT_NAMES = {"ListPartsResponse": "ListPartsResult"}
"""Names that moto uses."""
_DELETE_STATUS = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}
"""HTTP status of the error codes in a response to DeleteObjects; 400 for all others."""
_NOT_S3_ADVICE = (
    "this is not how an S3 server responds: check endpoint_url; a proxy, a captive portal or a web console may have "
    "responded in its place"
)
_NO_ETAG = (
    "the response has no ETag; ETags distinguish the versions of an object, so a store without them is not safe to use"
)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


def check_result(operation: str, where: str, status: int, headers: Mapping[str, str], content: bytes) -> Element | None:
    """The document of a success (status 2xx); None for operations without one. Raises the error that a document
    contains, and UnavailableError for an undocumented result."""
    if operation in _ETAG_HEADER and has_etag(status, headers):
        return None
    if operation in _NO_CONTENT:
        if status != 204 and (status != 200 or content.strip()):
            raise _undocumented(operation, where, f"HTTP {status} with {_glimpse(content)}")
        return None
    known = _DOCUMENTS.get(operation)
    if known is None and operation not in _ETAG_HEADER:
        return None
    if status != 200:
        raise _undocumented(operation, where, f"HTTP {status} instead of 200")
    if known is None:
        raise _undocumented(operation, where, "HTTP 200 without an ETag")
    return _check_document(operation, where, headers, content, *known)


def _check_document(
    operation: str, where: str, headers: Mapping[str, str], content: bytes, name: str, required: str
) -> Element:
    root = document(content)
    if root is None:
        raise _undocumented(operation, where, f"HTTP 200 with {_glimpse(content)} instead of {name}")
    root_name = local_name(root)
    if root_name == "Error":  # possible after a 200, which S3 sends when it starts to work
        raise failure_in(root, operation, where, 200, headers).error()
    if _OTHER_ROOT_NAMES.get(root_name, root_name) != name:
        raise _undocumented(operation, where, f"HTTP 200 with a document {root_name[:60]!r} instead of {name}")
    if required and not text_of(root, required).strip(' "'):
        raise _undocumented(operation, where, f"HTTP 200 with a {name} without {required}")
    return root


def has_etag(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a response acknowledges a body."""
    return status == 200 and bool(headers.get("etag", "").strip(' "'))


def _undocumented(operation: str, where: str, result: str) -> UnavailableError:
    return UnavailableError(f"{operation} {where}: {result}; {_NOT_S3_ADVICE}")


def _glimpse(content: bytes) -> str:
    return f"the body {content[:40]!r}" if content.strip() else "an empty body"


def object_crc32c(text: str | None, checksum_type: str | None, version: str) -> int | None:
    """The CRC32C of a whole object; None if the text is missing, malformed, or a checksum of checksums.

    S3 gives the type FULL_OBJECT or COMPOSITE. Servers that give no type send the CRC32C of the whole object if it was
    written in one request; then its ETag does not end in ``-<number of parts>``.
    """
    if checksum_type == "COMPOSITE" or (checksum_type != "FULL_OBJECT" and "-" in version):
        return None
    return crc32c_from_text(text)


def check_has_etag(where: str, headers: Mapping[str, str]) -> None:
    """StoreError if a response to GetObject or HeadObject has no ETag: an unknown version must not equal another."""
    if not unquoted_etag(headers.get("etag")):
        raise StoreError(f"{where}: {_NO_ETAG}")


def object_info(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    """From the headers of GetObject or HeadObject."""
    version = unquoted_etag(headers.get("etag"))
    crc = object_crc32c(headers.get("x-amz-checksum-crc32c"), headers.get("x-amz-checksum-type"), version)
    return ObjectInfo(key, size, version, crc, unix_of(headers.get("last-modified", "")))


def check_deleted(bucket: str, failed: Sequence[tuple[str, str, str]]) -> None:
    """Raise the first error in a response to DeleteObjects. A missing object is not an error."""
    for key, code, message in failed:
        if code not in ("NoSuchKey", "NotFound"):
            status = _DELETE_STATUS.get(code, 400)
            raise S3Failure("DeleteObjects", f"s3://{bucket}/{key}", status, code, message, {}).error()


class GetObjectBody:
    """Receives the body of one GetObject. A response may be chunked without a length, and may ignore the range if the
    whole object was requested; any other range is refused at once.

    ``length``: of the requested range; None: to the end. ``total`` is the size of the object after the last piece.
    """

    __slots__ = ("_got", "_length", "_measure", "_sink", "_start", "_where", "total")

    def __init__(self, where: str, start: int, length: int | None, sink: Sink) -> None:
        self._where, self._start, self._length, self._sink = where, start, length, sink
        self._got = 0
        self._measure = False
        """The response gives no size; count the bytes."""
        self.total = 0

    def expect(self, status: int, headers: Mapping[str, str]) -> int | None:
        """The expected length of the body; None: unknown. StoreError if it is another range."""
        check_has_etag(self._where, headers)
        content_range = headers.get("content-range")
        length = self._range_length(content_range or "") if status == 206 else self._object_length(headers)
        text = headers.get("content-length")
        if length is not None and text is not None and is_number(text) and int(text) != length:
            raise StoreError(f"{self._where}: Content-Length {text} does not fit the range {content_range!r}")
        return length

    def _range_length(self, content_range: str) -> int:
        found = _CONTENT_RANGE.fullmatch(content_range)
        if found is None:
            raise StoreError(f"{self._where}: HTTP 206 with the range {content_range[:60]!r}")
        first, last, self.total = map(int, found.groups())
        end = self.total if self._length is None else min(self._start + self._length, self.total)
        if (first, last + 1) != (self._start, end):
            raise StoreError(
                f"{self._where}: the range {content_range!r} came, bytes {self._start}-{end - 1} were requested"
            )
        return end - first

    def _object_length(self, headers: Mapping[str, str]) -> int | None:
        text = headers.get("content-length")
        size = int(text) if text is not None and is_number(text) else None
        if self._start or (self._length is not None and size is not None and size > self._length):
            raise StoreError(f"{self._where}: the store ignored the requested range")
        if size is None and "transfer-encoding" not in headers:
            raise StoreError(f"{self._where}: the response has neither Content-Length nor chunks")
        self._measure = size is None
        self.total = size or 0
        return size

    async def take(self, piece: Piece) -> None:
        """Pass a piece to the sink. StoreError if there are more bytes than requested."""
        self._got += len(piece)
        if self._length is not None and self._got > self._length:
            raise StoreError(f"{self._where}: more than the {self._length} requested bytes came")
        if self._measure:
            self.total = self._got
        await self._sink(piece)
