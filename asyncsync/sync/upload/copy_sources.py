"""Objects in the store that a file may be copied from: by path, by content, across the trees of a session.

This information may be outdated: each copy names the version of its source, and its result is checked.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from asyncsync.errors import AsyncsyncError, DamagedError
from asyncsync.planning.manifest import FileEntry
from asyncsync.planning.parts import Candidate
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import find_manifest

log = logging.getLogger("asyncsync")

LEAST_COPIED_SIZE = 4096
"""Files below this many bytes are not remembered across trees: a copy request costs as much as sending them."""
MOST_REMEMBERED_FILES = 20_000
"""Most files that are remembered; the trees that were written longest ago are forgotten first."""
REMEMBERED_CHECKPOINTS = 2
"""Checkpoints of one trial that are remembered."""
MOST_CANDIDATES = 4
"""Objects in which the parts of one file are looked for."""

Content = tuple[int, int, tuple[str, ...]]


def _content(entry: FileEntry) -> Content:
    return entry.size, entry.crc32c, entry.parts


class CopySources:
    """The files of the trees that one session wrote or read. Memory: about 0.5 KiB per file, at most
    MOST_REMEMBERED_FILES of them."""

    def __init__(self) -> None:
        self._trees: OrderedDict[str, list[Candidate]] = OrderedDict()
        self._siblings: dict[str, list[str]] = {}
        """Remembered trees of each parent, the oldest first."""
        self._by_path: dict[str, dict[str, Candidate]] = {}
        self._by_content: dict[Content, dict[str, Candidate]] = {}
        self._count = 0

    def remember(self, prefix: str, files: Mapping[str, FileEntry]) -> None:
        """The store holds exactly ``files`` below ``prefix``."""
        self.replace(prefix, sources_of(prefix, files))

    def replace(self, prefix: str, found: list[Candidate]) -> None:
        """Everything that may be copied from below ``prefix`` is ``found``, see :func:`sources_of`."""
        self.forget(prefix)
        if not found:
            return
        self._trees[prefix] = found
        self._count += len(found)
        for candidate in found:
            self._by_path.setdefault(candidate.entry.path, {})[prefix] = candidate
            self._by_content.setdefault(_content(candidate.entry), {})[prefix] = candidate
        if parent := _parent(prefix):
            siblings = self._siblings.setdefault(parent, [])
            siblings.append(prefix)
            for old in siblings[:-REMEMBERED_CHECKPOINTS]:
                self.forget(old)
        while self._count > MOST_REMEMBERED_FILES:
            self.forget(next(iter(self._trees)))

    def forget(self, prefix: str) -> None:
        """Use nothing below ``prefix`` any more: it is going to be deleted."""
        found = self._trees.pop(prefix, ())
        if found and (parent := _parent(prefix)):
            self._siblings[parent].remove(prefix)
            if not self._siblings[parent]:
                del self._siblings[parent]
        for candidate in found:
            self._count -= 1
            _drop(self._by_path, candidate.entry.path, prefix)
            _drop(self._by_content, _content(candidate.entry), prefix)

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._trees

    def equal(self, prefix: str, content: Content) -> Candidate | None:
        """A file with exactly this content in another tree than ``prefix``."""
        places = self._by_content.get(content, {})
        return next((places[other] for other in reversed(places) if other != prefix), None)

    def similar(self, prefix: str, path: str) -> list[Candidate]:
        """Files of the same name in other trees: those of the same trial first, the newest first."""
        places = self._by_path.get(path, {})
        others = [other for other in reversed(places) if other != prefix]
        return [places[other] for other in sorted(others, key=lambda other: _parent(other) != _parent(prefix))]


def sources_of(prefix: str, files: Mapping[str, FileEntry]) -> list[Candidate]:
    """The files of a tree that are worth a copy; none if they are too many to remember. Takes 0.1 s for a million."""
    large = (Candidate(prefix + path, entry) for path, entry in files.items() if entry.size >= LEAST_COPIED_SIZE)
    found = list(islice(large, MOST_REMEMBERED_FILES + 1))
    return found if len(found) <= MOST_REMEMBERED_FILES else []


async def recall(store: Store, copy_sources: CopySources, prefixes: Iterable[str]) -> None:
    """Read the manifests below ``prefixes`` that an earlier process left, unless known: one or two requests each."""
    for prefix in prefixes:
        if prefix in copy_sources:
            continue
        try:
            manifest = await find_manifest(store, prefix)
        except DamagedError as error:
            log.info("nothing is copied from %s: %s", prefix, error)
            continue
        except AsyncsyncError as error:
            log.info("nothing is copied from %s: %s", prefix, error)
            return
        if manifest is not None:
            copy_sources.remember(prefix, manifest.files)


Name = TypeVar("Name")


def _drop(index: dict[Name, dict[str, Candidate]], name: Name, prefix: str) -> None:
    places = index.get(name, {})
    places.pop(prefix, None)
    if not places:
        index.pop(name, None)


def _parent(prefix: str) -> str:
    return prefix.rstrip("/").rpartition("/")[0]


class TreeCopySources:
    """Copy sources for one pass over a tree. ``known``: the tree's own files as the store has them."""

    def __init__(self, prefix: str, known: Mapping[str, FileEntry], copy_sources: CopySources | None = None) -> None:
        self._prefix, self._known = prefix, known
        self._catalogue = copy_sources or CopySources()
        self._by_content: dict[Content, Candidate] = {}
        self._by_size: dict[int, list[Candidate]] = {}
        self._moved: dict[str, list[Candidate]] = {}

    def prepare(self, files: Sequence[FileStat]) -> None:
        """``files`` are going to be sent. Only objects that none of them replaces are sources for the others."""
        if not self._known:
            return
        sent = {file.path for file in files}
        sizes = {file.size for file in files} - {0}
        names = {_name(path) for path in sent if path not in self._known}
        if not sizes:
            return
        for path, entry in self._known.items():
            if path in sent:
                continue
            if entry.size in sizes:
                candidate = Candidate(self._prefix + path, entry)
                self._by_content.setdefault(_content(entry), candidate)
                self._by_size.setdefault(entry.size, []).append(candidate)
            elif entry.part_size and _name(path) in names:
                self._moved.setdefault(_name(path), []).append(Candidate(self._prefix + path, entry))

    def has_size(self, size: int) -> bool:
        """Whether one of the tree's own objects may be equal to a file of this size."""
        return size > 0 and size in self._by_size

    def equal(self, size: int, crc32c: int, parts: tuple[str, ...]) -> Candidate | None:
        """An object with exactly this content, under any name."""
        if not size:
            return None
        content = (size, crc32c, parts)
        return self._by_content.get(content) or self._catalogue.equal(self._prefix, content)

    def candidates(self, file: FileStat, own: FileEntry | None) -> list[Candidate]:
        """Objects that may hold parts of a large file, the likeliest first. ``own`` describes the object under its own
        key."""
        found: Iterable[Candidate] = (
            *([Candidate(self._prefix + file.path, own)] if own is not None else ()),
            *self._catalogue.similar(self._prefix, file.path),
            *self._moved.get(_name(file.path), ()),
            *self._by_size.get(file.size, ()),
        )
        distinct: dict[str, Candidate] = {}
        for candidate in found:
            if candidate.entry.part_size:
                distinct.setdefault(candidate.key, candidate)
        return list(distinct.values())[:MOST_CANDIDATES]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
