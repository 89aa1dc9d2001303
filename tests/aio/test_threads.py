"""The process-wide threads for disk work."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from asyncsync import SyncConfig, Syncer, SyncTimeoutError, TransferConfig
from asyncsync.aio import threads as worker_threads
from asyncsync.aio.threads import WORKER_NICENESS, in_hasher, in_sender, in_thread


@pytest.mark.parametrize("threads", [1, 3])
async def test_there_are_as_many_threads_as_the_settings_say(tmp_path: Path, threads: int) -> None:
    under_way, most, lock = 0, 0, threading.Lock()
    enough = threading.Event()

    def work() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            if under_way > threads:
                enough.set()
        enough.wait(0.02)
        with lock:
            under_way -= 1

    await in_thread(lambda: None)  # created by no test that holds them
    async with Syncer(tmp_path, "memory://threads", transfer=TransferConfig(threads=threads)):
        await asyncio.gather(*(in_thread(work) for _ in range(4 * threads)))
    assert most == threads


@pytest.mark.skipif(sys.platform != "linux", reason="one thread's priority can be set on Linux only")
async def test_worker_threads_give_way_and_the_loop_does_not() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    for run in (in_thread, in_hasher, in_sender):
        assert await run(niceness) == min(19, before + WORKER_NICENESS)
    assert niceness() == before


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="finds the file of a descriptor in /proc")
@pytest.mark.parametrize(("size", "stuck"), [(1, ".asyncsync-tmp"), (6 << 20, "/data")])
async def test_a_thread_in_a_dead_file_system_does_not_keep_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int, stuck: str
) -> None:
    """Later work gets other threads, and does not resume an upload into which the stuck thread may still write."""
    monkeypatch.setattr(worker_threads, "STUCK_SECONDS", 0.1)
    alive, sync_to_disk = threading.Event(), os.fsync
    dead = [True]

    def fsync(descriptor: int) -> None:
        if dead and os.readlink(f"/proc/self/fd/{descriptor}").endswith(stuck):
            dead.pop()
            alive.wait(60)
        sync_to_disk(descriptor)

    (tmp_path / "local").mkdir()
    (tmp_path / "local/f").write_bytes(b"f" * size)
    transfer = TransferConfig(part_size=5 << 20, multipart_threshold=5 << 20)
    try:
        config = SyncConfig(sync_timeout=0.5)
        async with Syncer(tmp_path / "local", tmp_path / "store", config, transfer=transfer) as syncer:
            monkeypatch.setattr(os, "fsync", fsync)
            with pytest.raises(SyncTimeoutError):
                await syncer.sync_up()
            assert (await syncer.sync_up()).files_sent == 1
    finally:
        alive.set()
        worker_threads.stop_threads()
    assert "left behind" in caplog.text
    assert (tmp_path / "store/f").read_bytes() == b"f" * size
