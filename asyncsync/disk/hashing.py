"""CRC32C of files, and of pieces put together without reading them again."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import google_crc32c

from asyncsync.disk.files import PIECE

_POLYNOMIAL = 0x82F63B78
"""Castagnoli, lowest power of x in the highest bit (RFC 3720, appendix B.4)."""
_ONE = 1 << 31
_SLICE = 1 << 16
_X8 = _ONE >> 8
"""x to the eighth: one byte."""


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=1024)
def _shift(size: int) -> int:
    """x to the power of ``8 * size``: what ``size`` more bytes multiply a remainder by."""
    power, square = _ONE, _X8
    while size:
        if size & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        size >>= 1
    return power


def crc32c_combine(crc1: int, crc2: int, len2: int) -> int:
    """CRC32C of two byte strings one after the other, from the CRC of each and the length of the second.

    A CRC is the remainder of a polynomial division, so the first one is shifted by ``len2`` bytes and the second
    added; 10 us for a length seen before.
    """
    return _multiply(_shift(len2), crc1) ^ crc2


def crc32c_extend(crc: int, data: bytes | memoryview) -> int:
    """``crc`` extended by ``data``. google-crc32c takes nothing but bytes: a view is copied a little at a time, which
    stays in the processor's cache."""
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
