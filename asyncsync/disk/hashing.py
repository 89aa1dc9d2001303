"""CRC32C of files and buffers. To combine the CRC32C of pieces without reading them, see planning/crc32c.py."""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c

from asyncsync.disk.files import PIECE

_SLICE = 1 << 16


def crc32c_extend(crc: int, data: bytes | memoryview) -> int:
    """``crc`` extended by ``data``. google-crc32c accepts only bytes: a view is copied in slices, which stay in the
    processor's cache."""
    if isinstance(data, bytes):
        return int(google_crc32c.extend(crc, data))
    for start in range(0, len(data), _SLICE):
        crc = google_crc32c.extend(crc, bytes(data[start : start + _SLICE]))
    return int(crc)


def file_crc32c(path: str | os.PathLike[str]) -> int:
    """CRC32C of a whole file, read in pieces of 1 MiB. Blocking; OSError."""
    crc = 0
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    with Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = google_crc32c.extend(crc, bytes(view[:count]))
    return int(crc)
