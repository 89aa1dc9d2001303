"""What a directory holds at one moment. Blocking: for worker threads.

One ``os.scandir`` pass, one ``stat`` a file, no ``Path`` objects: 300,000 files a second on one core.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pathspec

from asyncsync.planning.manifest import META_DIR
from asyncsync.planning.snapshot import FileStat, Snapshot

TEMPORARY = ".asyncsync-tmp"
"""Ending of the temporary files that asyncsync writes; never synced."""

_NUMBERED = re.compile(r"checkpoint_\d{6,}")


@dataclass(frozen=True, slots=True)
class Rules:
    """Which files of a tree count. Patterns follow gitignore; ``skip`` are directories by relative path."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    symlinks: Literal["inside", "follow", "skip"] = "inside"
    skip: frozenset[str] = frozenset()
    only: tuple[str, ...] | None = None
    """Just these files, by relative path: the rest is not even looked at."""
    always: tuple[str, ...] = ()
    """Files that count whatever the patterns say."""
    skip_numbered: bool = False
    """Leave out top directories named ``checkpoint_000000`` and up: they are not artifacts."""


def scan(root: str, rules: Rules = Rules()) -> Snapshot:
    """Everything below ``root`` that counts, in no particular order. FileNotFoundError if there is no ``root``."""
    if rules.only is not None:
        return _scan_only(root, rules.only)
    walk = _Walk(root, rules)
    info = os.stat(root)
    walk.directory(root, "", {(info.st_dev, info.st_ino)})
    return walk.found


def _scan_only(root: str, names: Iterable[str]) -> Snapshot:
    found = Snapshot()
    for name in names:
        try:
            info = os.stat(f"{root}/{name}")
        except FileNotFoundError:
            continue
        found.files.append(FileStat.of(name, info))
    return found


class _Walk:
    """One scan. Directories on the way down are known by (device, inode), so a link to a parent ends there."""

    def __init__(self, root: str, rules: Rules) -> None:
        self.found = Snapshot()
        self._rules = rules
        self._real_root = os.path.realpath(root)
        self._include = pathspec.GitIgnoreSpec.from_lines(rules.include) if rules.include else None
        self._exclude = pathspec.GitIgnoreSpec.from_lines(rules.exclude) if rules.exclude else None

    def directory(self, path: str, prefix: str, above: set[tuple[int, int]]) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name == META_DIR or name.endswith(TEMPORARY):
                    continue
                try:
                    self._entry(entry, prefix + name, above)
                except FileNotFoundError:
                    continue  # gone since it was listed: the next scan decides

    def _entry(self, entry: os.DirEntry[str], path: str, above: set[tuple[int, int]]) -> None:
        if entry.is_symlink():
            if not self._may_follow(entry, path):
                return
            if not os.path.exists(entry.path):
                self.found.warnings.append(f"{path}: skipped, the link points to nothing")
                return
        if entry.is_dir():
            self._subdirectory(entry, path, above)
        elif self._counts(path):
            self._file(entry.stat(), path)

    def _file(self, info: os.stat_result, path: str) -> None:
        if not stat.S_ISREG(info.st_mode):
            self.found.warnings.append(f"{path!r}: skipped, not a regular file (socket, pipe or device)")
        elif not path.isascii() and not _is_text(path):
            self.found.refused.append(path)
        else:
            self.found.files.append(FileStat.of(path, info))

    def _subdirectory(self, entry: os.DirEntry[str], path: str, above: set[tuple[int, int]]) -> None:
        if self._rules.skip_numbered and _NUMBERED.fullmatch(path):
            return
        if path in self._rules.skip or (self._exclude is not None and self._exclude.match_file(path + "/")):
            return
        info = entry.stat()
        here = (info.st_dev, info.st_ino)
        if here in above:
            self.found.warnings.append(f"{path}: skipped, the link leads back to a directory above it")
            return
        self.directory(entry.path, path + "/", above | {here})

    def _counts(self, path: str) -> bool:
        if path in self._rules.always:
            return True
        if self._exclude is not None and self._exclude.match_file(path):
            return False
        return self._include is None or self._include.match_file(path)

    def _may_follow(self, entry: os.DirEntry[str], path: str) -> bool:
        if self._rules.symlinks == "follow":
            return True
        if self._rules.symlinks == "skip":
            self.found.warnings.append(f"{path}: skipped, a symbolic link")
            return False
        target = os.path.realpath(entry.path)
        if target == self._real_root or target.startswith(self._real_root + os.sep):
            return True
        self.found.warnings.append(f"{path}: skipped, the link leaves the tree (symlinks='follow' takes it along)")
        return False


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
