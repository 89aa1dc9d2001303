"""Three nodes on this machine: an agent on each, which is killed, outlives its workers, is drained and lost."""

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import ray
import ray.train
from common import SETTINGS, read, result, storage
from ray import tune
from ray.cluster_utils import Cluster
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from asyncsync import running_engines
from asyncsync.integrations import ray as asyncsync_ray
from asyncsync.runtime import Presence

ROOM = Path(SETTINGS["room"])
SIZE = 40 << 20
MEMORY = 80 << 20
OTHER = {"other": 1}
"""Not on the node of this driver."""


def agents_here():
    """The agents that this process has asked for something, as names of processes."""
    from asyncsync.integrations.ray.agent import agent_handle

    return [agent.name for agent in agent_handle._agents._agents.values()]


def memory():
    """KiB of this process that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def report(step, size, **metrics):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "state.json").write_text(json.dumps({"step": step}))
        Path(directory, "weights.bin").write_bytes(os.urandom(size))
        tune.report(metrics | {"step": step}, checkpoint=tune.Checkpoint.from_directory(directory))


def start_step():
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as directory:
        return json.loads(Path(directory, "state.json").read_text())["step"] + 1


def spread(config):
    """Two reports; the cost of the first one, which finds the agent, for this process."""
    import sys

    before, used = memory(), time.process_time()
    report(0, 1 << 20)
    cost = {"kib": memory() - before, "cpu": time.process_time() - used}
    client_of_store = sorted(name for name in ("aiobotocore", "asyncsync.storage.storage") if name in sys.modules)
    node = ray.get_runtime_context().get_node_id()
    report(1, 1 << 20, node=node, agents=agents_here(), modules=client_of_store, cost=cost)


def agent_killed(config):
    """The agent is killed at a moment of the second upload; the third one has a new agent."""
    report(0, 1000)
    first = agents_here()
    pid = Presence.pid_of(first[0])
    threading.Timer(config["delay"], os.kill, (pid, signal.SIGKILL)).start()
    report(1, SIZE)
    while not Presence.has_ended(first[0]):
        time.sleep(0.01)
    report(2, 1000)
    report(3, 1000, first=first, later=agents_here())


def drained(config):
    """The node is drained while a checkpoint is uploaded."""
    report(0, 1000)
    (ROOM / "node").write_text(ray.get_runtime_context().get_node_id())
    report(1, 3 * SIZE)
    while not (ROOM / "drained").exists():
        time.sleep(0.05)
    report(2, SIZE, agents=agents_here())


def lost(config):
    """The raylet of the node is killed in mid-upload."""
    start = start_step()
    for step in range(start, 3):
        if step == 1 and not (ROOM / "lost").exists():
            (ROOM / "lost").write_text(ray.get_runtime_context().get_node_id())
        report(step, SIZE if step else 1000, start=start)
        if step == 1 and start == 0:
            threading.Event().wait()


def asynchronous(config):
    """The worker is killed while its checkpoint is uploaded in the background."""
    directory = tempfile.mkdtemp()
    Path(directory, "weights.bin").write_bytes(os.urandom(SIZE))
    checkpoint, first = ray.train.Checkpoint.from_directory(directory), not (ROOM / "async").exists()
    mode = ray.train.CheckpointUploadMode.ASYNC if first else ray.train.CheckpointUploadMode.SYNC
    if first:
        small = ray.train.Checkpoint.from_directory(tempfile.mkdtemp())
        Path(small.path, "state.json").write_text("0")
        ray.train.report({"step": 0}, checkpoint=small, checkpoint_dir_name="step_0")
    ray.train.report(
        {"step": 1}, checkpoint=checkpoint, checkpoint_dir_name=f"step_1_{first}", checkpoint_upload_mode=mode
    )
    if first:
        (ROOM / "async").touch()
        wait_for_event("CheckpointAccepted", "run/step_1_True")
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_event(kind, tree):
    """Until the agent of this node tells of it."""
    from asyncsync.integrations.ray.agent import agent_handle

    (agent,) = agent_handle._agents._agents.values()
    number = 0
    while True:
        found, number = ray.get(agent.handle.events.remote(number))
        if any((event.kind, event.tree) == (kind, tree) for event in found):
            return


class Listener:
    """Collects the events of all nodes."""

    def __init__(self, where):
        self._found, self._news = [], threading.Condition()
        threading.Thread(target=self._listen, args=(where,), daemon=True).start()

    def _listen(self, where):
        for event in asyncsync_ray.events(where):
            with self._news:
                self._found.append(event)
                self._news.notify_all()

    def wait_for(self, kind, tree, seconds=60):
        def seen():
            return any((event.kind, event.tree) == (kind, tree) for event in self._found)

        with self._news:
            return self._news.wait_for(seen, seconds)


def fit(name, train, where, other=0, **config):
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1, "other": other}),
        param_space={key: tune.grid_search(value) for key, value in config.items()},
        run_config=tune.RunConfig(name=name, **where, failure_config=tune.FailureConfig(max_failures=2)),
    )
    return tuner.fit()


def newest(item):
    with item.checkpoint.as_directory() as directory:
        return [item.checkpoint.path.rpartition("/")[2], read(directory)]


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    return path


def drain(cluster, seconds=60):
    node = wait_for(ROOM / "node").read_text()
    gcs = ray._raylet.GcsClient(address=cluster.gcs_address)
    gcs.drain_node(node, 2, "preempted by the test", int((time.time() + seconds) * 1000))
    (ROOM / "drained").touch()


def lose(cluster):
    node = wait_for(ROOM / "lost").read_text()
    threading.Event().wait(SETTINGS.get("delay", 0.1))
    (found,) = [item for item in cluster.list_all_nodes() if item.node_id == node]
    cluster.remove_node(found, allow_graceful=False)


def grid_case(name, train, where, **config):
    grid = fit(name, train, where, **config)
    return {"errors": len(grid.errors), "metrics": [item.metrics for item in grid], "newest": [newest(i) for i in grid]}


def background_case(where, listener):
    trainer = DataParallelTrainer(
        asynchronous,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="run", **where, failure_config=ray.train.FailureConfig(max_failures=2)),
    )
    outcome = trainer.fit()
    return {
        "newest": outcome.checkpoint.path.rpartition("/")[2],
        "outlived": listener.wait_for("SyncFinished", "run/step_1_True"),
        "committed": listener.wait_for("CheckpointDurable", "run/step_1_False"),
    }


def in_thread(work, *arguments):
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def main():
    where, seen = storage(), {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": MEMORY})
    for _ in range(2):
        cluster.add_node(num_cpus=2, resources={"other": 2}, object_store_memory=MEMORY)
    try:
        ray.init(address=cluster.address)
        listener = Listener(where)
        seen["spread"] = grid_case("spread", spread, where, number=list(range(6)))
        found = asyncsync_ray.agents(where)
        seen["agents"] = [[item.role, item.pid, item.status.totals.checkpoints_durable] for item in found]
        seen["on_this_machine"] = [engine.role for engine in running_engines() if engine.alive]
        seen["killed"] = grid_case("killed", agent_killed, where, delay=SETTINGS["delays"])
        seen["background"] = background_case(where, listener)
        in_thread(lose, cluster)
        seen["lost"] = grid_case("lost", lost, where, **OTHER)
        in_thread(drain, cluster)
        seen["drained"] = grid_case("drained", drained, where, **OTHER) | {
            "heard": listener.wait_for("SyncWarning", "")
        }
        result(**seen)
    finally:
        ray.shutdown()
        cluster.shutdown()


main()
