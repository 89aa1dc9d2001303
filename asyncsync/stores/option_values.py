"""Values of storage options that are more than plain text. Each function returns the normal form, or raises ValueError
with the end of the sentence "storage option NAME=VALUE ..."."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias
from urllib.parse import urlencode, urlsplit

CustomerKey: TypeAlias = str
"""A 256-bit key as base64."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A header's name (RFC 9110, section 5.6.2)."""
_KEY_BYTES = 32


def header_text(value: object) -> str:
    """Text that can be the value of a header."""
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        raise ValueError("must be non-empty text without spaces around it")
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII text, because it is sent as a header")
    return value


def pairs(value: object) -> dict[str, str]:
    """Names and values: a mapping of text to text, or text such as ``team=vision,run=7``."""
    if isinstance(value, str):
        items = [item.partition("=") for item in value.split(",")]
        if not all(name.strip() and mark for name, mark, _ in items):
            raise ValueError("must be a mapping of text to text, or text such as 'team=vision,run=7'")
        return {name.strip(): text.strip() for name, _, text in items}
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must be a non-empty mapping of text to text, or text such as 'team=vision,run=7'")
    if not all(isinstance(name, str) and name and isinstance(text, str) for name, text in value.items()):
        raise ValueError("must have only text as names and values")
    return dict(value)


def metadata_pairs(max_bytes: int) -> Callable[[object], dict[str, str]]:
    """A check of an object's own metadata, whose names and values together have at most ``max_bytes``."""

    def check(value: object) -> dict[str, str]:
        found = {name.lower(): text for name, text in pairs(value).items()}
        for name, text in found.items():
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"has the name {name!r}: names must be letters, digits and '-', '_' or '.'")
            if not text.isascii() or not text.isprintable() or text != text.strip():
                raise ValueError(f"has an invalid value for {name!r}: values must be printable ASCII text")
        if (size := sum(len(name) + len(text) for name, text in found.items())) > max_bytes:
            raise ValueError(f"has {size} bytes: names and values together must have at most {max_bytes}")
        return found

    return check


def tag_set(value: object) -> str:
    """Up to 10 tags, as a query (Amazon S3 User Guide, "Categorizing your objects using tags")."""
    found = pairs(value)
    if len(found) > 10:
        raise ValueError(f"has {len(found)} tags: must have at most 10")
    for name, text in found.items():
        if len(name) > 128 or len(text) > 256:
            raise ValueError(f"has the tag {name[:40]!r}: names must have at most 128 characters, values 256")
        if name.lower().startswith("aws:"):
            raise ValueError(f"has the tag {name[:40]!r}: names must not start with 'aws:'")
    return urlencode(found)


def encryption_context(value: object) -> str:
    """The encryption context of KMS: base64 of a JSON object of text."""
    return base64.b64encode(json.dumps(pairs(value), separators=(",", ":")).encode()).decode()


def customer_key(value: object) -> CustomerKey:
    """A key of 256 bits: 32 bytes, text of 32 characters, or base64 of 32 bytes."""
    raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if isinstance(raw, bytes) and len(raw) != _KEY_BYTES:
        try:
            raw = base64.b64decode(raw.strip(), validate=True)
        except (ValueError, binascii.Error):
            raw = b""
    if not isinstance(raw, bytes) or len(raw) != _KEY_BYTES:
        raise ValueError("must be a key of 256 bits: 32 bytes, or base64 of them")
    return base64.b64encode(raw).decode()


def key_digest(key: CustomerKey, algorithm: str) -> str:
    """Base64 of a digest of a key, by which a service recognises a damaged one."""
    return base64.b64encode(hashlib.new(algorithm, base64.b64decode(key), usedforsecurity=False).digest()).decode()


def future_date(value: object) -> str:
    """A date after now, with its time zone, as ``2027-01-31T00:00:00Z``."""
    wanted = "must be a date with a time zone, such as 2027-01-31T00:00:00Z"
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(wanted) from None
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise ValueError(wanted)
    if found <= datetime.now(UTC):
        raise ValueError("must be a date in the future")
    try:
        return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        raise ValueError("must be a date before the year 10000") from None


def matching(pattern: str, wanted: str) -> Callable[[object], str]:
    """A check of text by a pattern; ``wanted`` describes it in errors."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"must be {wanted}")
        return value

    return check


def http_url(value: object) -> str:
    """The address of a server or of a proxy."""
    wanted = "must be an address such as http://host:port"
    try:
        url = urlsplit(value) if isinstance(value, str) else None
        usable = url is not None and url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port
        usable = False
    if not usable or not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(wanted)
    return value


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, so that no network carries a request."""
    return host in ("localhost", "::1") or host.startswith("127.")
