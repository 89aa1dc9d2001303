"""Where a redirect of S3 may lead: to another region of the same service, which gets a signature of its own. Never to
another host, for it would get the token, a signature and the data; and never from https to http. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GEOGRAPHIC = r"[a-z]{2,4}(?:-[a-z]{2,12}){1,2}-[0-9]{1,2}"
_SERVICE = re.compile(rf"(?:(?P<bucket>[a-z0-9._-]+)\.)?s3(?:[.-](?P<region>{_GEOGRAPHIC}))?\.(?P<domain>[a-z0-9.-]+)")
"""``bucket.s3.region.amazonaws.com``, ``s3-region.amazonaws.com``, ``s3.wasabisys.com`` and the like."""
_SHOWN = 200


def is_region(text: str) -> bool:
    """Whether it can stand in a signature and in the name of a host."""
    return _REGION.fullmatch(text) is not None


def regional(base: str, location: str) -> tuple[str, str] | None:
    """The address at which ``base`` is to be asked after a redirect to ``location``, and the region that its host names
    (may be empty); None: it is not the same service. The path remains ours: that of one request tells nothing."""
    ours, theirs = urlsplit(base), split(location)
    if theirs is None or theirs.scheme != ours.scheme or _port(theirs) != _port(ours):
        return None
    if theirs.hostname == ours.hostname:
        return base, ""
    here, there = _SERVICE.fullmatch(ours.hostname or ""), _SERVICE.fullmatch(theirs.hostname or "")
    if here is None or there is None or here["domain"] != there["domain"] or "." not in here["domain"]:
        return None
    if here["bucket"] != there["bucket"] or not there["region"]:
        return None
    port = "" if ours.port is None else f":{ours.port}"
    return f"{ours.scheme}://{theirs.hostname}{port}{ours.path}", there["region"]


def split(location: str) -> SplitResult | None:
    """A URL whose scheme, host and port make sense; None: this is none."""
    if not location.isascii() or not location.isprintable():
        return None
    try:
        url = urlsplit(location)
        port, host = url.port, url.hostname
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and host and port != 0 else None


def shown(location: str) -> str:
    """So much of a Location as an error may show: no path, no query, for they may hold a signature."""
    url = split(location)
    if url is None:
        return "an address that is no URL"
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"[:_SHOWN]


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
