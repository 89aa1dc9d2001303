"""Checkpoints of ``torch.distributed.checkpoint`` (DCP) in a store::

    from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter, asyncsync_reader

    with SyncEngine(run, role="worker", rank=rank, world_size=world_size, resume=True) as engine:
        trial = engine.trial("run")
        dcp.save(state, checkpoint_id=f"step-{n}", storage_writer=AsyncsyncWriter(trial))

    dcp.load(state, storage_reader=asyncsync_reader("s3://bucket/experiment/run"))

``SyncEngine`` is the one of ``asyncsync.blocking``. Every rank sends the files that it wrote. A checkpoint exists when
all ranks have sent theirs; no rank waits for another one's upload.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from asyncsync import (
    AsyncsyncError,
    Checkpoint,
    CheckpointIncompleteError,
    ConfigError,
    NotFoundError,
    TransferConfig,
    UploadMode,
)
from asyncsync.blocking import BlockingCheckpoint, BlockingTrial, Experiment, StoredCheckpoint
from asyncsync.integrations.run_address import RunAddress, missing

try:
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
    from torch.distributed.checkpoint.filesystem import FileSystem
except ImportError as error:
    raise missing("torch", "torch", error) from error

log = logging.getLogger("asyncsync")

_STEP = re.compile(r"(\d+)/?$")
STAGING = ".asyncsync/dcp"
"""Below the trial's directory: files that are not durable yet."""


