"""Where requests of one bucket go, and in whose name.

Where a redirect of S3 may lead: to another region of the same service, which gets a signature of its own. Never to
another host, for it would get the token, a signature and the data; and never from https to http. Pure functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

DEFAULT_REGION = "us-east-1"
Keys = tuple[str, str, str | None]
"""S3Access key, secret key and session token."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``base`` is what the URL of a key starts with, ending in ``/``."""

    base: str
    region: str
    service: str = "s3"
    proxy: str | None = None

    @property
    def _url(self) -> SplitResult:
        return urlsplit(self.base)

    @property
    def hostname(self) -> str:
        """The name or address to connect to."""
        return self._url.hostname or ""

    @property
    def port(self) -> int:
        return self._url.port or _PORTS[self._url.scheme]

    @property
    def host(self) -> str:
        """As the Host header spells it: without a default port."""
        url = self._url
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{name}" if url.port in (None, _PORTS[url.scheme]) else f"{name}:{url.port}"

    @property
    def path(self) -> str:
        """What the path of a key starts with."""
        return "/" + self.base.partition("://")[2].partition("/")[2]


class S3Access(Protocol):
    """What the wire asks of the control plane."""

    async def credentials(self) -> Keys | None:
        """S3Access key, secret key and token, refreshed when due; None: requests go out unsigned."""

    async def renew(self) -> None:
        """The store calls the credentials expired: get new ones."""

    async def relocate(self, region: str, location: str) -> Endpoint:
        """The bucket is in ``region``, or for now at ``location``."""


_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GEOGRAPHIC = r"[a-z]{2,4}(?:-[a-z]{2,12}){1,2}-[0-9]{1,2}"
_SERVICE = re.compile(rf"(?:(?P<bucket>[a-z0-9._-]+)\.)?s3(?:[.-](?P<region>{_GEOGRAPHIC}))?\.(?P<domain>[a-z0-9.-]+)")
"""``bucket.s3.region.amazonaws.com``, ``s3-region.amazonaws.com``, ``s3.wasabisys.com`` and the like."""
_MAX_SHOWN_LOCATION = 200


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
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"[:_MAX_SHOWN_LOCATION]


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
