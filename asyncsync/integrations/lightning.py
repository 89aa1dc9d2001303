"""Checkpoints of Lightning's ``Trainer``, mirrored to a store while training runs::

    from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

    io = AsyncsyncCheckpointIO("ckpts", "s3://bucket/run")
    trainer = Trainer(plugins=[io], callbacks=[ModelCheckpoint("ckpts", save_top_k=2, save_last=True)])
    trainer.fit(model, ckpt_path=io.fetch("last.ckpt"))

It works with ``lightning`` and with ``pytorch_lightning``.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncsync import (
    CheckpointIncompleteError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    SyncConfig,
    SyncFailedError,
    TransferConfig,
)
from asyncsync.blocking import Syncer, pull
from asyncsync.events import Event, SyncFailed, SyncTimedOut
from asyncsync.integrations.run_address import missing

log = logging.getLogger("asyncsync")

TEMPORARY = ".asyncsync-tmp"
"""Suffix of files that no sync sends."""
SHARDED_MARKER = "meta.pt"
"""The file that Lightning writes last into a sharded checkpoint."""
_OF_LIGHTNING = re.compile(r"\.(temp|lr_find_.*|scale_batch_size_.*)\.ckpt|hpc_ckpt_\d+\.ckpt")
"""Checkpoints of a moment: of spawned processes and tuners; and the one that a SLURM job leaves for its next run."""

_starting = threading.Lock()
"""Held while a syncer starts: with AsyncCheckpointIO, saves come from its thread and removals from the trainer's."""


def _plugins() -> Iterator[Any]:
    """The plugins of each installed twin: an instance of one twin's classes is refused by the other's trainer."""
    failure: ImportError | None = None
    found = False
    for name in ("lightning.fabric.plugins", "lightning_fabric.plugins"):
        try:
            yield importlib.import_module(name)
            found = True
        except ImportError as error:
            failure = error
    if not found and failure is not None:
        raise missing("lightning or pytorch_lightning", "lightning", failure) from failure


_TWINS = tuple(_plugins())
torch: Any = importlib.import_module("torch")  # a dependency of both twins
_BASES: tuple[Any, ...] = tuple(dict.fromkeys(twin.CheckpointIO for twin in _TWINS))


class _TorchFile(_TWINS[0].TorchCheckpointIO):  # type: ignore[misc]
    """Lightning's own plugin, without its copy of the checkpoint in memory: that copy makes its save atomic, which the
    rename of AsyncsyncCheckpointIO does already. Without it, a save takes half of the time."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Write a temporary file, which nobody reads before it is complete; other paths are Lightning's own way."""
        if path.endswith(TEMPORARY):
            torch.save(checkpoint, path)
        else:
            super().save_checkpoint(checkpoint, path, storage_options)


