"""What asyncsync costs beside other tools: wall time, CPU, memory, and how long it holds up an event loop.

    python benchmarks/run.py                                    everything, some 15 minutes
    python benchmarks/run.py --quick                            smaller, fewer peers, under 2 minutes
    python benchmarks/run.py --case small,large --server sink --peers s5cmd,obstore --runs 3
    python benchmarks/run.py --show FILE.json ...               the tables of earlier runs, joined

Cases: small, large, trials (uploads); unchanged, changed (a tree that the store holds); small-down, large-down,
trials-down; lag-small, lag-large, lag-trials (of an event loop that uploads); gcs-small, gcs-small-down,
gcs-large, gcs-large-down (Cloud Storage). Servers: sink, sink-30ms, sink-tls, sink-tls-30ms, seaweedfs,
gcp-storage-emulator, fake-gcs-server. Every run is a process of its own; peers take turns, so that a busy minute hits
all of them, and the tables show medians. A peer that took over 2.5 times as long as the fastest is run once. The peers
live in an environment of their own, benchmarks/.venv, made when needed. Results also go to benchmarks/results/ as JSON.
Exit codes: 0 done, 1 a run failed, 2 usage or nothing to run with, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cases
import peers
import report
from servers import ServerError, Servers

HERE = Path(__file__).parent.resolve()
SLOW = 2.5
PATIENCE = 300  # seconds that one run may take


class RunError(Exception):
    """A peer failed, or did not send or fetch everything."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--case", type=_names, metavar="NAMES", help="what to run (default: all)")
    add("--server", type=_names, metavar="NAMES", help="against what (default: each case's own)")
    add("--peers", type=_names, metavar="NAMES", help="peers besides asyncsync (default: all that are installed)")
    add("--runs", type=int, metavar="N", help="runs of each peer (default: 3; 1 with --quick)")
    add("--quick", action="store_true", help="a quarter or a tenth of the data, fewer peers and cases")
    add("--json", metavar="FILE", help="where the JSON goes (default: benchmarks/results/TIME.json)")
    add("--show", nargs="+", metavar="FILE", help="run nothing: print the tables of these results")
    add("--data", metavar="DIR", help="keep the files that are sent there, and use them again (default: a fresh place)")
    add("--peers-python", metavar="FILE", help="an interpreter that has the peers, instead of benchmarks/.venv")
    asked = parser.parse_args()
    asked.runs = asked.runs if asked.runs is not None else 1 if asked.quick else 3
    if asked.runs < 1:
        parser.error("--runs must be at least 1")
    try:
        asked.pairs = cases.chosen(asked.case, asked.server, quick=asked.quick)
        if not asked.show:
            asked.known = peers.Environment(asked.peers_python)
            asked.peers = peers.chosen(asked.peers, asked.known, quick=asked.quick)
    except ValueError as error:
        parser.error(str(error))
    return asked


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def environment(job: peers.Job, state: Path, said: Path, directories: int | None) -> dict[str, str]:
    """Of the caller's settings none that changes what is measured: no profile, no proxy, no state of earlier runs."""
    dropped = ("AWS_", "ASYNCSYNC_", "S3_", "RCLONE_", "BENCH_", "GOOGLE_", "STORAGE_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(dropped) and "_PROXY" not in name.upper()
    }
    settings = {
        "AWS_ACCESS_KEY_ID": job.server.access_key,
        "AWS_SECRET_ACCESS_KEY": job.server.secret_key,
        "AWS_REGION": peers.REGION,
        "AWS_DEFAULT_REGION": peers.REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": f"{state}/none",  # a file that is not there
        "AWS_SHARED_CREDENTIALS_FILE": f"{state}/none",
        "ASYNCSYNC_STATE_DIR": str(state),
        "BENCH_ENDPOINT": job.server.endpoint,
        "BENCH_SCHEME": job.case.scheme,
        "BENCH_AT_ONCE": str(peers.at_once(job)),
        "BENCH_REPORT": str(said),
    }
    if job.case.scheme == "gs":
        settings["STORAGE_EMULATOR_HOST"] = job.server.endpoint
    if job.server.ca:
        settings |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE", "BENCH_CA"), str(job.server.ca))
    if directories:
        settings["BENCH_TRIALS"] = str(directories)
    return kept | settings


