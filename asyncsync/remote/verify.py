"""Does the store hold what the manifests say? One listing, then the manifests, then as many bytes as wanted."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig
from asyncsync.disk.hashing import crc32c_extend
from asyncsync.errors import DamagedError, IntegrityError, NotFoundError, PreconditionError
from asyncsync.events import Progress
from asyncsync.planning.manifest import MANIFEST, META_DIR, FileEntry, Manifest
from asyncsync.remote.access import reading
from asyncsync.report import VerifyReport
from asyncsync.stores.base import ObjectInfo, Piece, Store
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.records.manifests import find_manifest, find_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, TRIAL_RECORD, ExperimentRecord, TrialRecord

CHECKPOINT_DIR = re.compile(r"(?:.*/)?checkpoint_\d{6,}/")
"""The innermost checkpoint directory that a key lies in."""
DEFAULT = TransferConfig()
PROGRESS_EVERY = 0.2
"""Seconds."""
SETTLED = 3
"""How often trees are looked at again that change meanwhile."""


async def verify(
    uri: str | os.PathLike[str],
    *,
    deep: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
    on_progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Compare every manifest and record below ``uri`` with the objects that are there.

    ``deep=False`` looks at existence, size and version (ETag, generation) of every object, from one listing. An object
    of another version than its manifest says has been replaced, or copied: the checksum that the store keeps of it
    decides, and where it keeps none the object is read. ``deep=True`` reads every byte and computes its CRC32C; what
    does not match is read twice. Of what is damaged, ``replaced`` tells what was written anew since its manifest was.
    What a running experiment changes or retires meanwhile is looked at again, and is no finding.
    A prefix without a manifest is missing one. At most ``transfer.max_concurrency`` requests at once; ``on_progress``
    is called on the event loop, about five times a second. NotFoundError if there is nothing at ``uri`` at all.
    """
    async with reading(uri, transfer, storage_options) as store:
        check = await Verification.run(store, os.fspath(uri), transfer.max_concurrency, on_progress, deep=deep)
        return check.report(store.requests, deep=deep)


