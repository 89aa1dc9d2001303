"""Schedulers of Ray Tune that stop trials and restore them: PBT copies from better trials, HyperBand pauses."""

import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path

from common import SETTINGS, result, running, storage
from ray import tune
from ray.tune.schedulers import HyperBandScheduler, PopulationBasedTraining

STEPS = 8
RATES = [0.1, 0.5, 1.0, 2.0, 3.0, 4.0]
ROOM = Path(SETTINGS["room"])


def train(config):
    start, checkpoint, data = 0, tune.get_checkpoint(), os.urandom(4 << 20)
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state = json.loads(Path(directory, "state.json").read_text())
            data = Path(directory, "data.bin").read_bytes()
        start = state["step"] + 1
        equal = hashlib.sha256(data).hexdigest() == state["sha256"]
        (ROOM / f"{config['kind']}-{uuid.uuid4().hex}.restored").write_text(json.dumps([start, equal]))
    for step in range(start, STEPS):
        with tempfile.TemporaryDirectory() as directory:
            state = {"step": step, "sha256": hashlib.sha256(data).hexdigest()}
            Path(directory, "state.json").write_text(json.dumps(state))
            Path(directory, "data.bin").write_bytes(data)
            score = config["lr"] * (step + 1)
            tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(directory))


def fit(kind, scheduler, where, rates):
    tuner = tune.Tuner(
        train,
        param_space={"lr": tune.grid_search(rates), "kind": kind},
        tune_config=tune.TuneConfig(scheduler=scheduler, metric="score", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(name=kind, **where),
    )
    grid = tuner.fit()
    found = [json.loads(path.read_text()) for path in ROOM.glob(f"{kind}-*.restored")]
    return {"errors": len(grid.errors), "restores": found}


def main():
    where = storage()
    pbt = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_mutations={"lr": RATES},
    )
    hyperband = HyperBandScheduler(max_t=4, reduction_factor=2)  # its second bracket of three trials pauses
    with running(num_cpus=2):
        seen = {"pbt": fit("pbt", pbt, where, RATES[:4])}
        seen["hyperband"] = fit("hyperband", hyperband, where, RATES)
        result(**seen)


main()
