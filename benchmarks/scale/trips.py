"""What a far store costs in round trips, and a large tree in bytes: counts with their limits.

    python benchmarks/scale/trips.py                    # a tree of 50,000 files, some two minutes
    python benchmarks/scale/trips.py --files 1000000    # the size that the limits are meant for
    python benchmarks/scale/trips.py --only far

Round trips are counted in virtual time, on the store in memory: only requests take time there, so the counts are exact.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine, Syncer
from asyncsync.planning.manifest import META_DIR
from asyncsync.stores import register_scheme
from asyncsync.stores.base import Body, ObjectInfo, body_size
from asyncsync.testing import Faults, MemoryStore, inject_faults, reset_memory, run_virtual

ROUND_TRIP = 0.03
"""Seconds to the far store."""
QUIET = SyncConfig(sync_period=100_000, heartbeat=None)
RETIRED = 40
"""Checkpoints that are retired at the same time."""


@dataclass
class Table:
    """The rows that were measured; ``missed`` counts those beyond their limit."""

    missed: int = 0
    names: set[str] = field(default_factory=set)

    def row(self, name: str, value: float, limit: float, unit: str, *, least: bool = False) -> None:
        """Print a figure: at most ``limit``, or at least."""
        held = value >= limit if least else value <= limit
        self.missed += not held
        bound = "at least" if least else "at most"
        print(f"{name:<58} {value:>10,.2f} {unit:<14} {bound} {limit:g}: {'held' if held else 'MISSED'}", flush=True)


# far away


class Far:
    """An experiment on a store that is 30 ms away."""

    def __init__(self, place: Path) -> None:
        self.place, self.faults, self._made = place, _reset(), 0

    def engine(self, **keep: int) -> SyncEngine:
        """An engine whose background does nothing."""
        options: dict[str, object] = {"latency": ROUND_TRIP}
        run = RunConfig("exp", "memory://b", QUIET, CheckpointConfig(**keep), storage_options=options)  # type: ignore[arg-type]
        return SyncEngine(run, local_dir=self.place / "local")

    def three_files(self) -> Path:
        """A new checkpoint directory."""
        self._made += 1
        directory = self.place / f"checkpoint {self._made}"
        directory.mkdir()
        for name in ("weights", "optimizer", "config"):
            (directory / name).write_text(f"{name} {self._made}" * 50)
        return directory

    async def cost(self, work: Awaitable[object]) -> tuple[float, int]:
        """Round trips and requests."""
        loop, before = asyncio.get_running_loop(), self.faults.calls
        began = loop.time()
        await work
        return round((loop.time() - began) / ROUND_TRIP, 3), self.faults.calls - before


def _reset() -> Faults:
    reset_memory()
    return inject_faults("b")


def far(table: Table, place: Path, _: int) -> None:
    """Round trips of checkpoints, syncs and new trials."""
    world = Far(place)

    async def main() -> None:
        async with world.engine() as engine:
            entering = asyncio.get_running_loop().time() / ROUND_TRIP
            table.row("entering, until the first request of a trial", entering, 2.3, "round trips")
            await asyncio.sleep(20)
            trial = engine.trial("t")
            trips, _ = await world.cost(trial.report({}, world.three_files()))
            table.row("a new trial with its checkpoint", trips, 6, "round trips")
            await trial.sync()
            await asyncio.sleep(20)
            trips, requests = await world.cost(trial.report({}, world.three_files()))
            table.row("a checkpoint of 3 small files", trips, 4.3, "round trips")
            table.row("a checkpoint of 3 small files", requests, 9, "requests")
            trips, _ = await world.cost(trial.report({}, world.three_files()))
            table.row("another one within 10 s", trips, 3.3, "round trips")
            await asyncio.sleep(20)
            await trial.report({"loss": 1})
            trips, _ = await world.cost(trial.sync())
            table.row("a sync after a report", trips, 4.2, "round trips")

    run_virtual(main())


def retirement(table: Table, place: Path, _: int) -> None:
    """Deleting the data of retired checkpoints."""
    world = Far(place)

    async def main() -> None:
        async with world.engine(num_to_keep=1) as engine:
            trials = [engine.trial(f"t{number}") for number in range(RETIRED)]
            held = world.faults.hang(operation="list", key="checkpoint_000000", times=None)
            for trial in trials * 2:
                await trial.report({}, world.three_files())
            await held.reached.wait()
            world.faults.clear()
            held.release.set()
            listed = sum(request.operation == "list" for request in world.faults.requests)
            trips, requests = await world.cost(engine._context.janitor.clean_up())  # noqa: SLF001
            table.row("retirement", RETIRED / (trips * ROUND_TRIP), 80, "a second", least=True)
            table.row("a retired checkpoint", (requests + listed) / RETIRED, 3, "requests")

    run_virtual(main())


# a large tree


class Sink(MemoryStore):
    """Keeps asyncsync's own documents only. ``received``: bytes; ``requests``: of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.received = self.requests = 0

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        self.received, self.requests = self.received + body_size(body), self.requests + 1
        if META_DIR in key:
            return await super().put(key, body, crc32c=crc32c, if_version=if_version)
        await asyncio.sleep(0)
        return ObjectInfo(key, body_size(body), "0" * 32, crc32c, 0.0)


