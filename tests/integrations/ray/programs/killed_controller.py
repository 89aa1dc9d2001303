"""Ray Train: the controller is killed at a step of the registration of a checkpoint; the run is started again."""

import json
import os
import signal
import tempfile
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, result, running, storage
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

STEPS = 3
REGISTRATION = ("commit", "write", "save_run")
"""The operations that register a checkpoint, in this order."""


def kill_before(_controller, operation):
    """In the controller: it kills itself just before this operation for s_1. ``""``: once all of them are done."""
    from asyncsync.integrations.ray.agent import agent_handle

    call = agent_handle.call

    def counted(address, work, *arguments, **options):
        of_step_1 = "s_1" in repr(arguments)
        if of_step_1 and work.__name__ == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = call(address, work, *arguments, **options)
        if of_step_1 and not operation and work.__name__ == REGISTRATION[-1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    agent_handle.call = counted


def train(config):
    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
    controller = get_train_context().controller_actor
    for step in range(start, STEPS):
        directory = tempfile.mkdtemp()
        Path(directory, "state.json").write_text(json.dumps({"step": step}))
        Path(directory, "weights.bin").write_bytes(os.urandom(1 << 20))
        marker = Path(config["marker"])
        kill = step == 1 and not marker.exists()
        if kill:
            marker.touch()
            ray.get(controller.__ray_call__.remote(kill_before, config["before"]))
        ray.train.report(
            {"step": step}, checkpoint=ray.train.Checkpoint.from_directory(directory), checkpoint_dir_name=f"s_{step}"
        )
        if kill:
            signal.pause()


def fit(name, before, where):
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"before": before, "marker": f"{SETTINGS['room']}/{name}"},
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
    with running(num_cpus=2 * len(SETTINGS["before"]) + 1):  # a killed controller's placement group may remain
        for number, before in enumerate(SETTINGS["before"]):
            name = f"run_{number}"
            try:
                fit(name, before, where)
            except Exception as error:
                failure = type(error).__name__
            after_kill = registered(where, name)
            outcome = fit(name, before, where)
            runs[name] = {
                "failure": failure,
                "after_kill": after_kill,
                "step": outcome.metrics["step"],
                "registered": registered(where, name),
            }
    result(runs=runs)


main()
