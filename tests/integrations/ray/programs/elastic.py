"""Ray Train with as many ranks as the cluster can hold: a node joins, later it is lost."""

import inspect
import json
import tempfile
import threading
import time
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, read, result, storage
from ray.cluster_utils import Cluster
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

MEMORY = 80 << 20
ROOM = Path(SETTINGS["room"])
MOST_STEPS = 1000
"""Safety: the run ends when the node was lost and a checkpoint of the remaining rank is stored."""


def train(config):
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            start = json.loads(Path(directory, "state.json").read_text())["step"] + 1
            if rank == 0:
                (ROOM / f"restored-{start:04d}").write_text(json.dumps([ranks, sorted(read(directory))]))
    for step in range(start, start + MOST_STEPS):
        directory = tempfile.mkdtemp()
        if rank == 0:
            Path(directory, "state.json").write_text(json.dumps({"step": step, "ranks": ranks}))
        Path(directory, f"rank_{rank}").write_bytes(b"w" * (1 << 20))
        ray.train.report(
            {"step": step, "ranks": ranks},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            delete_local_checkpoint_after_upload=True,
        )
        if step - start == 3:  # Ray has registered the first of them
            (ROOM / f"reported-by-{ranks}").touch()
        if ranks == 1 and (ROOM / "lost").exists():
            return
        time.sleep(0.2)


def change(cluster):
    """A second node joins after the first checkpoint, and is lost after one of two ranks."""
    wait_for("reported-by-1")
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    wait_for("reported-by-2")
    cluster.remove_node(node, allow_graceful=False)
    (ROOM / "lost").touch()


def wait_for(name):
    while not (ROOM / name).exists():
        time.sleep(0.05)


def main():
    if "elastic_resize_monitor_interval_s" not in inspect.signature(ray.train.ScalingConfig).parameters:
        result(supported=False)
        return
    # without shutdown_at_exit: its signal handlers would forbid that another thread adds a node
    head = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    try:
        ray.init(address=cluster.address)
        threading.Thread(target=change, args=(cluster,), daemon=True).start()
        scaling = ray.train.ScalingConfig(num_workers=(1, 2), elastic_resize_monitor_interval_s=1.0)
        outcome = DataParallelTrainer(
            train,
            scaling_config=scaling,
            run_config=ray.train.RunConfig(
                name="run", **storage(), failure_config=ray.train.FailureConfig(max_failures=5)
            ),
        ).fit()
        with outcome.checkpoint.as_directory() as directory:
            newest = read(directory)
        restored = [json.loads(path.read_text()) for path in sorted(ROOM.glob("restored-*"))]
        result(supported=True, ranks=outcome.metrics["ranks"], newest=newest, restored=restored)
    finally:
        ray.shutdown()
        cluster.shutdown()


main()
