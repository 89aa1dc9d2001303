"""How long training stands still for a save, how long until it is stored, and memory, beside each framework's own way.

    python benchmarks/frameworks.py                     every case with 64 MiB and three saves; a minute
    python benchmarks/frameworks.py --mib 16 --case dcp

Needs lightning, torch, s3fs and s3torchconnector[dcp] beside asyncsync, and starts SeaweedFS. Each way runs in its own
process: one save to warm up, then the measured ones, with a pause before each in which a training would compute.
"Stored" is the time from the first of them until the last one is in the store, pauses included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
        engine = SyncEngine(RunConfig(name=name, storage_path=path, storage_options=options), local_dir=room)
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


WAYS = {
    "lightning": (lightning_way, ("local", "s3fs", "async + s3fs", "s3torchconnector", "asyncsync")),
    "dcp": (dcp_way, ("local", "fsspec", "s3torchconnector", "asyncsync")),
}


def measure(case: str, way: str, uri: str, options: dict[str, Any], mib: int) -> dict[str, float]:
    """One way, in this process."""
    import torch

    state = {"state_dict": {str(number): torch.randn(mib << 16) for number in range(4)}}
    with tempfile.TemporaryDirectory(prefix="asyncsync-bench-") as room:
        save, wait = WAYS[case][0](way, uri, options, Path(room))
        save(state, 0)
        began, blocked = time.perf_counter(), 0.0
        for step in range(1, SAVES + 1):
            time.sleep(PAUSE)
            start = time.perf_counter()
            save(state, step)
            blocked += time.perf_counter() - start
        wait()
        stored = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"blocked": blocked / SAVES, "stored": stored, "memory_mib": peak}


def run(case: str, way: str, server: servers.S3Server, mib: int) -> dict[str, float]:
    """One way, in a process of its own."""
    bucket = server.create_bucket(f"b{os.urandom(4).hex()}")
    env = {
        **os.environ,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
    }
    arguments = [case, way, f"s3://{bucket}/run", json.dumps(dict(server.storage_options)), str(mib)]
    done = subprocess.run(
        [sys.executable, __file__, "--inside", *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case}, {way} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        case, way, uri, options, mib = sys.argv[2:]
        print(json.dumps(measure(case, way, uri, json.loads(options), int(mib))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--case", choices=sorted(WAYS), action="append")
    parser.add_argument("--way", action="append", help="such as asyncsync; default: all")
    chosen = parser.parse_args()
    with servers.running("seaweedfs") as server:
        for case in chosen.case or sorted(WAYS):
            for way in [way for way in WAYS[case][1] if way in (chosen.way or WAYS[case][1])]:
                found = run(case, way, server, chosen.mib)
                figures = f"blocked {found['blocked']:6.3f} s a save, stored after {found['stored']:6.2f} s"
                print(f"{case:10} {way:18} {figures}, {found['memory_mib']:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
