"""What the answers of Cloud Storage say, in the words of :mod:`asyncsync.stores.base`."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from asyncsync.disk.hashing import crc32c_extend
from asyncsync.errors import PreconditionError, StoreError
from asyncsync.stores.base import MISSING, ObjectInfo, Piece, Sink


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


def info_of(key: str, resource: Mapping[str, Any]) -> ObjectInfo:
    """From an object resource; some servers leave out what is 0."""
    crc = crc_from_text(resource.get("crc32c"))
    size, updated = int(resource.get("size", 0)), unix_of(resource.get("updated"))
    return ObjectInfo(key, size, str(resource["generation"]), crc, updated)


def info_from_headers(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    """From the headers of media (names in lower case); the version is empty where the server does not tell it."""
    crc = re.search(r"crc32c=([^,\s]+)", headers.get("x-goog-hash", ""))
    try:
        modified: float | None = parsedate_to_datetime(headers.get("last-modified", "")).timestamp()
    except (TypeError, ValueError):
        modified = None
    version = headers.get("x-goog-generation", "")
    return ObjectInfo(key, size, version, crc_from_text(crc[1]) if crc else None, modified)


def unix_of(when: str | None) -> float | None:
    """Unix seconds of an RFC 3339 time."""
    try:
        return None if when is None else datetime.fromisoformat(when).timestamp()
    except ValueError:
        return None


def content_bytes(where: str, status: int, headers: Mapping[str, str], *, ranged: bool) -> tuple[int | None, int]:
    """How many bytes an answer carries (None: it does not say) and, for a range, how many the object has."""
    part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
    if status == 206 and part is not None:
        return int(part[2]) - int(part[1]) + 1, int(part[3])
    if ranged:
        raise StoreError(f"get {where}: the store ignored the requested range")
    text = headers.get("content-length", headers.get("x-goog-stored-content-length", ""))
    return int(text) if text.isdigit() else None, 0


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
