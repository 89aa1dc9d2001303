"""CRC32C and CRC64 of files and buffers. To combine the CRC32C of pieces without reading them: planning/crc32c.py."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

import google_crc32c

_SLICE_BYTES = 1 << 16


def crc32c_extend(crc: int, data: bytes | memoryview) -> int:
    """``crc`` extended by ``data``. google-crc32c accepts only bytes: a view is copied in slices, which stay in the
    processor's cache."""
    if isinstance(data, bytes):
        return int(google_crc32c.extend(crc, data))
    for start in range(0, len(data), _SLICE_BYTES):
        crc = google_crc32c.extend(crc, bytes(data[start : start + _SLICE_BYTES]))
    return int(crc)


@lru_cache(maxsize=1)
def crc64nvme() -> Callable[[bytes, int], int]:
    """The function that extends a CRC64-NVME by some bytes, at 25 GB/s. Imports awscrt: only Azure needs it."""
    found: Callable[[bytes, int], int] = importlib.import_module("awscrt.checksums").crc64nvme
    return found
