"""The few XML documents of the data plane, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, unescape

from asyncsync.stores.base import Part
from asyncsync.stores.s3_sign import crc_to_text

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_BREAKS = {"\r": "&#13;", "\n": "&#10;"}
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


def delete_document(keys: Sequence[str]) -> bytes:
    """The body of DeleteObjects, which is to name failures only."""
    listed = "".join([f"<Object><Key>{escape(key, _BREAKS)}</Key></Object>" for key in keys])
    return f'<Delete xmlns="{_NAMESPACE}">{listed}<Quiet>true</Quiet></Delete>'.encode()


def failed_deletes(text: str) -> list[tuple[str, str, str]]:
    """Key, code and message of what could not be deleted."""
    failed = re.findall(r"<Error>(.*?)</Error>", text, re.DOTALL)
    return [(element(item, "Key"), element(item, "Code"), element(item, "Message")) for item in failed]
