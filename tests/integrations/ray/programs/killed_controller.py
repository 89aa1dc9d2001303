"""Ray Train: the controller is killed around the registration of a checkpoint; the run is started again."""

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, result, running, storage
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

STEPS = 3


def train(config):
    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
    controller = get_train_context().controller_actor
    pid = ray.get(controller.__ray_call__.remote(lambda _: os.getpid()))
    for step in range(start, STEPS):
        directory = tempfile.mkdtemp()
        Path(directory, "state.json").write_text(json.dumps({"step": step}))
        Path(directory, "weights.bin").write_bytes(os.urandom(1 << 20))
        marker = Path(config["marker"])
        kill = step == 1 and not marker.exists()
        ray.train.report(
            {"step": step}, checkpoint=ray.train.Checkpoint.from_directory(directory), checkpoint_dir_name=f"s_{step}"
        )
        if kill:
            marker.touch()
            threading.Event().wait(config["delay"])
            os.kill(pid, signal.SIGKILL)
            signal.pause()


def fit(name, delay, where):
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"delay": delay, "marker": f"{SETTINGS['room']}/{name}"},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name=name, **where),
    )
    return trainer.fit()


def registered(where, name):
    """The names in the file that registers checkpoints, and whether each of them is there."""
    filesystem, path = where["storage_filesystem"], f"{where['storage_path']}/{name}"
    if filesystem.get_file_info(f"{path}/checkpoint_manager_snapshot.json").type.name == "NotFound":
        return {}
    with filesystem.open_input_file(f"{path}/checkpoint_manager_snapshot.json") as file:
        document = json.loads(file.readall())
    names = [item["checkpoint_dir_name"] for item in document["checkpoint_results"]]
    return {each: filesystem.get_file_info(f"{path}/{each}").type.name for each in names}


def main():
    where, runs = storage(), {}
    with running():
        for number, delay in enumerate(SETTINGS["delays"]):
            name = f"run_{number}"
            try:
                fit(name, delay, where)
            except Exception as error:
                failure = type(error).__name__
            after_kill = registered(where, name)
            outcome = fit(name, delay, where)
            runs[name] = {
                "failure": failure,
                "after_kill": after_kill,
                "step": outcome.metrics["step"],
                "registered": registered(where, name),
            }
    result(runs=runs)


main()
