"""The manifest: the commit record of a prefix. Pure data, no disk, no loop.

On the wire it is one JSON document with one file a line, so that it can be read by eye, compared by ``diff`` and
written piece by piece (encoding 100,000 files at once would hold the interpreter for a third of a second).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from asyncsync.planning.crc32c import crc32c_of_parts
from asyncsync.planning.document import (
    FORMAT,
    NUMBER_LIMIT,
    __version__,
    check_depth,
    check_format,
    loads,
    mapping,
    parsing,
    seconds,
    shown,
    text,
    whole,
)

META_DIR = ".asyncsync"
MANIFEST = f"{META_DIR}/manifest.json"
FILES_PER_BATCH = 250
"""Files that are encoded or parsed at once: about a millisecond."""
XXH3_LENGTH = 32
"""Hexadecimal digits of an XXH3-128."""
_quoted = json.encoder.encode_basestring_ascii  # what json.dumps does with a str
_FIELDS = ("path", "size", "mtime_ns", "mode", "crc32c", "part_size", "xxh3", "part_crc32c", "version")
_OPTIONAL = ("inode", "samples")
_REQUIRED = len(_FIELDS)
_MOST_TIME = 1 << 65
"""Nanoseconds, positive or negative: more than any file system stores."""
_INFO = {
    "time": seconds,
    "metrics": mapping,
    "metadata": mapping,
    "scanned_ns": whole,
    "generation": whole,
    "id": text,
    "nonce": text,
}
"""The fields of ``info`` that asyncsync reads, if they exist, with their checks."""


class FileEntry(Struct, frozen=True, gc=False):
    """One file of a manifest. Sizes in bytes.

    A struct that the garbage collector does not visit: it would hold the interpreter for 218 ms to look at a million
    of them, and now takes 1.2 ms. Making one takes 0.06 us; as a dataclass it took 1.1 us.
    """

    path: str
    size: int
    mtime_ns: int
    mode: int
    """Permission bits."""
    crc32c: int
    """CRC32C of the whole file."""
    part_size: int
    """Size of each part but the last; 0 for a file that was sent in one request."""
    parts: tuple[str, ...]
    """XXH3-128 (hex) of each part, in order; one for a file that was sent in one request."""
    part_crcs: tuple[int, ...]
    """CRC32C of each part, in order."""
    version: str
    """ETag or generation of the object."""
    inode: int = 0
    """Inode of the local file that was sent; 0 = not known: size and mtime alone prove nothing."""
    samples: str = ""
    """XXH3-128 (hex) of samples of an append-only file, see planning/appended.py."""
    extra: Mapping[str, Any] | None = None
    """Fields that a later asyncsync wrote: kept as long as the content of the file is the same."""

    def __hash__(self) -> int:
        """Without ``extra``, which cannot be hashed."""
        return hash((self.path, self.size, self.crc32c, self.version))

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(offset, size, crc32c) of each part."""
        step = self.part_size or self.size
        for index, crc in enumerate(self.part_crcs):
            offset = index * step
            yield offset, min(step, self.size - offset), crc

    def line(self) -> str:
        """The entry as JSON, on one line."""
        parts = ",".join([_quoted(part) for part in self.parts])
        crcs = ",".join([f'"{crc:08x}"' for crc in self.part_crcs])
        return (
            f'{{"path":{_quoted(self.path)},"size":{self.size},"mtime_ns":{self.mtime_ns},"mode":{self.mode},'
            f'"crc32c":"{self.crc32c:08x}","part_size":{self.part_size},"xxh3":[{parts}],'
            f'"part_crc32c":[{crcs}],"version":{_quoted(self.version)},"inode":{self.inode}'
            + (f',"samples":{_quoted(self.samples)}' if self.samples else "")
            + (f",{_compact(self.extra)[1:]}" if self.extra else "}")
        )

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> FileEntry:
        """The reverse of :meth:`line`. KeyError, TypeError or ValueError if a field is missing or wrong, or the entry
        is inconsistent."""
        parts, crcs = raw["xxh3"], raw["part_crc32c"]
        if type(crcs) is not list or type(parts) is not list:
            raise ValueError(f"{shown(raw['path'])}: its parts are not lists")
        entry = cls(
            raw["path"],
            raw["size"],
            raw["mtime_ns"],
            raw["mode"],
            _crc(raw["crc32c"]),
            raw["part_size"],
            tuple(parts),
            tuple([_crc(crc) for crc in crcs]),
            raw["version"],
            raw.get("inode", 0),
            raw.get("samples", ""),
            None if len(raw) == _REQUIRED + ("inode" in raw) + ("samples" in raw) else _unknown(raw),
        )
        entry.check()
        return entry

    def check(self) -> None:
        """ValueError unless every field is valid, and the parts match the file."""
        size, step, mode, inode = self.size, self.part_size, self.mode, self.inode
        check_path(self.path)
        if not (type(size) is int is type(step) and 0 <= size < NUMBER_LIMIT and 0 <= step < NUMBER_LIMIT):
            raise self._wrong(f"its size {shown(size)} or part size {shown(step)} is not a number of bytes")
        if not (type(mode) is int is type(inode) and 0 <= mode <= 0o7777 and 0 <= inode < 1 << 64):
            raise self._wrong(f"mode {shown(mode)} or inode {shown(inode)} is out of range")
        if type(self.mtime_ns) is not int or not -_MOST_TIME < self.mtime_ns < _MOST_TIME:
            raise self._wrong(f"mtime_ns {shown(self.mtime_ns)} is out of range")
        for value in (self.version, self.samples):
            if type(value) is not str or not value.isprintable():  # so it has no surrogates, and fits a header
                raise self._wrong(f"{shown(value)} is neither a version of an object nor a digest of samples")
        self._check_parts(-(-size // step) if 0 < step < size else 1)

    def _check_parts(self, count: int) -> None:
        parts, crcs, step = self.parts, self.part_crcs, self.part_size
        if not len(parts) == len(crcs) == count:
            raise self._wrong(
                f"{self.size} bytes in parts of {step or self.size} are {count} part(s), it has {len(parts)} XXH3-128 "
                f"and {len(crcs)} CRC32C"
            )
        for part in parts:
            if type(part) is not str or len(part) != XXH3_LENGTH:
                raise self._wrong(f"{shown(part)} is not an XXH3-128")
        crc = crcs[0] if count == 1 else crc32c_of_parts(crcs, self.size, step)
        if crc != self.crc32c:
            raise self._wrong(f"its CRC32C is {self.crc32c:08x}, but its parts combine to {crc:08x}")

    def _wrong(self, why: str) -> ValueError:
        return ValueError(f"{shown(self.path)}: {why}")


def check_path(path: object) -> None:
    """ValueError unless ``path`` is valid below a prefix and below a directory: no empty, ``.`` or ``..`` segment, not
    absolute, no NUL, no name reserved for asyncsync, and UTF-8."""
    if type(path) is not str:
        raise ValueError(f"{shown(path)} is not a path")
    if path[:1] in "/." or "//" in path or "/." in path or path[-1] == "/" or "\0" in path:
        steps = path.split("/")
        if "\0" in path or not {"", ".", "..", META_DIR}.isdisjoint(steps):
            raise ValueError(f"{shown(path)} is not a path below a prefix")
    if not path.isascii():
        path.encode()


def _crc(text: str) -> int:
    """TypeError or ValueError if ``text`` is not eight hexadecimal digits."""
    if len(text) != 8:
        raise ValueError(f"{shown(text)} is not a CRC32C")
    return int(text, 16)


def _unknown(raw: Mapping[str, Any]) -> dict[str, Any]:
    check_depth(raw)
    return {key: value for key, value in raw.items() if key not in _FIELDS and key not in _OPTIONAL}


def _compact(value: object, *, sort_keys: bool = False) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys)


@dataclass(frozen=True, slots=True)
class ManifestSegment:
    """A part of a large manifest: a document of its own with the files from ``first`` on, in the order of paths, see
    :mod:`asyncsync.planning.segments`."""

    name: str
    """Unique: no document is ever written twice under one name."""
    first: str
    """Path of its first file."""
    files: int
    size: int
    """Bytes of its document."""
    xxh3: str
    """XXH3-128 (hex) of its document."""


@dataclass(slots=True)
class Manifest:
    """The files of a prefix, by path, and further information (``info``: a checkpoint's metrics...)."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that a later asyncsync wrote: they are written back."""
    by: str = f"asyncsync {__version__}"
    """The version that wrote it."""
    segments: tuple[ManifestSegment, ...] = ()
    """Its segments in the store, by first path; none for a manifest that is one document."""

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def encode(self) -> Iterable[bytes]:
        """The document in pieces of FILES_PER_BATCH files."""
        head = _compact({**self.extra, "format": FORMAT, "by": self.by, "info": self.info}, sort_keys=True)
        yield f'{head[:-1]},"files":['.encode()
        lines: list[str] = []
        first = True
        for path in sorted(self.files):
            lines.append(self.files[path].line())
            if len(lines) == FILES_PER_BATCH:
                yield self._join(lines, first=first)
                first, lines = False, []
        if lines:
            yield self._join(lines, first=first)
        yield b"\n]}\n"

    @staticmethod
    def _join(lines: list[str], *, first: bool) -> bytes:
        return (("\n" if first else ",\n") + ",\n".join(lines)).encode()

    def to_bytes(self) -> bytes:
        """The whole document."""
        return b"".join(self.encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse a document; DocumentError describes the damage."""
        with parsing("manifest"):
            try:
                head, batches = _by_lines(data)
                check_format(head)
                return cls._of(head, (raw for batch in batches for raw in json.loads(batch)))
            except json.JSONDecodeError:  # another layout, or broken: the whole of it decides
                head = loads(data)
                check_format(head)
                if type(head["files"]) is not list:
                    raise TypeError("its files are not a list")
                return cls._of(head, head["files"])

    @classmethod
    def _of(cls, head: dict[str, Any], entries: Iterable[dict[str, Any]]) -> Manifest:
        info, extra = info_of(head), extra_of(head, "files")
        files: dict[str, FileEntry] = {}
        for raw in entries:
            entry = FileEntry.parse(raw)
            if entry.path in files:
                raise ValueError(f"{shown(entry.path)} is listed twice")
            files[entry.path] = entry
        return cls(files, info, extra, text("by", head.get("by", "")))


def info_of(head: Mapping[str, Any]) -> dict[str, Any]:
    """The ``info`` of a document. ValueError or TypeError for a field that is wrong."""
    info = mapping("info", head.get("info", {}))
    for name, check in _INFO.items():
        if name in info:
            check(name, info[name])
    return info


def extra_of(head: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The fields of a document that a later asyncsync wrote. ``content``: the field with its lines."""
    return {key: value for key, value in head.items() if key not in ("format", "by", "info", content)}


def _by_lines(data: bytes) -> tuple[dict[str, Any], Iterator[bytes]]:
    """Split a document that is laid out with one file a line into its head and batches of lines. Parsing all at once
    would hold the interpreter, and with it the event loop, for 0.3 s per 100,000 files. JSONDecodeError if it is laid
    out differently."""
    head, *lines = data.split(b"\n")
    if not head.endswith(b'"files":[') or lines[-2:] != [b"]}", b""]:
        raise json.JSONDecodeError("not one file a line", "", 0)
    del lines[-2:]
    batches = (
        b"".join(lines[start : start + FILES_PER_BATCH]).rstrip(b",") for start in range(0, len(lines), FILES_PER_BATCH)
    )
    return loads(head + b"]}"), (b"[%s]" % batch for batch in batches)
