"""Leaving normally is bounded in time, whatever the store does and however many trials there are."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import ConfigError, RunConfig, SyncConfig, SyncEngine, SyncFailedError, UploadMode
from asyncsync.aio import threads
from asyncsync.errors import StoreError, ThrottledError, UnavailableError
from asyncsync.stores.guard.fenced import LEASE_SECONDS
from asyncsync.testing import inject_faults, reset_memory
from asyncsync.testing.virtual import run_virtual


async def leave(
    tmp_path: Path, trials: int, error: StoreError | None, operation: str | None = None, **options: float | None
) -> tuple[float, SyncFailedError]:
    """Seconds that leaving takes while the store raises ``error`` or hangs, and the exception."""
    reset_memory()
    faults, loop, place = inject_faults("b"), asyncio.get_running_loop(), tmp_path / f"{trials}"
    left = 0.0
    run = RunConfig(name="e", storage_path="memory://b", sync_config=SyncConfig(heartbeat=None))
    with pytest.raises(SyncFailedError) as caught:
        async with SyncEngine(run, local_dir=place, **options) as engine:  # type: ignore[arg-type]
            every = [engine.trial(f"t{number}") for number in range(trials)]
            for trial in every:
                await trial.report({"a": 0})
            await engine.sync()
            await asyncio.sleep(LEASE_SECONDS)  # then the first request of each is a question, which has a time limit
            if error is None:
                faults.hang(times=None, operation=operation)
            else:
                faults.fail(1, error, times=None, operation=operation)
            for trial in every:
                checkpoint = place / f"checkpoint of {trial.name}"
                checkpoint.mkdir()
                (checkpoint / "w").write_bytes(b"1" * 100)
                await trial.report({"a": 1}, checkpoint, upload=UploadMode.ASYNC)
            left = loop.time()
    return loop.time() - left, caught.value


@pytest.mark.parametrize(
    ("error", "operation"),
    [
        (UnavailableError("refused"), None),
        (UnavailableError("refused"), "put"),
        (ThrottledError("503"), None),
        (ThrottledError("503", 60.0), None),
        (None, None),
        (None, "put"),
    ],
)
def test_leaving_is_bounded_and_names_all_losses(
    tmp_path: Path, error: StoreError | None, operation: str | None
) -> None:
    one, _ = run_virtual(leave(tmp_path, 1, error, operation))
    many, failure = run_virtual(leave(tmp_path, 200, error, operation))
    assert many <= 600
    assert many <= 1.2 * one
    assert {f"t{number}/checkpoint_000000" for number in range(200)} <= set(failure.failures)
    reset_memory()


@pytest.mark.parametrize("seconds", [0.0, 1.0, 45.0])
@pytest.mark.parametrize("error", [UnavailableError("refused"), ThrottledError("503", 60.0), None])
def test_a_shorter_leave_timeout_is_kept(tmp_path: Path, seconds: float, error: StoreError | None) -> None:
    took, failure = run_virtual(leave(tmp_path, 20, error, leave_timeout=seconds))
    assert took == pytest.approx(seconds, abs=0.1)
    assert f"not done within {seconds:g} s (see leave_timeout)" in str(failure)
    reset_memory()


def test_without_a_leave_timeout_leaving_waits_out_an_outage(bench: Bench, tmp_path: Path) -> None:
    async def main() -> float:
        faults, loop = inject_faults("b"), asyncio.get_running_loop()
        async with SyncEngine(RunConfig(name="e", storage_path="memory://b"), local_dir=tmp_path) as engine:
            await engine.trial("t").report({"a": 0})
            faults.fail(1, UnavailableError("away"), times=None)
            loop.call_later(100, faults.clear)
            left = loop.time()
        return loop.time() - left

    assert 100 <= run_virtual(main()) < 120


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "600", True])
def test_a_leave_timeout_is_seconds_or_none(tmp_path: Path, seconds: object) -> None:
    with pytest.raises(ConfigError, match="leave_timeout"):
        SyncEngine(RunConfig(name="e", storage_path=tmp_path), leave_timeout=seconds)  # type: ignore[arg-type]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="finds the file of a descriptor in /proc")
async def test_a_thread_stuck_in_a_dead_file_system_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a dead NFS server: the thread does not come back from its system call."""
    monkeypatch.setattr(threads, "STUCK_MARGIN", 0.0)
    alive, sync_to_disk, store = threading.Event(), os.fsync, str(tmp_path / "store")
    dies = threading.Event()

    def fsync(descriptor: int) -> None:
        if dies.is_set() and os.readlink(f"/proc/self/fd/{descriptor}").startswith(store):
            alive.wait(60)
        sync_to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files = tmp_path / "files"
    files.mkdir()
    (files / "w").write_bytes(b"1" * 100)
    run = RunConfig(name="e", storage_path=store)
    try:
        with pytest.raises(SyncFailedError) as caught:
            async with SyncEngine(run, local_dir=tmp_path / "local", leave_timeout=0.5) as engine:
                trial = engine.trial("t")
                await trial.report({"a": 0})
                await engine.sync()
                dies.set()
                await trial.report({"a": 1}, files, upload=UploadMode.ASYNC)
    finally:
        alive.set()
        threads.stop_threads()
    assert "t/checkpoint_000000" in caught.value.failures
    assert "left behind" in caplog.text
    assert await threads.in_thread(int, "7") == 7
