"""The few XML documents of the data plane, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLPullParser
from xml.sax.saxutils import escape

from asyncsync.stores.base import Part
from asyncsync.stores.s3.signer import crc_to_text

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_BREAKS = {"\r": "&#13;", "\n": "&#10;"}


def complete_document(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload."""
    listed = "".join([_part(part, checksums) for part in parts])
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


def _part(part: Part, checksums: bool) -> str:
    crc = part.crc32c if checksums else None
    checksum = "" if crc is None else f"<ChecksumCRC32C>{crc_to_text(crc)}</ChecksumCRC32C>"
    etag = escape(f'"{part.etag}"')
    return f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>"


def document(content: bytes, *, cut: bool = False) -> Element | None:
    """The root of an XML document; None: this is no XML. Blanks may come before it: servers that take long send them to
    keep the connection. ``cut``: of a document that is not complete, what there is."""
    parser: Any = XMLPullParser(("start",))
    root: Element | None = None
    try:
        parser.feed(content.lstrip(b" \t\r\n"))
        for _, element in parser.read_events():
            root = element if root is None else root
        parser.close()
    except (ParseError, LookupError, ValueError):  # the last two: an encoding that nobody knows
        return root if cut else None
    return root


def local_name(element: Element) -> str:
    """Its name without a namespace."""
    return element.tag.rpartition("}")[2]


def children(element: Element, name: str) -> list[Element]:
    """Those directly in it that have this name, in any namespace."""
    return [child for child in element if local_name(child) == name]


def text_of(element: Element, name: str) -> str:
    """The text of the first child of that name; empty if there is none."""
    found = children(element, name)
    return (found[0].text or "").strip() if found else ""


def delete_document(keys: Sequence[str]) -> bytes:
    """The body of DeleteObjects, which is to name failures only."""
    listed = "".join([f"<Object><Key>{escape(key, _BREAKS)}</Key></Object>" for key in keys])
    return f'<Delete xmlns="{_NAMESPACE}">{listed}<Quiet>true</Quiet></Delete>'.encode()


def is_xml_text(text: str) -> bool:
    """Whether XML 1.0 can hold it: no control characters but tab and line breaks, no surrogates, no U+FFFE and U+FFFF,
    not even as a reference (its specification, "Characters")."""
    return text.isprintable() or not any(map(_is_forbidden, text))


def _is_forbidden(char: str) -> bool:
    return (char < " " and char not in "\t\n\r") or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff"


def failed_deletes(result: Element) -> list[tuple[str, str, str]]:
    """Key, code and message of what could not be deleted."""
    return [(_key_of(error), text_of(error, "Code"), text_of(error, "Message")) for error in children(result, "Error")]


def _key_of(element: Element) -> str:
    found = children(element, "Key")
    return found[0].text or "" if found else ""  # blanks at its ends are part of it
