"""Checkpoints of a ``transformers.Trainer``, sent while training runs::

    from asyncsync.integrations.transformers import AsyncsyncCallback, fetch_last

    uri = "s3://bucket/experiment/run"
    trainer = Trainer(..., args=args, callbacks=[AsyncsyncCallback(uri)])
    trainer.train(resume_from_checkpoint=fetch_last(uri, args.output_dir))

Trainers that inherit from it, such as those of trl and peft, work the same way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncsync import (
    AsyncsyncError,
    Checkpoint,
    CheckpointConfig,
    CheckpointIncompleteError,
    IntegrityError,
    NotFoundError,
    RunConfig,
    SyncConfig,
    SyncFailedError,
    TransferConfig,
    UploadMode,
)
from asyncsync.blocking import BlockingCheckpoint, BlockingTrial, Experiment, StoredCheckpoint, SyncEngine
from asyncsync.integrations.run_address import RunAddress, missing

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing("transformers", "transformers", error) from error

log = logging.getLogger("asyncsync")

STATE, SENTINEL = "trainer_state.json", "checkpoint-is-incomplete.txt"
_DIRECTORY = re.compile(r"checkpoint-(\d+)")
_RANK_FILE = re.compile(
    r"(?:^|/)(?:rng_state_(\d+)\.pth|random_states_(\d+)\.pkl|__(\d+)_\d+\.distcp|(?:bf16_)?zero_pp_rank_(\d+)_[^/]*)$"
)
"""Files that a rank writes for itself; all others are rank 0's."""
OWN_DIRECTORY = ".asyncsync"
"""In ``output_dir``: the results of the run, and snapshots that are not durable yet."""


class AsyncsyncCallback(TrainerCallback):
    """Sends each checkpoint that the trainer saves, and waits at the end of training until all are durable.

    ``on_save`` takes a snapshot by hard links, so ``save_total_limit`` may delete the original at once, and returns;
    the upload runs in the background. Checkpoints that were saved without ``on_save`` (an interruption, a just-in-time
    save) are found at the end. Each rank of a distributed run sends its own files; a checkpoint exists when all ranks
    have sent theirs. If training ends by an exception, the interpreter waits ``exit_grace`` seconds for pending ones.

    A store that is unreachable at the start is an error of ``on_train_begin``. Later a checkpoint that fails is logged
    and training continues; ``on_train_end`` raises if the last one is not durable.

    Args:
        uri: ``store/experiment/run``, such as ``s3://bucket/experiment/run``.
        checkpoint_config: retention. Default: the trainer's ``save_total_limit`` and best metric.
        storage_options: options of the store.
        transfer: limits and sizes of transfers.
        exit_grace: seconds for pending checkpoints when the interpreter ends.

    Raises ConfigError for an invalid address.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        checkpoint_config: CheckpointConfig | None = None,
        storage_options: Mapping[str, object] | None = None,
        transfer: TransferConfig | None = None,
        exit_grace: float = 30.0,
    ) -> None:
        self.address = RunAddress.of(uri)
        self._config, self._options = checkpoint_config, dict(storage_options or {})
        self._transfer, self._exit_grace = transfer or TransferConfig(), exit_grace
        self._engine: SyncEngine | None = None
        self._trial: BlockingTrial | None = None
        self._sent: set[int] = set()
        self._last: BlockingCheckpoint | None = None
        self._failure: Exception | None = None

    # called by the trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the engine. Raises the error of a store that cannot be used."""
        self._stop_earlier()
        self._sent, self._last, self._failure = set(), None, None
        ranks = _ranks(args)
        if ranks is None:
            return
        rank, world_size = ranks
        run = RunConfig(
            name=self.address.experiment,
            storage_path=self.address.storage_path,
            sync_config=SyncConfig(sync_period=60),
            checkpoint_config=self._config or _retention(args, world_size),
            transfer=self._transfer,
            storage_options=self._options,
        )
        engine = SyncEngine(
            run,
            local_dir=Path(args.output_dir) / OWN_DIRECTORY / f"rank_{rank}",
            resume=True,
            role="worker",
            rank=rank,
            world_size=world_size,
            exit_grace=self._exit_grace,
        )
        engine.start()
        self._engine, self._trial = engine, engine.trial(self.address.trial, params=_params(args))
        self._report_resumed(args, state, world_size)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the checkpoint that was just saved."""
        self._sent.discard(state.global_step)
        self._report(args, state, Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report checkpoints that were saved without ``on_save``, then wait until everything is durable.

        Raises the error of what is not durable; SyncFailedError if the last checkpoint is not.
        """
        if self._trial is None or self._engine is None:
            return
        for step, directory in complete_checkpoints(args.output_dir):
            if step <= state.global_step:
                self._report(args, state, directory, step)
        engine, self._engine, self._trial = self._engine, None, None
        engine.close()
        shutil.rmtree(_snapshots(args), ignore_errors=True)
        if self._failure is not None and not (self._last is not None and self._last.is_durable):
            raise SyncFailedError(
                f"the last checkpoint of {self.address.experiment_uri}/{self.address.trial} is not durable: "
                f"{self._failure}"
            ) from self._failure

    # its parts

    def _report_resumed(self, args: Any, state: Any, world_size: int) -> None:
        """Report checkpoints up to the resumed step that the store lacks: an earlier process may have died before they
        were sent. All other local ones are of another training."""
        latest = self._trial.latest() if self._trial is not None and world_size == 1 else None
        stored = -1 if latest is None or latest.step is None else latest.step
        for step, directory in complete_checkpoints(args.output_dir):
            if world_size == 1 and stored < step <= state.global_step:
                self._report(args, state, directory, step)
            self._sent.add(step)

    def _report(self, args: Any, state: Any, directory: Path, step: int) -> None:
        """Report a directory once. A failure, of this or an earlier checkpoint, must not end training."""
        if self._trial is None or step in self._sent:
            return
        try:
            for _ in range(2):
                snapshot = _snapshot(directory, _snapshots(args) / str(step), args)
                try:
                    self._last = self._trial.report(
                        _metrics(state, step), Checkpoint.take(snapshot), step=step, upload=UploadMode.ASYNC
                    ).checkpoint
                    self._sent.add(step)
                    return
                except AsyncsyncError as error:  # an earlier checkpoint's failure is raised once, by the next report
                    self._note(error, step)
        except OSError as error:
            self._note(error, step)

    def _note(self, error: Exception, step: int) -> None:
        self._failure = error
        log.warning("%s, step %s, training continues: %s", self.address.trial, step, error)

    def _stop_earlier(self) -> None:
        """End the engine of an earlier ``train()`` that ended by an exception."""
        engine, self._engine, self._trial = self._engine, None, None
        if engine is not None:
            try:
                engine.close(self._exit_grace)
            except AsyncsyncError as error:
                log.warning("of an earlier training, not everything is durable: %s", error)


