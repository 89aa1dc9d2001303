"""How many bytes a change costs: a tree is pushed, changed, and pushed again; the bytes are counted on their way.

    python benchmarks/delta.py                          every case at full size: some 6 GiB of files, some minutes
    python benchmarks/delta.py --scale 8                everything an eighth as large
    python benchmarks/delta.py --case log,rename --peers s5cmd,rclone
    python benchmarks/delta.py --server moto --scale 16

Between client and server (SeaweedFS, ministack or moto) stands a proxy that counts what goes through, headers included.
Peers send the changed tree as they do by default. `--time 20 --server sink` compares sending a file whose every byte
changed with sending it for the first time, in so many pairs that take turns.
Exit codes: 0 every figure is reached, 1 one is missed, 2 usage or no server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import servers

MIB, GIB = 1 << 20, 1 << 30
PART = 16 * MIB
BLOCK = os.urandom(MIB)


def write(path: Path, size: int, seed: int = 0) -> None:
    """``size`` bytes that do not repeat and do not compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        for number in range(0, size, MIB):
            mark = number.to_bytes(8, "big") + seed.to_bytes(8, "big")
            file.write((mark + BLOCK)[: min(MIB, size - number)])


# The proxy: a process of its own, so that it does not hold up the client.


def _forward(source: socket.socket, target: socket.socket, count: object) -> None:
    buffer = memoryview(bytearray(MIB))
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            target.sendall(buffer[:size])
            if count is not None:
                with count.get_lock():
                    count.value += size
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _serve(listener: socket.socket, port: int, sent: object) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for source, target, count in ((client, server, sent), (server, client, None)):
            threading.Thread(target=_forward, args=(source, target, count), daemon=True).start()


