"""The address of a bucket, and where a redirect may lead. No I/O.

S3 redirects to another region of the same service, and a request there gets a new signature. A redirect to another host
is refused, because that host would get the token, a signature and the data; so is one from https to http.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from asyncsync.stores.http.pool import DEFAULT_PORTS, port_of

DEFAULT_REGION = "us-east-1"
Keys = tuple[str, str, str | None]
"""Access key, secret key and session token."""

_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GEOGRAPHIC_REGION = r"[a-z]{2,4}(?:-[a-z]{2,12}){1,2}-[0-9]{1,2}"
_SERVICE_HOST = re.compile(
    rf"(?:(?P<bucket>[a-z0-9._-]+)\.)?s3(?:[.-](?P<region>{_GEOGRAPHIC_REGION}))?\.(?P<domain>[a-z0-9.-]+)"
)
"""``bucket.s3.region.amazonaws.com``, ``s3-region.amazonaws.com``, ``s3.wasabisys.com`` and the like."""
_MAX_SHOWN_LOCATION = 200


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``base`` is the URL of a key without the key; it ends in ``/``."""

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
        return port_of(self._url)

    @property
    def host(self) -> str:
        """The Host header: without a default port."""
        url = self._url
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{name}" if url.port in (None, DEFAULT_PORTS[url.scheme]) else f"{name}:{url.port}"

    @property
    def path(self) -> str:
        """The path of a key without the key."""
        return "/" + self.base.partition("://")[2].partition("/")[2]


class S3Access(Protocol):
    """Credentials and the location of a bucket, for :mod:`asyncsync.stores.s3.transport`."""

    async def credentials(self) -> Keys | None:
        """Access key, secret key and token, renewed when due; None: requests are not signed."""

    async def renew(self) -> None:
        """Get new credentials: the store refused the current ones as expired."""

    async def relocate(self, region: str, location: str) -> Endpoint:
        """The endpoint after a redirect to ``region``, or to the address ``location``."""


def is_region(text: str) -> bool:
    """Whether a text can be the region in a signature and in a host name."""
    return _REGION.fullmatch(text) is not None


def regional(base: str, location: str) -> tuple[str, str] | None:
    """The new ``base`` after a redirect to ``location``, and the region in its host name (may be empty). None: another
    service. The path of ``base`` is kept, because that of one request's redirect proves nothing."""
    ours, theirs = urlsplit(base), split(location)
    if theirs is None or theirs.scheme != ours.scheme or port_of(theirs) != port_of(ours):
        return None
    if theirs.hostname == ours.hostname:
        return base, ""
    here, there = _SERVICE_HOST.fullmatch(ours.hostname or ""), _SERVICE_HOST.fullmatch(theirs.hostname or "")
    if here is None or there is None or here["domain"] != there["domain"] or "." not in here["domain"]:
        return None
    if here["bucket"] != there["bucket"] or not there["region"]:
        return None
    port = "" if ours.port is None else f":{ours.port}"
    return f"{ours.scheme}://{theirs.hostname}{port}{ours.path}", there["region"]


def split(location: str) -> SplitResult | None:
    """The parts of an http or https URL; None for anything else."""
    if not location.isascii() or not location.isprintable():
        return None
    try:
        url = urlsplit(location)
        port, host = url.port, url.hostname
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and host and port != 0 else None


def shown(location: str) -> str:
    """The part of a Location that an error shows: no path and no query, which may contain a signature."""
    url = split(location)
    if url is None:
        return "an invalid URL"
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"[:_MAX_SHOWN_LOCATION]
