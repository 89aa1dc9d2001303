"""Ray Tune: two trials with checkpoints and artifacts; then everything is read back through Ray."""

import json
import os
import tempfile
from pathlib import Path

from common import SETTINGS, read, result, running, storage
from ray import tune

STEPS = SETTINGS.get("steps", 4)


def train(config):
    start, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
    for step in range(start, STEPS):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.json").write_text(json.dumps({"step": step}))
            Path(directory, f"only_{step}").write_text(str(os.getpid()))
            Path("artifact.txt").write_text(f"{step}\n" * (step + 1))
            tune.report({"loss": STEPS - step + config["x"]}, checkpoint=tune.Checkpoint.from_directory(directory))


def shown(item, filesystem):
    with item.checkpoint.as_directory() as directory:
        files = read(directory)
    again = tune.Result.from_path(item.path, storage_filesystem=filesystem)
    item.checkpoint.set_metadata({"best": True})
    return {
        "path": item.path,
        "loss": item.metrics["loss"],
        "checkpoint": item.checkpoint.path,
        "files": files,
        "metadata": item.checkpoint.get_metadata(),
        "again": sorted(checkpoint.path for checkpoint, _ in again.best_checkpoints),
    }


def main():
    from asyncsync.integrations import ray as asyncsync_ray

    where = storage()
    run = tune.RunConfig(
        name="sweep",
        **where,
        sync_config=tune.SyncConfig(sync_artifacts=True),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
    )
    with running():
        grid = tune.Tuner(train, param_space={"x": tune.grid_search([1, 2])}, run_config=run).fit()
        path, options = asyncsync_ray.uri(where, "sweep"), asyncsync_ray.restore_options(where)
        restored = tune.Tuner.restore(path, train, **options).fit()
        result(
            trials=[shown(item, where["storage_filesystem"]) for item in grid],
            can_restore=tune.Tuner.can_restore(path, **options),
            restored=[item.checkpoint.path for item in restored],
            errors=len(grid.errors),
        )


main()
