"""XML documents of requests and responses of Azure Blob Storage. No I/O.

A proxy may respond 200 to anything, so a document counts only if it is the documented one: root element, required
fields and their types. Anything else raises UnavailableError, which names the request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from asyncsync.errors import UnavailableError
from asyncsync.stores.azure.block_ids import Block, BlockList
from asyncsync.stores.http.body import crc32c_from_text
from asyncsync.stores.http.dates import unix_of
from asyncsync.stores.http.response import is_number
from asyncsync.stores.xml_reader import children, document, local_name, text_of, unquoted_etag

CRC_METADATA = "crc32c"
"""Metadata of every blob that this store writes: the CRC32C of all its bytes, base64. The service keeps none."""
_ADVICE = "this is not how Azure Blob Storage responds: check endpoint_url; a proxy may have responded in its place"


def undocumented(where: str, reason: str) -> UnavailableError:
    """The error of a response that is not the documented one."""
    return UnavailableError(f"{where}: {reason}; {_ADVICE}")


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """One blob of a listing, by its full name. ``modified`` in Unix seconds; ``metadata`` by names in lower case."""

    name: str
    size: int
    version: str
    modified: float | None
    metadata: dict[str, str]

    @property
    def is_directory(self) -> bool:
        """A directory of an account with hierarchical namespace, which the listing shows as a blob."""
        return self.metadata.get("hdi_isfolder", "").lower() == "true"

    @property
    def crc32c(self) -> int | None:
        return crc32c_from_text(self.metadata.get(CRC_METADATA))


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of a listing; ``marker`` None: it is the last one."""

    blobs: tuple[ListedBlob, ...]
    prefixes: tuple[str, ...]
    marker: str | None


def block_list_document(blocks: Iterable[tuple[bool, str]]) -> bytes:
    """The body of Put Block List. ``blocks``: whether each is committed already, and its name."""
    lines = "".join([f"<Committed>{n}</Committed>" if old else f"<Uncommitted>{n}</Uncommitted>" for old, n in blocks])
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{lines}</BlockList>'.encode()


def block_list_of(where: str, content: bytes, version: str, size: int | None) -> BlockList:
    """The result of Get Block List with both kinds of blocks."""
    root = _root(where, content, "BlockList")
    committed, uncommitted = (_blocks(where, root, name) for name in ("CommittedBlocks", "UncommittedBlocks"))
    return BlockList(committed, uncommitted, version, size)


def _blocks(where: str, root: Element, name: str) -> tuple[Block, ...]:
    return tuple(
        Block(_block_name(where, block), _number(where, block, "Size"))
        for group in children(root, name)
        for block in children(group, "Block")
    )


def _block_name(where: str, block: Element) -> str:
    name = text_of(block, "Name")
    try:
        known = bool(name) and bool(base64.b64decode(name, validate=True))
    except (binascii.Error, ValueError):
        known = False
    if not known:
        raise undocumented(where, f"a block has the name {name[:60]!r}")
    return name


def page_of(where: str, content: bytes, prefix: str) -> ListedPage:
    """One page of List Blobs. A name outside ``prefix`` is refused."""
    root = _root(where, content, "EnumerationResults")
    blobs: list[ListedBlob] = []
    prefixes: list[str] = []
    for group in children(root, "Blobs"):
        for entry in group:
            if local_name(entry) == "Blob":
                blobs.append(_listed(where, entry))
            elif local_name(entry) == "BlobPrefix":
                prefixes.append(_name(where, entry))
    for name in [*(blob.name for blob in blobs), *prefixes]:
        if not name.startswith(prefix):
            raise undocumented(where, f"the name {name[:60]!r} does not start with {prefix!r}")
    return ListedPage(tuple(blobs), tuple(prefixes), text_of(root, "NextMarker") or None)


def _listed(where: str, entry: Element) -> ListedBlob:
    name, properties = _name(where, entry), children(entry, "Properties")
    if not properties:
        raise undocumented(where, f"the blob {name[:60]!r} has no Properties")
    values = properties[0]
    metadata = {
        local_name(item).lower(): (item.text or "").strip() for found in children(entry, "Metadata") for item in found
    }
    if text_of(values, "ResourceType").lower() == "directory":
        metadata["hdi_isfolder"] = "true"
    version = unquoted_etag(text_of(values, "Etag"))
    if not version:
        raise undocumented(where, f"the blob {name[:60]!r} has no Etag")
    size = _number(where, values, "Content-Length")
    return ListedBlob(name, size, version, unix_of(text_of(values, "Last-Modified")), metadata)


def _name(where: str, entry: Element) -> str:
    """The name of a blob. One that XML cannot contain is percent-encoded and marked so."""
    found = children(entry, "Name")
    name = (found[0].text or "") if found else ""  # leading and trailing blanks are part of it
    if found and found[0].get("Encoded", "").lower() == "true":
        name = unquote(name)
    if not name:
        raise undocumented(where, "a blob has no Name")
    return name


def _number(where: str, element: Element, name: str) -> int:
    text = text_of(element, name)
    if not is_number(text):
        raise undocumented(where, f"{name} is {text[:60]!r}")
    return int(text)


def _root(where: str, content: bytes, name: str) -> Element:
    root = document(content.removeprefix(b"\xef\xbb\xbf"))
    if root is None or local_name(root) != name:
        raise undocumented(where, f"received {content[:40]!r} instead of the document {name}")
    return root
