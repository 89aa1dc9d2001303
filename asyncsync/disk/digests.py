"""Checksums of files, parts of files and buffers, and the content of small files. Blocking: for worker threads. To
combine the CRC32C of pieces without reading them: planning/crc32c.py.

CRC32C goes over the wire (16 GB/s), XXH3-128 is the identity of a part (33 GB/s); both let other threads run.
A file counts as read only if its size, mtime and inode were the same before and after.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import google_crc32c
import xxhash

from asyncsync.disk.files import FileRange, close_descriptor, open_nonblocking
from asyncsync.errors import SourceChangedError
from asyncsync.planning.crc32c import crc32c_combine
from asyncsync.planning.snapshot import FileStat

READ_ATTEMPTS = 3
"""How often a file that changes while it is read is read again."""
_SLICE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Digest:
    """Checksums of some bytes."""

    crc32c: int
    xxh3: str
    crc64: int | None = field(default=None, compare=False)
    """CRC64-NVME, where a store asked for it."""


@dataclass(frozen=True, slots=True)
class PartDigests:
    """Checksums of a part: of all its bytes, and of its first bytes if they were asked for."""

    whole: Digest
    head: Digest | None = None

    def tail_crc(self, size: int) -> int:
        """CRC32C of the last ``size`` bytes: all those after the head."""
        assert self.head is not None
        return crc32c_combine(self.head.crc32c, 0, size) ^ self.whole.crc32c


@dataclass(frozen=True, slots=True)
class Loaded:
    """A small file in memory, as it was at ``stat``."""

    stat: FileStat
    data: bytes
    digest: Digest


def digest(data: bytes) -> Digest:
    """Checksums of bytes in memory."""
    return Digest(int(google_crc32c.value(data)), xxhash.xxh3_128_hexdigest(data))


def digest_range(body: FileRange, crc64: bool = False) -> Digest:
    """Checksums of a range of a file, read in pieces; ``crc64``: that one, too. SourceChangedError if the file has
    become shorter."""
    return digest_part(body, 0, crc64).whole


def digest_part(body: FileRange, head_size: int = 0, crc64: bool = False) -> PartDigests:
    """Checksums of a part, read once, and of its first ``head_size`` bytes. SourceChangedError if the file has become
    shorter."""
    crc, identity, done = 0, xxhash.xxh3_128(), 0
    extend64, wide = crc64nvme() if crc64 else None, 0
    head: Digest | None = None
    for piece in body.pieces():
        rest = piece
        if done < head_size <= done + len(piece):
            first, rest = piece[: head_size - done], piece[head_size - done :]
            crc = google_crc32c.extend(crc, first)
            identity.update(first)
            head = Digest(int(crc), identity.hexdigest())
        crc = google_crc32c.extend(crc, rest)
        identity.update(rest)
        if extend64 is not None:
            wide = extend64(piece, wide)
        done += len(piece)
    if done != body.size:
        raise SourceChangedError(f"{body.path}: became shorter while it was read")
    return PartDigests(Digest(int(crc), identity.hexdigest(), wide if crc64 else None), head)


def md5_range(body: FileRange) -> str:
    """MD5 (hex) of a range: the ETag of a part, unless it is encrypted with a key of the user."""
    md5 = hashlib.md5(usedforsecurity=False)
    for piece in body.pieces():
        md5.update(piece)
    return md5.hexdigest()


def digest_samples(path: str, starts: Sequence[int], size: int) -> str:
    """XXH3-128 (hex) of ``size`` bytes from each of ``starts``. SourceChangedError if the file is shorter."""
    identity = xxhash.xxh3_128()
    with open(path, "rb", buffering=0, opener=open_nonblocking) as file:
        for start in starts:
            data = os.pread(file.fileno(), size, start)
            if len(data) < size:
                raise SourceChangedError(f"{path}: became shorter while it was read")
            identity.update(data)
    return identity.hexdigest()


def load(root: str, files: Sequence[FileStat], *, fixed: bool = False) -> list[Loaded | OSError | SourceChangedError]:
    """Read small files into memory; for each, the content or the error. FileNotFoundError: the file vanished.
    ``fixed``: a file counts only in the state that ``files`` gives."""
    return [_load_one(root, file, fixed=fixed) for file in files]


def _load_one(root: str, known: FileStat, *, fixed: bool) -> Loaded | OSError | SourceChangedError:
    path = known.path
    try:
        for _ in range(READ_ATTEMPTS):
            descriptor = open_nonblocking(f"{root}/{path}", os.O_RDONLY)
            try:
                info = os.fstat(descriptor)
                if not stat.S_ISREG(info.st_mode):
                    return FileNotFoundError(errno.ENOENT, "not a regular file any more", path)
                before = known if known.is_state(info) else FileStat.of(path, info)
                data = _read_all(descriptor, before.size)
                unchanged = len(data) == before.size and before.is_state(os.fstat(descriptor))
            finally:
                close_descriptor(descriptor)
            if fixed and not (unchanged and before.same_content_as(known)):
                return SourceChangedError(f"{path}: changed since the checkpoint was reported")
            if unchanged:
                return Loaded(before, data, digest(data))
    except OSError as error:
        return error
    return SourceChangedError(
        f"{path}: changed {READ_ATTEMPTS} times while it was read; is it written to all the time?"
    )


def _read_all(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size + 1)
    while 0 < len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


def stat_file(root: str, path: str) -> FileStat:
    """The present state of a file. FileNotFoundError, also if something else is in its place."""
    info = os.stat(f"{root}/{path}")
    if not stat.S_ISREG(info.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file any more", path)
    return FileStat.of(path, info)


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
