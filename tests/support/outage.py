"""A store that is unreachable for a while during a sweep: 50 trials against SeaweedFS through the fault proxy.

``python tests/support/outage.py --seconds 60`` prints the costs and fails if anything was lost. ``nox -s outage`` runs
it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import servers

from asyncsync import Experiment, RunConfig, SyncConfig, SyncEngine, UploadMode, verify
from asyncsync.testing import FaultProxy

PERIOD = 2.0
"""Seconds between two reports of a trial; every fifth comes with a checkpoint."""
SIZE = 256 << 10


def rss() -> float:
    """Memory of this process now, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


class Outage:
    def __init__(self, trials: int, seconds: float, root: Path) -> None:
        self.trials, self.seconds, self.root = trials, seconds, root
        self.reports = dict.fromkeys(range(trials), 0)
        self.longest = 0.0
        self.memory: list[float] = []
        self.lag = 0.0
        self.stop = asyncio.Event()

    async def train(self, engine: SyncEngine, number: int) -> None:
        trial = engine.trial(f"t{number:02}")
        source = self.root / f"source{number}"
        source.mkdir()
        await asyncio.sleep(PERIOD * number / self.trials)
        while not self.stop.is_set():
            step = self.reports[number]
            checkpoint = None
            if step % 5 == 4:
                (source / "weights").write_bytes(os.urandom(SIZE))
                checkpoint = source
            started = time.monotonic()
            await trial.report({"step": step}, checkpoint, upload=UploadMode.ASYNC)
            self.longest = max(self.longest, time.monotonic() - started)
            self.reports[number] += 1
            await asyncio.sleep(PERIOD)

    async def watch(self, engine: SyncEngine) -> None:
        while True:
            self.memory.append(rss())
            self.lag = max(self.lag, engine.status().durability_lag)
            await asyncio.sleep(0.5)

    async def run(self, server: servers.S3Server) -> dict[str, object]:
        bucket = server.create_bucket("outage")
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            run = RunConfig(
                name="sweep",
                storage_path=f"s3://{bucket}",
                sync_config=SyncConfig(sync_period=5),
                storage_options=server.storage_options | {"endpoint_url": proxy.url},
            )
            async with SyncEngine(run, local_dir=self.root / "local") as engine:
                watching = asyncio.create_task(self.watch(engine))
                training = [asyncio.create_task(self.train(engine, number)) for number in range(self.trials)]
                await asyncio.sleep(15)
                before, lag_before = max(self.memory), self.lag
                proxy.set_away(True)
                await asyncio.sleep(self.seconds)
                proxy.set_away(False)
                back, sent = time.monotonic(), sum(seen.sent for seen in proxy.log)
                while engine.status().durability_lag > max(lag_before, PERIOD + 5):
                    await asyncio.sleep(0.05)
                caught_up, lag, peak = time.monotonic() - back, self.lag, max(self.memory)
                caught_up_bytes = sum(seen.sent for seen in proxy.log) - sent
                self.stop.set()
                await asyncio.gather(*training)
                watching.cancel()
        await self.check(f"s3://{bucket}/sweep", server)
        return {
            "trials": self.trials,
            "seconds gone": self.seconds,
            "reports": sum(self.reports.values()),
            "checkpoints": sum(count // 5 for count in self.reports.values()),
            "lag before, most (s)": round(lag_before, 1),
            "lag during, most (s)": round(lag, 1),
            "caught up after (s)": round(caught_up, 1),
            "MiB sent to catch up": round(caught_up_bytes / (1 << 20), 1),
            "longest report (s)": round(self.longest, 2),
            "RSS before (MiB)": round(before),
            "RSS at most (MiB)": round(peak),
        }

    async def check(self, uri: str, server: servers.S3Server) -> None:
        """Every report and every checkpoint is in the store, every byte of it."""
        report = await verify(uri, deep=True, storage_options=server.storage_options)
        assert report.ok, report
        experiment = await Experiment.open(uri, storage_options=server.storage_options)
        for number, trial in enumerate(experiment.trials):
            lines = (self.root / "local/sweep" / trial.name / "result.json").read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(self.reports[number]))
            assert trial.reports == self.reports[number]
            assert len(trial.checkpoints) == self.reports[number] // 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outage-") as room, servers.running("seaweedfs") as server:
        os.environ["ASYNCSYNC_STATE_DIR"] = f"{room}/state"
        result = asyncio.run(Outage(options.trials, options.seconds, Path(room)).run(server))
    for name, value in result.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
