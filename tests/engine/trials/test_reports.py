"""A row in result.json and its checkpoint are recorded together, also if a report is cancelled or the disk is full."""

import asyncio
import errno
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import Checkpoint, SyncConfig, TransferConfig, UploadMode
from asyncsync.disk import mappings as mapped
from asyncsync.disk import results
from asyncsync.testing import run_virtual

TURNS = 60


def rows_of(directory: Path) -> tuple[list[dict[str, object]], int]:
    """Lines of result.json, and rows of progress.csv."""
    lines = (directory / "result.json").read_text().splitlines()
    return [json.loads(line) for line in lines], len((directory / "progress.csv").read_text().splitlines()) - 1


@pytest.mark.parametrize("mode", list(UploadMode))
@pytest.mark.parametrize("slow", [False, True])
def test_a_report_cancelled_at_any_turn_is_recorded_whole_or_not_at_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mode: UploadMode, *, slow: bool
) -> None:
    """The report and its checkpoint are recorded together."""
    append, disk_responds = results.append_result, threading.Event()
    disk_responds.set()

    def slowly(directory: Path, row: dict[str, object]) -> None:
        assert disk_responds.wait(60)
        append(directory, row)

    if slow:
        monkeypatch.setattr("asyncsync.engine.trials.acceptance.append_result", slowly)

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({"turn": -1})
            for turn in range(TURNS):
                source = bench.checkpoint(f"c{turn}")
                disk_responds.clear()
                task = asyncio.create_task(trial.report({"turn": turn}, Checkpoint.take(source), upload=mode))
                for past in range(turn):
                    if past == 8:
                        disk_responds.set()
                    await asyncio.sleep(0)
                task.cancel()
                disk_responds.set()
                await asyncio.wait([task])
                rows, table = rows_of(trial.dir)
                assert len(rows) == table == trial._state.record.reports
            await trial._state.wait_durable()
            rows, table = rows_of(trial.dir)
            assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))
            names = [item.name for item in trial._state.record.checkpoints]
            assert [row["checkpoint_dir_name"] for row in rows if "checkpoint_dir_name" in row] == names

    run_virtual(main())


@pytest.mark.parametrize("full", ["result.json", "progress.csv"])
def test_a_full_disk_leaves_no_row_and_accepts_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    real = open

    class Full:
        """A file that accepts only a part of each write."""

        def __init__(self, path: object, *args: object, **options: object) -> None:
            self._file = real(path, *args, **options)  # type: ignore[call-overload]

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def __iter__(self):
            return iter(self._file)

        def write(self, text: str) -> int:
            self._file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "no space left on device")

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({"x": 1})
            before = {name: (trial.dir / name).read_bytes() for name in ("result.json", "progress.csv")}
            fails = lambda path, *rest, **more: (Full if full in str(path) else real)(path, *rest, **more)  # noqa: E731
            monkeypatch.setattr(results, "open", fails, raising=False)
            with pytest.raises(OSError, match="no space left"):
                await trial.report({"x": 2}, bench.checkpoint())
            monkeypatch.delattr(results, "open")
            assert {name: (trial.dir / name).read_bytes() for name in before} == before
            assert (trial._state.record.reports, trial._state.jobs) == (1, ())
            await trial.report({"x": 3}, bench.checkpoint())
            assert [row["training_iteration"] for row in rows_of(trial.dir)[0]] == [1, 2]
        assert bench.keys("weights") == ["t/checkpoint_000000/weights"]

    run_virtual(main())


def test_a_briefly_mapped_file_is_stored_as_last_written(bench: Bench) -> None:
    """The file is mapped after the first check of mappings and unmapped before the second. Writes after a sync do not
    change its time.
    """

    async def main() -> None:
        async with bench.engine(SyncConfig(sync_artifacts=True)) as engine:
            trial = engine.trial("t")
            path = trial.dir / "array"
            path.write_bytes(b"0" * 4096)
            await trial.sync()
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
                memory[0:1] = b"1"
                written = os.stat(path)
                await asyncio.to_thread(time.sleep, 0.05)
                await trial.sync()
                memory[0:1] = b"2"
                os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
            assert path.stat().st_mtime_ns == written.st_mtime_ns

    run_virtual(main())
    assert bench.store.contents["t/array"][:1] == b"2"


