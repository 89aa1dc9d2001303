"""An idle trial costs a heap entry, not a task."""

import asyncio
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from onebench import Bench

from asyncsync import CheckpointConfig, SyncConfig, SyncReport
from asyncsync.disk.scan import scan as disk_scan
from asyncsync.events import Event, SyncFinished
from asyncsync.planning.snapshot import Snapshot
from asyncsync.sync import tree
from asyncsync.sync.scheduler import Scheduler
from asyncsync.testing import run_virtual

TRIALS = 500
FOREIGN = ("*/asyncsync/testing/*", tracemalloc.__file__, "*/pathlib.py")
OURS = [tracemalloc.Filter(False, name) for name in FOREIGN]
"""Memory of the engine without that of the store and its contents, and without the interpreter's table of interned
strings, which grows by megabytes when pathlib adds a name."""


def test_an_idle_trial_has_no_task_and_takes_less_than_four_kib(bench: Bench) -> None:
    async def main() -> tuple[int, float]:
        async with bench.engine(SyncConfig(sync_period=100)) as engine:
            engine.trial("the first pays for what all share")
            await engine.sync()
            tracemalloc.start()
            for number in range(TRIALS):
                engine.trial(f"trial_{number:05d}", params={"rate": number})
            await engine.sync()
            await asyncio.sleep(150)
            bench.faults.requests.clear()
            bench.store.log.clear()
            gc.collect()
            kept = tracemalloc.take_snapshot().filter_traces(OURS)
            tracemalloc.stop()
            stored = sum(sys.getsizeof(data) for data in bench.store.contents.values())
            return len(asyncio.all_tasks()), (sum(line.size for line in kept.statistics("filename")) - stored) / TRIALS

    tasks, size = run_virtual(main())
    print(f"{size:.0f} bytes per trial")
    assert tasks < 10
    assert size < 4096


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were scanned."""
    found: list[str] = []

    def scan(root: str, *args: Any) -> Snapshot:
        found.append(root)
        return disk_scan(root, *args)

    monkeypatch.setattr(tree, "scan", scan)
    return found


def test_an_idle_trial_that_is_due_costs_no_scan_and_has_its_events(bench: Bench, scans: list[str]) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=100, heartbeat=None)) as engine:
            await engine.trial("t").report({"loss": 1.0})
            await engine.sync()
            scans.clear()
            bench.faults.requests.clear()
            async with aclosing(engine.events()) as events:
                await asyncio.sleep(450)
                ended = [event.tree async for event in first(events, 16) if isinstance(event, SyncFinished)]
            assert ended.count("t") == 4
            assert [root for root in scans if root.endswith("/t")] == []
            assert bench.faults.requests == []
            await engine.trial("t").report({"loss": 0.5})
            await asyncio.sleep(100)
            assert len([root for root in scans if root.endswith("/t")]) == 1
            await engine.trial("t").sync()  # a file may have been changed by somebody else
            assert len([root for root in scans if root.endswith("/t")]) == 2

    run_virtual(main())


def test_artifacts_of_an_idle_trial_are_looked_at_each_period(bench: Bench, scans: list[str]) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=100, sync_artifacts=True)) as engine:
            trial = engine.trial("t")
            await engine.sync()
            (trial.dir / "artifact").write_text("new")
            await asyncio.sleep(150)
            assert bench.store.contents["t/artifact"] == b"new"

    run_virtual(main())
    assert scans


def test_a_record_that_changed_without_a_report_is_stored_when_due(bench: Bench) -> None:
    """The deletion of a retired checkpoint ends long after the report that retired it."""

    async def main() -> None:
        keep = CheckpointConfig(num_to_keep=1)
        async with bench.engine(SyncConfig(sync_period=100, heartbeat=None), keep) as engine:
            trial = engine.trial("t")
            for _ in range(2):
                await trial.report({"loss": 1.0}, checkpoint=bench.checkpoint())
            await trial.sync()
            await asyncio.sleep(250)
            assert json.loads(bench.store.contents["t/.asyncsync/trial.json"])["given_up"] == []
            await asyncio.sleep(100)

    run_virtual(main())


async def first(events: AsyncIterator[Event], count: int) -> AsyncIterator[Event]:
    for _ in range(count):
        yield await anext(events)


class Nothing:
    """A tree with nothing to do."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.syncs = 0

    async def sync_once(self) -> SyncReport:
        self.syncs += 1
        return SyncReport()

    def progress(self) -> str:
        return ""

    def has_nothing_to_sync(self) -> bool:
        return False


def test_every_tree_of_thousands_is_synced_each_period_and_only_then() -> None:
    """The cost of one sync is printed: with no changes it is the cost of scheduling."""
    members = [Nothing(f"t{number}") for number in range(5000)]
    events: list[Event] = []

    async def main() -> float:
        async with asyncio.TaskGroup() as group:
            scheduler = Scheduler(SyncConfig(sync_period=100), group, events.append)
            runner = group.create_task(scheduler.run())
            for member in members:
                scheduler.add(member)
            await asyncio.sleep(50)
            started = time.process_time()
            await asyncio.sleep(300)
            spent = time.process_time() - started
            runner.cancel()
        return spent / (3 * len(members))

    seconds = run_virtual(main())
    print(f"{seconds * 1e6:.0f} us per sync")
    assert {member.syncs for member in members} == {4}
