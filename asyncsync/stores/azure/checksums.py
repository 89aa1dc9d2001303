"""CRC64-NVME, which the service computes of every body and compares (Azure documentation: ``x-ms-content-crc64``),
together with CRC32C, by which asyncsync knows the bytes.

Both are computed in one pass over the bytes that are sent: so bytes that have the wrong CRC32C never get a right CRC64.
awscrt computes CRC64-NVME at 25 GB/s; it is imported on first use.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable
from functools import lru_cache

import google_crc32c

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError
from asyncsync.stores.base import Body
from asyncsync.stores.http.body import source_too_short


@lru_cache(maxsize=1)
def _crc64nvme() -> Callable[[bytes, int], int]:
    found: Callable[[bytes, int], int] = importlib.import_module("awscrt.checksums").crc64nvme
    return found


def crc64_of(data: bytes) -> str:
    """The CRC64 of bytes as the service writes it: base64, least significant byte first."""
    return base64.b64encode(_crc64nvme()(data, 0).to_bytes(8, "little")).decode("ascii")


async def checksums_of(where: str, body: Body, crc32c: int | None) -> tuple[str, int]:
    """CRC64 and CRC32C of a body. IntegrityError if the CRC32C is not the given one."""
    crc64, found = _of_bytes(body) if isinstance(body, bytes) else await in_thread(_of_file, body)
    if crc32c is not None and found != crc32c:
        raise IntegrityError(f"{where}: the bytes to send have CRC32C {found:08x}, not {crc32c:08x}: nothing was sent")
    return crc64, found


def _of_bytes(body: bytes) -> tuple[str, int]:
    return crc64_of(body), int(google_crc32c.value(body))


def _of_file(body: FileRange) -> tuple[str, int]:
    crc64nvme, crc64, crc32c, done = _crc64nvme(), 0, 0, 0
    for piece in body.pieces():
        crc64 = crc64nvme(piece, crc64)
        crc32c = google_crc32c.extend(crc32c, piece)
        done += len(piece)
    if done != body.size:
        raise source_too_short(body, done)
    return base64.b64encode(crc64.to_bytes(8, "little")).decode("ascii"), int(crc32c)
