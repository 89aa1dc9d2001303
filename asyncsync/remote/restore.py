"""Getting back the newest checkpoint that is whole, also while its trial goes on and retires what was known."""

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

LOOKS = 100
"""How often in a row a restore may find that what it fetches has been retired, before it says that it is too slow."""


class Restorable(Protocol):
    """What a checkpoint needs to have."""

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
    """What the records name at one moment."""

    checkpoints: Sequence[C]
    """In the order in which they are tried."""
    unreadable: Sequence[tuple[str, str]] = ()
    """Trials whose checkpoints nobody knows, and why."""


@dataclass(frozen=True)
class RestoreReport(Generic[C]):
    """What a restore brought back. It can be used as the path of the target."""

    checkpoint: C
    passed_over: list[tuple[str, str]]
    """(``trial/checkpoint``, why) of each newer one that was not whole, newest first; before them (``trial``, why) of
    each trial whose record cannot be read. What was retired meanwhile is not among them: something newer was there."""
    download: DownloadReport

    def __fspath__(self) -> str:
        return os.fspath(self.download)


async def restore_newest(
    known: Candidates[C], look: Callable[[], Awaitable[Candidates[C]]], target: Path, where: str,
    fetch: Callable[[C, list[str]], Awaitable[DownloadReport]],
) -> RestoreReport[C]:  # fmt: skip
    """Try what is ``known``, in its order; ``look`` reads the records again, ``fetch`` downloads one and fills the list
    with what it has put into ``target``.

    A checkpoint that was retired since sends us forward to what is newest now, never back to an older one. The error is
    raised only when a fresh look names nothing that was not tried. See
    :meth:`asyncsync.remote.experiment.Experiment.restore` for the errors.
    """
    tried: dict[tuple[str, float], tuple[str, str]] = {}
    for _ in range(LOOKS):
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
        known = await look()
        if all(_identity(item) in tried for item in known.checkpoints):
            raise _nothing_whole(where, [*known.unreadable, *tried.values()], len(tried))
    raise CheckpointIncompleteError(
        f"{where}: {LOOKS} checkpoints in a row were retired while they were downloaded: keep more (num_to_keep)"
    )


def _identity(item: Restorable) -> tuple[str, float]:
    """Of this very checkpoint: a name may be used again."""
    return item.uri, item.time


async def _try(
    item: C, target: Path, fetch: Callable[[C, list[str]], Awaitable[DownloadReport]]
) -> DownloadReport | Exception:
    """Download it, or why it is not whole. Its files must not be mixed with those of another: then they go."""
    landed: list[str] = []
    try:
        return await fetch(item, landed)
    except AsyncsyncError as error:
        if not is_not_whole(error):
            raise
        reason = error
    await in_thread(remove_files, str(target), landed)
    return reason


def is_not_whole(error: AsyncsyncError) -> bool:
    """Whether a download failed because of what is in the store, and not of the way or the disk."""
    if isinstance(error, SyncFailedError):
        return all(isinstance(cause, IntegrityError | NotFoundError) for cause in error.failures.values())
    return isinstance(error, CheckpointIncompleteError | IntegrityError | NotFoundError)


def _nothing_whole(where: str, passed_over: Sequence[tuple[str, str]], count: int) -> Exception:
    if not passed_over:
        return NotFoundError(f"{where} has no checkpoint to restore")
    text = "; ".join(f"{name}: {reason}" for name, reason in passed_over[:5])
    return CheckpointIncompleteError(f"none of the {count} checkpoints of {where} is whole: {text}")
