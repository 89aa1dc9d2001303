"""CRC32C of files and buffers. To combine the CRC32C of pieces without reading them, see planning/crc32c.py."""

from __future__ import annotations

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
