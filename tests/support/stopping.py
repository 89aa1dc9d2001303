"""Stops a training process at random moments, lets another one take over, and wakes the first one.

``python tests/support/stopping.py --stops 200`` starts SeaweedFS and prints the figures; ``test_crash.py`` runs a few
rounds. In each round a process trains and gets SIGSTOP. Another one, with its own directories as on another machine,
resumes the experiment and continues training. The first gets SIGCONT at a random moment, while the second runs or after
it has ended. Every checkpoint that either process reported as durable must be there, bit for bit, and so must the
artifacts of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import servers
from crashing import Log, Round, fork, unique_bytes

from asyncsync import Experiment, SyncEngine, TransferConfig, verify
from asyncsync.errors import AsyncsyncError

MIB = 1 << 20
BUCKET = "stop"
TRANSFER = TransferConfig(part_size=5 * MIB, multipart_threshold=5 * MIB, bandwidth_limit=30 * MIB)
"""The limit makes a checkpoint last half a second, so that most stops hit a running upload."""
SIZES = {"weights": 12 * MIB + 7, "optimizer": MIB, "state": 1000}
STEPS = 4
"""Steps of the second process. The first would run longer."""
PARALLEL_ROUNDS = 8
"""Most of the time is spent waiting for the lease of a stopped process."""


def content(who: str, step: int, name: str) -> bytes:
    """The expected content of a file: no two processes write equal bytes."""
    return unique_bytes(f"{who}/{step}/{name}", SIZES[name])


@dataclass
class Figures:
    """Counts of a sweep."""

    stops: int = 0
    acknowledged: int = 0
    """Checkpoints acknowledged as durable, by both processes together."""
    woken_meanwhile: int = 0
    """Rounds in which the first process woke while the second was running."""
    told: int = 0
    """Rounds in which the first process raised that it had been replaced."""

    def text(self) -> str:
        rows = [
            ("processes stopped and woken", self.stops),
            ("of these while their successor was running", self.woken_meanwhile),
            ("told that they were replaced", self.told),
            ("checkpoints acknowledged, and there bit for bit", self.acknowledged),
        ]
        return "\n".join(f"| {name} | {value} |" for name, value in rows)


class StopRound(Round):
    """A process that is stopped, and its successor."""

    bucket, transfer, sync_period = BUCKET, TRANSFER, 0.3

    def start(self, who: str, steps: int) -> int:
        os.environ["ASYNCSYNC_STATE_DIR"] = str(self.root / who / "state")
        return fork(lambda: self.train(who, steps))

    async def train(self, who: str, steps: int) -> None:
        log = self.log(who)
        try:
            async with SyncEngine(self.run, local_dir=self.root / who, resume=True) as engine:
                trial = engine.trial("t")
                log.write("started")
                for step in range(steps):
                    (trial.dir / "log").write_text(f"{who} {step}\n" * 20_000)
                    source = self.root / f"{who}-{step}"
                    await asyncio.to_thread(self.write, source, who, step)
                    report = await trial.report({"who": who, "at": step}, source)
                    log.write("durable", report.checkpoint.name, step)
        except* AsyncsyncError as errors:
            log.write("replaced" if "another process" in repr(errors.exceptions) else "failed", repr(errors.exceptions))

    @staticmethod
    def write(directory: Path, who: str, step: int) -> None:
        directory.mkdir()
        for name in SIZES:
            (directory / name).write_bytes(content(who, step, name))

    async def check(self) -> None:
        options = self.server.storage_options
        experiment = await Experiment.open(self.run.uri, storage_options=options)
        found = {item.name: item for item in experiment.checkpoints}
        for who in ("first", "second"):
            for _, _, name, step in self.log(who).read("durable"):
                item = found[name]
                assert (item.metrics["who"], item.metrics["at"]) == (who, step), f"{name} is not what {who} reported"
                target = self.root / "restored" / name
                await item.download(target)
                for file in SIZES:
                    assert (target / file).read_bytes() == content(who, step, file), f"{name}/{file} of {who}"
        report = await verify(self.run.uri, deep=True, storage_options=options)
        assert report.ok, f"damaged {report.damaged}, missing {report.missing}"
        with self.server.client() as client:
            there = client.get_object(Bucket=BUCKET, Key=f"{self.name}/t/log")["Body"].read().decode()
        assert there == f"second {STEPS - 1}\n" * 20_000, f"the artifact is {there[:20]!r}"


def one_round(here: StopRound, chance: random.Random) -> Figures:
    figures = Figures(stops=1)
    first = here.start("first", 40)
    here.log("first").wait_for("started")
    time.sleep(chance.uniform(0, 2.5))
    os.kill(first, signal.SIGSTOP)
    second = here.start("second", STEPS)
    woken = time.monotonic() + chance.choice((chance.uniform(0, 4), chance.uniform(4, 14), 60))
    ended = None
    while ended is None:
        pid, status = os.waitpid(second, os.WNOHANG)
        ended = status if pid else None
        if ended is None and time.monotonic() >= woken:
            figures.woken_meanwhile, woken = 1, float("inf")
            os.kill(first, signal.SIGCONT)
        time.sleep(0.01)
    os.kill(first, signal.SIGCONT)
    assert os.waitpid(first, 0)[1] == 0, "the first process failed"
    assert ended == 0, "the second process failed"
    assert not here.log("second").read("failed"), here.log("second").read("failed")
    assert len(here.log("second").read("durable")) == STEPS, here.log("second").read("replaced")
    assert os.waitpid(fork(here.check), 0)[1] == 0, "not everything is as it was acknowledged"
    figures.acknowledged = sum(len(here.log(who).read("durable")) for who in ("first", "second"))
    figures.told = bool(here.log("first").read("replaced"))
    return figures


def sweep(server: servers.S3Server, root: Path, stops: int, seed: int) -> Figures:
    """Run ``stops`` rounds, several in parallel; AssertionError names the loss."""
    server.create_bucket(BUCKET)
    total, results = Figures(), Log(root / "figures")
    root.mkdir(parents=True, exist_ok=True)
    left, running = list(range(stops)), set[int]()
    while left or running:
        while left and len(running) < PARALLEL_ROUNDS:
            number = left.pop(0)
            running.add(fork(lambda number=number: _round(server, root, seed, number, results)))
        pid, status = os.wait()
        running.discard(pid)
        assert status == 0, f"a round of seed {seed} failed, see above; its files are in {root}"
    for _, _, *row in results.read("round"):
        one = Figures(*row)
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total


async def _round(server: servers.S3Server, root: Path, seed: int, number: int, results: Log) -> None:
    here = StopRound(server, root / f"r{number}", f"s{seed}-{number}")
    here.root.mkdir()
    figures = one_round(here, random.Random(f"{seed}/{number}"))
    results.write("round", figures.stops, figures.acknowledged, figures.woken_meanwhile, figures.told)
    shutil.rmtree(here.root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asyncsync-stop-") as root, servers.running("seaweedfs") as server:
        print(sweep(server, Path(root), options.stops, options.seed).text())


if __name__ == "__main__":
    main()