class AsyncsyncCheckpointIO(*_BASES):  # type: ignore[misc]
    """Saves checkpoints in ``dirpath``, each with one rename, and keeps ``uri`` equal to it in the background.

    The mirror holds the checkpoints that Lightning keeps: ``save_top_k``, ``last.ckpt``; removed ones are removed.
    Files that an earlier run stored and this machine lacks stay in the store. Training stands still for the local save
    only. ``teardown``, at the end of ``fit``, syncs once more and raises the error if anything is not stored. A sync
    that fails before is logged, and the next save tries again. Only rank 0 saves and sends. Sharded checkpoints, which
    FSDP and ModelParallelStrategy write without their plugin, are sent with the next removal and by ``teardown``.

    Lightning's ``AsyncCheckpointIO`` may wrap it; it does not pass ``teardown`` on, so call it after ``fit``.

    Args:
        dirpath: the directory of ``ModelCheckpoint``; every checkpoint must be saved below it. Files that Lightning
            puts elsewhere for itself (``.temp.ckpt``, ``.lr_find_*.ckpt``, ``hpc_ckpt_*.ckpt``) stay local.
        uri: where it is stored, such as ``s3://bucket/run``. One training at a time.
        checkpoint_io: the plugin that writes and reads the local files. Default: ``torch.save`` and Lightning's
            own loading.
        storage_options: options of the store.
        transfer: limits and sizes of transfers.

    Raises ConfigError for a remote ``dirpath``; on rank 0 also the error of a store that cannot be used.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        uri: str | os.PathLike[str],
        *,
        checkpoint_io: Any = None,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig | None = None,
    ) -> None:
        if "://" in os.fspath(dirpath):
            raise ConfigError(
                f"invalid dirpath={os.fspath(dirpath)!r}: must be a local directory; the store is the second argument"
            )
        self.dirpath, self.uri = Path(os.path.abspath(dirpath)), os.fspath(uri)
        self._inner = checkpoint_io if checkpoint_io is not None else _TorchFile()
        self._options, self._transfer = dict(storage_options or {}), transfer or TransferConfig()
        self._syncer: Syncer | None = None
        self._process, self._made = os.getpid(), time.time()
        if _is_first_rank():
            with self._new_syncer() as syncer:
                syncer.probe()

    # called by Lightning

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save locally, and ask for a sync. ConfigError for a path outside ``dirpath``; TypeError for
        ``storage_options``, like Lightning's own plugin."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported here: give them to AsyncsyncCheckpointIO")
        if self._is_of_lightning(path):
            self._inner.save_checkpoint(checkpoint, os.fspath(path))
            return
        self._save(checkpoint, self._inside(path))
        self._running().request()

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Load a local checkpoint."""
        loaded: dict[str, Any] = self._inner.load_checkpoint(path, *args, **options)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a local checkpoint; the next sync removes it from the store."""
        if self._is_of_lightning(path):
            self._inner.remove_checkpoint(path)
            return
        target = self._inside(path)
        self._inner.remove_checkpoint(path)
        syncer = self._running()
        syncer.remove(self._name(target))
        syncer.request()

    def teardown(self) -> None:
        """Sync once more and stop. Raises the error if anything is not stored."""
        try:
            self._inner.teardown()
        finally:
            if os.getpid() == self._process and (self._syncer is not None or self._has_new_shards()):
                self._sync_and_stop()

    # called by the user

    def fetch(self, name: str = "last.ckpt") -> str | None:
        """Download a checkpoint from the store, verified, unless ``dirpath`` has it. Returns its local path for
        ``fit(ckpt_path=...)``; None if the store has no checkpoint, for a fresh start.

        Of ``last.ckpt``, ``last-v1.ckpt`` and so on, which Lightning writes after a change of its directory, the newest
        counts. If the training was killed while ``name`` was being replaced in the store, the newest other complete
        checkpoint is fetched, and a warning names it. Raises CheckpointIncompleteError if none is complete; StoreError.
        """
        self._inside(self.dirpath / name)
        local = [
            path
            for path in self.dirpath.glob("**/*")
            if _is_version(path.relative_to(self.dirpath).as_posix(), name) and _is_complete(path)
        ]
        if local:
            return str(max(local, key=lambda path: path.stat().st_mtime_ns))
        failures: list[Exception] = []
        for candidate in self._candidates(name):
            try:
                self._pull(candidate)
            except (CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError) as error:
                log.warning("%s/%s is not complete, an older one is tried: %s", self.uri, candidate, error)
                failures.append(error)
            else:
                return str(self.dirpath / candidate)
        if failures:
            raise CheckpointIncompleteError(f"no checkpoint in {self.uri} is complete: {failures[0]}") from failures[0]
        return None

    # its parts

    def _save(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}{TEMPORARY}")
        try:
            self._inner.save_checkpoint(checkpoint, str(temporary))
            if not temporary.exists():
                raise ConfigError(
                    f"invalid checkpoint_io={type(self._inner).__name__}: must have written the file when "
                    "save_checkpoint returns; to save in the background: AsyncCheckpointIO(AsyncsyncCheckpointIO(...))"
                )
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _sync_and_stop(self) -> None:
        syncer, self._syncer = self._running(), None
        try:
            syncer.sync_up()
        finally:
            syncer.close()

    def _is_of_lightning(self, path: Any) -> bool:
        """Whether Lightning, not ModelCheckpoint, chose this path outside the mirror, for a moment or for SLURM."""
        found = Path(os.path.abspath(os.fspath(path)))
        return not found.is_relative_to(self.dirpath) and _OF_LIGHTNING.fullmatch(found.name) is not None

    def _has_new_shards(self) -> bool:
        """Whether a strategy has written a sharded checkpoint here, past this plugin."""
        if not _is_first_rank():
            return False
        return any(path.stat().st_mtime >= self._made for path in self.dirpath.glob(f"**/{SHARDED_MARKER}"))

    def _candidates(self, name: str) -> list[str]:
        """The versions of the checkpoint, then all others; both newest first."""
        with self._new_syncer() as syncer:
            manifest = syncer.manifest()
        if manifest is None:
            return []
        newest: dict[str, int] = {}
        for entry in manifest.files.values():
            name_of = _checkpoint_of(entry.path)
            newest[name_of] = max(newest.get(name_of, 0), entry.mtime_ns)
        return sorted(newest, key=lambda path: (not _is_version(path, name), -newest[path]))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.dirpath).as_posix()

    def _pull(self, path: str) -> None:
        options = {"storage_options": self._options, "transfer": self._transfer}
        pull(self.uri, self.dirpath, include=f"/{_escaped(path)}", **options)  # type: ignore[arg-type]

    def _inside(self, path: Any) -> Path:
        text = os.fspath(path)
        found = Path(os.path.abspath(text))
        if "://" in text or not found.is_relative_to(self.dirpath):
            raise ConfigError(
                f"invalid checkpoint path {text!r}: must be below {str(self.dirpath)!r}, which is mirrored to "
                f"{self.uri}; use ModelCheckpoint(dirpath={str(self.dirpath)!r})"
            )
        return found

    def _running(self) -> Syncer:
        with _starting:
            if self._syncer is None or self._process != os.getpid():
                self._process = os.getpid()
                syncer = self._new_syncer()
                syncer.start()
                self._syncer = syncer
            return self._syncer

    def _new_syncer(self) -> Syncer:
        config = SyncConfig(ready="lightning")
        return Syncer(
            self.dirpath,
            self.uri,
            config,
            transfer=self._transfer,
            storage_options=self._options,
            on_event=_note,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_syncer": None}


def _note(event: Event) -> None:
    if isinstance(event, SyncFailed | SyncTimedOut):
        log.warning("checkpoints are not stored yet, training continues: %s", event.error)


def _is_version(path: str, name: str) -> bool:
    """Whether Lightning would have written ``path`` for ``name``."""
    stem, suffix = os.path.splitext(name)
    return re.fullmatch(rf"{re.escape(stem)}(-v\d+)?{re.escape(suffix)}", path) is not None


def _is_complete(path: Path) -> bool:
    """A file was renamed when it was complete; a sharded checkpoint has its marker then."""
    return not path.is_dir() or (path / SHARDED_MARKER).exists()


def _checkpoint_of(path: str) -> str:
    """The checkpoint that a stored file belongs to: itself, or the directory of a sharded one."""
    match = re.match(r".*?\.ckpt(?=/)", path)
    return path if match is None else match[0]


def _escaped(path: str) -> str:
    """A path as a gitignore pattern that matches it alone."""
    return "".join(f"\\{sign}" if sign in "*?[]!# \\" else sign for sign in path)


def _is_first_rank() -> bool:
    """Whether this process is rank 0, by the environment variables of launchers."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)
