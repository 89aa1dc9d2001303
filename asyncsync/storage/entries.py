"""The contents of a storage path as files and directories. A checkpoint without its manifest does not exist here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from asyncsync.aio.tasks import for_each_limited, run_all
from asyncsync.errors import NotFoundError
from asyncsync.planning.manifest import MANIFEST, META_DIR, Manifest
from asyncsync.stores.base import ObjectInfo, Page, Store
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.records.manifests import find_manifest

INTENTS = f"{META_DIR}/intents/"
"""Below a checkpoint: the intent of each process to write there, recorded before its first byte."""
PARTS = f"{META_DIR}/parts/"
"""Below a checkpoint: the files that each process has written there."""
ATTEMPT = "attempt"
"""Key in the info of a part and of the manifest of a checkpoint: see :class:`asyncsync.storage.shared.Writer`."""
DIRECTORIES_IN_PARALLEL = 64
"""Directories that are looked into for an intent."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A file or a directory. ``path`` is relative to the storage path."""

    path: str
    size: int | None
    """Bytes; None for a directory."""
    modified: float | None = None
    """Unix seconds, where the store reports it."""

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.size is not None


def is_checkpoint(manifest: Manifest) -> bool:
    """Whether this is the manifest of a checkpoint of a :class:`asyncsync.Storage`."""
    return ATTEMPT in manifest.info


async def is_incomplete(store: Store, prefix: str) -> bool:
    """Whether a checkpoint was begun below ``prefix`` that has no manifest (now)."""
    if not (await store.list(prefix + INTENTS)).objects:
        return False
    return not await exists(store, prefix + MANIFEST)


async def stat(store: Store, path: str) -> StoredEntry | None:
    """One file or directory; None if there is none, or if it is an incomplete checkpoint. Four requests at once."""
    if not path:
        return StoredEntry("", None)
    objects: dict[str, ObjectInfo] = {}
    pages: dict[str, Page] = {}

    async def head(key: str) -> None:
        with suppress(NotFoundError):
            objects[key] = await store.head(key)

    async def look(prefix: str) -> None:
        pages[prefix] = await store.list(prefix)

    below = f"{path}/"
    await run_all([head(path), head(below + MANIFEST), look(below), look(below + INTENTS)], "stat")
    if path in objects:
        return StoredEntry(path, objects[path].size, objects[path].modified)
    incomplete = pages[below + INTENTS].objects and below + MANIFEST not in objects
    return StoredEntry(path, None) if pages[below].objects and not incomplete else None


async def children(store: Store, path: str) -> list[StoredEntry] | None:
    """The files and directories directly below ``path``; None if there is no such directory."""
    below = f"{path}/" if path else ""
    manifest = await find_manifest(store, below)
    if manifest is not None and is_checkpoint(manifest):
        return _direct(below, _named(below, manifest))
    found = await _listed(store, below)
    if not found:
        return None
    if any(item.path == below + META_DIR for item in found) and await is_incomplete(store, below):
        return None
    directories = [item.path for item in found if not item.is_file and item.path != below + META_DIR]
    hidden = {below + META_DIR} | await _hidden(store, directories)
    return [item for item in found if item.path not in hidden]


async def descendants(store: Store, path: str) -> list[StoredEntry] | None:
    """All files below ``path`` and their directories; None if there is no such directory."""
    below = f"{path}/" if path else ""
    objects = await list_all(store, below)
    if not objects:
        return None
    manifests = await _checkpoints(store, objects)
    if manifests.get(below, 0) is None:
        return None
    files = [
        StoredEntry(key, info.size, info.modified)
        for key, info in sorted(objects.items())
        if f"/{META_DIR}/" not in f"/{key}" and _is_whole(key, manifests)
    ]
    return [*_directories(below, files), *files]


async def _checkpoints(store: Store, keys: Iterable[str]) -> dict[str, Manifest | None]:
    """The checkpoints among these objects, by prefix: their manifests, None for incomplete ones."""
    prefixes = {key.partition(INTENTS)[0] for key in keys if INTENTS in key}
    found: dict[str, Manifest | None] = {}

    async def read(prefix: str) -> None:
        found[prefix] = await find_manifest(store, prefix)

    await for_each_limited(sorted(prefixes), read, DIRECTORIES_IN_PARALLEL)
    return found


def _is_whole(key: str, manifests: dict[str, Manifest | None]) -> bool:
    """Whether the file is part of no checkpoint, or of one whose manifest names it."""
    prefix, slash, _ = key.rpartition("/")
    while slash:
        above = prefix + slash
        if above in manifests:
            manifest = manifests[above]
            return manifest is not None and key[len(above) :] in manifest.files
        prefix, slash, _ = prefix.rpartition("/")
    return True


def _named(below: str, manifest: Manifest) -> list[StoredEntry]:
    return [StoredEntry(below + path, entry.size, entry.mtime_ns / 1e9) for path, entry in manifest.files.items()]


def _direct(below: str, files: Sequence[StoredEntry]) -> list[StoredEntry]:
    """The files directly below, and the directories of the others."""
    direct = [item for item in files if "/" not in item.path[len(below) :]]
    names = {item.path[len(below) :].partition("/")[0] for item in files} - {item.path[len(below) :] for item in direct}
    return [*(StoredEntry(below + name, None) for name in sorted(names)), *direct]


def _directories(below: str, files: Sequence[StoredEntry]) -> list[StoredEntry]:
    found: set[str] = set()
    for item in files:
        parent = item.path.rpartition("/")[0]
        while len(parent) > len(below) and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return [StoredEntry(path, None) for path in sorted(found)]


async def _listed(store: Store, below: str) -> list[StoredEntry]:
    found: list[StoredEntry] = []
    token: str | None = None
    while True:
        page = await store.list(below, delimiter="/", token=token)
        found.extend(StoredEntry(prefix.rstrip("/"), None) for prefix in page.prefixes)
        found.extend(StoredEntry(info.key, info.size, info.modified) for info in page.objects)
        token = page.token
        if token is None:
            return found


async def _hidden(store: Store, directories: Sequence[str]) -> set[str]:
    """Of these directories, those that are incomplete checkpoints, and empty ones: some servers list the directory of
    deleted objects for ever."""
    found: set[str] = set()

    async def look(path: str) -> None:
        page = await store.list(f"{path}/")
        keys = {item.key for item in page.objects}
        begun = page.token is not None or any(key.startswith(f"{path}/{INTENTS}") for key in keys)
        unsure = begun and f"{path}/{MANIFEST}" not in keys
        if not keys or (unsure and await is_incomplete(store, f"{path}/")):
            found.add(path)

    await for_each_limited(directories, look, DIRECTORIES_IN_PARALLEL)
    return found