class AsyncsyncWriter(FileSystemWriter):  # type: ignore[misc]
    """Writes this rank's files to the local disk, then hands them over for upload; ``dcp.save`` returns after that.

    Use it with ``dcp.save`` and with ``dcp.async_save`` in a thread. One writer may serve many saves. A checkpoint that
    fails after ``dcp.save`` returned is logged at the next save, and leaving the engine raises it.

    Args:
        trial: of a running blocking engine that has this process' rank and world size.
        staging: a local directory for files that are not durable yet. Default: inside the trial's directory.
        upload: ASYNC, or SYNC to return from ``dcp.save`` when the checkpoint is durable.

    The ``checkpoint_id`` must end in the training step, such as ``step-100``; otherwise ConfigError.
    """

    def __init__(
        self,
        trial: BlockingTrial,
        *,
        staging: str | os.PathLike[str] | None = None,
        upload: UploadMode = UploadMode.ASYNC,
    ) -> None:
        self._staging = Path(staging if staging is not None else trial.dir / STAGING)
        super().__init__(self._staging / "unnamed", sync_files=False)
        self._trial, self._upload = trial, upload
        self._step = -1
        self._coordinator = True
        self._metrics: Mapping[str, Any] = {}
        self.checkpoint: BlockingCheckpoint | None = None
        """The last checkpoint that this rank handed over; ``checkpoint.durable()`` waits for it."""

    def with_metrics(self, metrics: Mapping[str, Any]) -> AsyncsyncWriter:
        """The same writer; its next checkpoints are stored with these metrics."""
        self._metrics = metrics
        return self

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a checkpoint."""
        self._step = step_of(checkpoint_id)
        path = self._staging / f"step-{self._step}"
        shutil.rmtree(path, ignore_errors=True)
        super().reset(path)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remember whether this rank writes the metadata."""
        self._coordinator = is_coordinator or not kwargs.get("use_collectives", True)
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write the files. The coordinator hands them over in :meth:`finish`, after the metadata."""
        written = super().write_data(plan, planner)
        if not self._coordinator:
            self._hand_over()
        return written

    def finish(self, metadata: Any, results: Any) -> None:
        """Write the metadata and hand the files over."""
        super().finish(metadata, results)
        self._hand_over()

    def _hand_over(self) -> None:
        """Report the files. The next report raises the failure of an earlier checkpoint; that must not prevent
        this one."""
        try:
            self._report()
        except AsyncsyncError as error:
            log.warning("%s: an earlier checkpoint is not stored: %s", self._trial.uri, error)
            self._report()

    def _report(self) -> None:
        source = Checkpoint.take(cast("str", self.path))
        report = self._trial.report(self._metrics, source, step=self._step, upload=self._upload)
        self.checkpoint = report.checkpoint

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigError(
            "AsyncsyncWriter cannot go to another process, its engine runs in this one: use "
            "dcp.async_save(async_checkpointer_type=AsyncCheckpointerType.THREAD)"
        )


def asyncsync_reader(
    uri: str | os.PathLike[str],
    *,
    step: int | None = None,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig | None = None,
) -> AsyncsyncReader:
    """A reader of the run's newest checkpoint, or of the one of ``step``. ``dcp.load(checkpoint_id="step-100")``
    chooses a step, too. ``uri``: ``store/experiment/run``.

    Each rank fetches the parts of files that hold its own tensors, verified; the world size may differ from that of the
    save.

    Raises ConfigError for an invalid address or a step that was not stored, and NotFoundError if the run has no
    checkpoint yet: a fresh start, on all ranks alike. (``trial.latest()`` knows less on ranks other than 0.)
    """
    address, options = RunAddress.of(uri), {"storage_options": storage_options, "transfer": transfer}
    return AsyncsyncReader(address, step, {name: value for name, value in options.items() if value is not None})


class AsyncsyncReader(FileSystemReader):  # type: ignore[misc]
    """See :func:`asyncsync_reader`."""

    def __init__(self, address: RunAddress, step: int | None, options: Mapping[str, Any]) -> None:
        super().__init__("/")
        self._address, self._options = address, options
        self._choose(step)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a load."""
        super().reset(None)
        if checkpoint_id:
            self._choose(step_of(checkpoint_id))

    def prepare_local_plan(self, plan: Any) -> Any:
        """Read each file from its beginning to its end, so that each part is fetched once."""

        def place(item: Any) -> tuple[str, int]:
            stored = self.storage_data[item.storage_index]
            return stored.relative_path, stored.offset

        return dataclasses.replace(plan, items=sorted(plan.items, key=place))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it ends in a step."""
        return _STEP.search(os.fspath(checkpoint_id)) is not None

    def _choose(self, step: int | None) -> None:
        experiment = Experiment.open(self._address.experiment_uri, **self._options)
        name, found = self._address.trial, None
        if name in {trial.name for trial in experiment.trials}:
            found = experiment.latest_checkpoint(name) if step is None else experiment.checkpoint(name, step=step)
        if found is None:
            raise NotFoundError(f"{self._address.experiment_uri}/{name} has no checkpoint")
        self.checkpoint = found
        self.fs, self.path = _StoredFiles(found), Path(found.name)


class _StoredFiles(FileSystem):  # type: ignore[misc]
    """The files of a stored checkpoint, for torch's reader."""

    def __init__(self, checkpoint: StoredCheckpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:
        """Open a file for reading."""
        if mode != "rb":
            raise ConfigError(f"{self._checkpoint.uri} is read only")
        relative = Path(path).relative_to(self._checkpoint.name).as_posix()
        try:
            with self._checkpoint.open(relative) as file:
                yield cast("IO[bytes]", file)
        except ConfigError as error:
            raise CheckpointIncompleteError(f"{self._checkpoint.uri} was not written by DCP: {error}") from error

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether the checkpoint has the file."""
        relative = Path(path).relative_to(self._checkpoint.name).as_posix()
        return relative in self._checkpoint.manifest().files


def step_of(checkpoint_id: str | os.PathLike[str] | None) -> int:
    """The training step at the end of a ``checkpoint_id``; ConfigError if there is none."""
    match = _STEP.search(os.fspath(checkpoint_id)) if checkpoint_id else None
    if match is None:
        raise ConfigError(
            f"invalid checkpoint_id={checkpoint_id!r}: must end in the training step, such as 'step-100'; the ranks' "
            "files are matched by it"
        )
    return int(match[1])