def fetch_last(
    uri: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig | None = None,
) -> str | None:
    """The newest complete checkpoint of the run as a directory for ``train(resume_from_checkpoint=...)``.

    It is downloaded to ``{output_dir}/checkpoint-{step}`` and verified, unless ``output_dir`` has a newer complete one.
    Damaged checkpoints are passed over. Returns None if there is none: a fresh start. With an initialised
    ``torch.distributed``, all ranks call it and get the same checkpoint; one process of each machine downloads.

    Raises ConfigError for an invalid address, CheckpointIncompleteError if all checkpoints are damaged, StoreError if
    the store fails.
    """
    address = RunAddress.of(uri)
    options = {"storage_options": storage_options, "transfer": transfer or TransferConfig()}
    step = _on_one_process(lambda step: _fetch(address, Path(output_dir), step, options))
    return None if step is None else str(Path(output_dir) / f"checkpoint-{step}")


def complete_checkpoints(output_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, directory) of each local checkpoint that the trainer has finished, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = _DIRECTORY.fullmatch(path.name)
        if match is not None and _is_complete(path):
            found.append((int(match[1]), path))
    return sorted(found)


def _is_complete(directory: Path) -> bool:
    """The trainer writes its state last; a just-in-time save removes its sentinel after that."""
    try:
        json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not (directory / SENTINEL).exists()


