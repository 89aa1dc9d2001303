"""Reads XML documents of object stores. No I/O."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLPullParser


def document(content: bytes, *, cut: bool = False) -> Element | None:
    """The root of an XML document; None for anything else. Blanks before it are skipped: slow servers send them to keep
    the connection alive. ``cut``: accept an incomplete document."""
    parser: Any = XMLPullParser(("start",))
    root: Element | None = None
    try:
        parser.feed(content.lstrip(b" \t\r\n"))
        for _, element in parser.read_events():
            root = element if root is None else root
        parser.close()
    except (ParseError, LookupError, ValueError):  # the last two: an unknown encoding
        return root if cut else None
    return root


def local_name(element: Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def children(element: Element, name: str) -> list[Element]:
    """The direct children with this name, in any namespace."""
    return [child for child in element if local_name(child) == name]


def text_of(element: Element, name: str) -> str:
    """The text of the first child with this name; empty if there is none."""
    found = children(element, name)
    return (found[0].text or "").strip() if found else ""


def unquoted_etag(etag: str | None) -> str:
    """An ETag as the version of an object: without quotes and without the mark of a weak one."""
    return (etag or "").removeprefix("W/").strip('"')
