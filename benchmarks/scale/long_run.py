"""A long real run: checkpoints at a steady rate to a local store, with retention; what may not grow is checked.

    python benchmarks/scale/long_run.py                      # ten minutes, 200 checkpoints a second
    python benchmarks/scale/long_run.py --seconds 60

The rows are taken at equal distances. After the first third, the process has everything that it needs: from then on
its memory may grow by GROWTH, and journal, descriptors and debts may not. A machine that is too slow for the rate
makes fewer checkpoints; the table says how many.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine, Trial

TRIALS = 20
KEPT = 2
ROWS = 12
PAGES = os.sysconf("SC_PAGE_SIZE")
GROWTH = 1.1
"""Most memory at the end, to that after a third of the time."""


@dataclass(frozen=True)
class Row:
    """The state at one moment."""

    seconds: float
    checkpoints: int
    memory_mb: float
    journal_rows: int
    descriptors: int
    pending: int
    stored_files: int


class Run:
    """One engine with its trials; each reports checkpoints at its share of the rate."""

    def __init__(self, place: Path, rate: float, seconds: float) -> None:
        self._place, self._pause, self._seconds = place, TRIALS / rate, seconds
        self.rows: list[Row] = []
        self._done = 0

    async def run(self) -> None:
        """Report until the time is over, and take the rows."""
        keep = CheckpointConfig(num_to_keep=KEPT)
        config = RunConfig("long", f"file://{self._place}/store", SyncConfig(sync_period=30), keep)
        async with SyncEngine(config, local_dir=self._place / "local") as engine:
            self._end = time.monotonic() + self._seconds
            async with asyncio.TaskGroup() as group:
                for number in range(TRIALS):
                    group.create_task(self._report(engine.trial(f"t{number:02d}")))
                await self._watch(engine)
            await engine.flush()

    async def _report(self, trial: Trial) -> None:
        directory = self._place / f"work/{trial.name}"
        directory.mkdir(parents=True)
        due = time.monotonic()
        while time.monotonic() < self._end:
            (directory / "weights").write_bytes(os.urandom(512))
            await trial.report({"loss": 1.0}, checkpoint=directory)
            self._done += 1
            due = max(due + self._pause, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _watch(self, engine: SyncEngine) -> None:
        began = time.monotonic()
        print("| s | checkpoints | memory, MB | journal, rows | descriptors | pending | files in the store |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
        for number in range(1, ROWS + 1):
            await asyncio.sleep(began + self._seconds * number / ROWS - time.monotonic())
            self.rows.append(await asyncio.to_thread(self._row, began, engine.status().pending_checkpoints))
            print("| " + " | ".join(f"{value:,.0f}" for value in astuple(self.rows[-1])) + " |", flush=True)

    def _row(self, began: float, pending: int) -> Row:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGES / 1e6
        stored = sum(len(files) for _, _, files in os.walk(self._place / "store"))
        descriptors = len(os.listdir("/proc/self/fd"))
        return Row(time.monotonic() - began, self._done, resident, _journal_rows(), descriptors, pending, stored)


def _journal_rows() -> int:
    with contextlib.closing(sqlite3.connect(Path(os.environ["ASYNCSYNC_STATE_DIR"]) / "journal.sqlite3")) as journal:
        names = [name for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(journal.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names)


def grown(rows: list[Row]) -> list[str]:
    """What is larger in the last third than it was in the second: memory by GROWTH, the rest by a fifth and 50."""
    second, last = rows[ROWS // 3 : 2 * ROWS // 3], rows[2 * ROWS // 3 :]
    limits = {
        "memory_mb": (GROWTH, 0),
        **dict.fromkeys(("journal_rows", "descriptors", "pending", "stored_files"), (1.2, 50)),
    }
    result = []
    for name, (factor, more) in limits.items():
        before, after = max(getattr(row, name) for row in second), max(getattr(row, name) for row in last)
        if after > factor * before + more:
            result.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    return result


def main() -> int:
    """Print the table. Returns 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=200, help="checkpoints a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asyncsync-long-") as place:
        os.environ["ASYNCSYNC_STATE_DIR"] = f"{place}/state"
        run = Run(Path(place), options.rate, options.seconds)
        asyncio.run(run.run())
    found = grown(run.rows)
    print(
        f"{run.rows[-1].checkpoints / run.rows[-1].seconds:,.0f} checkpoints a second;",
        "; ".join(found) or "nothing grew",
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
