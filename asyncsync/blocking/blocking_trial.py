"""A trial and its checkpoints for training loops that are not async."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from asyncsync.aio.held_context import HeldContext
from asyncsync.blocking.blocking_experiment import StoredCheckpoint
from asyncsync.config import UploadMode
from asyncsync.engine.trial import Report, Trial
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.remote.restore import RestoreReport
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.report import SyncReport


class BlockingCheckpoint:
    """A reported checkpoint; ``durable()`` blocks."""

    def __init__(self, loop: HeldContext[Any], handle: CheckpointHandle) -> None:
        self._loop, self._handle = loop, handle
        self.name, self.uri = handle.name, handle.uri

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def is_durable(self) -> bool:
        """Whether the store holds the complete checkpoint."""
        return self._handle.is_durable

    def durable(self) -> None:
        """Block until the checkpoint is durable; raises the reason if it cannot be."""
        if self._handle.error is not None:
            raise self._handle.error
        if not self._handle.is_durable:
            self._loop.call(self._handle.durable)


class BlockingReport:
    """The result of one ``report``: the metrics, and the checkpoint or None."""

    def __init__(self, loop: HeldContext[Any], report: Report) -> None:
        self.metrics = report.metrics
        self.checkpoint = None if report.checkpoint is None else BlockingCheckpoint(loop, report.checkpoint)

    def __repr__(self) -> str:
        return f"BlockingReport(metrics={self.metrics!r}, checkpoint={self.checkpoint!r})"


class BlockingTrial:
    """A trial; see :class:`asyncsync.Trial`."""

    def __init__(self, loop: HeldContext[Any], trial: Trial) -> None:
        self._loop, self._trial = loop, trial
        self.name, self.dir, self.uri = trial.name, trial.dir, trial.uri

    def report(
        self,
        metrics: Mapping[str, Any],
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        *,
        step: int | None = None,
        name: str | None = None,
        upload: UploadMode | str = UploadMode.SYNC,
        delete_local: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReport:
        """See :meth:`asyncsync.Trial.report`."""

        report = self._loop.call(
            partial(
                self._trial.report,
                metrics,
                checkpoint,
                step=step,
                name=name,
                upload=upload,
                delete_local=delete_local,
                metadata=metadata,
            )
        )
        return BlockingReport(self._loop, report)

    def __repr__(self) -> str:
        return repr(self._trial).replace("Trial", "BlockingTrial", 1)

    @property
    def status(self) -> str:
        """See :attr:`asyncsync.Trial.status`."""
        return self._trial.status

    def skip(self, step: int, reason: str) -> None:
        """See :meth:`asyncsync.Trial.skip`."""
        self._loop.call(self._trial.skip, step, reason)

    def set_params(self, params: Mapping[str, Any]) -> None:
        """See :meth:`asyncsync.Trial.set_params`."""
        self._loop.call(self._trial.set_params, params)

    def latest(self) -> StoredCheckpoint | None:
        """See :meth:`asyncsync.Trial.latest`."""
        found: CheckpointView | None = self._loop.call(self._trial.latest)
        return None if found is None else StoredCheckpoint(found)

    def restore(
        self, target: str | os.PathLike[str], *, include: str | Sequence[str] | None = None
    ) -> RestoreReport[StoredCheckpoint]:
        """See :meth:`asyncsync.Trial.restore`."""
        report: RestoreReport[CheckpointView] = self._loop.call(partial(self._trial.restore, target, include=include))
        return RestoreReport(StoredCheckpoint(report.checkpoint), report.passed_over, report.download)

    def retire(self, name: str) -> None:
        """See :meth:`asyncsync.Trial.retire`."""
        self._loop.call(self._trial.retire, name)

    def pin(self, name: str) -> None:
        """See :meth:`asyncsync.Trial.pin`."""
        self._loop.call(self._trial.pin, name)

    def unpin(self, name: str) -> None:
        """See :meth:`asyncsync.Trial.unpin`."""
        self._loop.call(self._trial.unpin, name)

    def sync(self) -> SyncReport:
        """See :meth:`asyncsync.Trial.sync`."""
        report: SyncReport = self._loop.call(self._trial.sync)
        return report

    def finish(self, status: str = "finished", error: object = None) -> None:
        """See :meth:`asyncsync.Trial.finish`."""
        self._loop.call(self._trial.finish, status, error)