class Watch:
    """What a pass costs: bytes received by the store, bytes written to disk, requests, and the longest time (seconds)
    for which the event loop could not run. Times in which the process did not run, or in which the loop's thread could
    run but had no core, are due to other programs and do not count."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.received = self.requests = self.written = 0
        self.stall = 0.0

    async def of(self, work: Awaitable[object]) -> None:
        """Do the work."""
        self._sink.received = self._sink.requests = 0
        before, self.stall = _written(), 0.0
        ticker = asyncio.create_task(self._tick())
        await work
        ticker.cancel()
        self.received, self.requests, self.written = self._sink.received, self._sink.requests, _written() - before

    async def _tick(self) -> None:
        while True:
            before = _clocks()
            await asyncio.sleep(0.002)
            self.stall = max(self.stall, min(now - then for now, then in zip(_clocks(), before, strict=True)))


def _clocks() -> tuple[float, float]:
    """CPU time of the process, and the time in which the calling thread did not wait for a core (both in seconds)."""
    schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    waited = int(schedule.read_text().split()[1]) / 1e9 if schedule.exists() else 0.0
    return time.process_time(), time.monotonic() - waited


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def large_tree(table: Table, place: Path, files: int) -> None:
    """A tree of many files: its first sync, one without changes, and one with a changed file."""
    root = place / "tree"
    for number in range(files):
        if number % 1000 == 0:
            (root / f"d{number // 1000:05d}").mkdir(parents=True)
        (root / f"d{number // 1000:05d}" / f"f{number:08d}.bin").write_bytes(b"%d" % number)
    sink = Sink()
    register_scheme("sink", lambda *_: sink)

    async def main() -> None:
        watch, before = Watch(sink), _peak()
        async with Syncer(root, "sink://x/y") as syncer:

            async def sync() -> None:
                await syncer.sync_up()
                await syncer._open().journal.flush()  # noqa: SLF001  what it writes is a part of the cost

            await watch.of(sync())
            peak = (_peak() - before) / files
            table.row(f"{files:,} files, first sync: memory at the peak", peak, 1229, "bytes a file")
            table.row("first sync: stall of the loop", 1000 * watch.stall, 50, "ms of CPU")
            await watch.of(sync())
            table.row("unchanged", watch.requests, 0, "requests")
            table.row("unchanged: stall of the loop", 1000 * watch.stall, 50, "ms of CPU")
            (root / "d00000" / "f00000000.bin").write_bytes(b"changed")
            await asyncio.sleep(0.1)
            await watch.of(sync())
            table.row("one changed: sent", watch.received / 1e6, 5, "MB")
            table.row("one changed: written to disk", watch.written / 1e6, 5, "MB")
            table.row("one changed: stall of the loop", 1000 * watch.stall, 50, "ms of CPU")

    asyncio.run(main())


MEASURES: dict[str, Callable[[Table, Path, int], None]] = {
    "far": far,
    "retirement": retirement,
    "large-tree": large_tree,
}


@contextlib.contextmanager
def _own_place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="asyncsync-scale-") as place:
        os.environ["ASYNCSYNC_STATE_DIR"] = f"{place}/state"
        yield Path(place)


def main() -> int:
    """Print all rows. Returns 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000, help="files of the large tree")
    parser.add_argument("--only", default=",".join(MEASURES), help="some of " + ", ".join(MEASURES))
    options, table = parser.parse_args(), Table()
    for name in options.only.split(","):
        with _own_place() as place:
            MEASURES[name](table, place, options.files)
    return int(table.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
