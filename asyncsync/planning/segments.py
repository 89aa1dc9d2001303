"""A large manifest in segments: ranges of its files by path, each a document of its own, and a short head. Pure.

A change then costs the segments in which it lies, not the whole manifest: files of one directory are neighbours. A
segment is a manifest of its files, without info. The head is of format 2, which an asyncsync that knows no segments
refuses. It replaces the manifest, by the same conditional write, after its segments are stored. A document is never
written twice under one name, so deleting an old segment removes nothing that another head names.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from asyncsync.planning.document import check_format, loads, parsing, shown, text, whole
from asyncsync.planning.manifest import META_DIR, FileEntry, Manifest, ManifestSegment, check_path, extra_of, info_of

HEAD_FORMAT = 2
SEGMENTS = f"{META_DIR}/segments/"
"""Below a prefix: the segments of its manifest."""
SEGMENT_FILES = 2048
"""Files of a new segment: about half a megabyte."""
MOST_SEGMENT_FILES = 2 * SEGMENT_FILES
"""A segment with more files is divided."""
SEGMENTED_FROM = 8 * SEGMENT_FILES
"""A manifest with more files is written in segments; one document below half of that."""
_NAME = re.compile(r"[0-9a-f]{8,64}")
_SAMPLED = 64
"""One in so many paths is looked at to divide all of them: sorting a million at once would hold the interpreter."""


def segment_key(name: str) -> str:
    """The key of a segment, below the prefix of its manifest."""
    return f"{SEGMENTS}{name}.json"


def is_segmented(files: int, before: Sequence[ManifestSegment]) -> bool:
    """Whether a manifest of so many files is written in segments. ``before``: the segments that it has."""
    return files > (SEGMENTED_FROM // 2 if before else SEGMENTED_FROM)


@dataclass(frozen=True, slots=True)
class Draft:
    """A segment that has to be written. ``paths``: of its files, in order."""

    name: str
    paths: tuple[str, ...]

    def encode(self, files: Mapping[str, FileEntry], xxh3: Callable[[bytes], str]) -> tuple[ManifestSegment, bytes]:
        """The segment and its document. ``xxh3``: computes the XXH3-128 (hex)."""
        data = Manifest({path: files[path] for path in self.paths}).to_bytes()
        return ManifestSegment(self.name, self.paths[0], len(self.paths), len(data), xxh3(data)), data


def divide(
    files: Mapping[str, FileEntry], old: Sequence[ManifestSegment], changed: Iterable[str], new_name: Callable[[], str]
) -> list[ManifestSegment | Draft]:
    """The segments of ``files``, by path: those of ``old`` in which nothing of ``changed`` lies stay as they are."""
    if not old:
        return [Draft(new_name(), piece) for paths in _sorted_ranges(files) for piece in _pieces(paths)]
    firsts = [segment.first for segment in old]
    touched: dict[int, list[str]] = {index: [] for index in sorted({_index(firsts, path) for path in changed})}
    _collect(files, firsts, touched)
    result: list[ManifestSegment | Draft] = []
    for index, segment in enumerate(old):
        if index not in touched:
            result.append(segment)
        else:
            result += [Draft(new_name(), piece) for piece in _pieces(sorted(touched[index]))]
    return result


def paths_of(files: Iterable[str], segments: Sequence[ManifestSegment], wanted: Collection[str]) -> list[Draft]:
    """The segments of these names as they are with ``files``, under their own names."""
    firsts = [segment.first for segment in segments]
    touched: dict[int, list[str]] = {at: [] for at, segment in enumerate(segments) if segment.name in wanted}
    _collect(files, firsts, touched)
    return [Draft(segments[at].name, tuple(sorted(paths))) for at, paths in touched.items()]


def names_with(segments: Sequence[ManifestSegment], paths: Iterable[str]) -> set[str]:
    """The names of the segments in which ``paths`` lie."""
    firsts = [segment.first for segment in segments]
    return {segments[_index(firsts, path)].name for path in paths} if segments else set()


def _index(firsts: Sequence[str], path: str) -> int:
    return max(0, bisect_right(firsts, path) - 1)


def _collect(files: Iterable[str], firsts: Sequence[str], touched: dict[int, list[str]]) -> None:
    """Add each path of ``files`` to the list of its segment, if there is one."""
    if not touched:
        return
    low = firsts[min(touched)] if min(touched) else ""
    after = max(touched) + 1
    high = firsts[after] if after < len(firsts) else None
    for path in files:
        if low <= path and (high is None or path < high) and (found := touched.get(_index(firsts, path))) is not None:
            found.append(path)


def _sorted_ranges(files: Collection[str]) -> Iterable[list[str]]:
    """All paths in order, in lists of about SEGMENT_FILES."""
    samples = sorted(path for number, path in enumerate(files) if number % _SAMPLED == 0)
    bounds = samples[SEGMENT_FILES // _SAMPLED :: SEGMENT_FILES // _SAMPLED]
    ranges: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
    for path in files:
        ranges[bisect_right(bounds, path)].append(path)
    return (sorted(paths) for paths in ranges)


def _pieces(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """One piece, or several of about SEGMENT_FILES if there are too many paths."""
    if not paths:
        return []
    count = 1 if len(paths) <= MOST_SEGMENT_FILES else -(-len(paths) // SEGMENT_FILES)
    step = -(-len(paths) // count)
    return [tuple(paths[start : start + step]) for start in range(0, len(paths), step)]


# the head


def encode_head(manifest: Manifest) -> bytes:
    """The head of a manifest in segments, one segment a line."""
    head = {**manifest.extra, "format": HEAD_FORMAT, "by": manifest.by, "info": manifest.info}
    lines = ",\n".join(_line(segment) for segment in manifest.segments)
    return f'{_compact(head)[:-1]},"segments":[\n{lines}\n]}}\n'.encode()


def parse_head(data: bytes) -> Manifest | None:
    """The manifest without its files, if ``data`` is the head of one in segments. DocumentError describes the
    damage."""
    if data[: data.find(b"\n") + 1].endswith(b'"files":[\n') or b'"segments"' not in data:
        return None
    with parsing("manifest"):
        head = loads(data)
        check_format(head, HEAD_FORMAT)
        if head["format"] != HEAD_FORMAT:
            return None
        if type(head["segments"]) is not list:
            raise TypeError("its segments are not a list")
        segments = tuple(_segment(raw) for raw in head["segments"])
        _check_order(segments)
        return Manifest({}, info_of(head), extra_of(head, "segments"), text("by", head.get("by", "")), segments)


def parse_segment(data: bytes, segment: ManifestSegment, xxh3: Callable[[bytes], str]) -> Manifest:
    """The files of a segment. DocumentError if ``data`` is not its document."""
    with parsing("segment of a manifest"):
        if (len(data), xxh3(data)) != (segment.size, segment.xxh3):
            raise ValueError(f"it is not the document of {segment.size} bytes that the manifest names")
        return Manifest.from_bytes(data)


def join(head: Manifest, parts: Iterable[Mapping[str, FileEntry]]) -> Manifest:
    """The manifest of ``head`` with the files of its segments, which are given in order. DocumentError if they do not
    fit."""
    files: dict[str, FileEntry] = {}
    with parsing("manifest"):
        for segment, part in zip(head.segments, parts, strict=True):
            if len(part) != segment.files or min(part, default="") != segment.first or segment.first in files:
                raise ValueError(f"its segment from {shown(segment.first)} on has other files than the head lists")
            files.update(part)
    if len(files) != sum(segment.files for segment in head.segments):
        with parsing("manifest"):
            raise ValueError("two of its segments list one file")
    return Manifest(files, head.info, head.extra, head.by, head.segments)


def _line(segment: ManifestSegment) -> str:
    return _compact(
        {
            "name": segment.name,
            "first": segment.first,
            "files": segment.files,
            "bytes": segment.size,
            "xxh3": segment.xxh3,
        }
    )


def _segment(raw: Mapping[str, Any]) -> ManifestSegment:
    name, first, digest = text("name", raw["name"]), raw["first"], text("xxh3", raw["xxh3"])
    if _NAME.fullmatch(name) is None or _NAME.fullmatch(digest) is None:
        raise ValueError(f"{shown(name)} is not the name of a segment, or {shown(digest)} not an XXH3-128")
    check_path(first)
    return ManifestSegment(name, first, whole("files", raw["files"]), whole("bytes", raw["bytes"]), digest)


def _check_order(segments: Sequence[ManifestSegment]) -> None:
    firsts = [segment.first for segment in segments]
    if not segments or any(later <= earlier for earlier, later in pairwise(firsts)):
        raise ValueError("its segments are not in the order of their paths")
    if len({segment.name for segment in segments}) < len(segments):
        raise ValueError("two of its segments have one name")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
