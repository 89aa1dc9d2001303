"""The few XML documents of the data plane, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, unescape

from asyncsync.stores.base import Part
from asyncsync.stores.s3_sign import crc_to_text

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_QUOTES = {"&quot;": '"', "&apos;": "'", "&#34;": '"', "&#39;": "'"}


def complete_document(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload."""
    listed = "".join([_part(part, checksums) for part in parts])
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


def _part(part: Part, checksums: bool) -> str:
    crc = part.crc32c if checksums else None
    checksum = "" if crc is None else f"<ChecksumCRC32C>{crc_to_text(crc)}</ChecksumCRC32C>"
    etag = escape(f'"{part.etag}"')
    return f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>"


def element(text: str, name: str) -> str:
    """The content of the first element of that name; empty if there is none."""
    found = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return unescape(found.group(1), _QUOTES).strip() if found else ""
