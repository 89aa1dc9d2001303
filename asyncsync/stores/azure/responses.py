"""Checks the responses of Azure Blob Storage. A success counts only with the documented result of its operation: any
other 2xx comes from another kind of server. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncsync.errors import IntegrityError, NotFoundError, StoreError
from asyncsync.stores.azure.errors import error_of
from asyncsync.stores.azure.xml import CRC_METADATA, undocumented
from asyncsync.stores.base import ObjectInfo
from asyncsync.stores.http.body import crc32c_from_text
from asyncsync.stores.http.dates import unix_of
from asyncsync.stores.http.response import Response, is_number
from asyncsync.stores.xml_reader import unquoted_etag

_STATUSES = {
    "Put Blob": 201,
    "Put Block": 201,
    "Put Block List": 201,
    "Put Block From URL": 201,
    "Copy Blob From URL": 202,
    "Delete Blob": 202,
    "Blob Batch": 202,
}
"""Status of a success; 200 for all others (Azure documentation, "Operations on blobs")."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


def check_status(operation: str, where: str, response: Response) -> None:
    """UnavailableError for a success that is not the documented one."""
    expected = _STATUSES.get(operation, 200)
    if response.status != expected or "x-ms-version" not in response.headers:
        raise undocumented(f"{operation} {where}", f"HTTP {response.status} without the documented headers")


def written_version(operation: str, where: str, response: Response) -> str:
    """The version of the blob that a write made."""
    check_status(operation, where, response)
    version = unquoted_etag(response.headers.get("etag"))
    if not version:
        raise undocumented(f"{operation} {where}", "the response has no ETag")
    return version


def check_crc64(operation: str, where: str, headers: Mapping[str, str], sent: str) -> None:
    """IntegrityError if the service reports another CRC64 of the body than the one that was sent."""
    stored = headers.get("x-ms-content-crc64", sent)
    if stored != sent:
        raise IntegrityError(f"{operation} {where}: sent CRC64 {sent}, the service has {stored[:40]}", retryable=True)


def check_copied(where: str, headers: Mapping[str, str]) -> None:
    """UnavailableError if a copy is not complete."""
    status = headers.get("x-ms-copy-status", "")
    if status != "success":
        raise undocumented(f"Copy Blob From URL {where}", f"x-ms-copy-status is {status[:40]!r}")


def info_of(where: str, key: str, headers: Mapping[str, str], size: int | None = None) -> ObjectInfo:
    """Metadata of a blob from the headers of a response; ``size``: None takes it from Content-Length. NotFoundError
    for a directory of an account with hierarchical namespace."""
    if headers.get("x-ms-meta-hdi_isfolder", "").lower() == "true":
        raise NotFoundError(f"{where}: it is a directory of an account with hierarchical namespace")
    version, length = unquoted_etag(headers.get("etag")), headers.get("content-length", "")
    if not version or "x-ms-version" not in headers:
        raise undocumented(where, "the response has no ETag or no x-ms-version")
    if size is None and not is_number(length):
        raise undocumented(where, "the response has no Content-Length")
    crc = crc32c_from_text(headers.get(f"x-ms-meta-{CRC_METADATA}"))
    return ObjectInfo(
        key, int(length) if size is None else size, version, crc, unix_of(headers.get("last-modified", ""))
    )


def range_length(where: str, response: Response, start: int, length: int | None) -> tuple[int, int]:
    """Length of the body, and size of the blob, in a response to a range. StoreError if it is another range."""
    text = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    if response.status != 206 or found is None:
        raise StoreError(f"{where}: HTTP {response.status} with the range {text[:60]!r}: the server ignored the range")
    first, last, total = map(int, found.groups())
    end = total if length is None else min(start + length, total)
    if (first, last + 1) != (start, end):
        raise StoreError(f"{where}: requested bytes {start}-{end - 1}, received the range {text!r}")
    return end - start, total


def blob_length(where: str, response: Response) -> int:
    """Length of the body in a response with a whole blob."""
    text = response.headers.get("content-length", "")
    if response.status != 200 or not is_number(text):
        raise undocumented(where, f"HTTP {response.status} with Content-Length {text[:40]!r}")
    return int(text)


def check_batch(where: str, results: Mapping[int, tuple[int, str]], count: int) -> None:
    """``results``: status and error code by the number of the request inside a batch. Raises the first error; a missing
    blob is none. UnavailableError if a result is missing."""
    for number in range(count):
        if number not in results:
            raise undocumented(where, f"the batch has {len(results)} results for {count} requests")
    for status, code in results.values():
        if status >= 300 and not (status == 404 and code in ("", "BlobNotFound")):
            raise error_of(f"{where}: {code or 'no reason given'} (HTTP {status})", status, code, {})
