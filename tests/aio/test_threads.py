"""The process-wide threads for disk work."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from asyncsync import Syncer, TransferConfig
from asyncsync.aio import threads as worker_threads
from asyncsync.aio.threads import THREADS, WORKER_NICENESS, in_hasher, in_sender, in_thread, in_thread_stoppable


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


async def test_a_cancelled_caller_does_not_wait_for_a_stuck_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_threads, "STUCK_SECONDS", 0.05)
    begun, alive = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stuck(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        alive.wait(60)

    stuck_calls = [asyncio.create_task(in_thread_stoppable(stuck)) for _ in range(THREADS)]
    try:
        await begun.wait()
        for call in stuck_calls:
            call.cancel()
        assert all(isinstance(end, asyncio.CancelledError) for end in await _ends(stuck_calls))
        assert await in_thread(int, "7") == 7  # another thread
    finally:
        alive.set()
        worker_threads.stop_threads()
    assert "left behind" in caplog.text


async def _ends(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    return await asyncio.gather(*tasks, return_exceptions=True)
