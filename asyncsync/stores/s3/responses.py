"""What S3 documents as the result of each operation. No other 2xx counts: whoever responds with something else is no S3
server, or has not done what it was asked for. Pure functions, for both planes.

Which bytes of an object a response to GetObject carries. Every byte is checked by whoever asked for it, so it may
come in chunks without a length, and as a whole where the whole was asked for; another range is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from asyncsync.errors import StoreError, UnavailableError
from asyncsync.stores.base import Piece, Sink
from asyncsync.stores.http.response import is_number
from asyncsync.stores.s3.errors import failure_in
from asyncsync.stores.s3.xml import document, local_name, text_of

_ETAG_HEADER = frozenset({"PutObject", "UploadPart"})
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
"""Root element, and the element in it without which it tells nothing."""
_OTHER_ROOT_NAMES = {"ListPartsResponse": "ListPartsResult"}
"""What moto calls it."""
_NOT_S3_ADVICE = (
    "this is not how an S3 server responds: check endpoint_url; a proxy, a captive portal or a web console may have "
    "responded in its place"
)


def check_result(operation: str, where: str, status: int, headers: Mapping[str, str], content: bytes) -> Element | None:
    """The document of a success (status 2xx), None for operations that have none. The error that it holds; else
    UnavailableError for what is not documented."""
    if operation in _ETAG_HEADER and names_etag(status, headers):
        return None
    if operation in _NO_CONTENT:
        if status != 204 and (status != 200 or content.strip()):
            raise _foreign(operation, where, f"HTTP {status} with {_glimpse(content)}")
        return None
    known = _DOCUMENTS.get(operation)
    if known is None and operation not in _ETAG_HEADER:
        return None
    if status != 200:
        raise _foreign(operation, where, f"HTTP {status} instead of 200")
    if known is None:
        raise _foreign(operation, where, "HTTP 200 without an ETag")
    name, needed = known
    root = document(content)
    if root is None:
        raise _foreign(operation, where, f"HTTP 200 with {_glimpse(content)} instead of {name}")
    root_name = local_name(root)
    if root_name == "Error":  # it may come after a 200, which says only that the store has begun
        raise failure_in(root, operation, where, status, headers).error()
    if _OTHER_ROOT_NAMES.get(root_name, root_name) != name:
        raise _foreign(operation, where, f"HTTP 200 with a document {root_name[:60]!r} instead of {name}")
    if needed and not text_of(root, needed).strip(' "'):
        raise _foreign(operation, where, f"HTTP 200 with a {name} without {needed}")
    return root


def names_etag(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a body that was sent is acknowledged."""
    return status == 200 and bool(headers.get("etag", "").strip(' "'))


def _foreign(operation: str, where: str, what: str) -> UnavailableError:
    return UnavailableError(f"{operation} {where}: {what}; {_NOT_S3_ADVICE}")


def _glimpse(content: bytes) -> str:
    return f"the body {content[:40]!r}" if content.strip() else "an empty body"


_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class GetObjectBody:
    """One response. ``length``: of the range that was asked for, None: to the end. ``total`` is the size of the object,
    once all has come."""

    __slots__ = ("_got", "_length", "_sink", "_start", "_where", "_whole", "total")

    def __init__(self, where: str, start: int, length: int | None, sink: Sink) -> None:
        self._where, self._start, self._length, self._sink = where, start, length, sink
        self._got, self._whole = 0, False
        self.total = 0

    def expect(self, status: int, headers: Mapping[str, str]) -> int | None:
        """How many bytes must come; None: as many as there are. StoreError: it is not what was asked for."""
        said = headers.get("content-range")
        come = self._of_range(said or "") if status == 206 else self._of_whole(headers)
        text = headers.get("content-length")
        if come is not None and text is not None and is_number(text) and int(text) != come:
            raise StoreError(f"{self._where}: {text} bytes are to come for the range {said!r}")
        return come

    def _of_range(self, said: str) -> int:
        found = _RANGE.fullmatch(said)
        if found is None:
            raise StoreError(f"{self._where}: HTTP 206 with the range {said[:60]!r}")
        first, last, self.total = map(int, found.groups())
        end = self.total if self._length is None else min(self._start + self._length, self.total)
        if (first, last + 1) != (self._start, end):
            raise StoreError(f"{self._where}: the range {said!r} came, bytes {self._start}-{end - 1} were asked for")
        return end - first

    def _of_whole(self, headers: Mapping[str, str]) -> int | None:
        text = headers.get("content-length")
        size = int(text) if text is not None and is_number(text) else None
        if self._start or (self._length is not None and size is not None and size > self._length):
            raise StoreError(f"{self._where}: the store ignored the requested range")
        if size is None and "transfer-encoding" not in headers:
            raise StoreError(f"{self._where}: the response has neither Content-Length nor chunks")
        self._whole = size is None
        self.total = size or 0
        return size

    async def take(self, piece: Piece) -> None:
        """Give a piece to the sink. StoreError: there are more bytes than were asked for."""
        self._got += len(piece)
        if self._length is not None and self._got > self._length:
            raise StoreError(f"{self._where}: more than the {self._length} bytes came that were asked for")
        if self._whole:
            self.total = self._got
        await self._sink(piece)
