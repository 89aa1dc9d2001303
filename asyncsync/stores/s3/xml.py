"""XML documents of S3 requests and responses. No I/O. Responses are parsed by :mod:`asyncsync.stores.xml_reader`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element

from asyncsync.stores.base import Part
from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.xml_reader import children, text_of

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_LINE_BREAKS = str.maketrans({"\r": "&#13;", "\n": "&#10;"})


def complete_document(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload."""
    listed = "".join([_part(part, checksums) for part in parts])
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


def _part(part: Part, checksums: bool) -> str:
    crc = part.crc32c if checksums else None
    checksum = "" if crc is None else f"<ChecksumCRC32C>{crc32c_to_text(crc)}</ChecksumCRC32C>"
    etag = _escaped(f'"{part.etag}"')
    return f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>"


def _escaped(text: str) -> str:
    """As ``xml.sax.saxutils.escape``, which imports an HTTP client."""
    return escape(text, quote=False).translate(_LINE_BREAKS)


def delete_document(keys: Sequence[str]) -> bytes:
    """The body of DeleteObjects. Its response lists only failures."""
    listed = "".join([f"<Object><Key>{_escaped(key)}</Key></Object>" for key in keys])
    return f'<Delete xmlns="{_NAMESPACE}">{listed}<Quiet>true</Quiet></Delete>'.encode()


def is_xml_text(text: str) -> bool:
    """Whether XML 1.0 can contain a text: no control characters except tab and line breaks, no surrogates, no U+FFFE or
    U+FFFF, not even as a reference (its specification, "Characters")."""
    return text.isprintable() or not any(map(_is_forbidden, text))


def _is_forbidden(char: str) -> bool:
    return (char < " " and char not in "\t\n\r") or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff"


def failed_deletes(result: Element) -> list[tuple[str, str, str]]:
    """Key, code and message of each object that could not be deleted."""
    return [
        (_raw_text(error, "Key"), text_of(error, "Code"), text_of(error, "Message"))
        for error in children(result, "Error")
    ]


def object_page(result: Element) -> dict[str, Any]:
    """A page of ListObjectsV2, with the names and types that botocore gives it. ValueError for a number or a time that
    cannot be read."""
    decode = unquote_plus if text_of(result, "EncodingType") == "url" else str
    page: dict[str, Any] = {
        "Contents": [_object_of(item, decode) for item in children(result, "Contents")],
        "CommonPrefixes": [
            {"Prefix": decode(_raw_text(item, "Prefix"))} for item in children(result, "CommonPrefixes")
        ],
    }
    if truncated := text_of(result, "IsTruncated"):
        page["IsTruncated"] = truncated.lower() == "true"
    if token := text_of(result, "NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _object_of(item: Element, decode: Callable[[str], str]) -> dict[str, Any]:
    found: dict[str, Any] = {"Key": decode(_raw_text(item, "Key"))}
    if size := text_of(item, "Size"):
        found["Size"] = int(size)
    if etag := text_of(item, "ETag"):
        found["ETag"] = etag
    if modified := text_of(item, "LastModified"):
        when = datetime.fromisoformat(modified)
        found["LastModified"] = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return found


def _raw_text(element: Element, name: str) -> str:
    """The text with all blanks, which are part of a key; empty if there is none."""
    found = children(element, name)
    return found[0].text or "" if found else ""
