"""Names of blocks, and where uploads are recorded. No I/O.

A block's name is 27 bytes, 36 characters of base64: a mark, the upload, the number of the part, the CRC32C and the
offset of its bytes. So Get Block List alone shows which parts an interrupted upload has, and blocks of two uploads of
one blob cannot be confused: the service drops uncommitted blocks when any block list of the blob is committed, and then
refuses the other upload's list.

An upload is open as long as its marker exists, an empty blob ``.asyncsync/parts/UPLOAD/upload`` with the key in its
metadata. The service has no call that drops uncommitted blocks; it does so after a week (Azure documentation, "Put
Block").
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from asyncsync.stores.base import Part, Upload

UPLOADS_PREFIX = ".asyncsync/parts/"
MARKER_NAME = "upload"
KEY_METADATA = "asyncsynckey"
"""Metadata of a marker: the key that the upload writes, percent-encoded."""
ID_BYTES = 27
ID_LENGTH = 36
"""Characters of a block's name. All uncommitted blocks of a blob have names of one length."""
MAX_REUSED = 4096
"""Most committed blocks that make one part: their names are kept with the part."""
_MARK = b"as1"
_CRC_KNOWN, _CRC_UNKNOWN = 0, 1
_REUSED = "committed:"


@dataclass(frozen=True, slots=True)
class BlockName:
    """The data in a block's name. ``crc32c`` is None for a copied range whose bytes this process did not have."""

    upload_id: str
    number: int
    offset: int
    crc32c: int | None

    def encoded(self) -> str:
        """The name in base64."""
        flag = _CRC_UNKNOWN if self.crc32c is None else _CRC_KNOWN
        raw = b"".join(
            (
                _MARK,
                bytes.fromhex(self.upload_id),
                self.number.to_bytes(3, "big"),
                (self.crc32c or 0).to_bytes(4, "big"),
                self.offset.to_bytes(8, "big"),
                bytes((flag,)),
            )
        )
        return base64.b64encode(raw).decode()


def block_name_of(text: str) -> BlockName | None:
    """The data in a name in base64; None for blocks of other programs."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != ID_BYTES or not raw.startswith(_MARK) or raw[26] not in (_CRC_KNOWN, _CRC_UNKNOWN):
        return None
    crc = int.from_bytes(raw[14:18], "big") if raw[26] == _CRC_KNOWN else None
    return BlockName(raw[3:11].hex(), int.from_bytes(raw[11:14], "big"), int.from_bytes(raw[18:26], "big"), crc)


@dataclass(frozen=True, slots=True)
class Block:
    """A block as Get Block List gives it."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class BlockList:
    """Blocks of one blob: those of the committed blob in order, and those that wait for a commit.

    ``size`` and ``version`` are those of the committed blob; None and empty if there is none."""

    committed: tuple[Block, ...]
    uncommitted: tuple[Block, ...]
    version: str = ""
    size: int | None = None
    starts: dict[int, int] = field(init=False, repr=False, compare=False)
    """Index of a committed block by the offset of its bytes; empty blocks have none."""

    def __post_init__(self) -> None:
        starts, at = dict[int, int](), 0
        for index, block in enumerate(self.committed):
            if block.size:
                starts[at] = index
            at += block.size
        object.__setattr__(self, "starts", starts)

    @property
    def complete(self) -> bool:
        """Whether the committed blocks are the whole blob. Those of a blob that was written in one request, or through
        another protocol, are not listed."""
        return self.size == sum(block.size for block in self.committed)

    def between(self, start: int, size: int) -> list[Block] | None:
        """The committed blocks that hold exactly these bytes and can be committed again together with ours; None if
        there are none."""
        index, left, found = self.starts.get(start, len(self.committed)), size, list[Block]()
        for block in self.committed[index : index + MAX_REUSED]:
            found.append(block)
            left -= block.size
            if left <= 0:
                break
        return found if left == 0 and all(len(block.name) == ID_LENGTH for block in found) else None


def parts_of(upload: Upload, blocks: Iterable[Block]) -> list[Part]:
    """The parts of an upload among uncommitted blocks, by number."""
    parts: dict[int, Part] = {}
    for block in blocks:
        name = block_name_of(block.name)
        if name is not None and name.upload_id == upload.upload_id:
            parts[name.number] = Part(name.number, name.offset, block.size, block.name, name.crc32c)
    return [parts[number] for number in sorted(parts)]


def reused_etag(version: str, blocks: Sequence[Block]) -> str:
    """The ETag of a part that consists of committed blocks of the blob's ``version``."""
    return f"{_REUSED}{version}:{','.join(block.name for block in blocks)}"


def reused_blocks(etag: str) -> tuple[str, list[str]] | None:
    """Version and names of the committed blocks that are this part; None for a block that was sent or copied."""
    if not etag.startswith(_REUSED):
        return None
    version, _, names = etag.removeprefix(_REUSED).rpartition(":")
    return version, names.split(",")


# Markers


def marker_key(upload_id: str) -> str:
    return f"{UPLOADS_PREFIX}{upload_id}/{MARKER_NAME}"


def upload_id_of(key: str) -> str | None:
    """The upload of a marker; None for other keys."""
    upload_id, _, name = key.removeprefix(UPLOADS_PREFIX).partition("/")
    return upload_id if key.startswith(UPLOADS_PREFIX) and name == MARKER_NAME else None


def is_upload_id(text: str) -> bool:
    """Whether a text, which may come from a journal, names an upload of this store."""
    return len(text) == 16 and all(char in "0123456789abcdef" for char in text)


def is_hidden(key: str) -> bool:
    """Whether a key is a marker of this store, or of a store with a longer prefix."""
    return key.startswith(UPLOADS_PREFIX) or f"/{UPLOADS_PREFIX}" in key


def key_metadata(key: str) -> dict[str, str]:
    """Headers of the marker of an upload of ``key``."""
    return {f"x-ms-meta-{KEY_METADATA}": quote(key, safe="")}


def key_in(metadata: str) -> str:
    """The key in the metadata of a marker; empty if the blob is not a marker."""
    return unquote(metadata) if metadata.isascii() else ""
