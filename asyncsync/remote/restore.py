"""Private: restore the newest complete checkpoint, also while its trial runs on and retires older ones."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from asyncsync.aio.threads import in_thread
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    CheckpointRetiredError,
    IntegrityError,
    NotFoundError,
    SyncFailedError,
)
from asyncsync.sync.download.exact_target import remove_files
from asyncsync.sync.download.tree_download import DownloadReport

RETIREMENTS_IN_A_ROW = 100
"""Checkpoints in a row that may be retired during their download, before the restore gives up as too slow."""


class Restorable(Protocol):
    """The attributes of a checkpoint that a restore needs."""

    @property
    def name(self) -> str: ...

    @property
    def trial(self) -> str: ...

    @property
    def uri(self) -> str: ...

    @property
    def time(self) -> float: ...


C = TypeVar("C", bound=Restorable)


@dataclass(frozen=True)
class Candidates(Generic[C]):
    """The checkpoints that the records name at one moment."""

    checkpoints: Sequence[C]
    """In the order in which a restore tries them."""
    unreadable: Sequence[tuple[str, str]] = ()
    """(trial, reason) of each trial whose record cannot be read."""


@dataclass(frozen=True)
class RestoreReport(Generic[C]):
    """The result of a restore. It can be used as the path of the target."""

    checkpoint: C
    """The restored checkpoint."""
    passed_over: list[tuple[str, str]]
    """(``trial/checkpoint``, reason) of each newer checkpoint that was incomplete or damaged, newest first; before them
    (``trial``, reason) of each trial whose record cannot be read. Retired checkpoints are not listed."""
    download: DownloadReport

    def __fspath__(self) -> str:
        return os.fspath(self.download)


async def restore_newest(
    known: Candidates[C],
    read_again: Callable[[], Awaitable[Candidates[C]]],
    target: Path,
    where: str,
    fetch: Callable[[C, list[str]], Awaitable[DownloadReport]],
) -> RestoreReport[C]:
    """Try the ``known`` checkpoints in their order. ``read_again`` reads the records again; ``fetch`` downloads one
    checkpoint and fills the list with the paths that it has put into ``target``.

    If a checkpoint was retired since, the currently newest one is tried next, never an older one. An error is
    raised only when the current records name no checkpoint that was not tried. See
    :meth:`asyncsync.remote.views.experiment.Experiment.restore` for the errors.
    """
    tried: dict[tuple[str, float], tuple[str, str]] = {}
    for _ in range(RETIREMENTS_IN_A_ROW):
        for item in known.checkpoints:
            if _identity(item) in tried:
                continue
            result = await _try(item, target, fetch)
            if isinstance(result, DownloadReport):
                newer = known.checkpoints[: known.checkpoints.index(item)]
                passed_over = [*known.unreadable, *(tried[_identity(other)] for other in newer)]
                return RestoreReport(item, passed_over, result)
            tried[_identity(item)] = (f"{item.trial}/{item.name}", str(result))
            if isinstance(result, CheckpointRetiredError):
                break
        known = await read_again()
        if all(_identity(item) in tried for item in known.checkpoints):
            raise _nothing_restored(where, [*known.unreadable, *tried.values()], len(tried))
    raise CheckpointIncompleteError(
        f"{where}: {RETIREMENTS_IN_A_ROW} checkpoints in a row were retired during their download: "
        "keep more (num_to_keep)"
    )


def _identity(item: Restorable) -> tuple[str, float]:
    """Identifies this checkpoint: a name may be used again."""
    return item.uri, item.time


async def _try(
    item: C, target: Path, fetch: Callable[[C, list[str]], Awaitable[DownloadReport]]
) -> DownloadReport | Exception:
    """Download a checkpoint. Returns the reason if it is incomplete or damaged, after removing its files: they must not
    mix with the files of another checkpoint."""
    landed: list[str] = []
    try:
        return await fetch(item, landed)
    except AsyncsyncError as error:
        if not is_incomplete_or_damaged(error):
            raise
        reason = error
    await in_thread(remove_files, str(target), landed)
    return reason


def is_incomplete_or_damaged(error: AsyncsyncError) -> bool:
    """Whether the stored checkpoint caused the failure, and not the network or the local disk."""
    if isinstance(error, SyncFailedError):
        return all(isinstance(cause, IntegrityError | NotFoundError) for cause in error.failures.values())
    return isinstance(error, CheckpointIncompleteError | IntegrityError | NotFoundError)


def _nothing_restored(where: str, passed_over: Sequence[tuple[str, str]], count: int) -> Exception:
    if not passed_over:
        return NotFoundError(f"{where} has no checkpoint to restore")
    text = "; ".join(f"{name}: {reason}" for name, reason in passed_over[:5])
    return CheckpointIncompleteError(f"none of the {count} checkpoints of {where} can be restored: {text}")
