"""``pull``: download a tree, a checkpoint, a trial or an experiment into a local directory."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig, check_name, split_sas
from asyncsync.disk.landing import check_parents
from asyncsync.errors import AsyncsyncError, CheckpointIncompleteError, NotFoundError, SyncFailedError
from asyncsync.events import FileProgress, Progress
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.current_tree import NoMatchError, download_current, open_exact_target, remove_others
from asyncsync.remote.selection import Selection
from asyncsync.remote.trial_index import read_trial_index
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.stores.read import exists, find, list_directories
from asyncsync.sync.download.exact_target import ExactTarget, remove_empty, remove_files
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.in_flight import FILES_SHOWN
from asyncsync.sync.records.manifests import NoManifestError, find_manifest, find_record
from asyncsync.sync.records.model import TrialRecord

T = TypeVar("T")

TREES_IN_PARALLEL = 16
MOST_LEVELS_ABOVE = 32
"""Directories above an address in which a manifest is looked for."""
TRIAL_LISTINGS = 64
"""Trials whose directories are listed in parallel."""
ROUNDS_FOR_NEWER = 100
"""Rounds in which checkpoints that replaced retired ones are fetched. Bounded, because a trial may make them faster
than a pull fetches them."""


async def pull(
    uri: str | os.PathLike[str],
    local: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
    on_progress: Callable[[Progress], None] | None = None,
    exact: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> SyncReport:
    """Download everything at ``uri`` into the directory ``local``: a pushed tree, a checkpoint, a trial with its
    checkpoints, an experiment with its trials; or a directory or one file of a tree or a checkpoint, which arrives as
    ``local/<name of the file>``. For the latter two, the manifests of the directories above ``uri`` are looked for.

    ``include`` and ``exclude`` are gitignore patterns, matched with paths relative to ``uri``; only selected files are
    fetched. ``exclude`` takes precedence.

    Every byte is verified against the manifests, and files that are already correct are not transferred again. Nothing
    is deleted, unless ``exact``: then, when everything is in place, other files and links are removed from ``local``,
    and empty directories. Checkpoints that are retired during the pull are left out with a warning, and the checkpoints
    that replaced them are fetched. In the report, "sent" means fetched.

    Raises:
        CheckpointIncompleteError: there is no manifest and no record at ``uri``, or objects are missing.
        DamagedError: the trial's record or the manifest cannot be read.
        IntegrityError: the bytes do not match the manifest.
        SyncFailedError: any other failure, or several trees failed: ``failures`` names them; the others are complete.
        SyncError: a path would leave ``local``; nothing of that tree was written.
        ConfigError: ``local`` must not be cleared, see :meth:`asyncsync.CheckpointView.download`; or
            the patterns match no file, or were given together with ``exact``.
    """
    address, options = split_sas(os.fspath(uri), storage_options)
    access = StoreAccess(options, transfer)
    selection = Selection.of(include, exclude, exact=exact)

    async def work(place: str, selected: Selection) -> SyncReport:
        return await _pull(place, local, selected, access, on_progress)

    return await at_tree(address, selection, access, work)


async def at_tree(
    uri: str, selection: Selection, access: StoreAccess, work: Callable[[str, Selection], Awaitable[T]]
) -> T:
    """Run ``work`` on ``uri``; if nothing complete is stored there, on the tree above that holds it, with the selection
    of that part. CheckpointIncompleteError if there is none either."""
    try:
        return await work(uri, selection)
    except NothingStoredError as error:
        above = await _find_above(uri, access)
        if above is None:
            raise CheckpointIncompleteError(str(error)) from None
    parent, path, file = above
    return await work(parent, selection.inside(path, file=file))


async def _pull(
    uri: str,
    local: str | os.PathLike[str],
    selection: Selection,
    access: StoreAccess,
    on_progress: Callable[[Progress], None] | None,
) -> SyncReport:
    started = time.monotonic()
    async with (
        open_for_reading(uri, access.transfer, access.options) as store,
        open_exact_target(local, selection) as exact_target,
    ):
        target = Path(os.path.abspath(local))
        job = PullJob(store, target, access.transfer.max_concurrency, on_progress, exact_target, selection)
        await job.run()
        return job.report(store.requests, time.monotonic() - started)


class NothingStoredError(CheckpointIncompleteError):
    """There is no manifest and no record at the address. Never leaves :func:`at_tree`."""


async def _find_above(uri: str, access: StoreAccess) -> tuple[str, str, bool] | None:
    """The address of the tree that holds ``uri``, the path in that tree, and whether that is one file. None if the
    directories above have no manifest that names it."""
    scheme, mark, rest = uri.rstrip("/").rpartition("://")
    names = rest.split("/")
    for count in range(len(names) - 1, max(0, len(names) - 1 - MOST_LEVELS_ABOVE), -1):
        parent, path = scheme + mark + "/".join(names[:count]), "/".join(names[count:])
        if not parent or parent.endswith("://"):
            return None
        async with open_for_reading(parent, access.transfer, access.options) as store:
            manifest = await find_manifest(store, "")
        if manifest is None:
            continue
        if path in manifest.files or any(other.startswith(f"{path}/") for other in manifest.files):
            return parent, path, path in manifest.files
    return None


@dataclass(frozen=True, slots=True)
class StoredTree:
    """A tree to fetch."""

    prefix: str
    trial: str | None = None
    """For a checkpoint: the prefix of the trial whose record names it."""
    optional: bool = False
    """The tree may have no manifest: a trial with checkpoints only, an experiment without files of its own."""


@dataclass(slots=True)
class PullJob:
    """A pull of all trees at one address."""

    store: Store
    target: Path
    concurrency: int
    on_progress: Callable[[Progress], None] | None
    exact: ExactTarget | None
    selection: Selection
    done: list[DownloadReport] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """Paths of all downloaded files; only for an exact target."""
    removed: int = 0
    retired: set[str] = field(default_factory=set)
    """Prefixes of trials that have retired a checkpoint since their record was read."""
    known: set[str] = field(default_factory=set)
    """Prefixes of all trees that were fetched or tried."""
    unmatched: list[NoMatchError] = field(default_factory=list)
    """An error for each tree without a selected file."""
    warnings: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    """The last progress of each tree."""
    in_flight: dict[str, tuple[FileProgress, ...]] = field(default_factory=dict)
    """Large files in flight, by tree."""
    sums: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Progress of all trees: files done, files in total, bytes done, bytes in total."""

    async def run(self) -> None:
        trees = await self.trees()
        for _ in range(ROUNDS_FOR_NEWER):
            await self._fetch(trees)
            trees = await self._newer_checkpoints()
            if not trees:
                break
        count = len(self.known)
        if len(self.failures) == 1:
            raise next(iter(self.failures.values()))
        if self.failures:
            text = "; ".join(f"{tree}: {error}" for tree, error in list(self.failures.items())[:5])
            raise SyncFailedError(
                f"{len(self.failures)} of {count} trees of {self.store.uri} failed: {text}", self.failures
            )
        if self.unmatched and not any(report.files_fetched or report.files_skipped for report in self.done):
            raise self.unmatched[0]
        if self.exact is not None:
            self.removed = await remove_others(self.exact, self.target, self.named)

    async def _fetch(self, trees: list[StoredTree]) -> None:
        await in_thread(check_parents, str(self.target), [tree.prefix.rstrip("/") for tree in trees if tree.prefix])
        self.known.update(tree.prefix for tree in trees)
        workers = min(TREES_IN_PARALLEL, len(trees))
        each = max(4, self.concurrency // workers)

        async def fetch(tree: StoredTree) -> None:
            try:
                await self._tree(tree, each)
            except (AsyncsyncError, OSError) as error:
                self.failures[tree.prefix.rstrip("/")] = error

        await for_each_limited(trees, fetch, workers)

    async def _newer_checkpoints(self) -> list[StoredTree]:
        """The checkpoints that replaced retired ones. Each is optional: the records read first did not name it."""
        retired, self.retired = self.retired, set()
        found: list[StoredTree] = []
        for prefix in sorted(retired):
            for name in await self._checkpoints_now(prefix) or ():
                tree = StoredTree(f"{prefix}{name}/", trial=prefix, optional=True)
                if tree.prefix not in self.known:
                    found.append(tree)
        return found

    async def trees(self) -> list[StoredTree]:
        """The trees at the address. NothingStoredError if there is none."""
        if await find(self.store, EXPERIMENT_RECORD) is not None:
            return await self._experiment()
        record = await find_record(self.store, TRIAL_RECORD, TrialRecord)
        if record is not None:
            return await self._trial("", record)
        if await exists(self.store, MANIFEST):
            return [StoredTree("")]
        try:
            return await self._experiment()  # only workers have written it
        except NotFoundError:
            where = self.store.uri.rstrip("/")
            raise NothingStoredError(
                f"there is nothing complete at {where}: no manifest, no experiment and no trial. Check the address, "
                f"asyncsync ls {where.rpartition('/')[0]} shows what is there; if a push was interrupted, run it again"
            ) from None

    async def _experiment(self) -> list[StoredTree]:
        index = await read_trial_index(self.store)
        if index.own is not None:
            return await self._trial("", index.own)
        trees = [StoredTree("", optional=True)]
        found: dict[str, list[StoredTree]] = {}

        async def find_trees(name: str) -> None:
            found[name] = await self._trial(f"{check_name('trial', name)}/", index.trials[name])

        await for_each_limited(list(index.trials), find_trees, max(1, min(TRIAL_LISTINGS, len(index.trials))))
        for name in sorted(found):
            trees.extend(found[name])
        self.failures.update(index.unreadable)
        for name in index.missing():
            self.failures[name] = CheckpointIncompleteError(
                f"the record of the trial {name} is missing, although the experiment's names it; asyncsync rm "
                f"{self.store.uri.rstrip('/')}/{name} removes what is left of it"
            )
        return trees

    async def _trial(self, prefix: str, record: TrialRecord) -> list[StoredTree]:
        """The tree of the trial, the trees of its other ranks, and its checkpoints."""
        names = await list_directories(self.store, prefix)
        ranks = [name for name in names if name.startswith("rank_") and name.removeprefix("rank_").isdigit()]
        return [
            StoredTree(prefix, optional=True),
            *(StoredTree(f"{prefix}{name}/", optional=True) for name in ranks),
            *(StoredTree(f"{prefix}{item.name}/", trial=prefix) for item in record.checkpoints),
        ]

    async def _tree(self, tree: StoredTree, concurrency: int) -> None:
        def report_progress(progress: Progress) -> None:
            self._add_progress(tree.prefix, progress)

        target, landed = self.target / tree.prefix, list[str]()
        try:
            manifest, report = await download_current(
                self.store,
                tree.prefix,
                target,
                self.selection,
                concurrency=concurrency,
                landed=landed,
                exact=self.exact,
                on_progress=report_progress if self.on_progress is not None else None,
                wait_for_manifest=tree.trial is None,
            )
        except (AsyncsyncError, OSError) as error:
            if await self._was_retired(tree):
                await in_thread(remove_files, str(target), landed)
                await in_thread(remove_empty, str(target))
            elif isinstance(error, NoMatchError):
                self.unmatched.append(error)
            elif not (tree.optional and isinstance(error, NoManifestError)):
                raise
        else:
            self.done.append(report)
            if self.exact is not None:
                self.named.update(tree.prefix + path for path in manifest.files)

    async def _was_retired(self, tree: StoredTree) -> bool:
        """Whether a running experiment has retired the checkpoint since its record was read."""
        if tree.trial is None:
            return False
        names = await self._checkpoints_now(tree.trial)
        if names is None or tree.prefix[len(tree.trial) :].rstrip("/") in names:
            return False
        self.retired.add(tree.trial)
        self.warnings.append(f"{tree.prefix.rstrip('/')}: retired during the pull")
        return True

    async def _checkpoints_now(self, trial: str) -> list[str] | None:
        """Names of the checkpoints in a trial's current record; None if there is no record any more."""
        record = await find_record(self.store, trial + TRIAL_RECORD, TrialRecord)
        return None if record is None else [item.name for item in record.checkpoints]

    def _add_progress(self, prefix: str, progress: Progress) -> None:
        """Report the progress of all trees together; the totals grow as manifests are read."""
        old = self.progress.get(prefix)
        self.progress[prefix] = progress
        for index, name in enumerate(("files_done", "files_total", "bytes_done", "bytes_total")):
            self.sums[index] += getattr(progress, name) - (getattr(old, name) if old is not None else 0)
        self.in_flight[prefix] = tuple(replace(item, path=prefix + item.path) for item in progress.files)
        if not progress.files:
            del self.in_flight[prefix]
        if self.on_progress is not None:
            files_done, files_total, bytes_done, bytes_total = self.sums
            self.on_progress(
                Progress(
                    tree="",
                    files_done=files_done,
                    files_total=files_total,
                    bytes_done=bytes_done,
                    bytes_total=bytes_total,
                    files=tuple(item for files in self.in_flight.values() for item in files)[:FILES_SHOWN],
                )
            )

    def report(self, requests: int, seconds: float) -> SyncReport:
        """The sum over all trees."""
        refused = dict.fromkeys(text for item in self.done for text in item.warnings)
        return SyncReport(
            files_sent=sum(item.files_fetched for item in self.done),
            files_skipped=sum(item.files_skipped for item in self.done),
            bytes_total=sum(item.bytes_total for item in self.done),
            bytes_sent=sum(item.bytes_fetched for item in self.done),
            requests=requests,
            seconds=seconds,
            warnings=(*self.warnings, *refused),
            files_deleted=self.removed,
        )