def _fetch(address: RunAddress, output_dir: Path, step: int | None, options: Mapping[str, Any]) -> int | None:
    """Download the checkpoint of ``step``, or the newest one; its step."""
    local = complete_checkpoints(output_dir)
    try:
        experiment = Experiment.open(address.experiment_uri, **options)
        trial = experiment.trial(address.trial) if address.trial in {item.name for item in experiment.trials} else None
    except NotFoundError:
        trial = None
    stored = [item for item in reversed(trial.checkpoints if trial is not None else []) if item.step is not None]
    if step is not None:
        stored = [item for item in stored if item.step == step]
        local = [(other, path) for other, path in local if other == step]
    failures = []
    for item in stored:
        if local and local[-1][0] >= (item.step or 0):
            break
        try:
            _download(item, output_dir / f"checkpoint-{item.step}")
        except (CheckpointIncompleteError, IntegrityError, NotFoundError, SyncFailedError) as error:
            failures.append(error)
            log.warning("%s is passed over: %s", item.uri, error)
        else:
            return item.step
    if failures and not local:
        raise failures[0]
    return local[-1][0] if local else None


def _download(item: StoredCheckpoint, target: Path) -> None:
    """Make the directory hold the checkpoint and nothing else. A new directory does not stay half filled."""
    new = not target.exists()
    try:
        item.download(target, exact=True)
    except BaseException:
        if new:
            shutil.rmtree(target, ignore_errors=True)
        raise


def _on_one_process(fetch: Callable[[int | None], int | None]) -> int | None:
    """The step that rank 0 finds, on all ranks. One other process of each further machine fetches the same one. The
    error of one process is raised on all."""
    try:
        import torch.distributed as dist
    except ImportError:
        return fetch(None)
    if not (dist.is_available() and dist.is_initialized()):
        return fetch(None)
    rank, found = dist.get_rank(), [_caught(fetch, None)] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(found, src=0)
    result: int | Exception | None = found[0]
    if isinstance(result, int) and rank and os.environ.get("LOCAL_RANK") == "0":
        result = _caught(fetch, result)
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    for other in results:
        if isinstance(other, Exception):
            raise other
    return result if isinstance(result, int) else None


def _caught(fetch: Callable[[int | None], int | None], step: int | None) -> int | Exception | None:
    try:
        return fetch(step)
    except (AsyncsyncError, OSError) as error:
        return error


def _ranks(args: Any) -> tuple[int, int] | None:
    """(rank, world size) of this process among those that send files; None if it sends none."""
    rank, world_size = int(args.process_index), int(args.world_size)
    if world_size > 1 and args.save_only_model:  # then only rank 0 has files of its own
        return (0, 1) if rank == 0 else None
    return rank, world_size


def _retention(args: Any, world_size: int) -> CheckpointConfig:
    """The store keeps the checkpoints that the trainer keeps on disk. With one rank, training never waits for the
    store."""
    limit = args.save_total_limit if args.save_total_limit and args.save_total_limit > 0 else None
    metric = args.metric_for_best_model if limit is not None and args.load_best_model_at_end else None
    return CheckpointConfig(
        num_to_keep=limit,
        checkpoint_score_attribute=metric if metric is None or metric.startswith("eval_") else f"eval_{metric}",
        checkpoint_score_order="max" if args.greater_is_better else "min",
        when_full="replace" if world_size == 1 else "wait",
    )


def _params(args: Any) -> dict[str, Any]:
    names = ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "max_steps", "seed")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _metrics(state: Any, step: int) -> dict[str, Any]:
    """The newest value of each logged number up to the step."""
    found: dict[str, Any] = {"epoch": state.epoch}
    for entry in state.log_history:
        if entry.get("step", 0) <= step:
            found |= {name: value for name, value in entry.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if name != "step"}


def _snapshots(args: Any) -> Path:
    return Path(args.output_dir) / OWN_DIRECTORY / f"snapshots_{args.process_index}"


def _snapshot(directory: Path, target: Path, args: Any) -> Path:
    """Hard links to this rank's files; copies where the file system has no links."""
    shutil.rmtree(target, ignore_errors=True)
    for path in _own_files(directory, args):
        there = target / path.relative_to(directory)
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, there)
        except OSError:
            shutil.copy2(path, there)
    return target


def _own_files(directory: Path, args: Any) -> Iterator[Path]:
    ranks = _ranks(args) or (0, 1)
    for path in sorted(directory.rglob("*")):
        match = _RANK_FILE.search(path.relative_to(directory).as_posix())
        owner = 0 if match is None or ranks[1] == 1 else int(next(group for group in match.groups() if group))
        if path.is_file() and owner == ranks[0]:
            yield path
