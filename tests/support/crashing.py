"""Kills a training process at random moments and checks the result of the next one.

``python tests/support/crashing.py --kills 200`` starts SeaweedFS and prints the figures; ``test_crash.py`` runs a few
rounds. Each round is an experiment of its own: a process trains with ASYNC checkpoints and gets SIGKILL; a fresh
process with ``resume=True`` makes the accepted checkpoints durable, trains to the end, and restores every checkpoint
bit for bit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import servers

from asyncsync import Checkpoint, Experiment, RunConfig, SyncConfig, SyncEngine, TransferConfig, UploadMode
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20
BUCKET = "crash"
PART = 5 * MIB
TRANSFER = TransferConfig(part_size=PART, bandwidth_limit=40 * MIB)
"""The limit makes a run last a second, so that most kills hit a running upload."""
STEPS = 2
SIZES = {"large": {"weights": 33 * MIB + 77, "optimizer": 2 * MIB, "state": 1000}, "small": {"weights": 300_000}}
"""Trial -> files of its checkpoints. Files over 32 MiB are sent in parts."""
FIRST = {"large": 100_000}
"""Largest file of the first checkpoint of this trial: kills meet small files too."""


def size_of(trial: str, step: int, name: str) -> int:
    return min(SIZES[trial][name], FIRST.get(trial, 1 << 40) if step == 0 else 1 << 40)


def content(trial: str, step: int, name: str) -> bytes:
    """The expected content of a file."""
    return unique_bytes(f"{trial}/{step}/{name}", size_of(trial, step, name))


def unique_bytes(seed: str, size: int) -> bytes:
    """No MiB repeats within the result or between two seeds: a part in the wrong place would show."""
    block = random.Random(seed).randbytes(MIB)
    return b"".join(number.to_bytes(8, "big") + block[8:] for number in range(size // MIB + 1))[:size]


@dataclass
class Log:
    """Lines that survive SIGKILL: one ``write`` each, to a file opened for appending."""

    path: Path

    def write(self, *words: object) -> None:
        line = json.dumps([time.monotonic(), *words]) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def read(self, kind: str) -> list[list]:
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [row for row in rows if row[1] == kind]

    def wait_for(self, kind: str, seconds: float = 60.0) -> None:
        """Block until there is such a line, or the time is over."""
        deadline = time.monotonic() + seconds
        while not self.read(kind) and time.monotonic() < deadline:
            time.sleep(0.002)


@dataclass
class Round:
    """One experiment of one sweep: its places and its settings."""

    server: servers.S3Server
    root: Path
    name: str
    bucket: ClassVar[str]
    transfer: ClassVar[TransferConfig]
    sync_period: ClassVar[float]

    @property
    def run(self) -> RunConfig:
        return RunConfig(
            name=self.name,
            storage_path=f"s3://{self.bucket}",
            storage_options=self.server.storage_options,
            transfer=self.transfer,
            sync_config=SyncConfig(sync_period=self.sync_period, sync_artifacts=True),
        )

    def log(self, name: str) -> Log:
        return Log(self.root / f"{name}.log")


class KillRound(Round):
    """A process that is killed, and its successor."""

    bucket, transfer, sync_period = BUCKET, TRANSFER, 0.5

    async def train(self, log: Log, earlier: list[list]) -> None:
        """The user's program, the same in both processes."""
        count_requests(log)
        async with SyncEngine(self.run, local_dir=self.root / "local", resume=True) as engine:
            log.write("started")
            async with asyncio.TaskGroup() as group:
                if earlier:
                    group.create_task(self._recovered(engine, log, {(row[2], row[4]) for row in earlier}))
                for trial in SIZES:
                    done = [row[3] for row in earlier if row[2] == trial]
                    group.create_task(self._trial(engine, trial, log, len(done)))

    async def _trial(self, engine: SyncEngine, name: str, log: Log, start: int) -> None:
        trial = engine.trial(name, params={"size": sum(SIZES[name].values())})
        for step in range(start, STEPS):
            directory = self.root / f"{name}-{step}-{os.getpid()}"
            await asyncio.to_thread(write_files, directory, name, step)
            report = await trial.report({"step": step}, Checkpoint.take(directory), upload=UploadMode.ASYNC)
            log.write("accepted", name, step, report.checkpoint.name)

    async def _recovered(self, engine: SyncEngine, log: Log, accepted: set[tuple[str, str]]) -> None:
        def durable() -> set[tuple[str, str]]:
            return {
                (trial.name, item.name)
                for trial in engine._registry.trials.values()
                for item in trial.record.checkpoints
                if item.name not in {job.name for job in trial.jobs}
            }

        while not accepted <= durable():
            await asyncio.sleep(0.005)
        log.write("recovered")

    async def check(self, accepted: list[list]) -> int:
        """Restore everything; returns the number of checkpoints."""
        experiment = await Experiment.open(self.run.uri, storage_options=self.server.storage_options)
        found = {(item.trial, item.metrics["step"]) for item in experiment.checkpoints}
        assert {(row[2], row[3]) for row in accepted} <= found, f"{accepted} were accepted, {found} are there"
        assert found == {(trial, step) for trial in SIZES for step in range(STEPS)}
        for item in experiment.checkpoints:
            target = self.root / "restored" / item.trial / item.name
            await item.download(target)
            for name in SIZES[item.trial]:
                expected = content(item.trial, item.metrics["step"], name)
                assert (target / name).read_bytes() == expected, f"{target}/{name} is not what was reported"
        return len(experiment.checkpoints)


