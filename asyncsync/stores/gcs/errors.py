"""What Cloud Storage and the network say, in the words of :mod:`asyncsync.errors`. Mapped here and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

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

_LIMITED = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
"""Reasons of a 403 that mean 429 (Cloud Storage documentation, "HTTP status and error codes for JSON")."""
SHOWN = 500
"""Most characters that an error shows of what a server says."""
_DAMAGED = re.compile(r"(crc32c|md5).*(match|calculated|validation)", re.IGNORECASE | re.DOTALL)


def failure(operation: str, where: str, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
    """The error for an answer that is not a success. Names of ``headers`` are in lower case."""
    message, reason = _said(body)
    text = f"{operation} {where}: {message or 'no reason given'} (HTTP {status})"
    # The service gives the reason "notFound" for buckets and objects alike; only its message tells them apart.
    if status == 404 and "bucket" in message.lower() and "object" not in message.lower():
        return NoSuchBucketError(f"{text}: there is no bucket {where.removeprefix('gs://').partition('/')[0]!r}")
    if status in (400, 412) and _DAMAGED.search(message):
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
    passing = status == 408 or status >= 500
    if status == 429 or (status == 403 and reason in _LIMITED) or (passing and wait is not None):
        return ThrottledError(text, wait)
    if status in (401, 403):
        return AccessDeniedError(text)
    if passing:
        return UnavailableError(text)
    return StoreError(text)


def _said(body: bytes) -> tuple[str, str]:
    """Message and reason of an error document; media answers with plain text, proxies with anything."""
    try:
        error = json.loads(body)["error"]
        reasons = error.get("errors") or [{}]
        return _shown(error.get("message", "")), _shown(reasons[0].get("reason", ""))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return body[:SHOWN].decode("utf-8", "replace").strip(), ""


def _shown(value: object) -> str:
    """So much of a text as an error shows; halves of surrogate pairs, which JSON can spell, can be shown nowhere."""
    return value[:SHOWN].encode("utf-8", "replace").decode() if isinstance(value, str) else ""
