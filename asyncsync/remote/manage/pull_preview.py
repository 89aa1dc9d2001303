"""``plan_pull``: what a pull would fetch and remove. Reads manifests and local files, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig, split_sas
from asyncsync.disk.descent import Beneath
from asyncsync.disk.landing import same_bytes
from asyncsync.errors import CheckpointIncompleteError, ConfigError
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.pull import TREES_IN_PARALLEL, PullJob, StoredTree, at_tree
from asyncsync.remote.selection import Patterns, Selection
from asyncsync.stores.base import Store
from asyncsync.sync.download.exact_target import ExactTarget
from asyncsync.sync.records.manifests import find_manifest


@dataclass(frozen=True, slots=True)
class PullPlan:
    """The files that a pull would fetch or remove; paths are relative to its target, sizes in bytes."""

    fetch: dict[str, int] = field(default_factory=dict)
    """Path -> size of each missing or different file."""
    remove: list[str] = field(default_factory=list)
    """Only with ``exact``: files and links that are in the target and would be removed."""
    files_skipped: int = 0
    """Files that have the right bytes already."""
    bytes_total: int = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes that would be fetched, if no interrupted pull has left a part of them."""
        return sum(self.fetch.values())


async def plan_pull(
    uri: str | os.PathLike[str],
    local: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
    exact: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
) -> PullPlan:
    """The actions of :func:`asyncsync.pull` if it ran now, with the same arguments and errors. Local files of the right
    size are read and compared with their checksum."""
    address, options = split_sas(os.fspath(uri), storage_options)
    access = StoreAccess(options, transfer)
    selection = Selection.of(include, exclude, exact=exact)

    async def work(place: str, selected: Selection) -> PullPlan:
        async with open_for_reading(place, transfer, options) as store:
            return await _plan(store, Path(os.path.abspath(local)), selected)

    return await at_tree(address, selection, access, work)


async def _plan(store: Store, target: Path, selection: Selection) -> PullPlan:
    exact = ExactTarget(target) if selection.exact else None
    if exact is not None:
        await in_thread(exact.check)
    trees = await PullJob(store, target, 1, None, exact, selection).trees()
    found: dict[str, FileEntry] = {}
    wrong: dict[str, int] = {}

    async def look(tree: StoredTree) -> None:
        manifest = await _selected(store, tree, selection)
        entries = list(manifest.files.values())
        right = await in_thread(same_bytes, Beneath(str(target / tree.prefix)), entries)
        for entry, is_right in zip(entries, right, strict=True):
            found[tree.prefix + entry.path] = entry
            if not is_right:
                wrong[tree.prefix + entry.path] = entry.size

    await for_each_limited(trees, look, min(TREES_IN_PARALLEL, len(trees)))
    if not found and not selection.takes_all:
        raise ConfigError(f"include={list(selection.include)} matches no file of {store.uri}")
    remove = [] if exact is None else await in_thread(exact.others, found.keys())
    total = sum(entry.size for entry in found.values())
    return PullPlan(dict(sorted(wrong.items())), remove, len(found) - len(wrong), total)


async def _selected(store: Store, tree: StoredTree, selection: Selection) -> Manifest:
    manifest = await find_manifest(store, tree.prefix)
    if manifest is None and not tree.optional:
        where = f"{store.uri.rstrip('/')}/{tree.prefix}".rstrip("/")
        raise CheckpointIncompleteError(f"{where} has no manifest: it was retired or deleted since its record was read")
    return Manifest() if manifest is None else selection.pick(manifest, tree.prefix)
