"""What the headers of Cloud Storage's answers say, in the words of :mod:`asyncsync.stores.base`. Those are a server's
text: numbers are ASCII digits of bounded length, and what is none is an error of the store.

JSON documents of Cloud Storage. A success counts only with the result that is documented for its request.

Whoever stands between us and the service may answer 200 to anything: a proxy, a login page, a gateway that puts an
error into a success. So every field that is used is checked for its type and its value; what does not fit raises
UnavailableError, which names the request and the field. What was asked for may have been done all the same.
"""

from __future__ import annotations

import base64
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from asyncsync.disk.hashing import crc32c_extend
from asyncsync.errors import IntegrityError, PreconditionError, StoreError, UnavailableError
from asyncsync.stores.base import MISSING, ObjectInfo, Piece, Sink

_NUMBER = re.compile("[0-9]{1,19}")
_RANGE = re.compile("bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_KEPT = re.compile("bytes=0-([0-9]{1,19})")


def crc_to_text(crc32c: int) -> str:
    """As the API carries it: base64 of the four bytes, most significant first (RFC 4648 section 4)."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode("ascii")


def crc_from_text(text: str | None) -> int | None:
    if not text:
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None


def generation_of(if_version: str | None) -> str | None:
    """The value of ``ifGenerationMatch``; 0 means that there must be no live object."""
    return "0" if if_version == MISSING else if_version


def generation_in(headers: Mapping[str, str]) -> str | None:
    """That of the object whose media these headers go with; None: they do not tell it."""
    found = headers.get("x-goog-generation", "")
    return found if _NUMBER.fullmatch(found) else None


def kept_bytes(headers: Mapping[str, str]) -> int:
    """Bytes of a resumable upload that the service has for good; without a Range header it has none. Nor with
    ``bytes=0-0``, as gcp-storage-emulator writes it: what is kept of an unfinished body is a multiple of 256 KiB."""
    found = _KEPT.fullmatch(headers.get("range", "").replace(" ", ""))
    return int(found[1]) + 1 if found and int(found[1]) else 0


def info_from_headers(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    """From the headers of media (names in lower case); the version is empty where the server does not tell it."""
    crc = re.search(r"crc32c=([^,\s]+)", headers.get("x-goog-hash", ""))
    try:
        modified: float | None = parsedate_to_datetime(headers.get("last-modified", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        modified = None
    return ObjectInfo(key, size, generation_in(headers) or "", crc_from_text(crc[1]) if crc else None, modified)


def range_bytes(where: str, headers: Mapping[str, str], start: int, length: int | None) -> tuple[int, int]:
    """How many bytes the answer to a range carries, and how many the object has. StoreError if it is not that range.

    The status is not looked at: servers that forget it (200 instead of 206) tell the bounds all the same.
    """
    part = _RANGE.fullmatch(headers.get("content-range", ""))
    if part is None:
        raise StoreError(f"get {where}: the store ignored the requested range")
    first, last, total = int(part[1]), int(part[2]), int(part[3])
    end = total if length is None else min(start + length, total)
    if (first, last + 1) != (start, end):
        raise StoreError(f"get {where}: bytes {first}-{last} came instead of {start}-{end - 1}")
    return end - start, total


def media_bytes(headers: Mapping[str, str]) -> int | None:
    """How many bytes an answer with a whole object carries; None: it does not say."""
    text = headers.get("content-length", headers.get("x-goog-stored-content-length", ""))
    return int(text) if _NUMBER.fullmatch(text) else None


def check_version(where: str, wanted: str | None, found: str | None) -> None:
    """PreconditionError if another version was found. Servers should refuse_response it themselves; some do not."""
    if wanted is not None and found is not None and found != wanted:
        raise PreconditionError(f"{where}: has generation {found}, not {wanted}")


class ChecksumSink:
    """A sink that takes the size and the CRC32C of what goes by."""

    __slots__ = ("_sink", "crc32c", "size")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.crc32c = self.size = 0

    async def __call__(self, piece: Piece) -> None:
        self.crc32c = crc32c_extend(self.crc32c, piece)
        self.size += len(piece)
        await self._sink(piece)


MAX_INT64 = (1 << 63) - 1
"""Sizes and generations are 64-bit integers, which JSON carries as text (documentation, "Objects: resource")."""
_DIGITS = re.compile("[0-9]{1,19}")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectResource:
    """An object resource. ``modified`` in Unix seconds, on the clock of the service."""

    name: str
    size: int
    generation: str
    crc32c: int | None
    modified: float | None

    def info(self, key: str) -> ObjectInfo:
        """The same in the words of the store, for the object that it calls ``key``."""
        return ObjectInfo(key, self.size, self.generation, self.crc32c, self.modified)


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One page of a listing. ``items`` have names, their other fields are not looked at."""

    items: tuple[Document, ...]
    prefixes: tuple[str, ...]
    token: str | None


@dataclass(frozen=True, slots=True)
class RewriteStep:
    """One step of a rewrite: what was made, or else the token with which it goes on after ``moved`` bytes."""

    resource: ObjectResource | None
    token: str = ""
    moved: int = 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def document_of(where: str, content: bytes) -> Document:
    """The JSON object that a success carries."""
    try:
        found = _DECODER.decode(content.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        refuse_response(where, f"it is no JSON object: {content[:60]!r}" if content else "it is empty")
    return found


def resource_of(where: str, found: object, name: str, bucket: str | None) -> ObjectResource:
    """An object resource, which must be that of ``name``. ``bucket`` None: that is not looked at."""
    if not isinstance(found, dict):
        refuse_response(where, f"{reprlib.repr(found)} is no object resource")
    if text_of(where, found, "name") != name:
        refuse_response(where, f"it is of {reprlib.repr(found['name'])}")
    if bucket is not None and text_of(where, found, "bucket") != bucket:
        refuse_response(where, f"it is of bucket {reprlib.repr(found['bucket'])}")
    size, generation = number_of(where, found, "size"), number_of(where, found, "generation", least=1)
    return ObjectResource(name, size, str(generation), _crc_of(where, found), modified_of(found))


def written_of(where: str, content: bytes, name: str, bucket: str, size: int, crc32c: int) -> ObjectResource:
    """What an insert made of ``size`` bytes with that CRC32C. IntegrityError if it is something else."""
    made = resource_of(where, document_of(where, content), name, bucket)
    if made.crc32c is None:
        refuse_response(where, "it has no 'crc32c'")
    if made.crc32c != crc32c:
        sent, stored = crc_to_text(crc32c), crc_to_text(made.crc32c)
        raise IntegrityError(f"{where}: sent CRC32C {sent}, the store has {stored}", retryable=True)
    if made.size != size:
        refuse_response(where, f"it has 'size' {made.size}, {size} bytes were sent")
    return made


def rewrite_of(where: str, content: bytes, name: str, bucket: str) -> RewriteStep:
    """What one step of a rewrite came to."""
    found = document_of(where, content)
    if found.get("done") is True:
        return RewriteStep(resource_of(where, found.get("resource"), name, bucket))
    if found.get("done") is not False:
        refuse_response(where, f"'done' is {reprlib.repr(found.get('done'))}")
    return RewriteStep(None, text_of(where, found, "rewriteToken"), number_of(where, found, "totalBytesRewritten"))


def listing_of(where: str, content: bytes, prefix: str) -> ListingPage:
    """One page of what lies below ``prefix``, and of nothing else."""
    found = document_of(where, content)
    if found.get("kind") != "storage#objects":
        refuse_response(where, f"'kind' is {reprlib.repr(found.get('kind'))}")
    items, prefixes, token = found.get("items", []), found.get("prefixes", []), found.get("nextPageToken")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        refuse_response(where, "'items' is no list of objects")
    if not isinstance(prefixes, list):
        refuse_response(where, "'prefixes' is no list")
    for name in [*(item.get("name") for item in items), *prefixes]:
        if not is_text(name) or not name.startswith(prefix):
            refuse_response(where, f"{reprlib.repr(name)} does not begin with {prefix!r}")
    if token and not is_text(token):
        refuse_response(where, f"'nextPageToken' is {reprlib.repr(token)}")
    return ListingPage(tuple(items), tuple(prefixes), token or None)


def refuse_response(where: str, why: str) -> NoReturn:
    """The response is not the one that is documented."""
    raise UnavailableError(f"{where}: not a response of Cloud Storage: {why}")


def is_text(value: object) -> bool:
    """Whether it is text that can be sent again: not empty, and no half of a surrogate pair, which JSON can spell."""
    if not isinstance(value, str) or not value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def text_of(where: str, found: Document, field: str) -> str:
    value = found.get(field)
    if not is_text(value):
        refuse_response(where, _unusable(found, field))
    return str(value)


def number_of(where: str, found: Document, field: str, least: int = 0) -> int:
    """A 64-bit integer. Some servers write them as numbers."""
    value = found.get(field)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if type(value) is not int or not least <= value <= MAX_INT64:
        refuse_response(where, _unusable(found, field))
    return value


def modified_of(found: Mapping[str, object]) -> float | None:
    """When the object was written or its metadata changed, on the clock of the service. None: it does not say."""
    return unix_of(found.get("updated", found.get("timeCreated")))


def unix_of(when: object) -> float | None:
    """Unix seconds of an RFC 3339 time; None where it is none."""
    try:
        found = datetime.fromisoformat(when) if isinstance(when, str) else None
        return None if found is None or found.tzinfo is None else found.timestamp()
    except (ValueError, OverflowError):
        return None


def _crc_of(where: str, found: Document) -> int | None:
    """Objects that are encrypted with a key of their own have none to show."""
    text = found.get("crc32c")
    if text is None:
        return None
    crc = crc_from_text(text) if isinstance(text, str) else None
    if crc is None:
        refuse_response(where, _unusable(found, "crc32c"))
    return crc


def _unusable(found: Document, field: str) -> str:
    return f"{field!r} is {reprlib.repr(found[field])}" if field in found else f"it has no {field!r}"