@contextlib.contextmanager
def counting(endpoint: str) -> Iterator[tuple[str, object]]:
    """An endpoint that leads to ``endpoint``, and the bytes that went there."""
    sent = multiprocessing.Value("q", 0)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = int(endpoint.rpartition(":")[2])
    process = multiprocessing.Process(target=_serve, args=(listener, port, sent), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
    finally:
        process.kill()
        process.join()
        listener.close()


@dataclass
class Bench:
    """One client at a time; ``sent`` counts."""

    endpoint: str
    keys: dict[str, str]
    sent: object
    room: Path

    def asyncsync(self, tree: Path, name: str) -> str:
        """Push in a process of its own; what the command said."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "asyncsync",
                "push",
                str(tree),
                f"s3://{servers.BUCKET}/{name}",
                "--delete",
                "--json",
                "--endpoint-url",
                self.endpoint,
            ],
            env={**os.environ, **self.keys},
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise servers.ServerError(f"asyncsync push ended with {done.returncode}")
        report = json.loads(done.stdout)
        return f"{report['bytes_copied'] / MIB:,.1f} MiB copied by the store, {report['requests']:,} requests"

    def s5cmd(self, tree: Path, name: str) -> str:
        self._run(
            "s5cmd", "--endpoint-url", self.endpoint, "sync", "--delete", f"{tree}/", f"s3://{servers.BUCKET}/{name}/"
        )
        return ""

    def rclone(self, tree: Path, name: str) -> str:
        remote = f":s3,provider=Other,env_auth=true,endpoint='{self.endpoint}':{servers.BUCKET}/{name}"
        self._run("rclone", "sync", str(tree), remote, "--config", os.devnull)
        return ""

    def _run(self, *command: str) -> None:
        subprocess.run(command, env={**os.environ, **self.keys}, check=True, capture_output=True)

    def count(self, client: str, tree: Path, name: str) -> tuple[int, float, str]:
        before, started = self.sent.value, time.monotonic()
        said = getattr(self, client)(tree, name)
        return self.sent.value - before, time.monotonic() - started, said


@dataclass(frozen=True)
class Case:
    """``most``: bytes that may be sent, beside headers and the manifest."""

    name: str
    text: str
    before: Callable[[Path, int], None]
    change: Callable[[Path, int], None]
    most: Callable[[int], float]


def _append(tree: Path, _: int) -> None:
    with (tree / "train.log").open("ab") as file:
        file.write(os.urandom(MIB))


def _overwrite(tree: Path, scale: int) -> None:
    size = 2 * GIB // scale
    with (tree / "model.bin").open("r+b") as file:
        file.seek(size * 2 // 5 + 12345)
        for _ in range(size // 20 // MIB):
            file.write(os.urandom(MIB))


def _adapter(tree: Path, _: int) -> None:
    """A new checkpoint directory: the base is the same, the adapter another."""
    (tree / "checkpoint_000001").mkdir()
    os.link(tree / "checkpoint_000000/base.safetensors", tree / "checkpoint_000001/base.safetensors")
    write(tree / "checkpoint_000001/adapter.safetensors", 40 * MIB, 2)


def _many(tree: Path, scale: int) -> None:
    for number in range(10_000 // scale):
        write(tree / f"old/{number // 100}/{number}", 4096, number)


CASES = [
    Case("log", "{2} log, 1 MiB appended", lambda t, s: write(t / "train.log", 2 * GIB // s), _append,
         lambda _: 2 * PART),
    Case("run", "{2} checkpoint, 5 % changed in one run of bytes", lambda t, s: write(t / "model.bin", 2 * GIB // s),
         _overwrite, lambda s: 2 * GIB // s // 20 + 2 * PART),
    Case("adapter", "{4} model, adapter of 40 MiB changed, new checkpoint directory",
         lambda t, s: (write(t / "checkpoint_000000/base.safetensors", 4 * GIB // s),
                       write(t / "checkpoint_000000/adapter.safetensors", 40 * MIB, 1)),
         _adapter, lambda _: 40 * MIB + 2 * PART),
    Case("everywhere", "{2} file rewritten with other bytes everywhere", lambda t, s: write(t / "f", 2 * GIB // s),
         lambda t, s: write(t / "f", 2 * GIB // s, 7), lambda s: 2 * GIB // s),
    Case("rename", "{n} files of 4 KiB renamed into another directory", _many,
         lambda t, _: (t / "old").rename(t / "new"), lambda _: 0),
]  # fmt: skip


def run(bench: Bench, case: Case, clients: list[str], scale: int) -> bool:
    """Print a row for each client; whether asyncsync reached its figure."""
    text = case.text.format("", "", f"{2 / scale:g} GiB", "", f"{4 / scale:g} GiB", n=f"{10_000 // scale:,}")
    reached = True
    for client in clients:
        tree = bench.room / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        case.before(tree, scale)
        time.sleep(0.1)  # a file that was written just now would be doubted
        name = f"{case.name}-{client}"
        _, first, _ = bench.count(client, tree, name)
        case.change(tree, scale)
        total = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        sent, seconds, said = bench.count(client, tree, name)
        files = sum(path.is_file() for path in tree.rglob("*"))
        allowed = case.most(scale) * 1.001 + 64 * 1024 + files * 2048  # headers, and the manifest's line for each file
        reached &= client != "asyncsync" or sent <= allowed
        print(
            f"| {text} | {client} | {total / MIB:,.1f} | {sent / MIB:,.2f} | {first:.1f} | {seconds:.1f} | {said} |",
            flush=True,
        )
    return reached


def _cost(bench: Bench, tree: Path, name: str) -> tuple[float, float]:
    """Seconds by the clock and seconds of CPU of one push."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = bench.count("asyncsync", tree, name)[1]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def timed(bench: Bench, scale: int, number: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """What it costs to send a file for the first time, and to send it when every byte of it has changed; which of the
    two is measured first alternates, because the machine has its moods."""
    tree, name, size = bench.room / "tree", f"time-{number}", 2 * GIB // scale

    def plain() -> tuple[float, float]:
        shutil.rmtree(tree, ignore_errors=True)
        write(tree / "f", size, 100 + number)
        time.sleep(0.1)
        return _cost(bench, tree, f"{name}-plain")

    def changed() -> tuple[float, float]:
        shutil.rmtree(tree, ignore_errors=True)
        write(tree / "f", size, 200 + number)
        time.sleep(0.1)
        bench.count("asyncsync", tree, f"{name}-changed")
        write(tree / "f", size, 300 + number)
        time.sleep(0.1)
        return _cost(bench, tree, f"{name}-changed")

    if number % 2:
        again = changed()
        return plain(), again
    first = plain()
    return first, changed()


def compare(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Print the pairs, the median of their ratios, and where 95 of 100 medians of such pairs would lie."""
    for first, again in pairs:
        print(
            f"plain {first[0]:.2f} s, CPU {first[1]:.2f} s; changed everywhere {again[0]:.2f} s, CPU {again[1]:.2f} s"
        )
    for index, what in enumerate(("wall time", "CPU time")):
        first, again = (statistics.median(pair[side][index] for pair in pairs) for side in (0, 1))
        ratios = [again[index] / first[index] for first, again in pairs]
        low, high = interval(ratios)
        print(
            f"median {what}: {first:.3f} s plain, {again:.3f} s changed everywhere; median ratio of the {len(pairs)} "
            f"pairs {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}"
        )


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, by the bootstrap (Efron 1979): of many samples drawn from ``ratios``, the middle 95 %."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(5000))
    return medians[125], medians[-126]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default=",".join(case.name for case in CASES), metavar="NAMES")
    parser.add_argument("--peers", default="", metavar="NAMES", help="s5cmd, rclone: programs on the path")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="divide all sizes by N")
    parser.add_argument("--server", default="seaweedfs", choices=[*servers.REAL, "sink"])
    parser.add_argument("--time", type=int, default=0, metavar="RUNS", help="only compare times, with so many runs")
    return parser.parse_args()


def end(*_: object) -> None:
    """As after Ctrl-C: stop the server and remove what was written. Once: a second signal, such as `timeout` sends to
    the whole group, must not end that half way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    asked = options()
    clients = ["asyncsync", *filter(None, asked.peers.split(","))]
    cases = [case for case in CASES if case.name in asked.case.split(",")]
    with tempfile.TemporaryDirectory(prefix="asyncsync-delta-") as text, servers.Servers(Path(text)) as known:
        room = Path(text)
        keys = {"ASYNCSYNC_STATE_DIR": str(room / "state"), "AWS_EC2_METADATA_DISABLED": "true"}
        reached = True
        if not asked.time:
            print(
                "| case | client | tree, MiB | sent, MiB | first push, s | push, s | |\n|---|---|---|---|---|---|---|"
            )
        pairs = []
        for case in cases if not asked.time else range(asked.time):
            known.stop()  # what is deleted stays on SeaweedFS's disk for a while
            server = known.get(asked.server, remember=asked.server == "sink")
            keys |= {
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
                "AWS_REGION": "us-east-1",
            }
            if asked.time:  # without the proxy, which takes its share of the machine
                nothing = multiprocessing.Value("q", 0)
                pairs.append(timed(Bench(server.endpoint, keys, nothing, room), asked.scale, case))
                continue
            with counting(server.endpoint) as (endpoint, sent):
                reached &= run(Bench(endpoint, keys, sent, room), case, clients, asked.scale)
        if pairs:
            compare(pairs)
    return 0 if reached else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    try:
        sys.exit(main())
    except servers.ServerError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
