"""XML documents of S3 requests and responses. No I/O. Responses are parsed by :mod:`asyncsync.stores.xml_reader`."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

from asyncsync.stores.base import Part
from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.xml_reader import children, text_of

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_LINE_BREAKS = {"\r": "&#13;", "\n": "&#10;"}


def complete_document(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload."""
    listed = "".join([_part(part, checksums) for part in parts])
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


def _part(part: Part, checksums: bool) -> str:
    crc = part.crc32c if checksums else None
    checksum = "" if crc is None else f"<ChecksumCRC32C>{crc32c_to_text(crc)}</ChecksumCRC32C>"
    etag = escape(f'"{part.etag}"')
    return f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>"


def delete_document(keys: Sequence[str]) -> bytes:
    """The body of DeleteObjects. Its response lists only failures."""
    listed = "".join([f"<Object><Key>{escape(key, _LINE_BREAKS)}</Key></Object>" for key in keys])
    return f'<Delete xmlns="{_NAMESPACE}">{listed}<Quiet>true</Quiet></Delete>'.encode()


def is_xml_text(text: str) -> bool:
    """Whether XML 1.0 can contain a text: no control characters except tab and line breaks, no surrogates, no U+FFFE or
    U+FFFF, not even as a reference (its specification, "Characters")."""
    return text.isprintable() or not any(map(_is_forbidden, text))


def _is_forbidden(char: str) -> bool:
    return (char < " " and char not in "\t\n\r") or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff"


def failed_deletes(result: Element) -> list[tuple[str, str, str]]:
    """Key, code and message of each object that could not be deleted."""
    return [(_key_of(error), text_of(error, "Code"), text_of(error, "Message")) for error in children(result, "Error")]


def _key_of(element: Element) -> str:
    found = children(element, "Key")
    return found[0].text or "" if found else ""  # leading and trailing blanks are part of the key
