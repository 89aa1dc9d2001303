"""Reads the responses of Cloud Storage: headers of media, and JSON documents.

A proxy, a login page or a gateway may respond 200 to anything. So a success counts only with the result that is
documented for its request: the type and the value of every field that is used are checked, and numbers are ASCII digits
of bounded length. Anything else raises UnavailableError, which names the request and the field; the server may have
carried out the request.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from asyncsync.errors import IntegrityError, PreconditionError, StoreError, UnavailableError
from asyncsync.stores.base import MISSING, ObjectInfo
from asyncsync.stores.http.body import crc32c_from_text, crc32c_to_text
from asyncsync.stores.http.dates import unix_of

MAX_INT64 = (1 << 63) - 1
"""Sizes and generations are 64-bit integers, which JSON carries as text (documentation, "Objects: resource")."""
_NUMBER = re.compile("[0-9]{1,19}")
_CONTENT_RANGE = re.compile("bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_PERSISTED_RANGE = re.compile("bytes=0-([0-9]{1,19})")

Document = dict[str, Any]


def refuse_response(where: str, reason: str) -> NoReturn:
    """Raise the error of a response that is not the documented one."""
    raise UnavailableError(f"{where}: not a response of Cloud Storage: {reason}")


# Headers


def generation_of(if_version: str | None) -> str | None:
    """The value of ``ifGenerationMatch``; 0 requires that there is no live object."""
    return "0" if if_version == MISSING else if_version


def generation_in(headers: Mapping[str, str]) -> str | None:
    """The generation of the object whose media have these headers; None if they do not give it."""
    found = headers.get("x-goog-generation", "")
    return found if _NUMBER.fullmatch(found) else None


def persisted_bytes(headers: Mapping[str, str]) -> int:
    """Bytes of a resumable upload that the service has persisted; 0 without a Range header. Also 0 with ``bytes=0-0``,
    as gcp-storage-emulator writes it: an incomplete body is persisted in multiples of 256 KiB."""
    found = _PERSISTED_RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    return int(found[1]) + 1 if found and int(found[1]) else 0


def info_from_headers(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    """From the headers of media (names in lower case); the version is empty if they do not give it."""
    crc = re.search(r"crc32c=([^,\s]+)", headers.get("x-goog-hash", ""))
    modified = unix_of(headers.get("last-modified", ""))
    return ObjectInfo(key, size, generation_in(headers) or "", crc32c_from_text(crc[1]) if crc else None, modified)


def range_bytes(where: str, headers: Mapping[str, str], start: int, length: int | None) -> tuple[int, int]:
    """Length of the body, and size of the object, in a response to a range. StoreError if it is another range.

    The status is not checked: servers that send 200 instead of 206 give the range all the same.
    """
    part = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if part is None:
        raise StoreError(f"get {where}: the store ignored the requested range")
    first, last, total = int(part[1]), int(part[2]), int(part[3])
    end = total if length is None else min(start + length, total)
    if (first, last + 1) != (start, end):
        raise StoreError(f"get {where}: received bytes {first}-{last} instead of {start}-{end - 1}")
    return end - start, total


def media_bytes(headers: Mapping[str, str]) -> int | None:
    """Length of the body in a response with the whole object; None if the headers do not give it."""
    text = headers.get("content-length", headers.get("x-goog-stored-content-length", ""))
    return int(text) if _NUMBER.fullmatch(text) else None


def check_version(where: str, wanted: str | None, found: str | None) -> None:
    """PreconditionError if the response has another version. Servers should refuse the request; some do not."""
    if wanted is not None and found is not None and found != wanted:
        raise PreconditionError(f"{where}: has generation {found}, not {wanted}")


# JSON documents


@dataclass(frozen=True, slots=True)
class ObjectResource:
    """An object resource. ``modified`` is in Unix seconds, on the clock of the service."""

    name: str
    size: int
    generation: str
    crc32c: int | None
    modified: float | None

    def info(self, key: str) -> ObjectInfo:
        """The same in terms of the store, which calls the object ``key``."""
        return ObjectInfo(key, self.size, self.generation, self.crc32c, self.modified)


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One page of a listing. Only the names of ``items`` are checked."""

    items: tuple[Document, ...]
    prefixes: tuple[str, ...]
    token: str | None


