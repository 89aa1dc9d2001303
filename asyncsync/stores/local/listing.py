"""Lists a directory tree as flat keys, in byte order, page by page."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, count
from typing import NamedTuple

from asyncsync.stores.base import ObjectInfo, Page
from asyncsync.stores.local.files import beneath, version_of
from asyncsync.stores.local.keys import is_reserved

PAGE_SIZE = 1000
MOST_OPEN_WALKS = 8
"""Listings whose next page continues where the last one ended. A directory of 50,000 files has 6 MB of names."""
WALK_SECONDS = 60.0
"""Seconds after which a next page looks at the directories again."""

Walk = Iterator[ObjectInfo | str]


class _Suspended(NamedTuple):
    """A walk between two pages."""

    at: float
    """When its last page was returned."""
    begun: int
    """Its number among the walks, in the order in which they began."""
    walk: Walk


class Listings:
    """Lists the keys of one store. A listing of n pages reads each directory once, not n times. Its methods block."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._begun = count()
        self._open: OrderedDict[tuple[str, bool, str], _Suspended] = OrderedDict()
        """The walks, by prefix, delimiter and the last key that they returned."""

    def page(self, prefix: str, *, folded: bool, token: str | None) -> Page:
        """One page of the keys below ``prefix`` that come after ``token``. ``folded``: with the delimiter ``/``.

        Only directories that can contain keys of this page are read.
        """
        base, _, _ = prefix.rpartition("/")
        if any(segment in ("", ".") for segment in base.split("/") if base):
            return Page(())  # no key has such a segment, but the system would find a directory
        beneath(os.path.join(self._root, base), self._root)
        begun, walk = self._suspended(prefix, folded, token or "")
        if walk is None:
            walk = _ListingWalk(self._root, token or "", prefix, folded).below(base + "/" if base else "")
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        last = ""
        for entry in walk:
            if len(objects) + len(prefixes) == PAGE_SIZE:
                self._suspend((prefix, folded, last), begun, chain([entry], walk))
                return Page(tuple(objects), tuple(prefixes), last)
            if isinstance(entry, str):
                last = entry
                prefixes.append(entry)
            else:
                last = entry.key
                objects.append(entry)
        return Page(tuple(objects), tuple(prefixes))

    def _suspended(self, prefix: str, folded: bool, token: str) -> tuple[int, Walk | None]:
        """The number of the walk, and the walk itself if it continues where an earlier page ended."""
        with self._lock:
            found = self._open.pop((prefix, folded, token), None)
            if found is not None and time.monotonic() - found.at < WALK_SECONDS:
                return found.begun, found.walk
            return next(self._begun), None

    def _suspend(self, key: tuple[str, bool, str], begun: int, walk: Walk) -> None:
        """Keep the walk for the next page. Of two listings at the same key, the one that began later saw more: the
        other one may continue it, but not the reverse."""
        with self._lock:
            other = self._open.get(key)
            if other is None or other.begun < begun:
                self._open[key] = _Suspended(time.monotonic(), begun, walk)
            if len(self._open) > MOST_OPEN_WALKS:
                self._open.popitem(last=False)

    def forget(self) -> None:
        """Free the memory of listings that nobody continued."""
        with self._lock:
            self._open.clear()


class _ListingWalk:
    """The part of a tree whose keys start with ``prefix`` and come after ``token``."""

    def __init__(self, root: str, token: str, prefix: str, folded: bool) -> None:
        self._root = root
        self._token = token.encode()
        self._prefix = prefix
        self._folded = folded

    def below(self, start: str) -> Walk:
        """Objects and folded prefixes below the directory ``start`` (empty, or ending in ``/``), in byte order."""
        left = [(start, iter(self._entries(start)))]
        while left:
            above, entries = left[-1]
            for name, entry in entries:
                key = above + name
                if not key.startswith(self._prefix):
                    continue  # the walk starts in the directory of the prefix
                if not name.endswith("/"):
                    info = self._object(key, entry)
                    if info is not None and key.encode() > self._token:
                        yield info
                elif self._folded and key != self._prefix:
                    if key.encode() > self._token and _ListingWalk(self._root, "", key, folded=False).holds_any(key):
                        yield key
                elif key.encode() > self._token or self._token.startswith(key.encode()):
                    left.append((key, iter(self._entries(key))))
                    break
            else:
                left.pop()

    def holds_any(self, start: str) -> bool:
        return next(self.below(start), None) is not None

    def _entries(self, start: str) -> list[tuple[str, os.DirEntry[str]]]:
        """The names in a directory, those of directories with a ``/`` at the end: sorted like this, keys are in byte
        order."""
        try:
            with os.scandir(os.path.join(self._root, start)) as found:
                named = [(e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in found]
        except (FileNotFoundError, NotADirectoryError):
            return []
        kept = [(name, entry) for name, entry in named if not is_reserved(start, name)]
        return sorted(kept, key=lambda item: item[0].encode())

    def _object(self, key: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
        """None for anything but an object: a link out of the root, a pipe, a file that was just removed."""
        try:
            if entry.is_symlink() and not _inside(entry.path, self._root):
                return None
            found = entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return ObjectInfo(key, found.st_size, version_of(found), None, found.st_mtime)


def _inside(path: str, root: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(root).rstrip("/") + "/")
