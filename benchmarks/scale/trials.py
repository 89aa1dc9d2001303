"""How the cost of an engine grows with its trials and checkpoints: counts, CPU and exponents, each with its limit.

    python benchmarks/scale/trials.py                    # small sizes, some two minutes
    python benchmarks/scale/trials.py --full             # the sizes that the limits are meant for
    python benchmarks/scale/trials.py --only creating,kept

Each measurement runs in a process of its own, in virtual time and on the store in memory (or on a local store): nothing
waits for a network, so CPU time is what the engine itself costs, and a busy machine changes it little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncsync import CheckpointConfig, Experiment, RunConfig, SyncConfig, SyncEngine, Trial
from asyncsync.stores import open_store
from asyncsync.testing import MemoryStore, VirtualTimeLoop

YIELD_EVERY = 20
"""Trials that a caller creates before it lets the event loop run."""
NOT_OURS = "asyncsync.testing"
"""The store in memory and its contents are no part of the engine's memory."""
FOREIGN = ("*/asyncsync/testing/*", tracemalloc.__file__, "*/pathlib.py")
FILTERS = [tracemalloc.Filter(False, name) for name in FOREIGN]
"""Pathlib adds names to the interpreter's table of interned strings, which grows by megabytes at once."""
Values = dict[str, float]
"""What one measurement found, by name."""


# Instruments