@dataclass(frozen=True, slots=True)
class RewriteStep:
    """One step of a rewrite: the new object, or the token for the next step and the bytes ``moved`` so far."""

    resource: ObjectResource | None
    token: str = ""
    moved: int = 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def document_of(where: str, content: bytes) -> Document:
    """The JSON object in the body of a success."""
    try:
        found = _DECODER.decode(content.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        refuse_response(where, f"it is not a JSON object: {content[:60]!r}" if content else "it is empty")
    return found


def resource_of(where: str, found: object, name: str, bucket: str | None) -> ObjectResource:
    """An object resource, which must have this ``name``, and this ``bucket`` unless None."""
    if not isinstance(found, dict):
        refuse_response(where, f"it has {reprlib.repr(found)} instead of an object resource")
    if text_of(where, found, "name") != name:
        refuse_response(where, f"it is for the object {reprlib.repr(found['name'])}")
    if bucket is not None and text_of(where, found, "bucket") != bucket:
        refuse_response(where, f"it is for the bucket {reprlib.repr(found['bucket'])}")
    size, generation = number_of(where, found, "size"), number_of(where, found, "generation", least=1)
    return ObjectResource(name, size, str(generation), _crc32c_of(where, found), modified_of(found))


def written_of(where: str, content: bytes, name: str, bucket: str, size: int, crc32c: int) -> ObjectResource:
    """The object that an insert of ``size`` bytes with this CRC32C made. IntegrityError if the CRC32C differs."""
    made = resource_of(where, document_of(where, content), name, bucket)
    if made.crc32c is None:
        refuse_response(where, "it has no 'crc32c'")
    if made.crc32c != crc32c:
        sent, stored = crc32c_to_text(crc32c), crc32c_to_text(made.crc32c)
        raise IntegrityError(f"{where}: sent CRC32C {sent}, the store has {stored}", retryable=True)
    if made.size != size:
        refuse_response(where, f"it has 'size' {made.size}, {size} bytes were sent")
    return made


def rewrite_of(where: str, content: bytes, name: str, bucket: str) -> RewriteStep:
    """The result of one step of a rewrite."""
    found = document_of(where, content)
    if found.get("done") is True:
        return RewriteStep(resource_of(where, found.get("resource"), name, bucket))
    if found.get("done") is not False:
        refuse_response(where, f"'done' is {reprlib.repr(found.get('done'))}")
    return RewriteStep(None, text_of(where, found, "rewriteToken"), number_of(where, found, "totalBytesRewritten"))


def listing_of(where: str, content: bytes, prefix: str) -> ListingPage:
    """One page of the objects below ``prefix``. A name outside ``prefix`` is refused."""
    found = document_of(where, content)
    if found.get("kind") != "storage#objects":
        refuse_response(where, f"'kind' is {reprlib.repr(found.get('kind'))}")
    items, prefixes, token = found.get("items", []), found.get("prefixes", []), found.get("nextPageToken")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        refuse_response(where, "'items' is not a list of objects")
    if not isinstance(prefixes, list):
        refuse_response(where, "'prefixes' is not a list")
    for name in [*(item.get("name") for item in items), *prefixes]:
        if not is_text(name) or not name.startswith(prefix):
            refuse_response(where, f"{reprlib.repr(name)} does not start with {prefix!r}")
    if token and not is_text(token):
        refuse_response(where, f"'nextPageToken' is {reprlib.repr(token)}")
    return ListingPage(tuple(items), tuple(prefixes), token or None)


def is_text(value: object) -> bool:
    """Whether it is text that can be sent again: not empty, without lone surrogates, which JSON can contain."""
    if not isinstance(value, str) or not value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def text_of(where: str, found: Document, field: str) -> str:
    value = found.get(field)
    if not is_text(value):
        refuse_response(where, _invalid(found, field))
    return str(value)


def number_of(where: str, found: Document, field: str, least: int = 0) -> int:
    """A 64-bit integer of at least ``least``. Some servers write it as a JSON number instead of text."""
    value = found.get(field)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if type(value) is not int or not least <= value <= MAX_INT64:
        refuse_response(where, _invalid(found, field))
    return value


def modified_of(found: Mapping[str, object]) -> float | None:
    """When the object or its metadata was written, on the clock of the service; None if the resource has no time."""
    return unix_of_rfc3339(found.get("updated", found.get("timeCreated")))


def unix_of_rfc3339(when: object) -> float | None:
    """Unix seconds of an RFC 3339 time; None for anything else."""
    try:
        found = datetime.fromisoformat(when) if isinstance(when, str) else None
        return None if found is None or found.tzinfo is None else found.timestamp()
    except (ValueError, OverflowError):
        return None


def _crc32c_of(where: str, found: Document) -> int | None:
    """None for objects that are encrypted with a customer-supplied key: they show no CRC32C."""
    text = found.get("crc32c")
    if text is None:
        return None
    crc = crc32c_from_text(text) if isinstance(text, str) else None
    if crc is None:
        refuse_response(where, _invalid(found, "crc32c"))
    return crc


def _invalid(found: Document, field: str) -> str:
    return f"{field!r} is {reprlib.repr(found[field])}" if field in found else f"it has no {field!r}"
