"""Lists a directory tree as flat keys, in byte order, page by page."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from asyncsync.stores.base import ObjectInfo, Page
from asyncsync.stores.local.files import beneath, version_of
from asyncsync.stores.local.keys import is_reserved

PAGE_SIZE = 1000


def list_page(root: str, prefix: str, *, folded: bool, token: str | None) -> Page:
    """One page of the keys below ``prefix`` that come after ``token``. Blocking.

    Only directories that can contain keys of this page are read. ``folded``: with the delimiter ``/``.
    """
    base, _, _ = prefix.rpartition("/")
    start = base + "/" if base else ""
    if any(segment in ("", ".") for segment in base.split("/") if base):
        return Page(())  # no key has such a segment, but the system would find a directory
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    last: str | None = None
    walk = _ListingWalk(root, token or "", prefix, folded)
    beneath(os.path.join(root, base), root)
    for entry in walk.below(start):
        if len(objects) + len(prefixes) == PAGE_SIZE:
            return Page(tuple(objects), tuple(prefixes), last)
        if isinstance(entry, str):
            last = entry
            prefixes.append(entry)
        else:
            last = entry.key
            objects.append(entry)
    return Page(tuple(objects), tuple(prefixes))


class _ListingWalk:
    """The part of a tree whose keys start with ``prefix`` and come after ``token``."""

    def __init__(self, root: str, token: str, prefix: str, folded: bool) -> None:
        self._root = root
        self._token = token.encode()
        self._prefix = prefix
        self._folded = folded

    def below(self, start: str) -> Iterator[ObjectInfo | str]:
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
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return ObjectInfo(key, found.st_size, version_of(found), None, found.st_mtime)


def _inside(path: str, root: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(root).rstrip("/") + "/")
