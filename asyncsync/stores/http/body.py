"""Bodies and their CRC32C: of requests that come from a file, and of responses."""

from __future__ import annotations

import base64
import hashlib

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.digests import crc32c_extend, md5_range
from asyncsync.disk.files import FileRange
from asyncsync.errors import SourceChangedError
from asyncsync.stores.base import Body, Piece, Sink


async def read_body(body: FileRange) -> bytes:
    """All bytes of a small file range. SourceChangedError if the file is shorter."""
    data = await in_thread(body.read, 0, body.size) if body.size else b""
    if len(data) < body.size:
        raise source_too_short(body, len(data))
    return data


def source_too_short(source: FileRange, got: int) -> SourceChangedError:
    """The file ended ``got`` bytes after the start of the range."""
    return SourceChangedError(
        f"{source.path}: the file ends after {got} of the {source.size} bytes to send from offset {source.offset}; "
        "it became shorter while it was read"
    )


async def crc32c_of(body: Body) -> int:
    """The CRC32C of a body. A file is read in a worker thread."""
    return int(google_crc32c.value(body)) if isinstance(body, bytes) else await in_thread(_crc32c_of_file, body)


def _crc32c_of_file(body: FileRange) -> int:
    crc = 0
    for piece in body.pieces():
        crc = google_crc32c.extend(crc, piece)
    return int(crc)


async def md5_of(body: Body) -> bytes:
    """The MD5 of a body. A file is read in a worker thread."""
    if isinstance(body, bytes):
        return hashlib.md5(body, usedforsecurity=False).digest()
    return bytes.fromhex(await in_thread(md5_range, body))


def crc32c_to_text(crc32c: int) -> str:
    """Base64 of the four bytes, most significant first: the form that S3 and Cloud Storage use (RFC 4648 section 4)."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode("ascii")


def crc32c_from_text(text: str | None) -> int | None:
    """The inverse of :func:`crc32c_to_text`; None if the text is missing or malformed."""
    if not text:
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None


class ChecksumSink:
    """A sink that computes the size and the CRC32C of the bytes that pass through it."""

    __slots__ = ("_sink", "crc32c", "size")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.crc32c = self.size = 0

    async def __call__(self, piece: Piece) -> None:
        self.crc32c = crc32c_extend(self.crc32c, piece)
        self.size += len(piece)
        await self._sink(piece)
