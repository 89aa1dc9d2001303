"""Ray Train: at every step a rank is killed in the middle of its upload, each time at another moment.

Both ranks name their files by their attempt, so a checkpoint that mixes two attempts shows.
"""

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, result, running, storage
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

DELAYS = SETTINGS["delays"]


def names(directory):
    return sorted(os.listdir(directory))


def train(config):
    rank, room = ray.train.get_context().get_world_rank(), Path(config["room"])
    attempt = ray.get_runtime_context().get_placement_group_id()
    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            (room / f"restored-{attempt}-{rank}").write_text(json.dumps([start, names(directory)]))
    for step in range(start, len(DELAYS)):
        directory = tempfile.mkdtemp()
        if rank == 0:
            Path(directory, "state.json").write_text(json.dumps({"step": step}))
        Path(directory, f"{attempt}-rank_{rank}").write_bytes(os.urandom(40 << 20))
        marker = room / f"killed-{step}"
        kill = rank == 1 and not marker.exists()
        if kill:
            marker.touch()
            threading.Timer(DELAYS[step], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=f"step_{step}",
            delete_local_checkpoint_after_upload=True,
        )
        if kill:
            signal.pause()  # the upload was quicker than the kill


def main():
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"room": SETTINGS["room"]},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name="run", **storage(), failure_config=ray.train.FailureConfig(max_failures=len(DELAYS) + 1)
        ),
    )
    with running():
        outcome = trainer.fit()
        checkpoints = {}
        for checkpoint, _ in outcome.best_checkpoints:
            with checkpoint.as_directory() as directory:
                checkpoints[checkpoint.path.rpartition("/")[2]] = names(directory)
        restored = [json.loads(path.read_text()) for path in Path(SETTINGS["room"]).glob("restored-*")]
        result(step=outcome.metrics["step"], checkpoints=checkpoints, restored=restored)


main()
