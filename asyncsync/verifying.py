"""Does the store hold what the manifests say? One listing, then the manifests, then as many bytes as wanted."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from asyncsync.config import TransferConfig
from asyncsync.disk.files import in_hasher
from asyncsync.disk.hashing import crc32c_extend
from asyncsync.errors import DamagedError, IntegrityError, NotFoundError, PreconditionError
from asyncsync.events import Progress
from asyncsync.planning.manifest import MANIFEST, META_DIR, FileEntry
from asyncsync.records import EXPERIMENT_RECORD, TRIAL_RECORD, ExperimentRecord, TrialRecord
from asyncsync.report import VerifyReport
from asyncsync.stores.base import ObjectInfo, Piece, Store
from asyncsync.stores.together import for_each
from asyncsync.transfer.listing import list_all
from asyncsync.transfer.reader import exists, find_manifest, find_record, reading

CHECKPOINT_DIR = re.compile(r"(?:.*/)?checkpoint_\d{6,}/")
"""The innermost checkpoint directory that a key lies in."""
DEFAULT = TransferConfig()
PROGRESS_EVERY = 0.2
"""Seconds."""


async def verify(
    uri: str | os.PathLike[str],
    *,
    deep: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
    on_progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Compare every manifest and record below ``uri`` with the objects that are there.

    ``deep=False`` looks at existence and sizes, from one listing, and asks for the checksum of objects that have been
    replaced or copied since. ``deep=True`` reads every byte and computes its CRC32C; what does not match is read twice.
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
    manifests: list[str] = field(default_factory=list)
    """Prefixes that have one."""
    entries: dict[str, FileEntry] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
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
        await check.records()
        if deep:
            await check.contents(check.entries)
        check.look_for_strays()
        check.tell(last=True)
        return check

    def report(self, requests: int, *, deep: bool) -> VerifyReport:
        """What was found."""
        return VerifyReport(
            trees=len(self.manifests), files=len(self.entries),
            bytes=sum(entry.size for entry in self.entries.values()), damaged=dict(sorted(self.damaged.items())),
            missing=sorted(self.missing), stray=sorted(self.stray), deep=deep, requests=requests,
            seconds=time.monotonic() - self.started,
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

    async def trees(self) -> None:
        """Read every manifest and hold it against the listing."""
        self.manifests = [
            key[: -len(MANIFEST)] for key in self.objects if key == MANIFEST or key.endswith("/" + MANIFEST)
        ]
        names = {EXPERIMENT_RECORD, TRIAL_RECORD}
        if not self.manifests and not any(key in names or key.endswith(f"/{TRIAL_RECORD}") for key in self.objects):
            self.missing.add(MANIFEST)
        await for_each(self.manifests, self._tree, min(64, self.workers))
        doubtful = [key for key, entry in self.entries.items() if not self._is_listed_right(key, entry)]
        await for_each(doubtful, self._look_again, self.workers)

    async def _tree(self, prefix: str) -> None:
        try:
            manifest = await find_manifest(self.store, prefix)
        except DamagedError as error:
            self.damaged[prefix + MANIFEST] = str(error)
            return
        if manifest is not None:  # else it was retired since it was listed
            self.entries.update((prefix + path, entry) for path, entry in manifest.files.items())

    def _is_listed_right(self, key: str, entry: FileEntry) -> bool:
        info = self.objects.get(key)
        if info is None or info.size != entry.size:
            return False
        if info.crc32c is not None:
            return info.crc32c == entry.crc32c
        return info.version == entry.version or not self.store.traits.crc32c

    async def _look_again(self, key: str) -> None:
        """The listing may be older than the manifest, and does not always tell checksums."""
        entry = self.entries[key]
        try:
            info = self.objects[key] = await self.store.head(key)
        except NotFoundError:
            self.missing.add(key)
            return
        if info.size != entry.size:
            self.damaged[key] = f"{info.size} bytes, the manifest says {entry.size}"
        elif info.crc32c is not None and info.crc32c != entry.crc32c:
            self.damaged[key] = f"CRC32C {info.crc32c:08x}, the manifest says {entry.crc32c:08x}"

    async def records(self) -> None:
        """What records say must be there too."""
        names = [key for key in self.objects if key == TRIAL_RECORD or key.endswith("/" + TRIAL_RECORD)]
        await for_each(names, self._trial, min(64, self.workers))
        if EXPERIMENT_RECORD in self.objects:
            try:
                await find_record(self.store, EXPERIMENT_RECORD, ExperimentRecord)
            except DamagedError as error:
                self.damaged[EXPERIMENT_RECORD] = str(error)

    async def _trial(self, key: str) -> None:
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
                self.missing.add(manifest)

    async def contents(self, keys: Iterable[str]) -> None:
        """Read every byte of what looked right so far."""
        wanted = [key for key in keys if key not in self.missing]
        self.unread = {key: len(self.entries[key].part_crcs) for key in wanted}
        parts = ((key, offset, size, crc) for key in wanted for offset, size, crc in self.entries[key].ranges())
        await for_each(parts, self._part, self.workers)

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
            except (IntegrityError, PreconditionError):
                continue
            if (done, found) == (size, crc):
                return
        self.damaged[key] = f"bytes {offset} to {offset + size} do not have the checksum that the manifest says"

    async def _read(self, key: str, offset: int, size: int) -> tuple[int, int]:
        done = crc = 0
        if not size:
            return (await self.store.head(key)).size, 0

        async def take(piece: Piece) -> None:
            nonlocal done, crc
            done += len(piece)
            crc = await in_hasher(crc32c_extend, crc, piece)

        version = self.objects[key].version if key in self.objects else None
        await self.store.read(key, take, start=offset, length=size, if_version=version)
        return done, int(crc)

    def look_for_strays(self) -> None:
        """Objects that nobody names; those of a checkpoint without manifest as one directory."""
        trees = set(self.manifests)
        for key in self.objects.keys() - self.entries.keys():
            match = CHECKPOINT_DIR.match(key)
            if match is not None and match[0] not in trees and not self._is_named(match[0]):
                self.stray.add(match[0])
            elif f"/{META_DIR}/" not in f"/{key}":
                self.stray.add(key)

    def _is_named(self, directory: str) -> bool:
        """Its record names it: it is missing its manifest, and reported so."""
        return directory + MANIFEST in self.missing