def write_files(directory: Path, trial: str, step: int) -> None:
    directory.mkdir()
    for name in SIZES[trial]:
        (directory / name).write_bytes(content(trial, step, name))


def count_requests(log: Log) -> None:
    """Log each body that is sent. Call it in the child only."""
    put, put_part = S3Store.put, S3Store.put_part

    async def logged_put(self, key, body, **options):
        log.write("sent", key, 0, len(body) if isinstance(body, bytes) else body.size)
        return await put(self, key, body, **options)

    async def logged_part(self, upload, number, offset, body, **options):
        log.write("sent", upload.key, number, body.size)
        return await put_part(self, upload, number, offset, body, **options)

    S3Store.put, S3Store.put_part = logged_put, logged_part


def fork(main) -> int:
    """Run ``main`` in a forked process; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        asyncio.run(main())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Figures:
    """Counts of a sweep, in bytes and seconds."""

    kills: int = 0
    accepted: int = 0
    """Checkpoints accepted before the kill."""
    pending: int = 0
    """Those of them that were not yet durable."""
    restored: int = 0
    open_files: int = 0
    """Multipart uploads open at the kill."""
    kept: int = 0
    """Bytes of their parts in the store."""
    parts_again: int = 0
    """Parts in the store that were sent again."""
    most_again: int = 0
    """Most such parts of one file."""
    files_again: int = 0
    """Complete files in the store, in no manifest, that were sent again."""
    bytes_again: int = 0
    recovery: list[float] = field(default_factory=list)
    """Seconds from the start of the next process until every accepted checkpoint is durable."""

    def text(self) -> str:
        rows = [
            ("processes killed", f"{self.kills}"),
            ("checkpoints accepted before the kill", f"{self.accepted}"),
            ("of these not durable when it came", f"{self.pending}"),
            ("checkpoints restored bit for bit", f"{self.restored}"),
            ("files open in parts when it came", f"{self.open_files}"),
            ("bytes of theirs that the store had", f"{self.kept / MIB:.1f} MiB"),
            ("parts that the store had, sent again", f"{self.parts_again} (at most {self.most_again} for one file)"),
            ("whole files that the store had, sent again", f"{self.files_again}"),
            ("bytes that the store had, sent again", f"{self.bytes_again / MIB:.2f} MiB"),
        ]
        if self.recovery:
            median, most = statistics.median(self.recovery), max(self.recovery)
            rows.append(("seconds until all of it was durable", f"median {median:.2f}, at most {most:.2f}"))
        return "\n".join(f"| {name} | {value} |" for name, value in rows)


def one_round(here: KillRound, moment: float, *, training: bool, figures: Figures) -> bool:
    """Kill a process ``moment`` seconds after the start, of its ``training`` or of itself; False if it had ended."""
    os.environ["ASYNCSYNC_STATE_DIR"] = str(here.root / "state")
    first = here.log("first")
    child = fork(lambda: here.train(first, []))
    if training:
        first.wait_for("started")
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, "the first process failed by itself"
        return False
    accepted = first.read("accepted")
    with here.server.client() as client:
        parts, objects = stored(client, here.name)
    second = here.log("second")
    began = time.monotonic()
    child = fork(lambda: here.train(second, accepted))
    assert os.waitpid(child, 0)[1] == 0, "the second process failed"
    checked = fork(lambda: here.check(accepted))
    assert os.waitpid(checked, 0)[1] == 0, "not everything came back"
    add_up(figures, here, accepted, parts, objects, second)
    figures.recovery += [row[0] - began for row in second.read("recovered")]
    with here.server.client() as client:
        left, _ = stored(client, here.name)
    assert not left, f"uploads were left open: {left}"
    return True


def stored(client, prefix: str) -> tuple[dict[str, dict[int, int]], dict[str, int]]:
    """Contents of the store: key -> part number -> size of open uploads, and key -> size of objects."""
    parts: dict[str, dict[int, int]] = {}
    for upload in client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{prefix}/").get("Uploads", []):
        if not upload["Key"].startswith(f"{prefix}/"):
            continue
        answer = client.list_parts(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        sizes = {part["PartNumber"]: part["Size"] for part in answer.get("Parts", [])}
        parts[upload["Key"].removeprefix(f"{prefix}/")] = sizes
    answer = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
    objects = {item["Key"].removeprefix(f"{prefix}/"): item["Size"] for item in answer.get("Contents", [])}
    return parts, objects


def add_up(figures: Figures, here: KillRound, accepted, parts, objects, second: Log) -> None:
    durable = {key.rpartition("/.asyncsync/")[0] for key in objects if key.endswith("/.asyncsync/manifest.json")}
    figures.kills += 1
    figures.accepted += len(accepted)
    figures.pending += sum(f"{row[2]}/{row[4]}" not in durable for row in accepted)
    figures.restored += len(SIZES) * STEPS
    figures.open_files += len(parts)
    figures.kept += sum(size for sizes in parts.values() for size in sizes.values())
    again: Counter[str] = Counter()
    for _, _, key, number, size in second.read("sent"):
        if "/checkpoint_" not in key or "/.asyncsync/" in key:
            continue
        if parts.get(key, {}).get(number) == size:
            again[key] += 1
        elif number == 0 and objects.get(key) == size:
            figures.files_again += 1
        elif not (number and key in objects):
            continue
        figures.bytes_again += size
    figures.parts_again += again.total()
    figures.most_again = max([figures.most_again, *again.values()])
    assert all(count <= 1 for count in again.values()), f"more than one part was sent again: {again}"


def sweep(server: servers.S3Server, root: Path, kills: int, seed: int) -> Figures:
    """Run ``kills`` rounds; AssertionError names the loss."""
    server.create_bucket(BUCKET)
    chance, figures = random.Random(seed), Figures()
    longest = 2.0
    rounds = 0
    while figures.kills < kills:
        rounds += 1
        here = KillRound(server, root / f"r{rounds}", f"s{seed}-{rounds}")
        here.root.mkdir(parents=True)
        training, moment = chance.random() < 0.9, chance.uniform(0, longest)
        try:
            if not one_round(here, moment, training=training, figures=figures):
                longest = max(0.5, min(longest, moment) * 0.95)  # it had ended before the kill
        except AssertionError as error:
            error.add_note(f"round {rounds} of seed {seed}, killed after {moment:.3f} s; its files: {here.root}")
            raise
        shutil.rmtree(here.root)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asyncsync-crash-") as root, servers.running("seaweedfs") as server:
        print(sweep(server, Path(root), options.kills, options.seed).text())


if __name__ == "__main__":
    main()
