"""``verify``: compare a store with its manifests: one listing, then the manifests, then the bytes if asked to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_hasher
from asyncsync.config import TransferConfig, split_sas
from asyncsync.disk.digests import crc32c_extend
from asyncsync.errors import DamagedError, IntegrityError, NotFoundError, PreconditionError
from asyncsync.events import Progress
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, META_DIR, FileEntry, Manifest
from asyncsync.remote.access import DEFAULT_TRANSFER, open_for_reading
from asyncsync.remote.prefixes import checkpoint_directory, prefixes_with
from asyncsync.remote.trial_index import ended_trials
from asyncsync.report import VerifyReport
from asyncsync.stores.base import ObjectInfo, Piece, Store
from asyncsync.stores.read import exists, list_all
from asyncsync.sync.records.manifests import find_manifest, find_record
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord

PROGRESS_PERIOD = 0.2
"""Seconds between two calls of ``on_progress``."""
MANIFEST_READERS = 64
"""Manifests and records read in parallel; ``max_concurrency`` may allow fewer."""
RECHECKS = 3
"""Times that trees are checked again because a running experiment changes them."""


async def verify(
    uri: str | os.PathLike[str],
    *,
    deep: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
    on_progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Compare every manifest and record below ``uri`` with the stored objects.

    ``deep=False`` compares existence, size and version (ETag, generation) of every object, from one listing. An object
    whose version differs from the manifest was replaced or copied: the checksum that the store keeps decides, and an
    object without one is read. ``deep=True`` reads every byte and computes the CRC32C; a part that does not match is
    read twice. ``replaced`` lists the damaged objects that were written again after their manifest.

    Objects that a running experiment changes or retires during the check are checked again and not reported. A prefix
    without a manifest counts as missing its manifest.

    Args:
        uri: a pushed tree, a checkpoint, a trial or an experiment.
        deep: read every byte.
        storage_options: options of the store.
        transfer: at most ``transfer.max_concurrency`` requests are in flight.
        on_progress: called on the event loop, about five times a second.

    Raises:
        NotFoundError: there is nothing at ``uri``.
        ConfigError: the URI or an option is unknown.
        StoreError: the store refused or failed a request. Damage is not an error: the report lists it.
    """
    address, options = split_sas(os.fspath(uri), storage_options)
    async with open_for_reading(address, transfer, options) as store:
        verification = await Verification.run(store, address, transfer.max_concurrency, on_progress, deep=deep)
        return verification.report(store.requests, deep=deep)


