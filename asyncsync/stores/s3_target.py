"""Where requests of one bucket go, and in whose name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

DEFAULT_REGION = "us-east-1"
Keys = tuple[str, str, str | None]
"""Access key, secret key and session token."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
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


class Access(Protocol):
    """What the wire asks of the control plane."""

    async def credentials(self) -> Keys | None:
        """Access key, secret key and token, refreshed when due; None: requests go out unsigned."""

    async def renew(self) -> None:
        """The store calls the credentials expired: get new ones."""

    async def relocate(self, region: str, location: str) -> Target:
        """The bucket is in ``region``, or for now at ``location``."""
