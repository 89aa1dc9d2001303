"""Ray Train: two ranks, one of which is killed in the middle of an upload in its first attempt."""

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import ray.train
from common import SETTINGS, read, result, running, storage
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

STEPS = SETTINGS.get("steps", 4)
KILL_AT = SETTINGS.get("kill_at")
"""Seconds after the start of the upload of step 2."""
NAMED = SETTINGS.get("named", True)
MODE = SETTINGS.get("mode", "SYNC")
PLAIN = SETTINGS.get("plain")
"""A storage path of Ray's own: then only checkpoints go through asyncsync."""


def write(directory, rank, step, first):
    if rank == 0:
        Path(directory, "state.json").write_text(json.dumps({"step": step}))
    Path(directory, f"rank_{rank}.bin").write_bytes(os.urandom(1 << 20))
    if first and step == 2:
        Path(directory, f"first_attempt_{rank}.bin").write_bytes(os.urandom(40 << 20))


def train(config):
    from asyncsync.integrations import ray as asyncsync_ray

    rank = ray.train.get_context().get_world_rank()
    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            Path(config["room"], f"restored_{rank}.json").write_text(json.dumps([start, sorted(os.listdir(directory))]))
    first = checkpoint is None
    for step in range(start, STEPS):
        directory = tempfile.mkdtemp()
        write(directory, rank, step, first)
        if KILL_AT is not None and first and step == 2 and rank == 1:
            threading.Timer(KILL_AT, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        ray.train.report(
            {"step": step, "loss": STEPS - step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=f"step_{step}" if NAMED else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode[MODE],
            checkpoint_upload_fn=asyncsync_ray.upload if PLAIN else None,
        )
        if KILL_AT is not None and first and step == 2 and rank == 1:
            signal.pause()  # the upload was quicker than the kill


def main():
    from asyncsync.integrations import ray as asyncsync_ray

    where = {"storage_path": PLAIN, "callbacks": [asyncsync_ray.Commit()]} if PLAIN else storage()
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"room": SETTINGS["room"]},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name="run",
            **where,
            failure_config=ray.train.FailureConfig(max_failures=2),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with running():
        outcome = trainer.fit()
        with outcome.checkpoint.as_directory() as directory:
            files = read(directory)
        result(
            step=outcome.metrics["step"],
            checkpoint=outcome.checkpoint.path,
            files=files,
            best=[checkpoint.path for checkpoint, _ in outcome.best_checkpoints],
        )


main()
