"""What S3 documents as the result of each operation. No other 2xx counts: whoever responds with something else is no S3
server, or has not done what it was asked for. Pure functions, for both planes."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from asyncsync.errors import UnavailableError
from asyncsync.stores.s3_errors import failure_in
from asyncsync.stores.s3_xml import document, local_name, text_of

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
_ALSO = {"ListPartsResponse": "ListPartsResult"}
"""What moto calls it."""
_HINT = (
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
    if _ALSO.get(root_name, root_name) != name:
        raise _foreign(operation, where, f"HTTP 200 with a document {root_name[:60]!r} instead of {name}")
    if needed and not text_of(root, needed).strip(' "'):
        raise _foreign(operation, where, f"HTTP 200 with a {name} without {needed}")
    return root


def names_etag(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a body that was sent is acknowledged."""
    return status == 200 and bool(headers.get("etag", "").strip(' "'))


def _foreign(operation: str, where: str, what: str) -> UnavailableError:
    return UnavailableError(f"{operation} {where}: {what}; {_HINT}")


def _glimpse(content: bytes) -> str:
    return f"the body {content[:40]!r}" if content.strip() else "an empty body"
