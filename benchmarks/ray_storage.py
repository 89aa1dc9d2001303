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
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import servers

CASES = {"3 small + 20 MiB": [1000, 1000, 1000, 20 << 20], "40 x 20 KiB": [20 << 10] * 40}
BUCKET = "ray-bench"


class Network:
    """Relays TCP connections; every byte takes half the round trip in each direction, and connecting takes one. It has
    a process of its own: in ours it would compete with the uploads for the interpreter."""

    def __init__(self, port: int, trip: float) -> None:
        self._port, self._delay = port, trip / 2

    @classmethod
    def start(cls, port: int, trip: float) -> tuple[multiprocessing.Process, str]:
        """A relay to ``port``, and its endpoint. It ends with this process."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=cls._main, args=(port, trip, there), daemon=True)
        process.start()
        return process, here.recv()

    @classmethod
    def _main(cls, port: int, trip: float, pipe: multiprocessing.connection.Connection) -> None:
        asyncio.run(cls(port, trip).serve(pipe))

    async def serve(self, pipe: multiprocessing.connection.Connection) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, limit=1 << 20)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
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


class Measured:
    """One storage: seconds of its uploads and of its downloads."""

    def __init__(self, where: dict, name: str) -> None:
        from ray.train._internal.storage import StorageContext

        self._context = StorageContext(experiment_dir_name=name, trial_dir_name="trial", **where)
        self.up: list[float] = []
        self.down: list[float] = []

    def measure(self, number: int, directory: str) -> None:
        """Upload a checkpoint and download it again. The first one of all opens connections and does not count."""
        from ray.train import Checkpoint

        self._context.current_checkpoint_index = number
        began = time.perf_counter()
        stored = self._context.persist_current_checkpoint(Checkpoint.from_directory(directory))
        durable = time.perf_counter()
        copy = stored.to_directory(f"{directory}-copy")
        ended = time.perf_counter()
        for path in Path(directory).iterdir():
            assert path.read_bytes() == Path(copy, path.name).read_bytes()
        if number:
            self.up.append(durable - began)
            self.down.append(ended - durable)

    def medians(self) -> list[float]:
        """Milliseconds up and down."""
        return [1000 * statistics.median(each) for each in (self.up, self.down)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trip", type=float, default=30.0, help="round trip in ms")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with servers.running("seaweedfs") as server, tempfile.TemporaryDirectory() as scratch:
        server.create_bucket(BUCKET)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "ASYNCSYNC_STATE_DIR": f"{scratch}/state",
        }
        relay, endpoint = Network.start(server.port, arguments.trip / 1000)
        where = storages(endpoint)
        for case, sizes in CASES.items():
            measured = {name: Measured(options, f"{name}-{len(sizes)}") for name, options in where.items()}
            for number in range(arguments.rounds + 1):
                for each in measured.values():
                    each.measure(number, checkpoint(Path(scratch), sizes))
            medians = {name: each.medians() for name, each in measured.items()}
            shown = {name: [round(value) for value in each] for name, each in medians.items()}
            ratios = [round(medians["asyncsync"][at] / medians["ray"][at], 2) for at in range(2)]
            print(json.dumps({"case": case, "ms up, down": shown, "asyncsync / ray": ratios}), flush=True)
        relay.terminate()


if __name__ == "__main__":
    main()
