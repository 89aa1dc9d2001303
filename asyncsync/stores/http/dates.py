"""Dates and pauses in the heads of responses, read without trusting them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from asyncsync.runtime import wall_time

MOST_WAIT = 60.0
"""Most seconds that a Retry-After is kept: whoever asks for more is asked again after so many."""
_LONGEST = 64
"""Characters; a date has 29."""
_LATEST = 253_370_764_800.0
"""The year 9999: what is later has no date, and may come to it by a time zone."""
_SECONDS = re.compile(r"[0-9]{1,12}([.][0-9]{1,12})?")


def unix_of(text: str) -> float | None:
    """Unix seconds of the date in a header; None: there is none that a calendar has, from 1970 on."""
    if not text or len(text) > _LONGEST:
        return None
    try:
        when = parsedate_to_datetime(text)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < _LATEST else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks us to wait, at most :data:`MOST_WAIT`; None: it does not. A date is compared with
    the response's own ``Date``, for our clock may be wrong, and with ours where it has none."""
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), MOST_WAIT)
    until = unix_of(value)
    if until is None:
        return None
    now = unix_of(headers.get("date", ""))
    return min(max(0.0, until - (wall_time() if now is None else now)), MOST_WAIT)
