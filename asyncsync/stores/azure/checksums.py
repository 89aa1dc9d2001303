"""CRC64-NVME, which the service computes of every body and compares (Azure documentation: ``x-ms-content-crc64``),
together with CRC32C, by which asyncsync knows the bytes.

Both are computed in one pass over the bytes, so bytes with a wrong CRC32C never get a correct CRC64.
"""

from __future__ import annotations

import base64

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.digests import crc64nvme
from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError
from asyncsync.stores.base import Body
from asyncsync.stores.http.body import source_too_short


def crc64_of(data: bytes) -> str:
    """The CRC64 of bytes as the service writes it: base64, least significant byte first."""
    return _text(crc64nvme()(data, 0))


async def checksums_of(where: str, body: Body, crc32c: int | None) -> tuple[str, int]:
    """CRC64 and CRC32C of a body. IntegrityError if the CRC32C is not the given one. A file is not read again if both
    are known from one pass over it."""
    if not isinstance(body, bytes) and body.crc64 is not None and crc32c is not None:
        return _text(body.crc64), crc32c
    crc64, found = _of_bytes(body) if isinstance(body, bytes) else await in_thread(_of_file, body)
    if crc32c is not None and found != crc32c:
        raise IntegrityError(f"{where}: the bytes to send have CRC32C {found:08x}, not {crc32c:08x}: nothing was sent")
    return crc64, found


def _of_bytes(body: bytes) -> tuple[str, int]:
    return crc64_of(body), int(google_crc32c.value(body))


def _of_file(body: FileRange) -> tuple[str, int]:
    extend, crc64, crc32c, done = crc64nvme(), 0, 0, 0
    for piece in body.pieces():
        crc64 = extend(piece, crc64)
        crc32c = google_crc32c.extend(crc32c, piece)
        done += len(piece)
    if done != body.size:
        raise source_too_short(body, done)
    return _text(crc64), int(crc32c)


def _text(crc64: int) -> str:
    return base64.b64encode(crc64.to_bytes(8, "little")).decode("ascii")
