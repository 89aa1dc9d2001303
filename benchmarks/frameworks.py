"""How long training stands still for a save, how long until it is stored, and memory, beside each framework's own way.

    python benchmarks/frameworks.py                     every case with 64 MiB and three saves; a minute
    python benchmarks/frameworks.py --mib 16 --case dcp --rounds 3

Needs lightning, torch, transformers, s3fs and s3torchconnector[dcp] beside asyncsync, and starts SeaweedFS. Each way
runs in its own process, or in one for each rank: one save to warm up, then the measured ones, with a pause before each
in which a training would compute. "Stored" is the time from the first of them until the last one is in the store,
pauses included; of several ranks the slowest counts. "CPU" is the time of the training's own thread in a save, which
other work on the machine hardly changes. `--rounds` repeats all ways in turn and prints medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/support"))
import servers

Save = Callable[[dict[str, Any], int], None]
SAVES = 3
PAUSE = 0.8
"""Seconds of training before each save."""


def lightning_way(way: str, uri: str, options: dict[str, Any], room: Path) -> tuple[Save, Callable[[], None]]:
    """(save, wait until stored) of one way to save a Lightning checkpoint."""
    from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

    io: Any = TorchCheckpointIO()
    place = str(room / "ckpts") if way in ("local", "asyncsync") else uri
    if way == "async + s3fs":
        io = AsyncCheckpointIO(io)
    elif way == "s3torchconnector":
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.lightning import S3LightningCheckpoint

        io = S3LightningCheckpoint("us-east-1", s3client_config=S3ClientConfig(force_path_style=True))
    elif way == "asyncsync":
        from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

        io = AsyncsyncCheckpointIO(place, uri, storage_options=options)
    return lambda state, step: io.save_checkpoint(state, f"{place}/{step}.ckpt"), io.teardown


def dcp_way(way: str, uri: str, options: dict[str, Any], room: Path) -> tuple[Save, Callable[[], None]]:
    """(save, wait until stored) of one way to save with torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp

    if way == "asyncsync":
        from asyncsync import RunConfig
        from asyncsync.blocking import SyncEngine
        from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter

        path, _, name = uri.rpartition("/")
        config = RunConfig(name=name, storage_path=path, storage_options=options)
        ranks: dict[str, Any] = (
            {"role": "worker", "rank": RANK, "world_size": RANKS, "resume": True} if RANKS > 1 else {}
        )
        engine = SyncEngine(config, local_dir=room / str(RANK), **ranks)
        engine.start()
        writer = AsyncsyncWriter(engine.trial("run"))
        return lambda state, step: dcp.save(state, checkpoint_id=f"step-{step}", storage_writer=writer), engine.close

    def make(step: int) -> Any:
        if way == "local":
            return dcp.FileSystemWriter(room / str(step))
        if way == "fsspec":
            from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

            return FsspecWriter(f"{uri}/{step}")
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageWriter

        return S3StorageWriter("us-east-1", f"{uri}/{step}", s3client_config=S3ClientConfig(force_path_style=True))

    return lambda state, step: dcp.save(state, storage_writer=make(step)), lambda: None


def transformers_way(way: str, uri: str, options: dict[str, Any]) -> Any:
    """The callback of one way to send a trainer's checkpoints, or None."""
    if way == "asyncsync":
        from asyncsync.integrations.transformers import AsyncsyncCallback

        return AsyncsyncCallback(uri, storage_options=options)
    if way == "local":
        return None
    import s3fs
    from transformers import TrainerCallback

    class Put(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            name = f"checkpoint-{state.global_step}"
            s3fs.S3FileSystem().put(f"{args.output_dir}/{name}", f"{uri}/{name}", recursive=True)

    return Put()


def measure_saves(case: str, way: str, uri: str, options: dict[str, Any], mib: int) -> tuple[float, float, float]:
    """Seconds blocked, CPU of them, and seconds until stored, of saves that the benchmark asks for."""
    state = make_state(mib)
    with tempfile.TemporaryDirectory(prefix="asyncsync-bench-") as room:
        save, wait = WAYS[case](way, uri, options, Path(room))
        save(state, 0)
        began, blocked, cpu = time.perf_counter(), 0.0, 0.0
        for step in range(1, SAVES + 1):
            time.sleep(PAUSE)
            start, start_cpu = time.perf_counter(), time.thread_time()
            save(state, step)
            blocked += time.perf_counter() - start
            cpu += time.thread_time() - start_cpu
        wait()
        return blocked, cpu, time.perf_counter() - began


def make_state(mib: int) -> dict[str, Any]:
    """Tensors of ``mib`` MiB; with several ranks, each has its shard of them."""
    import torch

    if RANKS == 1:
        return {"state_dict": {str(number): torch.randn(mib << 16) for number in range(4)}}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))
    return {str(number): distribute_tensor(torch.randn(mib << 6, 1024), mesh, [Shard(0)]) for number in range(4)}


