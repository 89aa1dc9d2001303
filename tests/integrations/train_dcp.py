"""Save and load with torch.distributed.checkpoint: URI OPTIONS LOCAL_DIR MODE [PORT or STEP]."""

import hashlib
import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from asyncsync import RunConfig
from asyncsync.blocking import SyncEngine
from asyncsync.errors import CheckpointIncompleteError, NotFoundError
from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter, asyncsync_reader

URI, OPTIONS, LOCAL, MODE = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
ROWS = 4096


def state(seed: int) -> dict[str, object]:
    """A sharded matrix of 16 MiB and a replicated one."""
    mesh = init_device_mesh("cpu", (WORLD,))
    generator = torch.Generator().manual_seed(seed)
    sharded = distribute_tensor(torch.randn(ROWS, 1024, generator=generator), mesh, [Shard(0)])
    return {"sharded": sharded, "replicated": torch.randn(64, 64, generator=generator), "step": seed}


def digest(found: dict[str, object]) -> str:
    whole = hashlib.sha256(found["sharded"].full_tensor().numpy().tobytes())
    whole.update(found["replicated"].numpy().tobytes() + str(found["step"]).encode())
    return whole.hexdigest()


def save(engine: SyncEngine) -> dict[str, object]:
    trial, times = engine.trial("run"), []
    writer = AsyncsyncWriter(trial)
    for step in (1, 2, 3):
        began = time.perf_counter()
        if MODE == "async":
            dcp.async_save(state(step), checkpoint_id=f"step-{step}", storage_writer=writer).result()
        elif MODE == "failing" and step == 2:
            try:
                dcp.save(
                    {**state(step), **({"bad": Unpicklable()} if RANK == 0 else {})},
                    checkpoint_id="step-2",
                    storage_writer=writer,
                )
            except (CheckpointException, RuntimeError, TypeError) as error:
                print("caught", type(error).__name__, file=sys.stderr)
                if RANK == 0:
                    trial.skip(2, "the save failed")
        else:
            dcp.save(state(step), checkpoint_id=f"step-{step}", storage_writer=writer)
        times.append(time.perf_counter() - began)
    writer.checkpoint.durable()
    return {"times": times, "weights": digest(state(3))}


def train(engine: SyncEngine, kill_at: int) -> dict[str, object]:
    """Six steps, each saved; from the newest stored one on. Killed at a step, whose upload has begun."""
    found, first = state(0), 1
    try:
        reader = asyncsync_reader(URI, storage_options=OPTIONS)
    except NotFoundError:
        pass
    else:
        dcp.load(found, storage_reader=reader)
        first = found["step"] + 1
    writer = AsyncsyncWriter(engine.trial(URI.rpartition("/")[2]))
    for step in range(first, 7):
        new = state(step)
        found = {"sharded": found["sharded"] * 0.5 + new["sharded"], "replicated": new["replicated"], "step": step}
        if step == kill_at:
            writer.checkpoint.durable()
        dcp.save(found, checkpoint_id=f"step-{step}", storage_writer=writer)
        if step == kill_at:
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
    writer.checkpoint.durable()
    return {"from": first - 1, "weights": digest(found)}


class Unpicklable:
    def __reduce__(self):
        raise TypeError("cannot be pickled")


def load() -> dict[str, object]:
    found = {"sharded": torch.zeros(0), "replicated": torch.zeros(64, 64), "step": 0}
    found["sharded"] = state(99)["sharded"]
    reader = asyncsync_reader(URI, storage_options=OPTIONS)
    dcp.load(found, storage_reader=reader)
    wanted = digest(state(reader.checkpoint.step))
    return {"step": found["step"], "equal": digest(found) == wanted}


def main() -> None:
    if WORLD > 1:
        dist.init_process_group("gloo")
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[5], "RANK": "0", "WORLD_SIZE": "1"}
        dist.init_process_group("gloo")
    if MODE == "load":
        result = load()
    else:
        storage, _, _ = URI.rpartition("/")
        path, _, name = storage.rpartition("/")
        run = RunConfig(name=name, storage_path=path, storage_options=OPTIONS)
        engine = SyncEngine(run, local_dir=f"{LOCAL}/{RANK}", role="worker", rank=RANK, world_size=WORLD, resume=True)
        try:
            with engine:
                result = train(engine, int(sys.argv[5])) if MODE == "train" else save(engine)
        except CheckpointIncompleteError as error:  # the other rank gave the step up after the last report here
            if MODE != "failing" or "gave up step 2" not in str(error):
                raise
    dist.destroy_process_group()
    print(json.dumps(result))


main()