@dataclass(slots=True)
class Verification:
    """One run of the check. Keys are relative to the verified URI."""

    store: Store
    objects: dict[str, ObjectInfo]
    workers: int
    on_progress: Callable[[Progress], None] | None = None
    started: float = field(default_factory=time.monotonic)
    reported: float = 0.0
    """When ``on_progress`` was last called."""
    done: int = 0
    """Bytes checked so far."""
    unread: dict[str, int] = field(default_factory=dict)
    """Number of parts still to be read, by file."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """By prefix."""
    unreadable: set[str] = field(default_factory=set)
    """Prefixes whose manifest cannot be read."""
    entries: dict[str, FileEntry] = field(default_factory=dict)
    """The file that a manifest names, by key."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Key -> reason."""
    missing: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    """The damaged keys that were written again after their manifest."""
    stray: set[str] = field(default_factory=set)
    """Keys and checkpoint directories that no manifest names."""

    @classmethod
    async def run(
        cls, store: Store, uri: str, workers: int, on_progress: Callable[[Progress], None] | None = None, *, deep: bool
    ) -> Verification:
        """Check everything below ``uri``; NotFoundError if there is nothing."""
        objects = await list_all(store, "")
        if not objects:
            raise NotFoundError(f"there is nothing at {uri}")
        verification = cls(store, objects, workers, on_progress)
        await verification.check_trees()
        if deep:
            await verification.check_contents(verification.entries)
        await verification.check_changed_trees(deep=deep)
        await verification.check_records()
        verification.find_strays()
        verification.report_progress(last=True)
        return verification

    def report(self, requests: int, *, deep: bool) -> VerifyReport:
        """The findings."""
        return VerifyReport(
            trees=len(self.manifests) + len(self.unreadable),
            files=len(self.entries),
            bytes=sum(entry.size for entry in self.entries.values()),
            damaged=dict(sorted(self.damaged.items())),
            missing=sorted(self.missing),
            stray=sorted(self.stray),
            deep=deep,
            requests=requests,
            seconds=time.monotonic() - self.started,
            replaced=sorted(self.replaced),
        )

    def report_progress(self, *, last: bool = False) -> None:
        """Call ``on_progress``, at most once per PROGRESS_PERIOD."""
        now = time.monotonic()
        if self.on_progress is None or (now - self.reported < PROGRESS_PERIOD and not last):
            return
        self.reported = now
        total = sum(entry.size for entry in self.entries.values())
        left = sum(count > 0 for count in self.unread.values())
        self.on_progress(
            Progress(
                tree="",
                files_done=len(self.entries) - left,
                files_total=len(self.entries),
                bytes_done=total if last else self.done,
                bytes_total=total,
            )
        )

    @property
    def findings(self) -> set[str]:
        """All damaged and missing keys."""
        return self.damaged.keys() | self.missing

    def clear(self, key: str) -> None:
        """Forget the findings about ``key``."""
        self.damaged.pop(key, None)
        self.missing.discard(key)
        self.replaced.discard(key)

    async def check_trees(self) -> None:
        """Read every manifest and compare it with the listing."""
        prefixes = prefixes_with(MANIFEST, self.objects)
        if not prefixes and EXPERIMENT_RECORD not in self.objects and not prefixes_with(TRIAL_RECORD, self.objects):
            self.missing.add(MANIFEST)
        await for_each_limited(prefixes, self._read_tree, min(MANIFEST_READERS, self.workers))
        await self._check_objects([key for key, entry in self.entries.items() if not self._matches_listing(key, entry)])

    async def _read_tree(self, prefix: str) -> None:
        try:
            manifest = await find_manifest(self.store, prefix)  # None: retired since the listing
        except DamagedError as error:
            self.damaged[prefix + MANIFEST] = str(error)
            self.unreadable.add(prefix)
        else:
            self._use_manifest(prefix, manifest)

    def _matches_listing(self, key: str, entry: FileEntry) -> bool:
        info = self.objects.get(key)
        if info is None or info.size != entry.size:
            return False
        if info.crc32c is not None:
            return info.crc32c == entry.crc32c
        return info.version == entry.version

    async def _check_objects(self, keys: Sequence[str]) -> None:
        """Check single objects: a listing may be older than the manifest and does not always hold checksums."""
        undecided: list[str] = []

        async def check(key: str) -> None:
            if not await self._check_object(key):
                undecided.append(key)

        await for_each_limited(keys, check, self.workers)
        await self.check_contents(undecided)

    async def _check_object(self, key: str) -> bool:
        """Check size, checksum and version. False: only the bytes can decide."""
        entry = self.entries[key]
        try:
            info = self.objects[key] = await self.store.head(key)
        except NotFoundError:
            self.missing.add(key)
            return True
        if info.size != entry.size:
            self._add_damage(key, f"the object has {info.size} bytes, the manifest {entry.size}")
        elif info.crc32c is not None and info.crc32c != entry.crc32c:
            self._add_damage(key, f"the object has CRC32C {info.crc32c:08x}, the manifest {entry.crc32c:08x}")
        return info.crc32c is not None or key in self.findings or not self._has_other_version(key)

    def _has_other_version(self, key: str) -> bool:
        """Whether the version of the object differs from the manifest's, as far as both are known."""
        info, entry = self.objects.get(key), self.entries[key]
        return info is not None and bool(entry.version) and info.version != entry.version

    def _add_damage(self, key: str, problem: str) -> None:
        """The object does not match its manifest: it is damaged, or it was replaced."""
        self.damaged[key] = problem
        if self._has_other_version(key):
            self.replaced.add(key)

    async def check_changed_trees(self, *, deep: bool) -> None:
        """Check trees with findings again if a running experiment has changed or retired them."""
        for _ in range(RECHECKS):
            changed = await self._read_changed_trees()
            if not changed:
                return
            await self._check_objects(changed)
            if deep:
                await self.check_contents(changed)

    async def _read_changed_trees(self) -> list[str]:
        """Read the manifests of trees with findings again. Where the manifest has changed, the new one replaces the old
        one, and its keys are returned; a tree whose manifest is missing now is forgotten."""
        findings, files = self.findings, list[str]()

        async def read(prefix: str, before: Manifest) -> None:
            with suppress(IntegrityError):
                now = await find_manifest(self.store, prefix)
                if now != before:
                    self._forget(prefix, before)
                    files.extend(self._use_manifest(prefix, now))

        trees = [
            (prefix, manifest)
            for prefix, manifest in self.manifests.items()
            if any(prefix + path in findings for path in manifest.files)
        ]
        await for_each_limited(trees, lambda tree: read(*tree), min(MANIFEST_READERS, self.workers))
        return files

    def _forget(self, prefix: str, manifest: Manifest) -> None:
        del self.manifests[prefix]
        for key in [prefix + path for path in manifest.files] + [prefix + MANIFEST]:
            self.clear(key)
            self.entries.pop(key, None)
            self.objects.pop(key, None)

    def _use_manifest(self, prefix: str, manifest: Manifest | None) -> Sequence[str]:
        """Use this manifest of ``prefix``; returns the keys of its files. None: the tree was retired, and its listed
        objects are forgotten."""
        if manifest is None:
            for key in [
                key for key in self.objects if key.startswith(prefix) and checkpoint_directory(prefix) == prefix
            ]:
                del self.objects[key]
            return ()
        self.manifests[prefix] = manifest
        self.entries.update((prefix + path, entry) for path, entry in manifest.files.items())
        return [prefix + path for path in manifest.files]

    async def check_records(self) -> None:
        """Check that every checkpoint that a record names has a manifest, and every trial that has ended a record."""
        trials = prefixes_with(TRIAL_RECORD, self.objects)
        await for_each_limited(trials, self._check_trial, min(MANIFEST_READERS, self.workers))
        if EXPERIMENT_RECORD in self.objects:
            await self._check_experiment()

    async def _check_experiment(self, *, again: bool = False) -> None:
        try:
            record = await find_record(self.store, EXPERIMENT_RECORD, ExperimentRecord)
        except DamagedError as error:
            self.damaged[EXPERIMENT_RECORD] = str(error)
            return
        for trial in ended_trials(record):
            key = f"{trial}/{TRIAL_RECORD}"
            if key not in self.objects and not await exists(self.store, key):
                if not again:
                    await self._check_experiment(again=True)  # the trial may have been removed just now
                    return
                self.missing.add(key)

    async def _check_trial(self, trial: str, *, again: bool = False) -> None:
        try:
            record = await find_record(self.store, trial + TRIAL_RECORD, TrialRecord)
        except DamagedError as error:
            self.damaged[trial + TRIAL_RECORD] = str(error)
            return
        if record is None:
            return
        for checkpoint in record.checkpoints:
            manifest = f"{trial}{checkpoint.name}/{MANIFEST}"
            if manifest not in self.objects and not await exists(self.store, manifest):
                if not again:
                    await self._check_trial(trial, again=True)  # the trial may have retired it just now
                    return
                self.missing.add(manifest)

    async def check_contents(self, keys: Iterable[str]) -> None:
        """Read every byte of the files without findings."""
        findings = self.findings
        wanted = [key for key in keys if key not in findings]
        self.unread.update((key, len(self.entries[key].part_crcs)) for key in wanted)
        parts = ((key, offset, size, crc) for key in wanted for offset, size, crc in self.entries[key].ranges())
        await for_each_limited(parts, self._part, self.workers)

    async def _part(self, part: tuple[str, int, int, int]) -> None:
        await self._check_part(*part)
        self.unread[part[0]] -= 1
        self.done += part[2]
        self.report_progress()

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
        self._add_damage(key, f"bytes {offset} to {offset + size} do not match the checksum in the manifest")

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
        except PreconditionError:  # replaced since the listing
            self.objects[key] = await self.store.head(key)
            return -1, 0
        return done, int(crc)

    def find_strays(self) -> None:
        """Find objects that no manifest names; those of a checkpoint without a manifest count as one directory."""
        trees = self.manifests.keys() | self.unreadable
        for key in self.objects.keys() - self.entries.keys():
            directory = checkpoint_directory(key)
            if directory and directory not in trees and not self._is_named(directory):
                self.stray.add(directory)
            elif f"/{META_DIR}/" not in f"/{key}":
                self.stray.add(key)

    def _is_named(self, directory: str) -> bool:
        """Whether a record names this checkpoint directory: then its manifest is reported as missing."""
        return directory + MANIFEST in self.missing
