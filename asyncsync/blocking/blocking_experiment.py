"""A stored experiment for programs that are not async."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from asyncsync.aio.held_context import HeldContext
from asyncsync.aio.loop_thread import run_to_end
from asyncsync.config import TransferConfig
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.remote.access import DEFAULT_TRANSFER
from asyncsync.remote.restore import RestoreReport
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.remote.views.contents import ExperimentSummary
from asyncsync.remote.views.contents import contents as contents_async
from asyncsync.remote.views.experiment import Experiment
from asyncsync.remote.views.trial_view import TrialView
from asyncsync.report import VerifyReport
from asyncsync.sync.download.open_file import CheckpointFile, moved_to
from asyncsync.sync.download.tree_download import DownloadReport


class StoredFile(io.RawIOBase):
    """A stored file, open for reading like a file of ``open(path, "rb")``. See
    :class:`asyncsync.sync.download.open_file.CheckpointFile` for what is fetched and the errors."""

    def __init__(self, held: HeldContext[CheckpointFile]) -> None:
        super().__init__()
        self._held, self._file, self._position = held, held.value, 0
        self.name, self.size = held.value.name, held.value.size

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at byte {self._position:,}"
        return f"<StoredFile {self.name}, {self._file.size:,} bytes, {state}>"

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` as far as the file goes. Returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; all the rest if it is negative or None."""
        return self._read(-1 if size is None else size)

    def readall(self) -> bytes:
        """All bytes from the present position on."""
        return self._read(-1)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position, and return it. ValueError for one before the beginning, or an unknown ``whence``."""
        self._position = moved_to(offset, whence, self._position, self)
        return self._position

    def tell(self) -> int:
        """The present position."""
        return self._position

    def readline(self, size: int | None = -1, /) -> bytes:
        """The bytes up to and with the next line end, at most ``size``."""
        line: bytes = self._at(self._file.readline)
        line = line if size is None or size < 0 else line[:size]
        self._position += len(line)
        return line

    def _read(self, size: int) -> bytes:
        data: bytes = self._at(self._file.read, size)
        self._position += len(data)
        return data

    def _at(self, func: Callable[..., Any], *args: Any) -> Any:
        if self.closed:
            raise ValueError(f"{self.name} is closed: read it inside its 'with' block")

        async def call() -> Any:
            await self._file.seek(self._position)
            return await func(*args)

        return self._held.call(call)


class StoredCheckpoint:
    """A committed checkpoint; see :class:`asyncsync.CheckpointView`, whose fields it has."""

    def __init__(self, view: CheckpointView) -> None:
        self._view = view
        self.name, self.trial, self.uri, self.number = view.name, view.trial, view.uri, view.number
        self.metrics, self.metadata = view.metrics, view.metadata
        self.files, self.bytes, self.time = view.files, view.bytes, view.time
        self.step, self.pinned, self.tags = view.step, view.pinned, view.tags

    def __repr__(self) -> str:
        return repr(self._view).replace("CheckpointView", "StoredCheckpoint", 1)

    def manifest(self) -> Manifest:
        """Every file with its size and checksums."""
        return run_to_end(self._view.manifest)

    def download(
        self,
        target: str | os.PathLike[str],
        *,
        include: str | Sequence[str] | None = None,
        exact: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> DownloadReport:
        """See :meth:`asyncsync.CheckpointView.download`."""
        return run_to_end(self._view.download, target, include=include, exact=exact, on_progress=on_progress)

    def verify(self, *, deep: bool = True) -> VerifyReport:
        """See :meth:`asyncsync.CheckpointView.verify`."""
        return run_to_end(self._view.verify, deep=deep)

    @contextmanager
    def open(self, path: str) -> Iterator[StoredFile]:
        """Open one file for reading: ``with checkpoint.open("model.bin") as file``. Errors as for
        :meth:`asyncsync.CheckpointView.open`."""
        held = HeldContext("asyncsync file", lambda: self._view.open(path))
        try:
            with StoredFile(held) as file:
                yield file
        except BaseException as error:
            if not held.leave(error):
                raise
        else:
            held.leave()


class StoredTrial:
    """A trial, as its record describes it; see :class:`asyncsync.TrialView`, whose fields it has."""

    def __init__(self, view: TrialView) -> None:
        self._view = view
        self.name, self.uri, self.status, self.error = view.name, view.uri, view.status, view.error
        self.params, self.metrics, self.reports = view.params, view.metrics, view.reports
        self.checkpoints = [StoredCheckpoint(item) for item in view.checkpoints]
        self.started, self.updated, self.lost = view.started, view.updated, view.lost
        self.unfinished, self.given_up, self.shown_status = view.unfinished, view.given_up, view.shown_status

    def __repr__(self) -> str:
        return repr(self._view).replace("TrialView", "StoredTrial", 1)

    def _repr_html_(self) -> str:
        return self._view._repr_html_()

    def history(self) -> list[dict[str, Any]]:
        """See :meth:`asyncsync.TrialView.history`."""
        return run_to_end(self._view.history)


class BlockingExperiment:
    """A snapshot of an experiment, made by ``Experiment.open(uri)``; see :class:`asyncsync.Experiment`."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.name, self.uri, self.status = experiment.name, experiment.uri, experiment.status
        self.lost, self.config = experiment.lost, experiment.config
        self.started, self.heartbeat = experiment.started, experiment.heartbeat
        self.trials = [StoredTrial(trial) for trial in experiment.trials]

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig = DEFAULT_TRANSFER,
        on_partial: Callable[[BlockingExperiment], None] | None = None,
    ) -> BlockingExperiment:
        """See :meth:`asyncsync.Experiment.open`; ``on_partial`` is called on the event loop."""
        hear = None if on_partial is None else lambda found: on_partial(cls(found))
        opening = partial(Experiment.open, uri, storage_options=storage_options, transfer=transfer, on_partial=hear)
        return cls(run_to_end(opening))

    def __repr__(self) -> str:
        return repr(self._experiment).replace("Experiment", "BlockingExperiment", 1)

    def _repr_html_(self) -> str:
        return self._experiment._repr_html_()

    def to_frame(self) -> Any:
        """See :meth:`asyncsync.Experiment.to_frame`."""
        return self._experiment.to_frame()

    @property
    def checkpoints(self) -> list[StoredCheckpoint]:
        """See :attr:`asyncsync.Experiment.checkpoints`."""
        return [StoredCheckpoint(item) for item in self._experiment.checkpoints]

    def trial(self, name: str) -> StoredTrial:
        """See :meth:`asyncsync.Experiment.trial`."""
        return StoredTrial(self._experiment.trial(name))

    def checkpoint(
        self, trial: str | StoredTrial, *, step: int | None = None, name: str | None = None
    ) -> StoredCheckpoint:
        """See :meth:`asyncsync.Experiment.checkpoint`."""
        return StoredCheckpoint(self._experiment.checkpoint(_name_of(trial), step=step, name=name))

    def latest_checkpoint(self, trial: str | StoredTrial | None = None) -> StoredCheckpoint | None:
        """See :meth:`asyncsync.Experiment.latest_checkpoint`."""
        return _stored(self._experiment.latest_checkpoint(None if trial is None else _name_of(trial)))

    def best_checkpoint(
        self, metric: str, order: Literal["max", "min"] = "max", trial: str | StoredTrial | None = None
    ) -> StoredCheckpoint | None:
        """See :meth:`asyncsync.Experiment.best_checkpoint`."""
        return _stored(self._experiment.best_checkpoint(metric, order, None if trial is None else _name_of(trial)))

    def restore(
        self,
        target: str | os.PathLike[str],
        trial: str | StoredTrial | None = None,
        *,
        include: str | Sequence[str] | None = None,
        exact: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RestoreReport[StoredCheckpoint]:
        """See :meth:`asyncsync.Experiment.restore`."""
        name = None if trial is None else _name_of(trial)
        report = run_to_end(
            self._experiment.restore, target, name, include=include, exact=exact, on_progress=on_progress
        )
        return RestoreReport(StoredCheckpoint(report.checkpoint), report.passed_over, report.download)


def contents(
    uri: str | os.PathLike[str],
    *,
    files: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> list[ExperimentSummary] | BlockingExperiment | StoredTrial | Manifest:
    """See :func:`asyncsync.contents`."""
    found = run_to_end(contents_async, uri, files=files, storage_options=storage_options, transfer=transfer)
    if isinstance(found, Experiment):
        return BlockingExperiment(found)
    return StoredTrial(found) if isinstance(found, TrialView) else found


def _name_of(trial: str | StoredTrial) -> str:
    return trial if isinstance(trial, str) else trial.name


def _stored(view: CheckpointView | None) -> StoredCheckpoint | None:
    return None if view is None else StoredCheckpoint(view)
