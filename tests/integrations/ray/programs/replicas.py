"""Ray Train with replica groups: a rank is killed in mid-upload, and Ray replaces it alone; the attempt continues.

Rank 0 leads and reports no checkpoint: Ray 2.60 fails a run whose surviving rank has one in flight. Each file of rank 1
is named by the process that wrote it, so a checkpoint with files of two processes shows.
"""

import json
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, result, running, storage
from ray.exceptions import RayTaskError
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from asyncsync import ConcurrentWriterError

DELAYS, ROOM = SETTINGS["delays"], Path(SETTINGS["room"])
STEPS = len(DELAYS) + 1
SIZE = 80 << 20


class Replicas(Backend):
    """Each rank is a replica group of its own."""

    has_replica_groups = True


class ReplicasConfig(BackendConfig):
    @property
    def backend_cls(self):
        return Replicas


def agreed(step=None):
    """The step of rank 0. The call is repeated when Ray replaces the other rank meanwhile."""
    while True:
        try:
            return broadcast_from_rank_zero(step)
        except RayTaskError as error:
            if type(error.cause).__name__ != "SynchronizationBarrierResetError":
                raise


def lead():
    """Repeats a step until rank 1 has reported it."""
    (ROOM / f"leader-{os.getpid()}").touch()
    step = 0
    while agreed(step) < STEPS:
        processes = len(list(ROOM.glob("started-*")))
        ray.train.report({"step": step}, checkpoint_dir_name=f"step_{step}")  # Ray takes the name of rank 0
        while not (done := (ROOM / f"done-{step}").exists()) and len(list(ROOM.glob("started-*"))) == processes:
            time.sleep(0.02)
        step += done


def follow():
    process = ray.get_runtime_context().get_actor_id()[:12]
    (ROOM / f"started-{process}").touch()
    while (step := agreed()) < STEPS:
        directory = tempfile.mkdtemp()
        Path(directory, "state.json").write_text(json.dumps({"step": step}))
        Path(directory, f"{process}-rank_1").write_bytes(os.urandom(SIZE))
        killed = ROOM / f"killed-{step}-{process}"
        kill = step < len(DELAYS) and not list(ROOM.glob(f"killed-{step}-*"))
        if kill:
            killed.touch()
            threading.Timer(DELAYS[step], os.kill, (os.getpid(), signal.SIGKILL)).start()
        with suppress(ConcurrentWriterError):  # the killed process had completed it, and Ray has registered it
            ray.train.report(
                {"step": step},
                checkpoint=ray.train.Checkpoint.from_directory(directory),
                delete_local_checkpoint_after_upload=True,
            )
        (ROOM / f"done-{step}").touch()
        if kill:
            signal.pause()  # the upload was quicker than the kill


def train(config):
    if ray.train.get_context().get_world_rank() == 0:
        lead()
    else:
        follow()


def main():
    if not hasattr(Backend, "has_replica_groups"):
        result(supported=False)
        return
    trainer = DataParallelTrainer(
        train,
        backend_config=ReplicasConfig(),
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
                checkpoints[checkpoint.path.rpartition("/")[2]] = sorted(os.listdir(directory))
        leaders, killed = (len(list(ROOM.glob(f"{name}-*"))) for name in ("leader", "killed"))
        result(supported=True, checkpoints=checkpoints, leaders=leaders, killed=killed)


main()
