"""Ray's own storage against asyncsync's on the same SeaweedFS, through a network with a given round trip.

    python benchmarks/ray_storage.py                     3 small files + 20 MiB, and 40 x 20 KiB
    python benchmarks/ray_storage.py --trip 30 --rounds 7

What is timed is what `report` blocks for: StorageContext.persist_current_checkpoint of Ray Tune; and
Checkpoint.to_directory. The two take turns, each with new content; the medians are printed.
Needs Ray, see `nox -s ray`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import servers

CASES = {"3 small + 20 MiB": [1000, 1000, 1000, 20 << 20], "40 x 20 KiB": [20 << 10] * 40}
BUCKET = "ray-bench"


class Network:
    """Relays TCP connections; every byte takes half the round trip in each direction, and connecting takes one."""

    def __init__(self, port: int, trip: float) -> None:
        self._port, self._delay = port, trip / 2
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, limit=1 << 20)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await server.serve_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay * 2)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer), return_exceptions=True)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        task = asyncio.create_task(deliver())
        while data := await reader.read(1 << 18):
            queue.put_nowait((time.monotonic() + self._delay, data))
        queue.put_nowait((time.monotonic() + self._delay, b""))
        await task


def checkpoint(room: Path, sizes: list[int]) -> str:
    directory = tempfile.mkdtemp(dir=room)
    for number, size in enumerate(sizes):
        Path(directory, f"file_{number}").write_bytes(os.urandom(size))
    return directory


def storages(endpoint: str) -> dict[str, dict]:
    import pyarrow.fs

    from asyncsync.integrations import ray as asyncsync_ray

    plain = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1")
    ours = asyncsync_ray.storage(
        f"s3://{BUCKET}/asyncsync", storage_options={"endpoint_url": endpoint, "region": "us-east-1"}
    )
    return {"ray": {"storage_path": f"{BUCKET}/plain", "storage_filesystem": plain}, "asyncsync": ours}


def measure(where: dict, name: str, room: Path, sizes: list[int], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each upload and of each download, the first of each left out."""
    from ray.train import Checkpoint
    from ray.train._internal.storage import StorageContext

    context = StorageContext(experiment_dir_name=name, trial_dir_name="trial", **where)
    up, down = [], []
    for number in range(rounds + 1):
        directory = checkpoint(room, sizes)
        context.current_checkpoint_index = number
        began = time.perf_counter()
        stored = context.persist_current_checkpoint(Checkpoint.from_directory(directory))
        up.append(time.perf_counter() - began)
        began = time.perf_counter()
        copy = stored.to_directory(f"{directory}-copy")
        down.append(time.perf_counter() - began)
        for path in Path(directory).iterdir():
            assert path.read_bytes() == Path(copy, path.name).read_bytes()
    return up[1:], down[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trip", type=float, default=30.0, help="round trip in ms")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with servers.running("seaweedfs") as server, tempfile.TemporaryDirectory() as scratch:
        server.create_bucket(BUCKET)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "ASYNCSYNC_STATE_DIR": f"{scratch}/state",
        }
        where = storages(Network(server.port, arguments.trip / 1000).endpoint)
        for case, sizes in CASES.items():
            found = {}
            for turn in range(2):
                for name, options in where.items():
                    up, down = measure(options, f"{name}-{turn}-{len(sizes)}", Path(scratch), sizes, arguments.rounds)
                    earlier = found.setdefault(name, ([], []))
                    earlier[0].extend(up)
                    earlier[1].extend(down)
            medians = {name: [1000 * statistics.median(each) for each in both] for name, both in found.items()}
            shown = {name: [round(value) for value in each] for name, each in medians.items()}
            ratios = [round(medians["asyncsync"][at] / medians["ray"][at], 2) for at in range(2)]
            print(json.dumps({"case": case, "ms up, down": shown, "asyncsync / ray": ratios}), flush=True)


if __name__ == "__main__":
    main()
