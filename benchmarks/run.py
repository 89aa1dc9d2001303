"""What an upload costs: asyncsync beside other tools, against a server on this machine that throws everything away.

    python benchmarks/run.py [--cases small,large] [--peers s5cmd,obstore] [--runs 3] [--json FILE]

Every run is a process of its own, interpreter start-up included; wall time, CPU seconds and peak memory are as the
kernel counts them. Peers take turns, so that a busy minute of the machine hits all of them; the table shows medians.
The results also go to benchmarks/results/ as JSON. Exit codes: 0 done, 1 a peer failed, 2 usage or no C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cases
import peers

HERE = Path(__file__).parent.resolve()
MIB = 1 << 20


class BenchError(Exception):
    """A peer failed, or did not send everything."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        default="small,large",
        metavar="NAMES",
        help="small (near and far), small-0ms, small-30ms, large (default: all)",
    )
    parser.add_argument("--peers", metavar="NAMES", help="peers besides asyncsync (default: those installed)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each peer (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="where the JSON goes (default: benchmarks/results/TIME.json)")
    asked = parser.parse_args()
    try:
        asked.cases = cases.chosen(asked.cases.split(","))
        asked.peers = wanted(asked.peers)
    except ValueError as error:
        parser.error(str(error))
    if asked.runs < 1:
        parser.error("--runs must be at least 1")
    return asked


def wanted(names: str | None) -> list[peers.Peer]:
    """The peers to run; what is not installed is said when nobody asked for it by name, and an error otherwise."""
    found = peers.PEERS if names is None else peers.chosen(names.split(","))
    missing = [peer.name for peer in found if not peer.installed]
    if missing and (names is not None or "asyncsync" in missing):
        raise ValueError(f"not installed: {', '.join(missing)}")
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [peer for peer in found if peer.installed]


def build_sink(room: Path) -> Path:
    """The server of the benchmark, compiled into `room`; exits with 2 when there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        print(
            "error: the benchmarks need a C compiler for their server: install one, or name it in CC", file=sys.stderr
        )
        raise SystemExit(2)
    program = room / "sink"
    subprocess.run([compiler, "-O2", "-w", "-o", program, HERE / "sink.c"], check=True)
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(program: Path, delay_ms: int) -> Iterator[str]:
    """The URL of a server that answers after `delay_ms`; the server ends with the block."""
    port = free_port()
    server = subprocess.Popen([program, str(port), str(delay_ms)])
    endpoint = f"http://127.0.0.1:{port}"
    try:
        await_listening(server, endpoint)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def await_listening(server: subprocess.Popen, endpoint: str) -> None:
    for _ in range(100):
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError):
            stats(endpoint)
            return
        time.sleep(0.02)
    raise BenchError("the server of the benchmark did not start")


def stats(endpoint: str) -> dict:
    """What the server counted since it was last asked."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{endpoint}/_stats", timeout=5) as answer:
        return json.load(answer)


def environment(state: str) -> dict[str, str]:
    """Of the caller's settings none that changes what is measured: no profile, no proxy, no state of earlier runs."""
    kept = {name: value for name, value in os.environ.items()
            if not name.upper().startswith(("AWS_", "ASYNCSYNC_", "S3_")) and "_PROXY" not in name.upper()}  # fmt: skip
    return kept | {
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": peers.REGION,
        "AWS_DEFAULT_REGION": peers.REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "ASYNCSYNC_STATE_DIR": state,
    }


