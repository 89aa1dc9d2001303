"""Maps error responses of Cloud Storage to :mod:`asyncsync.errors`. No other module does this."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    StoreError,
    ThrottledError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.stores.http.dates import retry_after

MAX_SHOWN_MESSAGE = 500
"""Characters of a server's message that an error shows."""
_THROTTLED_REASONS = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
"""Reasons of a 403 that mean 429 (Cloud Storage documentation, "HTTP status and error codes for JSON")."""
_CHECKSUM_MESSAGES = (
    # Cloud Storage (googleapis/python-storage#1541, reason "invalid" as for any argument); gcp-storage-emulator.
    re.compile(r"Provided (?:CRC32C|MD5 hash)\b.*? match calculated ", re.IGNORECASE | re.DOTALL),
    # googleapis/storage-testbench, with the status of a precondition (412).
    re.compile(r"(?:crc32c|md5)\w*(?: \w+)? validation failed", re.IGNORECASE),
)
"""Beginnings of messages about a body that differs from its checksum. No reason is documented for it."""
_MISSING_BUCKET_MESSAGES = (
    # Cloud Storage, and fake-gcs-server with the bucket's name (fsouza/fake-gcs-server#2347).
    re.compile(r"The specified bucket\b.* does not exist", re.IGNORECASE | re.DOTALL),
    # googleapis/storage-testbench and gcp-storage-emulator.
    re.compile(r"Bucket (?:with name )?\S+ does not exist", re.IGNORECASE),
)
"""Beginnings of messages about a missing bucket. Its reason, "notFound", is also that of a missing object."""


def failure(operation: str, where: str, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
    """The error for a response that is not a success. Names of ``headers`` are in lower case."""
    message, reason = _message_and_reason(body)
    text = f"{operation} {where}: {message or 'no reason given'} (HTTP {status})"
    if status == 404 and _begins_like(message, _MISSING_BUCKET_MESSAGES):
        return NoSuchBucketError(f"{text}: there is no bucket {where.removeprefix('gs://').partition('/')[0]!r}")
    if status in (400, 412) and _begins_like(message, _CHECKSUM_MESSAGES):
        return IntegrityError(text, retryable=True)
    if status in (404, 410):
        return NotFoundError(text)
    if status in (409, 412):
        return PreconditionError(text)
    if status == 416:
        return RangeNotSatisfiedError(text)
    if status in (405, 501):
        return UnsupportedError(text)
    wait = retry_after(headers)
    transient = status == 408 or status >= 500
    if status == 429 or (status == 403 and reason in _THROTTLED_REASONS) or (transient and wait is not None):
        return ThrottledError(text, wait)
    if status in (401, 403):
        return AccessDeniedError(text)
    if transient:
        return UnavailableError(text)
    return StoreError(text)


def _begins_like(message: str, known: Iterable[re.Pattern[str]]) -> bool:
    return any(pattern.match(message) for pattern in known)


def _message_and_reason(body: bytes) -> tuple[str, str]:
    """Message and reason of an error document. Media requests fail with plain text, proxies with anything."""
    try:
        error = json.loads(body)["error"]
        reasons = error.get("errors") or [{}]
        return _shown(error.get("message", "")), _shown(reasons[0].get("reason", ""))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return body[:MAX_SHOWN_MESSAGE].decode("utf-8", "replace").strip(), ""


def _shown(value: object) -> str:
    """The part of a text that an error shows. Lone surrogates, which JSON can contain, are replaced."""
    return value[:MAX_SHOWN_MESSAGE].encode("utf-8", "replace").decode() if isinstance(value, str) else ""