def measure(command: list[str], settings: dict[str, str], room: Path) -> dict[str, float]:
    """What `command` cost and, where it says so, what was the work in it. Whatever happens, nothing of it goes on."""
    cost, said = room / "cost.json", Path(settings["BENCH_REPORT"])
    said.unlink(missing_ok=True)
    launcher = [sys.executable, "-I", "-S", str(HERE / "measure.py"), str(cost), *command]
    with open(room / "output", "w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(
            launcher, env=settings, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            child.wait(PATIENCE)
            used = json.loads(cost.read_text())
        except (subprocess.TimeoutExpired, OSError) as error:
            raise RunError(f"no end within {PATIENCE} s, or no result: {error}") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if code := used.pop("code"):
            output.seek(0)
            raise RunError(f"{' '.join(command)} ended with {code}:\n{output.read()[-2000:]}")
    return used | (json.loads(said.read_text()) if said.exists() else {})


class Bench:
    """One invocation: where its files are and what runs it."""

    def __init__(self, asked: argparse.Namespace, room: Path, servers: Servers) -> None:
        self.asked, self.room, self.servers = asked, room, servers
        self.data = Path(asked.data).resolve() if asked.data else room / "data"
        self.failed = False

    def run(self, case: cases.Case, server: str) -> dict[str, list[dict]]:
        """Peer name -> its runs. Every other round goes through the peers backwards."""
        source = cases.write(case.data, self.data)
        state = self.room / f"state-{case.name}"
        if case.kind in ("down", "again"):
            self.fill(case, server, source, state)
        taking_part = [peer for peer in self.asked.peers if peer.fits(case)]
        runs: dict[str, list[dict]] = {peer.name: [] for peer in taking_part}
        for turn in range(self.asked.runs):
            for peer in taking_part[:: -1 if turn % 2 else 1]:
                try:
                    runs[peer.name].append(self.once(peer, case, server, source, state, turn))
                    cost = runs[peer.name][-1]["work_s"]
                    print(
                        f"{case.name} on {server}: {peer.name}, run {turn + 1} of {self.asked.runs}: {cost:.2f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                except RunError as error:  # one peer's bad run does not cost the others theirs
                    print(f"error: {case.name} on {server}: {peer.name}: {error}", file=sys.stderr, flush=True)
                    self.failed = True
            if turn == 0:
                taking_part = worth_repeating(taking_part, runs)
        shutil.rmtree(state, ignore_errors=True)
        return {name: of for name, of in runs.items() if of}

    def fill(self, case: cases.Case, server: str, source: Path, state: Path) -> None:
        """The store gets what is fetched or compared then."""
        running = self.servers.get(server, sending=case.data.total, remember=case.kind == "again")
        job = peers.Job("up", source, case.name, running, case)
        print(f"{case.name} on {server}: filling it", file=sys.stderr, flush=True)
        ours = next(peer for peer in peers.PEERS if peer.name == "asyncsync")
        settings = environment(job, state, self.room / "said.json", None)
        measure(ours.command(self.asked.known, job), settings, self.room)

    def once(self, peer: peers.Peer, case: cases.Case, server: str, source: Path, state: Path, turn: int) -> dict:
        sending = case.data.total if case.kind in ("up", "lag") else 0
        running = self.servers.get(server, sending=sending, remember=case.kind == "again")
        directories = peers.share(peer, case, server)
        with tempfile.TemporaryDirectory(dir=self.room) as fresh, self.place(peer, case, source) as place:
            prefix = case.name if case.kind in ("down", "again") else f"{case.name}-{peer.name}-{turn}"
            job = peers.Job(case.kind, place, prefix, running, case)
            if case.changed and peer.name != "asyncsync-running":  # which changes them itself, after its first sync
                cases.change(source, case.changed)
            settings = environment(
                job, state if case.kind == "again" else Path(fresh), self.room / "said.json", directories
            )
            running.counted()  # what came before does not count
            run = measure(peer.command(self.asked.known, job), settings, self.room)
            run |= self.check(case, source, place, running.counted(), directories)
        return scaled(run, directories / case.data.trials if directories else 1.0)

    @contextlib.contextmanager
    def place(self, peer: peers.Peer, case: cases.Case, source: Path):
        """The directory that is sent or filled. The engine gets hard links: it writes records into what it syncs."""
        if case.kind not in ("down", "lag") and peer.name != "asyncsync-engine":
            yield source
            return
        place = source.with_name(f"{source.name}-{os.getpid()}")
        if case.kind != "down":
            shutil.copytree(source, place, copy_function=os.link)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def check(
        self, case: cases.Case, source: Path, place: Path, counted: dict | None, directories: int | None
    ) -> dict[str, float]:
        """RunError unless everything arrived; how many requests that took, where the server counts them."""
        if case.kind == "down" and (why := cases.same(source, place)):
            raise RunError(why)
        if counted is None:
            return {}
        expected = case.data.total if case.kind in ("up", "lag") else case.changed * case.data.files[0][1]
        expected = expected * directories // case.data.trials if directories else expected
        if counted["body_bytes"] < expected:
            raise RunError(f"it sent {counted['body_bytes']:,} of {expected:,} bytes")
        return {"requests": sum(counted[kind] for kind in ("put", "part", "get", "post", "delete", "head"))}


def scaled(run: dict[str, float], part: float) -> dict[str, float]:
    """As long as all of it would have taken; `work_s` is the work alone for a library, all there is for a command."""
    times = ("wall_s", "cpu_s", "inside_s", "inside_cpu_s", "requests")
    run = {key: value / part if key in times else value for key, value in run.items()}
    run["work_s"], run["work_cpu_s"] = run.get("inside_s", run["wall_s"]), run.get("inside_cpu_s", run["cpu_s"])
    return run | ({"part": part} if part < 1 else {})


def worth_repeating(taking_part: list[peers.Peer], runs: dict[str, list[dict]]) -> list[peers.Peer]:
    took = {name: of[0]["work_s"] for name, of in runs.items() if of}
    limit = SLOW * min(took.values(), default=0)
    return [peer for peer in taking_part if peer.ours or took.get(peer.name, 0) <= limit or peer.name in PIVOTS]


PIVOTS = ("s5cmd", "obstore", "gcloud-aio-storage", "gcsfs")  # the figures are ratios to these, so they are medians too


def conditions(asked: argparse.Namespace, room: Path) -> dict:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores",
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "commit": commit,
        "files_in": str(room.parent),
        "runs": asked.runs,
        "quick": asked.quick,
        "versions": {peer.name: asked.known.version(peer) for peer in asked.peers},
        "calls": {peer.name: peer.call for peer in asked.peers},
    }


def run_all(asked: argparse.Namespace, room: Path) -> tuple[dict, bool]:
    """Runs everything, prints and saves each case as soon as it is there; the results and whether a run failed."""
    document = {"conditions": [conditions(asked, room)], "cases": []}
    print(report.heading(document["conditions"][0]), flush=True)
    with Servers(room) as servers:
        bench = Bench(asked, room, servers)
        for position, (case, server) in enumerate(asked.pairs):
            try:
                runs = bench.run(case, server)
            except (RunError, ServerError) as error:
                print(f"error: {case.name} on {server}: {error}", file=sys.stderr, flush=True)
                bench.failed = True
                continue
            data = case.data
            entry = {
                "case": case.name,
                "kind": case.kind,
                "server": server,
                "what": str(data),
                "files": data.count,
                "bytes": data.total,
                "bulky": data.bulky,
                "changed": case.changed,
                "runs": runs,
            }
            document["cases"].append(entry)
            save(document, asked.json)  # what is there stays when the rest is interrupted
            print(f"\n{report.table(entry)}", flush=True)
            if not asked.data and data not in [later.data for later, _ in asked.pairs[position + 1 :]]:
                cases.forget(data, bench.data)
    return document, bench.failed


def save(document: dict, name: str | None) -> Path:
    stamp = document["conditions"][0]["time"].translate({ord(":"): None, ord("-"): None}).split("+")[0]
    path = Path(name) if name else HERE / "results" / f"{stamp}Z.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def main() -> int:
    asked = options()
    if asked.show:
        print(report.joined([json.loads(Path(name).read_text()) for name in asked.show]))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    room = cases.room_for(asked.pairs)
    try:
        document, failed = run_all(asked, room)
        print(f"\n{report.figures(document)}")
        print(f"\nresults: {save(document, asked.json)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: nothing goes on; cases that were done are in the JSON", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