def measure(command: list[str], room: Path) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak memory in bytes of `command` and of the processes it waited for."""
    with tempfile.TemporaryDirectory(dir=room) as state, open(room / "output", "w+") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, env=environment(state), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise BenchError(f"{' '.join(command)} ended with {child.returncode}:\n{output.read()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * unit}


def run_once(peer: peers.Peer, case: cases.Case, source: Path, endpoint: str, room: Path) -> dict[str, float]:
    stats(endpoint)  # what came before does not count
    used = measure(peer.command(source, endpoint), room)
    counted = stats(endpoint)
    if counted["body_bytes"] < case.total:
        raise BenchError(f"{peer.name} sent {counted['body_bytes']:,} of {case.total:,} bytes")
    requests = sum(counted[kind] for kind in ("put", "part", "get", "post", "delete", "head"))
    return used | {"requests": requests}


def run_case(case: cases.Case, asked: argparse.Namespace, program: Path, room: Path) -> dict[str, list[dict]]:
    """Peer name -> its runs. Every other round goes through the peers backwards."""
    source = cases.write(case, room)
    runs: dict[str, list[dict]] = {peer.name: [] for peer in asked.peers}
    with serving(program, case.delay_ms) as endpoint:
        for turn in range(asked.runs):
            for peer in asked.peers[:: -1 if turn % 2 else 1]:
                print(f"{case.name}: {peer.name}, run {turn + 1} of {asked.runs}", file=sys.stderr, flush=True)
                try:
                    runs[peer.name].append(run_once(peer, case, source, endpoint, room))
                except BenchError as error:  # one peer's bad run does not cost the others theirs
                    print(f"error: {error}", file=sys.stderr)
    return runs


def summary(runs: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Peer name -> medians, and how many times as long it took as asyncsync and as the fastest of the others."""
    medians = {
        name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items() if of
    }
    if "asyncsync" not in medians:
        raise BenchError("no run of asyncsync succeeded: there is nothing to compare")
    others = [row["wall_s"] for name, row in medians.items() if name != "asyncsync"]
    for row in medians.values():
        row["times_asyncsync"] = row["wall_s"] / medians["asyncsync"]["wall_s"]
        row["times_best_peer"] = row["wall_s"] / min(others, default=row["wall_s"])
    return medians


def conditions(asked: argparse.Namespace, room: Path) -> dict:
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "files_in": str(room.parent),
        "runs": asked.runs,
        "versions": {peer.name: peer.version for peer in asked.peers},
    }


def failures(runs: dict[str, list[dict]], rounds: int) -> list[str]:
    """A sentence for every peer of which not every run succeeded."""
    return [f"{name}: {rounds - len(of)} of {rounds} runs failed" for name, of in runs.items() if len(of) < rounds]


def table(case: cases.Case, medians: dict[str, dict[str, float]]) -> str:
    rate = "MiB/s" if case.large else "files/s"
    amount = case.total / MIB if case.large else case.files
    delay = f"answers after {case.delay_ms} ms" if case.delay_ms else "no delay"
    lines = [
        f"{case.name}: {case.files:,} x {case.size / 1024:,.0f} KiB, {delay}\n",
        f"| | wall s | {rate} | CPU s | peak MiB | requests | wall / asyncsync | wall / best peer |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(medians.items(), key=lambda item: item[1]["wall_s"]):
        lines.append(
            f"| {name} | {row['wall_s']:.2f} | {amount / row['wall_s']:,.0f} | {row['cpu_s']:.2f} "
            f"| {row['peak_bytes'] / MIB:,.0f} | {row['requests']:,.0f} "
            f"| {row['times_asyncsync']:.2f} | {row['times_best_peer']:.2f} |"
        )
    return "\n".join(lines)


def heading(known: dict, asked: argparse.Namespace) -> str:
    calls = "\n".join(f"- {peer.name} {known['versions'][peer.name]}: {peer.call}" for peer in asked.peers)
    load = " ".join(str(value) for value in known["load"])
    return (
        f"{known['machine']}, Python {known['python']}, load before the start {load}, files in {known['files_in']}, "
        f"median of {known['runs']}\n\n{calls}"
    )


def save(document: dict, name: str | None) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = Path(name) if name else HERE / "results" / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def compare(asked: argparse.Namespace, room: Path) -> dict:
    """Runs everything, prints each case's table as soon as it is there, returns what goes into the JSON."""
    program = build_sink(room)
    known = conditions(asked, room)
    print(heading(known, asked))
    results = []
    for case in asked.cases:
        runs = run_case(case, asked, program, room)
        medians = summary(runs)
        failed = failures(runs, asked.runs)
        print("\n".join(["", table(case, medians), *failed]), flush=True)
        results.append({"case": case.name, "files": case.files, "size": case.size, "delay_ms": case.delay_ms,
                        "medians": medians, "runs": runs, "failed": failed})  # fmt: skip
    return known | {"cases": results}


def main() -> int:
    asked = options()
    room = cases.room_for(asked.cases)
    try:
        document = compare(asked, room)
        where = save(document, asked.json)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(room)
    print(f"\nresults: {where}", file=sys.stderr)
    return 1 if any(case["failed"] for case in document["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
