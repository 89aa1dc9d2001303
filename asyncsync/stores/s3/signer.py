"""AWS Signature Version 4 for S3. No I/O, no clock.

The result equals that of botocore's ``S3SigV4Auth`` for every request (the tests compare the two), at a tenth of its
cost: the key of a day is derived once, and a request is not parsed again.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Mapping
from hashlib import sha256

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
"""Replaces the SHA-256 of a body. A signed CRC32C header protects the body instead."""
MAX_HEADER_SETS = 64
"""Sets of header names whose order is cached."""
_NOT_PLAIN = re.compile("[^!-~]")
"""A character in a header's value that may be a space."""


class Signer:
    """Signs with one set of credentials for one region. Its ``repr`` shows no secret."""

    __slots__ = ("_day", "_mac", "_orders", "_scope", "_secret_key", "access_key", "region", "service", "token")

    def __init__(self, access_key: str, secret_key: str, token: str | None, region: str, service: str = "s3") -> None:
        self.access_key = access_key
        self._secret_key = secret_key
        self.token = token
        self.region = region
        self.service = service
        self._day = ""
        self._mac = hmac.new(b"", digestmod="sha256")
        self._scope = ""
        self._orders: dict[tuple[str, ...], tuple[list[str], str]] = {}

    def __repr__(self) -> str:
        return f"Signer(region={self.region!r}, service={self.service!r})"

    def authorization(
        self, method: str, path: str, query: str, headers: Mapping[str, str], payload_hash: str, timestamp: str
    ) -> str:
        """The value of the ``Authorization`` header.

        ``path`` and ``query`` are percent-encoded, as in the request. ``headers`` are the headers to sign
        (transport.py chooses them), with names in lower case, including ``host`` and ``x-amz-date``; ``timestamp`` is
        the value of the latter.
        """
        if timestamp[:8] != self._day:
            self._start_day(timestamp[:8])
        header_set = tuple(headers)
        known = self._orders.get(header_set)
        if known is None:
            known = self._order_of(header_set)
        names, signed = known
        values = [headers[name] for name in names]
        if _NOT_PLAIN.search("".join(values)):
            values = [_plain(value) for value in values]
        lines = "".join([f"{name}:{value}\n" for name, value in zip(names, values, strict=True)])
        query = canonical_query(query) if query else ""
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{payload_hash}"
        digest = sha256(canonical.encode()).hexdigest()
        message = f"AWS4-HMAC-SHA256\n{timestamp}\n{self._scope}\n{digest}"
        mac = self._mac.copy()  # half the cost of a new object
        mac.update(message.encode())
        signature = mac.hexdigest()
        return (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{self._scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )

    def _order_of(self, header_set: tuple[str, ...]) -> tuple[list[str], str]:
        """The sorted names. A store sends few different sets, again and again."""
        names = sorted(header_set)
        if len(self._orders) < MAX_HEADER_SETS:
            self._orders[header_set] = names, ";".join(names)
        return names, ";".join(names)

    def _start_day(self, day: str) -> None:
        key = f"AWS4{self._secret_key}".encode()
        for word in (day, self.region, self.service, "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        self._day, self._mac = day, hmac.new(key, digestmod="sha256")
        self._scope = f"{day}/{self.region}/{self.service}/aws4_request"


def _plain(value: str) -> str:
    """A header's value without surrounding spaces, and with single spaces inside."""
    return value if " " not in value and value.isprintable() else " ".join(value.split())


def canonical_query(query: str) -> str:
    """The encoded query, sorted by name, then value; a name without ``=`` gets an empty value."""
    if not query:
        return ""
    pairs = sorted((name, value) for name, _, value in (item.partition("=") for item in query.split("&")))
    return "&".join(f"{name}={value}" for name, value in pairs)


def timestamp_of(unix_seconds: float) -> str:
    """A time in the format of ``x-amz-date``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix_seconds))