def measure_trainer(way: str, uri: str, options: dict[str, Any], mib: int) -> tuple[float, float, float]:
    """Seconds blocked, CPU of them, and seconds until stored, of a trainer that saves at each step."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(mib << 8, 1024)

        def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.table(tokens).pow(2).mean()}

    class Clock(TrainerCallback):
        began = blocked = cpu = ended = ended_cpu = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step > 1:
                self.blocked += time.perf_counter() - self.ended
                self.cpu += time.thread_time() - self.ended_cpu
            if state.global_step == 1:
                self.began = time.perf_counter()
            time.sleep(PAUSE)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended, self.ended_cpu = time.perf_counter(), time.thread_time()

    with tempfile.TemporaryDirectory(prefix="asyncsync-bench-") as room:
        settings: dict[str, Any] = {"max_steps": SAVES + 2, "save_steps": 1, "optim": "sgd", "use_cpu": True}
        args = TrainingArguments(room, report_to=[], disable_tqdm=True, logging_steps=100, **settings)
        clock, callback = Clock(), transformers_way(way, uri, options)
        callbacks = [clock] if callback is None else [clock, callback]
        Trainer(Model(), args, train_dataset=[{"tokens": 1}] * 64, callbacks=callbacks).train()
        return clock.blocked, clock.cpu, time.perf_counter() - clock.began


RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WAYS: dict[str, Callable[..., Any]] = {
    "dcp": dcp_way,
    "dcp-2-ranks": dcp_way,
    "lightning": lightning_way,
    "transformers": transformers_way,
}
NAMES = {
    "dcp": ("local", "fsspec", "s3torchconnector", "asyncsync"),
    "dcp-2-ranks": ("local", "fsspec", "s3torchconnector", "asyncsync"),
    "lightning": ("local", "s3fs", "async + s3fs", "s3torchconnector", "asyncsync"),
    "transformers": ("local", "s3fs", "asyncsync"),
}


def measure(case: str, way: str, uri: str, options: dict[str, Any], mib: int) -> dict[str, float]:
    """One way, in this process."""
    if RANKS > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    if case == "transformers":
        blocked, cpu, stored = measure_trainer(way, uri, options, mib)
    else:
        blocked, cpu, stored = measure_saves(case, way, uri, options, mib)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"blocked": blocked / SAVES, "cpu": cpu / SAVES, "stored": stored, "memory_mib": peak}


def run(case: str, way: str, server: servers.S3Server, mib: int) -> dict[str, float]:
    """One way, in processes of its own; of several ranks the slowest and the largest."""
    bucket = server.create_bucket(f"b{os.urandom(4).hex()}")
    arguments = [case, way, f"s3://{bucket}/exp/run", json.dumps(dict(server.storage_options)), str(mib)]
    env = {
        **os.environ,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
    }
    ranks = 2 if case.endswith("2-ranks") else 1
    port = str(servers._free_ports(1)[0])  # noqa: SLF001
    started = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, "--inside", *arguments]
        started.append(
            subprocess.Popen(
                command,
                env=env | (own if ranks > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            raise SystemExit(f"{case}, {way} failed:\n{errors[-2000:]}")
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    return {name: max(item[name] for item in found) for name in found[0]}


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        case, way, uri, options, mib = sys.argv[2:]
        print(json.dumps(measure(case, way, uri, json.loads(options), int(mib))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--case", choices=sorted(WAYS), action="append")
    parser.add_argument("--way", action="append", help="such as asyncsync; default: all")
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    with servers.running("seaweedfs") as server:
        for case in chosen.case or sorted(WAYS):
            ways = [way for way in NAMES[case] if way in (chosen.way or NAMES[case])]
            rounds = [{way: run(case, way, server, chosen.mib) for way in ways} for _ in range(chosen.rounds)]
            for way in ways:
                show(case, way, [found[way] for found in rounds])


def show(case: str, way: str, found: list[dict[str, float]]) -> None:
    """The medians of the rounds."""
    blocked, cpu, stored, memory = (statistics.median(item[name] for item in found) for name in found[0])
    figures = f"blocked {blocked:6.3f} s a save (CPU {cpu:5.3f}), stored after {stored:6.2f} s, {memory:5.0f} MiB"
    print(f"{case:12} {way:18} {figures}", flush=True)


if __name__ == "__main__":
    main()