class Turns:
    """CPU seconds of each callback that the event loop runs within the block, in which it does nothing else; and those
    of the garbage collector, which are counted apart."""

    def __enter__(self) -> Turns:
        self.seconds: list[float] = []
        self.collections = [0.0]
        self._run = run = asyncio.Handle._run  # noqa: SLF001  every callback goes through it
        collections, clock = self.collections, time.thread_time

        def timed(handle: asyncio.Handle) -> None:
            began, before = clock(), len(collections)
            run(handle)
            self.seconds.append(clock() - began - sum(collections[before:]))

        asyncio.Handle._run = timed  # type: ignore[method-assign]  # noqa: SLF001
        gc.callbacks.append(self._note_collection)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.Handle._run = self._run  # type: ignore[method-assign]  # noqa: SLF001
        gc.callbacks.remove(self._note_collection)

    def _note_collection(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.collections.append(time.thread_time() - self._began)

    def found(self) -> Values:
        return {"stall": max(self.seconds), "collection": max(self.collections)}


@contextlib.contextmanager
def cpu(values: Values, name: str, share: float = 1) -> Iterator[None]:
    """CPU seconds of the process within the block, worker threads included."""
    began = time.process_time()
    yield
    values[name] = (time.process_time() - began) / share


def is_ours(data: bytes) -> bool:
    """Whether the engine allocated what the store keeps."""
    trace = tracemalloc.get_object_traceback(data)
    return trace is not None and "asyncsync/testing/" not in trace[0].filename


class Memory:
    """Bytes and objects of the garbage collector that are kept since :meth:`begin`, without those of the store. Make it
    before anything that is to be measured; it slows the process down."""

    def __init__(self) -> None:
        tracemalloc.start()

    def begin(self) -> None:
        self._bytes, self._objects = self._now()

    def end(self, values: Values, share: int) -> None:
        kept, objects = self._now()
        values |= {"bytes": (kept - self._bytes) / share, "objects": (objects - self._objects) / share}
        tracemalloc.stop()

    def _now(self) -> tuple[int, int]:
        MemoryStore("b").log.clear()
        gc.collect()
        kept = tracemalloc.take_snapshot().filter_traces(FILTERS)
        stored = sum(sys.getsizeof(data) for data in MemoryStore("b").contents.values() if is_ours(data))
        held = sum(line.size for line in kept.statistics("filename")) - stored
        return held, sum(not type(item).__module__.startswith(NOT_OURS) for item in gc.get_objects())


def engine(place: Path, sync: SyncConfig | None = None, **options: Any) -> SyncEngine:
    """An engine on the store in memory that syncs by itself only when a measurement lets the time pass."""
    uri, keep = options.pop("uri", "memory://b"), CheckpointConfig(**options)
    config = sync or SyncConfig(sync_period=1e9, heartbeat=None)
    return SyncEngine(
        RunConfig(name="exp", storage_path=uri, sync_config=config, checkpoint_config=keep), local_dir=place
    )


def name_of(number: int) -> str:
    return f"trial_{number:06d}"


def sample(place: Path) -> Path:
    directory = place / "checkpoint"
    directory.mkdir(parents=True)
    (directory / "weights").write_bytes(b"w" * 100)
    return directory


# Measurements: each leaves its process when it has its values, without the last sync of its engine


async def creating(count: int, place: Path) -> AsyncIterator[Values]:
    spent = 0.0
    async with engine(place) as found:
        with Turns() as turns:
            for first in range(0, count, YIELD_EVERY):
                began = time.thread_time()
                for number in range(first, min(first + YIELD_EVERY, count)):
                    found.trial(name_of(number))
                spent += time.thread_time() - began
                await asyncio.sleep(0)
        yield {"cpu": spent, "each": spent / count, **turns.found()}


async def idle(count: int, place: Path) -> AsyncIterator[Values]:
    values, rounds, memory = {}, 5, Memory()
    async with engine(place, SyncConfig(sync_period=1000, heartbeat=None)) as found:
        found.trial("first")
        await found.sync()
        memory.begin()
        for number in range(count):
            found.trial(name_of(number))
        await found.sync()
        await asyncio.sleep(1500)
        memory.end(values, count)
        with Turns() as turns, cpu(values, "due", count * rounds):
            await asyncio.sleep(1000 * rounds)
        yield values | turns.found()


async def status(count: int, place: Path) -> AsyncIterator[Values]:
    async with engine(place) as found:
        for number in range(count):
            found.trial(name_of(number))
        times = []
        for _ in range(9):
            began = time.thread_time()
            found.status()
            times.append(time.thread_time() - began)
        yield {"status": statistics.median(times)}


async def finished(count: int, place: Path) -> AsyncIterator[Values]:
    values, memory = {}, Memory()
    async with engine(place) as found:
        await finish(found, "first")
        memory.begin()
        for number in range(count):
            await finish(found, name_of(number))
        await found.flush()
        memory.end(values, count)
        yield values | {"rows": journal_rows() / count}


async def finish(found: SyncEngine, name: str) -> None:
    trial = found.trial(name)
    await trial.report({"loss": 1.0})
    await trial.finish()


def journal_rows() -> int:
    with contextlib.closing(sqlite3.connect(Path(os.environ["ASYNCSYNC_STATE_DIR"]) / "journal.sqlite3")) as journal:
        names = [name for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(journal.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names)


async def kept(count: int, place: Path) -> AsyncIterator[Values]:
    values, last = {}, 50
    async with engine(place, uri=f"file://{place}/store") as found:
        report = reporter(found.trial("trial"), place)
        await report(100)
        with cpu(values, "early", last):
            await report(last)
        await report(count - 150 - last)
        with Turns() as turns, cpu(values, "late", last):
            await report(last)
        yield values | turns.found() | {"ratio": values["late"] / values["early"]}


async def kept_memory(count: int, place: Path) -> AsyncIterator[Values]:
    values, memory = {}, Memory()
    async with engine(place) as found:
        report = reporter(found.trial("trial"), place)
        await report(count // 2)
        memory.begin()
        await report(count // 2)
        memory.end(values, count // 2)
        yield values


async def retained(count: int, place: Path) -> AsyncIterator[Values]:
    values, memory = {}, Memory()
    async with engine(place, num_to_keep=2) as found:
        trials = [found.trial(name_of(number)) for number in range(10)]
        reports = [reporter(trial, place / trial.name) for trial in trials]

        async def report(rounds: int) -> None:
            for _ in range(rounds):
                for one in reports:
                    await one(1)
            await found.flush()
            await asyncio.sleep(1)

        await report(max(5, count // 100))
        memory.begin()
        descriptors, rows = open_descriptors(), journal_rows()
        await report(count // 10)
        memory.end(values, 1)
        left = len(MemoryStore("b", "exp").contents)
        yield values | {
            "rows": journal_rows() - rows,
            "descriptors": open_descriptors() - descriptors,
            "objects": left / len(trials),
        }


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def reporter(trial: Trial, place: Path) -> Callable[[int], Coroutine[Any, Any, None]]:
    directory = sample(place)

    async def report(times: int) -> None:
        for _ in range(times):
            await trial.report({"loss": 1.0}, checkpoint=directory)

    return report


async def busy(count: int, place: Path) -> AsyncIterator[Values]:
    """A twentieth of the trials reports each minute, as many are due, and somebody asks for the status each second."""
    values, minutes = {}, 3
    async with engine(place, SyncConfig(sync_period=1200, heartbeat=60)) as found:
        trials = [found.trial(name_of(number)) for number in range(count)]
        await found.sync()
        second = count // 20 // 60

        async def minute(step):
            for tick in range(60):
                first = (step * 60 + tick) * second
                for trial in trials[first : first + second]:
                    await trial.report({"loss": 1.0, "step": step})
                found.status()
                await asyncio.sleep(1)

        await minute(0)
        with Turns() as turns, cpu(values, "core", 60 * minutes):
            for step in range(1, minutes + 1):
                await minute(step)
        turns.seconds.sort()
        yield values | turns.found() | {"p99": turns.seconds[int(0.99 * len(turns.seconds))]}


async def sequential(count: int, place: Path) -> AsyncIterator[Values]:
    values, directory = {}, sample(place)
    async with engine(place) as found:
        await found.trial("first").report({"loss": 1.0}, checkpoint=directory)
        with cpu(values, "cpu", 3 * count):
            for number in range(count):
                for _ in range(3):
                    await found.trial(name_of(number)).report({"loss": 1.0}, checkpoint=directory)
        yield values


async def opening(count: int, place: Path) -> AsyncIterator[Values]:
    values, uri = {}, f"file://{place}/store"
    async with engine(place / "local", uri=uri) as found:
        await found.trial(name_of(0)).report({"loss": 1.0}, checkpoint=sample(place))
        await found.sync()
    store = place / "store/exp"
    record = (store / name_of(0) / ".asyncsync/trial.json").read_bytes()
    for number in range(1, count):
        directory = store / name_of(number) / ".asyncsync"
        directory.mkdir(parents=True)
        (directory / "trial.json").write_bytes(record)
    with Turns() as turns, cpu(values, "cpu"):
        experiment = await Experiment.open(f"{uri}/exp")
    assert len(experiment.trials) == count
    yield values | turns.found() | {"each": values["cpu"] / count}


async def listing(count: int, place: Path) -> AsyncIterator[Values]:
    for number in range(count):
        directory = place / f"store/{number // 1000:04d}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:06d}").write_bytes(b"x")
    values: Values = {}
    store = open_store(f"file://{place}/store")
    with cpu(values, "cpu"):
        found, token = 0, None
        while True:
            page = await store.list(token=token)
            found, token = found + len(page.objects), page.token
            if token is None:
                break
    assert found == count
    await store.close()
    yield values


# The table


@dataclass(frozen=True)
class Row:
    text: str
    measurement: str
    figure: Callable[[Values, Values, float], float]
    """From the values of the small and of the large size, and the ratio of the sizes."""
    most: float
    unit: str = ""


def exponent(name: str) -> Callable[[Values, Values, float], float]:
    return lambda small, large, ratio: math.log(large[name] / small[name], ratio)


def large(name: str, factor: float = 1.0) -> Callable[[Values, Values, float], float]:
    return lambda _, values, __: factor * values[name]


def growth(name: str) -> Callable[[Values, Values, float], float]:
    return lambda small, values, _: values[name] - small[name]


MS = 1000.0
SIZES: dict[str, tuple[int, int, int, int]] = {
    "creating": (2_500, 10_000, 12_500, 100_000),
    "idle": (500, 2_000, 2_000, 20_000),
    "status": (2_500, 10_000, 12_500, 100_000),
    "finished": (300, 600, 2_000, 20_000),
    "kept": (300, 2_000, 2_000, 10_000),
    "kept_memory": (200, 400, 500, 2_000),
    "retained": (200, 1_000, 2_000, 20_000),
    "busy": (1_200, 6_000, 12_000, 100_800),
    "sequential": (50, 200, 200, 1_000),
    "opening": (1_000, 4_000, 12_500, 50_000),
    "listing": (5_000, 20_000, 12_500, 50_000),
}
"""Small and large size of each measurement, by default and with --full."""
ROWS = [
    Row("creating trials: growth of the CPU time", "creating", exponent("cpu"), 1.1, "exponent"),
    Row("creating a trial", "creating", large("each", MS), 0.05, "ms"),
    Row("creating trials: longest turn of the loop", "creating", large("stall", MS), 50, "ms"),
    Row("collecting the garbage of idle trials", "idle", large("collection", MS), 50, "ms"),
    Row("an idle trial: memory", "idle", large("bytes"), 3000, "bytes"),
    Row("an idle trial: objects of the garbage collector", "idle", large("objects"), 8, "objects"),
    Row("an idle trial that is due", "idle", large("due", MS), 0.06, "ms"),
    Row("status()", "status", large("status", MS), 10, "ms"),
    Row("a finished trial: memory", "finished", large("bytes"), 300, "bytes"),
    Row("a finished trial: rows of the journal", "finished", large("rows"), 0.1, "rows"),
    Row("a kept checkpoint: memory", "kept_memory", large("bytes"), 700, "bytes"),
    Row("the last kept checkpoint, to the 100th: CPU", "kept", large("ratio"), 1.3, "x"),
    Row("the last kept checkpoint: longest turn of the loop", "kept", large("stall", MS), 10, "ms"),
    Row("checkpoints with retention: memory that stays", "retained", large("bytes", 1e-3), 50, "kB"),
    Row("checkpoints with retention: rows of the journal that stay", "retained", large("rows"), 0, "rows"),
    Row("checkpoints with retention: descriptors, to fewer checkpoints", "retained", growth("descriptors"), 0, "more"),
    Row("checkpoints with retention: objects of a trial in the store", "retained", large("objects"), 12, "objects"),
    Row("a twentieth of the trials changes each minute: a core", "busy", large("core", 100), 20, "%"),
    Row("the same: longest turn of the loop", "busy", large("stall", MS), 10, "ms"),
    Row("Experiment.open: growth of the CPU time", "opening", exponent("cpu"), 1.05, "exponent"),
    Row("Experiment.open: longest turn of the loop", "opening", large("stall", MS), 10, "ms"),
    Row("listing of a local store: growth of the CPU time", "listing", exponent("cpu"), 1.1, "exponent"),
    Row("a report with a checkpoint, one after another: CPU", "sequential", large("cpu", MS), 5, "ms"),
]


def measure(name: str, count: int) -> Values:
    """Run one measurement in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="asyncsync-scale-") as place:
        environment = {**os.environ, "ASYNCSYNC_STATE_DIR": f"{place}/state"}
        command = [sys.executable, __file__, "--measure", name, str(count), place]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)


async def run_one(name: str, count: int, place: Path) -> None:
    async for values in globals()[name](count, place / "work"):
        print(json.dumps(values), flush=True)
        os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes that the limits are meant for")
    parser.add_argument("--only", default=",".join(SIZES), help="measurements, separated by commas")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, count, place = options.measure
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(run_one(name, int(count), Path(place)))
    missed = 0
    for name in options.only.split(","):
        sizes = SIZES[name][2:] if options.full else SIZES[name][:2]
        small, big = (measure(name, count) for count in sizes)
        print(f"# {name}: {sizes[0]:,} {small}, {sizes[1]:,} {big}", file=sys.stderr)
        for row in ROWS:
            if row.measurement == name:
                found = row.figure(small, big, sizes[1] / sizes[0])
                missed += found > row.most
                verdict = "held" if found <= row.most else "missed"
                print(f"| {row.text} | {sizes[1]:,} | {found:.3g} {row.unit} | {row.most:g} | {verdict} |", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
