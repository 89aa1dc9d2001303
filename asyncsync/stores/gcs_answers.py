"""What the headers of Cloud Storage's answers say, in the words of :mod:`asyncsync.stores.base`. Those are a server's
text: numbers are ASCII digits of bounded length, and what is none is an error of the store."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from asyncsync.disk.hashing import crc32c_extend
from asyncsync.errors import PreconditionError, StoreError
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
    """PreconditionError if another version was found. Servers should refuse it themselves; some do not."""
    if wanted is not None and found is not None and found != wanted:
        raise PreconditionError(f"{where}: has generation {found}, not {wanted}")


class Checked:
    """A sink that takes the size and the CRC32C of what goes by."""

    __slots__ = ("_sink", "crc32c", "size")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.crc32c = self.size = 0

    async def __call__(self, piece: Piece) -> None:
        self.crc32c = crc32c_extend(self.crc32c, piece)
        self.size += len(piece)
        await self._sink(piece)
