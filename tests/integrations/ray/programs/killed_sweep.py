"""Ray Tune: every trial is killed in the middle of an upload, each at another moment, and restarted."""

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

from common import SETTINGS, read, result, running, storage
from ray import tune

DELAYS = SETTINGS["delays"]
STEPS = 4


def train(config):
    name, room = f"trial_{config['number']}", Path(SETTINGS["room"])
    first = not (room / f"{name}.started").exists()
    (room / f"{name}.started").touch()
    start, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            (room / f"{name}.restored").write_text(json.dumps([start, read(directory)]))
    for step in range(start, STEPS):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"step": step}))
            if step >= 2:
                Path(directory, "weights.bin").write_bytes(os.urandom(40 << 20))
            if first and step == 2:
                Path(directory, "first_attempt").write_text("x")
                threading.Timer(DELAYS[config["number"]], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            tune.report({"step": step}, checkpoint=tune.Checkpoint.from_directory(directory))
            if first and step == 2:
                signal.pause()  # the upload was quicker than the kill


def main():
    where = storage()
    run = tune.RunConfig(name="sweep", **where, failure_config=tune.FailureConfig(max_failures=2))
    with running(num_cpus=2):
        grid = tune.Tuner(
            train, param_space={"number": tune.grid_search(list(range(len(DELAYS))))}, run_config=run
        ).fit()
        trials = []
        for item in grid:
            newest = tune.Result.from_path(item.path, storage_filesystem=where["storage_filesystem"]).checkpoint
            with newest.as_directory() as directory:
                trials.append({"path": item.path, "newest": newest.path, "files": read(directory)})
        result(trials=trials, errors=len(grid.errors))


main()
