"""Getting back the newest checkpoint that is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from asyncsync.disk.files import in_thread
from asyncsync.errors import CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError
from asyncsync.events import Progress
from asyncsync.transfer.download import DownloadReport


class Restorable(Protocol):
    """What a checkpoint needs to have."""

    @property
    def name(self) -> str: ...

    @property
    def trial(self) -> str: ...

    @property
    def uri(self) -> str: ...

    async def download(
        self,
        target: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        landed: list[str] | None = None,
    ) -> DownloadReport: ...


C = TypeVar("C", bound=Restorable)


@dataclass(frozen=True)
class RestoreReport(Generic[C]):
    """What a restore brought back. It can be used as the path of the target."""

    checkpoint: C
    passed_over: list[tuple[str, str]]
    """(``trial/checkpoint``, why) of each newer one that was not whole, newest first; before them (``trial``, why) of
    each trial whose record cannot be read."""
    download: DownloadReport

    def __fspath__(self) -> str:
        return os.fspath(self.download)


async def restore_newest(
    candidates: Sequence[C], target: Path, where: str, on_progress: Callable[[Progress], None] | None,
    unreadable: Sequence[tuple[str, str]] = (),
) -> RestoreReport[C]:  # fmt: skip
    """Try ``candidates`` in order. ``unreadable``: trials whose checkpoints nobody knows, and why. See
    :meth:`asyncsync.experiment.Experiment.restore` for the errors."""
    passed_over = list(unreadable)
    for item in candidates:
        landed: list[str] = []
        try:
            report = await item.download(target, on_progress=on_progress, landed=landed)
        except (CheckpointIncompleteError, IntegrityError) as error:
            reason = str(error)
        except SyncFailedError as error:
            if not all(isinstance(cause, IntegrityError | NotFoundError) for cause in error.failures.values()):
                raise
            reason = str(error)
        else:
            return RestoreReport(item, passed_over, report)
        await in_thread(_remove, target, landed)
        passed_over.append((f"{item.trial}/{item.name}", reason))
    if not passed_over:
        raise NotFoundError(f"{where} has no checkpoint to restore")
    text = "; ".join(f"{name}: {reason}" for name, reason in passed_over[:5])
    raise CheckpointIncompleteError(f"none of the {len(candidates)} checkpoints of {where} is whole: {text}")


def _remove(target: Path, paths: Sequence[str]) -> None:
    """Files of a checkpoint that turned out damaged must not be mixed with those of an older one."""
    for path in paths:
        (target / path).unlink(missing_ok=True)
    for directory in sorted({parent for path in paths for parent in Path(path).parents if parent.name}, reverse=True):
        try:
            (target / directory).rmdir()
        except OSError:
            continue  # not empty: it holds something else