@pytest.mark.parametrize("killed", [False, True])
def test_memory_mapped_writes_of_a_child_process_are_stored_as_last_seen(bench: Bench, *, killed: bool) -> None:
    """Also if the run was interrupted meanwhile and resumes after the child has ended."""
    script = (
        "import mmap, os, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "memory = mmap.mmap(file.fileno(), 4096)\n"
        "memory[0:1] = b'1'\n"
        "print(os.fstat(file.fileno()).st_mtime_ns, flush=True)\n"
        "times = int(sys.stdin.readline())\n"
        "memory[0:1] = b'2'\n"
        "os.utime(sys.argv[1], ns=(times, times))\n"
    )
    artifacts = SyncConfig(sync_artifacts=True)

    async def main() -> None:
        async with bench.engine(artifacts) as engine:
            path = engine.trial("t").dir / "array"
            path.write_bytes(b"0" * 4096)
            await engine.trial("t").sync()
            child = subprocess.Popen(
                [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            with child:
                assert child.stdin is not None
                assert child.stdout is not None
                times = child.stdout.readline()
                a_second_later()
                await engine.trial("t").sync()
                assert bench.store.contents["t/array"][:1] == b"1"
                if killed:
                    bench.faults.fail(operation="put", times=None)
                child.stdin.write(times)
                child.stdin.flush()
                child.wait()
            if killed:
                raise KeyError

    async def again() -> None:
        async with bench.engine(artifacts, resume=True) as engine:
            await engine.trial("t").sync()

    if killed:
        bench.transfer = TransferConfig(max_attempts=1)
        with pytest.raises(KeyError):
            run_virtual(main())
        bench.faults.clear()
        run_virtual(again())
    else:
        run_virtual(main())
    assert bench.store.contents["t/array"][:1] == b"2"


def a_second_later() -> None:
    """A second has passed since the mappings were looked at."""
    mapped._mapped_files._at = float("-inf")


def test_a_report_in_progress_when_the_block_is_left_is_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    append, begun, leaving = results.append_result, threading.Event(), threading.Event()

    def slowly(directory: Path, row: dict[str, object]) -> None:
        begun.set()
        assert leaving.wait(10)
        append(directory, row)

    monkeypatch.setattr("asyncsync.engine.trials.acceptance.append_result", slowly)

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            task = asyncio.create_task(trial.report({}, bench.checkpoint()))
            while not begun.is_set():
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(leaving.set)
        report = await task
        assert report.checkpoint is not None
        assert report.checkpoint.is_durable
        assert len(rows_of(trial.dir)[0]) == 1

    run_virtual(main())


def test_a_killed_process_uses_up_its_iterations_and_numbers(bench: Bench) -> None:
    """Rows that the store has not heard of are there all the same, on this machine."""

    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            async with bench.engine(exit_grace=0.01) as engine:
                trial = engine.trial("t")
                await trial.report({"step": 0}, bench.checkpoint("zero"))
                await trial.sync()
                bench.faults.hang(times=None)
                await trial.report({"step": 1})
                await trial.report({"step": 2}, bench.checkpoint("two"), upload=UploadMode.ASYNC)
                raise KeyboardInterrupt
        bench.faults.clear()
        async with bench.engine(resume=True) as engine:
            report = await engine.trial("t").report({"step": 3}, bench.checkpoint("three"))
            assert report.checkpoint is not None
            assert report.checkpoint.name == "checkpoint_000002"
            rows = [json.loads(line) for line in (engine.trial("t").dir / "result.json").read_text().splitlines()]
        assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4]

    run_virtual(main())
