"""``pull``: a tree, a trial or a whole experiment into a local directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync.aio.tasks import for_each_limited
from asyncsync.aio.threads import in_thread
from asyncsync.config import TransferConfig, check_name
from asyncsync.disk.landing import check_parents
from asyncsync.errors import AsyncsyncError, CheckpointIncompleteError, NotFoundError, SyncFailedError
from asyncsync.events import Progress
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.access import reading
from asyncsync.remote.catalog import read_catalog
from asyncsync.remote.consistent_download import Selection, clear, download_current, exactly
from asyncsync.report import SyncReport
from asyncsync.stores.base import Store
from asyncsync.stores.read import exists, find, list_directories
from asyncsync.sync.download.exact_target import ExactTarget, remove_empty, remove_files
from asyncsync.sync.download.tree_download import DownloadReport
from asyncsync.sync.records.manifests import NoManifestError, find_record
from asyncsync.sync.records.model import EXPERIMENT_RECORD, TRIAL_RECORD, TrialRecord

TREES_AT_ONCE = 16
ROUNDS = 100
"""How often what came in place of retired checkpoints is fetched: a trial may make them faster than we do."""
DEFAULT = TransferConfig()


async def pull(
    uri: str | os.PathLike[str],
    local: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT,
    on_progress: Callable[[Progress], None] | None = None,
    exact: bool = False,
) -> SyncReport:
    """Fetch what ``uri`` holds into the directory ``local``: a pushed tree, a checkpoint, a trial with its checkpoints,
    or an experiment with all of that.

    Every byte is checked against the manifests; files that are there and right stay; nothing is deleted, unless
    ``exact``: then, when all of it is in place, other files and links in ``local`` are removed, and empty directories.
    Checkpoints that are retired meanwhile are left out with a warning, and those that came instead are fetched.
    In the report "sent" is what was fetched.

    Raises:
        CheckpointIncompleteError: there is no manifest and no record at ``uri``, or objects are missing.
        DamagedError: the trial's record or the manifest cannot be read.
        IntegrityError: bytes are not what the manifest says.
        SyncFailedError: anything else, or several trees failed: ``failures`` names them; the others are complete.
        SyncError: a path would leave ``local``; nothing of that tree was written.
        ConfigError: ``local`` is not to be made exact, see :meth:`asyncsync.remote.experiment.CheckpointView.download`.
    """
    started = time.monotonic()
    async with reading(uri, transfer, storage_options) as store, exactly(local, Selection(exact=exact)) as room:
        job = _Pull(store, Path(os.path.abspath(local)), transfer.max_concurrency, on_progress, room)
        await job.run()
        return job.report(store.requests, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tree to fetch; ``trial`` is set for a checkpoint that this trial's record names."""

    prefix: str
    trial: str | None = None
    optional: bool = False
    """It may have no manifest: a trial that has only checkpoints, an experiment without files of its own."""


