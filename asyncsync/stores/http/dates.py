"""Dates and Retry-After pauses in response headers. The text comes from a server and is not trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from asyncsync.runtime import wall_time

_MAX_DATE_LENGTH = 64
"""In characters; a valid date has 29."""
_YEAR_9999 = 253_370_764_800.0
"""Unix seconds. A later date cannot be represented, and a time zone may push an earlier one beyond it."""
_SECONDS = re.compile(r"[0-9]{1,12}([.][0-9]{1,12})?")


def unix_of(text: str) -> float | None:
    """Unix seconds of the date in a header; None if it is missing, malformed or before 1970."""
    if not text or len(text) > _MAX_DATE_LENGTH:
        return None
    try:
        when = parsedate_to_datetime(text)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < _YEAR_9999 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait according to Retry-After, however many; None without one. A date is compared with the response's
    own ``Date``, because our clock may be wrong, and with our clock only if there is no ``Date``."""
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = unix_of(value)
    if until is None:
        return None
    now = unix_of(headers.get("date", ""))
    return max(0.0, until - (wall_time() if now is None else now))