@dataclass(slots=True)
class Verification:
    """One run. Keys are relative to the URI that was asked for."""

    store: Store
    objects: dict[str, ObjectInfo]
    workers: int
    on_progress: Callable[[Progress], None] | None = None
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0
    done: int = 0
    """Bytes that were looked at."""
    unread: dict[str, int] = field(default_factory=dict)
    """Parts that are still to be read, by file."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """By prefix."""
    unreadable: set[str] = field(default_factory=set)
    """Prefixes whose manifest cannot be read."""
    entries: dict[str, FileEntry] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    """Of what is damaged, what somebody has written anew."""
    stray: set[str] = field(default_factory=set)

    @classmethod
    async def run(
        cls, store: Store, uri: str, workers: int, on_progress: Callable[[Progress], None] | None = None, *, deep: bool
    ) -> Verification:
        """Look at everything below ``uri``; NotFoundError if that is nothing."""
        objects = await list_all(store, "")
        if not objects:
            raise NotFoundError(f"there is nothing at {uri}")
        check = cls(store, objects, workers, on_progress)
        await check.trees()
        if deep:
            await check.contents(check.entries)
        await check.settle(deep=deep)
        await check.records()
        check.look_for_strays()
        check.tell(last=True)
        return check

    def report(self, requests: int, *, deep: bool) -> VerifyReport:
        """What was found."""
        return VerifyReport(
            trees=len(self.manifests) + len(self.unreadable), files=len(self.entries),
            bytes=sum(entry.size for entry in self.entries.values()), damaged=dict(sorted(self.damaged.items())),
            missing=sorted(self.missing), stray=sorted(self.stray), deep=deep, requests=requests,
            seconds=time.monotonic() - self.started, replaced=sorted(self.replaced),
        )  # fmt: skip

    def tell(self, *, last: bool = False) -> None:
        """Say how far it is, now and then."""
        now = time.monotonic()
        if self.on_progress is None or (now - self.told < PROGRESS_EVERY and not last):
            return
        self.told = now
        total = sum(entry.size for entry in self.entries.values())
        left = sum(count > 0 for count in self.unread.values())
        self.on_progress(
            Progress(
                tree="", files_done=len(self.entries) - left, files_total=len(self.entries),
                bytes_done=total if last else self.done, bytes_total=total,
            )
        )  # fmt: skip

    @property
    def wrong(self) -> set[str]:
        """Everything that was found."""
        return self.damaged.keys() | self.missing

    def clear(self, key: str) -> None:
        """Nothing was found of it."""
        self.damaged.pop(key, None)
        self.missing.discard(key)
        self.replaced.discard(key)

    async def trees(self) -> None:
        """Read every manifest and hold it against the listing."""
        prefixes = [key[: -len(MANIFEST)] for key in self.objects if key == MANIFEST or key.endswith("/" + MANIFEST)]
        names = {EXPERIMENT_RECORD, TRIAL_RECORD}
        if not prefixes and not any(key in names or key.endswith(f"/{TRIAL_RECORD}") for key in self.objects):
            self.missing.add(MANIFEST)
        await for_each_limited(prefixes, self._tree, min(64, self.workers))
        await self._look_at([key for key, entry in self.entries.items() if not self._is_listed_right(key, entry)])

    async def _tree(self, prefix: str) -> None:
        try:
            manifest = await find_manifest(self.store, prefix)  # None: it was retired since it was listed
        except DamagedError as error:
            self.damaged[prefix + MANIFEST] = str(error)
            self.unreadable.add(prefix)
        else:
            self._take(prefix, manifest)

    def _is_listed_right(self, key: str, entry: FileEntry) -> bool:
        info = self.objects.get(key)
        if info is None or info.size != entry.size:
            return False
        if info.crc32c is not None:
            return info.crc32c == entry.crc32c
        return info.version == entry.version

    async def _look_at(self, keys: Sequence[str]) -> None:
        """The listing may be older than the manifest, and does not always tell checksums."""
        unknown: list[str] = []

        async def look(key: str) -> None:
            if not await self._look_again(key):
                unknown.append(key)

        await for_each_limited(keys, look, self.workers)
        await self.contents(unknown)

    async def _look_again(self, key: str) -> bool:
        """False: only its bytes can tell."""
        entry = self.entries[key]
        try:
            info = self.objects[key] = await self.store.head(key)
        except NotFoundError:
            self.missing.add(key)
            return True
        if info.size != entry.size:
            self._found(key, f"{info.size} bytes, the manifest says {entry.size}")
        elif info.crc32c is not None and info.crc32c != entry.crc32c:
            self._found(key, f"CRC32C {info.crc32c:08x}, the manifest says {entry.crc32c:08x}")
        return info.crc32c is not None or key in self.wrong or not self._is_another(key)

    def _is_another(self, key: str) -> bool:
        """Whether the object has another version than the one that the manifest means, as far as both are known."""
        info, entry = self.objects.get(key), self.entries[key]
        return info is not None and bool(entry.version) and info.version != entry.version

    def _found(self, key: str, problem: str) -> None:
        """It does not hold what the manifest says: it is another object, or it is damaged."""
        self.damaged[key] = problem
        if self._is_another(key):
            self.replaced.add(key)

    async def settle(self, *, deep: bool) -> None:
        """What was found in trees that a running experiment changes or retires is looked at again."""
        for _ in range(SETTLED):
            changed = await self._changed()
            if not changed:
                return
            await self._look_at(changed)
            if deep:
                await self.contents(changed)

    async def _changed(self) -> list[str]:
        """Read the manifests of trees with findings again. Those that are other ones now count, and their files are
        returned; what lies in trees that have none any more is forgotten."""
        wrong, files = self.wrong, list[str]()

        async def read(prefix: str, before: Manifest) -> None:
            with suppress(IntegrityError):
                now = await find_manifest(self.store, prefix)
                if now != before:
                    self._forget(prefix, before)
                    files.extend(self._take(prefix, now))

        trees = [
            (prefix, manifest) for prefix, manifest in self.manifests.items()
            if any(prefix + path in wrong for path in manifest.files)
        ]  # fmt: skip
        await for_each_limited(trees, lambda tree: read(*tree), min(64, self.workers))
        return files

    def _forget(self, prefix: str, manifest: Manifest) -> None:
        del self.manifests[prefix]
        for key in [prefix + path for path in manifest.files] + [prefix + MANIFEST]:
            self.clear(key)
            self.entries.pop(key, None)
            self.objects.pop(key, None)

    def _take(self, prefix: str, manifest: Manifest | None) -> Sequence[str]:
        """A manifest counts; the keys of its files. None: it was retired, and what was listed of it goes."""
        if manifest is None:
            for key in [key for key in self.objects if key.startswith(prefix) and CHECKPOINT_DIR.fullmatch(prefix)]:
                del self.objects[key]
            return ()
        self.manifests[prefix] = manifest
        self.entries.update((prefix + path, entry) for path, entry in manifest.files.items())
        return [prefix + path for path in manifest.files]

    async def records(self) -> None:
        """What records say must be there too."""
        names = [key for key in self.objects if key == TRIAL_RECORD or key.endswith("/" + TRIAL_RECORD)]
        await for_each_limited(names, self._trial, min(64, self.workers))
        if EXPERIMENT_RECORD in self.objects:
            try:
                await find_record(self.store, EXPERIMENT_RECORD, ExperimentRecord)
            except DamagedError as error:
                self.damaged[EXPERIMENT_RECORD] = str(error)

    async def _trial(self, key: str, *, again: bool = False) -> None:
        try:
            record = await find_record(self.store, key, TrialRecord)
        except DamagedError as error:
            self.damaged[key] = str(error)
            return
        if record is None:
            return
        trial = key[: -len(TRIAL_RECORD)]
        for checkpoint in record.checkpoints:
            manifest = f"{trial}{checkpoint.name}/{MANIFEST}"
            if manifest not in self.objects and not await exists(self.store, manifest):
                if not again:
                    await self._trial(key, again=True)  # it may have been retired just now
                    return
                self.missing.add(manifest)

    async def contents(self, keys: Iterable[str]) -> None:
        """Read every byte of what looked right so far."""
        wrong = self.wrong
        wanted = [key for key in keys if key not in wrong]
        self.unread.update((key, len(self.entries[key].part_crcs)) for key in wanted)
        parts = ((key, offset, size, crc) for key in wanted for offset, size, crc in self.entries[key].ranges())
        await for_each_limited(parts, self._part, self.workers)

    async def _part(self, part: tuple[str, int, int, int]) -> None:
        await self._check_part(*part)
        self.unread[part[0]] -= 1
        self.done += part[2]
        self.tell()

    async def _check_part(self, key: str, offset: int, size: int, crc: int) -> None:
        if key in self.damaged or key in self.missing:
            return
        for _ in range(2):
            try:
                done, found = await self._read(key, offset, size)
            except NotFoundError:
                self.missing.add(key)
                return
            except IntegrityError:
                continue
            if (done, found) == (size, crc):
                return
        self._found(key, f"bytes {offset} to {offset + size} do not have the checksum that the manifest says")

    async def _read(self, key: str, offset: int, size: int) -> tuple[int, int]:
        done = crc = 0
        if not size:
            return (await self.store.head(key)).size, 0

        async def take(piece: Piece) -> None:
            nonlocal done, crc
            done += len(piece)
            crc = await in_hasher(crc32c_extend, crc, piece)

        version = self.objects[key].version if key in self.objects else None
        try:
            await self.store.read(key, take, start=offset, length=size, if_version=version)
        except PreconditionError:  # it was replaced since we looked
            self.objects[key] = await self.store.head(key)
            return -1, 0
        return done, int(crc)

    def look_for_strays(self) -> None:
        """Objects that nobody names; those of a checkpoint without manifest as one directory."""
        trees = self.manifests.keys() | self.unreadable
        for key in self.objects.keys() - self.entries.keys():
            match = CHECKPOINT_DIR.match(key)
            if match is not None and match[0] not in trees and not self._is_named(match[0]):
                self.stray.add(match[0])
            elif f"/{META_DIR}/" not in f"/{key}":
                self.stray.add(key)

    def _is_named(self, directory: str) -> bool:
        """Its record names it: it is missing its manifest, and reported so."""
        return directory + MANIFEST in self.missing
