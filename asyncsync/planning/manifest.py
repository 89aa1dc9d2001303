"""The manifest: the commit record of a prefix. Pure data, no disk, no loop.

On the wire it is one JSON document with one file a line, so that it can be read by eye, compared by ``diff`` and
written piece by piece (encoding 100,000 files at once would hold the interpreter for a third of a second).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
META_DIR = ".asyncsync"
MANIFEST = f"{META_DIR}/manifest.json"
LINES = 250
"""Files that are encoded or parsed in one go: about a millisecond."""
_text = json.encoder.encode_basestring_ascii  # what json.dumps does with a str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a manifest. Sizes in bytes."""

    path: str
    size: int
    mtime_ns: int
    mode: int
    """Permission bits."""
    crc32c: int
    """Of the whole file."""
    part_size: int
    """Size of each part but the last; 0 for a file that was sent in one request."""
    parts: tuple[str, ...]
    """XXH3-128 (hex) of each part, in order; one for a file that was sent in one request."""
    part_crcs: tuple[int, ...]
    """CRC32C of each part, in order."""
    version: str
    """ETag or generation of the object."""
    inode: int = 0
    """Of the local file that was sent; 0: not known, and nobody may conclude from size and mtime alone."""
    samples: str = ""
    """XXH3-128 (hex) of a few bytes here and there in a file that is appended to, see planning/appended.py."""

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(offset, size, crc32c) of each part."""
        step = self.part_size or self.size
        for index, crc in enumerate(self.part_crcs):
            offset = index * step
            yield offset, min(step, self.size - offset), crc

    def line(self) -> str:
        """The entry as JSON, on one line."""
        parts = ",".join([_text(part) for part in self.parts])
        crcs = ",".join([f'"{crc:08x}"' for crc in self.part_crcs])
        return (
            f'{{"path":{_text(self.path)},"size":{self.size},"mtime_ns":{self.mtime_ns},"mode":{self.mode},'
            f'"crc32c":"{self.crc32c:08x}","part_size":{self.part_size},"xxh3":[{parts}],'
            f'"part_crc32c":[{crcs}],"version":{_text(self.version)},"inode":{self.inode}'
            + (f',"samples":{_text(self.samples)}}}' if self.samples else "}")
        )

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> FileEntry:
        """The reverse of :meth:`line`; KeyError, TypeError or ValueError if something is missing or wrong."""
        entry = cls(
            path=str(raw["path"]),
            size=int(raw["size"]),
            mtime_ns=int(raw["mtime_ns"]),
            mode=int(raw["mode"]),
            crc32c=int(raw["crc32c"], 16),
            part_size=int(raw["part_size"]),
            parts=tuple(raw["xxh3"]),
            part_crcs=tuple(int(crc, 16) for crc in raw["part_crc32c"]),
            version=str(raw["version"]),
            inode=int(raw.get("inode", 0)),
            samples=str(raw.get("samples", "")),
        )
        if len(entry.parts) != len(entry.part_crcs) or entry.size < 0:
            raise ValueError(f"manifest entry {entry.path!r} does not add up")
        return entry


@dataclass(slots=True)
class Manifest:
    """The files of a prefix, by path, and what else the writer had to say (``info``: a checkpoint's metrics...)."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def encode(self) -> Iterable[bytes]:
        """The document in pieces of LINES files."""
        head = json.dumps({"format": FORMAT, "info": self.info}, separators=(",", ":"), sort_keys=True)
        yield f'{head[:-1]},"files":['.encode()
        lines: list[str] = []
        first = True
        for path in sorted(self.files):
            lines.append(self.files[path].line())
            if len(lines) == LINES:
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
        """Parse a document; ValueError says what is wrong with it."""
        try:
            try:
                return cls._of(*_by_lines(data))
            except ValueError:  # another layout, or broken: the whole of it decides
                raw = json.loads(data)
                return cls._of(raw, [raw["files"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a manifest: {error}") from error

    @classmethod
    def _of(cls, head: Mapping[str, Any], batches: Iterable[Iterable[Mapping[str, Any]]]) -> Manifest:
        if head["format"] != FORMAT:
            raise ValueError(f"manifest format {head['format']} is not known to this version (knows {FORMAT})")
        files: dict[str, FileEntry] = {}
        for batch in batches:
            for raw in batch:
                entry = FileEntry.parse(raw)
                files[entry.path] = entry
        return cls(files, dict(head.get("info", {})))


def _by_lines(data: bytes) -> tuple[dict[str, Any], Iterator[list[Any]]]:
    """The document if it is laid out as ours are, a few lines at a time: one call for all of it would hold the
    interpreter, and with it the event loop, for 0.3 s per 100,000 files. ValueError: it is not, or is broken."""
    head, *lines = data.split(b"\n")
    if not head.endswith(b'"files":[') or lines[-2:] != [b"]}", b""]:
        raise ValueError("not one file a line")
    del lines[-2:]
    batches = (b"".join(lines[start : start + LINES]).rstrip(b",") for start in range(0, len(lines), LINES))
    return json.loads(head + b"]}"), (json.loads(b"[%s]" % batch) for batch in batches)
