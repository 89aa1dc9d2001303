"""An idle trial costs a heap entry, not a task."""

import asyncio
import gc
import sys
import time
import tracemalloc

from onebench import Bench

from asyncsync import SyncConfig, SyncReport
from asyncsync.events import Event
from asyncsync.sync.scheduler import Scheduler
from asyncsync.testing import run_virtual

TRIALS = 500
OURS = [tracemalloc.Filter(False, "*/asyncsync/testing/*"), tracemalloc.Filter(False, tracemalloc.__file__)]
"""Memory of the engine without that of the store and its contents."""


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