@dataclass(slots=True)
class _Pull:
    store: Store
    target: Path
    concurrency: int
    on_progress: Callable[[Progress], None] | None
    room: ExactTarget | None = None
    done: list[DownloadReport] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """Paths of all files that were fetched, kept for an exact target only."""
    removed: int = 0
    retired: set[str] = field(default_factory=set)
    """Prefixes of trials that have retired something since their record was read."""
    known: set[str] = field(default_factory=set)
    """Prefixes of trees that were seen to."""
    warnings: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    seen: dict[str, Progress] = field(default_factory=dict)
    sums: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    async def run(self) -> None:
        trees = await self._trees()
        for _ in range(ROUNDS):
            await self._fetch(trees)
            trees = await self._newer()
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
        if self.room is not None:
            self.removed = await clear(self.room, self.target, self.named)

    async def _fetch(self, trees: list[_Wanted]) -> None:
        await in_thread(check_parents, str(self.target), [tree.prefix.rstrip("/") for tree in trees if tree.prefix])
        self.known.update(tree.prefix for tree in trees)
        workers = min(TREES_AT_ONCE, len(trees))
        each = max(4, self.concurrency // workers)

        async def fetch(tree: _Wanted) -> None:
            try:
                await self._tree(tree, each)
            except (AsyncsyncError, OSError) as error:
                self.failures[tree.prefix.rstrip("/")] = error

        await for_each_limited(trees, fetch, workers)

    async def _newer(self) -> list[_Wanted]:
        """What came in place of what was retired. Only what is there: nobody had named it when we began."""
        retired, self.retired = self.retired, set()
        found: list[_Wanted] = []
        for prefix in sorted(retired):
            for name in await self._named_now(prefix) or ():
                tree = _Wanted(f"{prefix}{name}/", trial=prefix, optional=True)
                if tree.prefix not in self.known:
                    found.append(tree)
        return found

    async def _trees(self) -> list[_Wanted]:
        if await find(self.store, EXPERIMENT_RECORD) is not None:
            return await self._experiment()
        record = await find_record(self.store, TRIAL_RECORD, TrialRecord)
        if record is not None:
            return await self._trial("", record)
        if await exists(self.store, MANIFEST):
            return [_Wanted("")]
        try:
            return await self._experiment()  # written by workers only
        except NotFoundError:
            raise CheckpointIncompleteError(
                f"there is nothing complete at {self.store.uri}: no manifest, no experiment and no trial. Look at the "
                "address; a push that was interrupted has to be run again"
            ) from None

    async def _experiment(self) -> list[_Wanted]:
        catalog = await read_catalog(self.store)
        trees = [_Wanted("", optional=True)]
        found: dict[str, list[_Wanted]] = {}

        async def look(name: str) -> None:
            found[name] = await self._trial(f"{check_name('trial', name)}/", catalog.trials[name])

        await for_each_limited(list(catalog.trials), look, max(1, min(64, len(catalog.trials))))
        for name in sorted(found):
            trees.extend(found[name])
        self.failures.update(catalog.unreadable)
        return trees

    async def _trial(self, prefix: str, record: TrialRecord) -> list[_Wanted]:
        """The trial's own tree, those of its other ranks, and its checkpoints."""
        names = await list_directories(self.store, prefix)
        ranks = [name for name in names if name.startswith("rank_") and name.removeprefix("rank_").isdigit()]
        return [
            _Wanted(prefix, optional=True),
            *(_Wanted(f"{prefix}{name}/", optional=True) for name in ranks),
            *(_Wanted(f"{prefix}{item.name}/", trial=prefix) for item in record.checkpoints),
        ]

    async def _tree(self, tree: _Wanted, concurrency: int) -> None:
        def tell(progress: Progress) -> None:
            self._tell(tree.prefix, progress)

        target, landed = self.target / tree.prefix, list[str]()
        try:
            manifest, report = await download_current(
                self.store, tree.prefix, target, concurrency=concurrency, landed=landed, room=self.room,
                on_progress=tell if self.on_progress is not None else None, patient=tree.trial is None,
            )  # fmt: skip
        except (AsyncsyncError, OSError) as error:
            if await self._was_retired(tree):
                await in_thread(remove_files, str(target), landed)
                await in_thread(remove_empty, str(target))
            elif not (tree.optional and isinstance(error, NoManifestError)):
                raise
        else:
            self.done.append(report)
            if self.room is not None:
                self.named.update(tree.prefix + path for path in manifest.files)

    async def _was_retired(self, tree: _Wanted) -> bool:
        """A running experiment may have retired the checkpoint since we read the record."""
        if tree.trial is None:
            return False
        names = await self._named_now(tree.trial)
        if names is None or tree.prefix[len(tree.trial) :].rstrip("/") in names:
            return False
        self.retired.add(tree.trial)
        self.warnings.append(f"{tree.prefix.rstrip('/')}: retired while the experiment was read")
        return True

    async def _named_now(self, trial: str) -> list[str] | None:
        """Names of the checkpoints in a trial's record; None if that is gone."""
        record = await find_record(self.store, trial + TRIAL_RECORD, TrialRecord)
        return None if record is None else [item.name for item in record.checkpoints]

    def _tell(self, prefix: str, progress: Progress) -> None:
        """One line for all trees; totals grow as manifests are read."""
        old = self.seen.get(prefix)
        self.seen[prefix] = progress
        for index, name in enumerate(("files_done", "files_total", "bytes_done", "bytes_total")):
            self.sums[index] += getattr(progress, name) - (getattr(old, name) if old is not None else 0)
        if self.on_progress is not None:
            files_done, files_total, bytes_done, bytes_total = self.sums
            self.on_progress(
                Progress(
                    tree="", files_done=files_done, files_total=files_total, bytes_done=bytes_done,
                    bytes_total=bytes_total,
                )
            )  # fmt: skip

    def report(self, requests: int, seconds: float) -> SyncReport:
        """All trees together."""
        refused = dict.fromkeys(text for item in self.done for text in item.warnings)
        return SyncReport(
            files_sent=sum(item.files_fetched for item in self.done),
            files_skipped=sum(item.files_skipped for item in self.done),
            bytes_total=sum(item.bytes_total for item in self.done),
            bytes_sent=sum(item.bytes_fetched for item in self.done),
            requests=requests, seconds=seconds, warnings=(*self.warnings, *refused),
            files_deleted=self.removed,
        )  # fmt: skip
