"""The test kit keeps its own promises."""

import asyncio
import threading
import time

import pytest

from asyncsync.aio.threads import in_thread
from asyncsync.disk.files import FileRange
from asyncsync.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError, StoreError, UnavailableError
from asyncsync.stores import open_store
from asyncsync.testing import (
    DeadlockError,
    Faults,
    FaultyStore,
    MemoryStore,
    VirtualTimeLoop,
    inject_faults,
    run_virtual,
)


@pytest.mark.virtual_time
async def test_a_year_of_sleep_passes_at_once():
    began = time.monotonic()
    await asyncio.sleep(365 * 86400)
    assert asyncio.get_running_loop().time() == 365 * 86400
    assert time.monotonic() - began < 1


@pytest.mark.virtual_time
async def test_timers_fire_in_order_of_their_time():
    fired = []

    async def after(seconds):
        await asyncio.sleep(seconds)
        fired.append((seconds, asyncio.get_running_loop().time()))

    async with asyncio.TaskGroup() as group:
        for seconds in (3.5, 1, 2):
            group.create_task(after(seconds))
    assert fired == [(1, 1.0), (2, 2.0), (3.5, 3.5)]


@pytest.mark.virtual_time
async def test_time_stands_still_while_a_thread_works():
    go_on = threading.Event()
    threading.Timer(0.05, go_on.set).start()
    async with asyncio.timeout(0.001):
        await in_thread(go_on.wait)
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.virtual_time
async def test_time_stands_still_for_the_job_of_a_cancelled_caller():
    go_on, started = threading.Event(), threading.Event()

    def job():
        started.set()
        go_on.wait()

    task = asyncio.create_task(in_thread(job))
    while not started.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().outstanding == 1
    go_on.set()
    await asyncio.sleep(5)
    assert asyncio.get_running_loop().outstanding == 0


@pytest.mark.virtual_time
async def test_jobs_of_the_default_executor_are_waited_for_too():
    assert await asyncio.to_thread(lambda: 7) == 7
    assert asyncio.get_running_loop().outstanding in (0, 1)  # its end is noted just after its result


def test_a_deadlock_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr("asyncsync.testing.virtual.DEADLOCK_SECONDS", 0.01)

    async def main():
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="Task-"):
        run_virtual(main())


def test_run_virtual_gives_the_result():
    async def main():
        await asyncio.sleep(10)
        return asyncio.get_running_loop()

    loop = run_virtual(main())
    assert isinstance(loop, VirtualTimeLoop)
    assert loop.time() == 10


@pytest.mark.virtual_time
async def test_stores_of_one_name_share_objects_and_log():
    one, other = open_store("memory://bucket/a"), MemoryStore("bucket")
    await one.put("x", b"1")
    assert await other.get("a/x") == (b"1", await other.head("a/x"))
    assert sorted(one.log) == [("head", "a/x"), ("put", "a/x"), ("read", "a/x")]


async def test_stores_without_a_name_are_private():
    await MemoryStore().put("x", b"1")
    with pytest.raises(NotFoundError):
        await MemoryStore().head("x")


async def test_memory_without_a_name_in_the_uri_is_refused():
    with pytest.raises(ConfigError, match="memory://name"):
        open_store("memory://")


@pytest.mark.virtual_time
async def test_latency_is_time_of_the_loop():
    store = MemoryStore(latency=0.5)
    await store.put("x", b"1")
    await store.get("x")
    assert asyncio.get_running_loop().time() == 1.0


async def test_equal_bytes_have_equal_versions_as_on_s3():
    store = MemoryStore()
    assert (await store.put("a", b"1")).version == (await store.put("b", b"1")).version


async def test_small_parts_are_refused_when_the_upload_is_completed():
    store = MemoryStore(min_part_size=10)
    upload = await store.create_multipart("x")
    parts = [await store.put_part(upload, 1, 0, b"small"), await store.put_part(upload, 2, 5, b"last")]
    with pytest.raises(StoreError, match="too small"):
        await store.complete_multipart(upload, parts)


async def test_a_wrong_checksum_of_the_whole_object_is_refused():
    store = MemoryStore()
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    with pytest.raises(IntegrityError):
        await store.complete_multipart(upload, [part], crc32c=1)


async def test_damage_changes_bytes_and_nothing_else():
    store = MemoryStore()
    before = await store.put("x", b"good")
    store.damage("x", b"evil")
    assert await store.head("x") == before
    assert store.contents == {"x": b"evil"}


async def test_a_file_body_is_read(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    store = MemoryStore()
    await store.put("x", FileRange(str(tmp_path / "f"), 2, 5))
    assert store.contents == {"x": b"23456"}


async def test_the_nth_call_fails_before_it_takes_effect():
    store = FaultyStore(MemoryStore())
    store.faults.fail(2)
    await store.put("a", b"1")
    with pytest.raises(UnavailableError):
        await store.put("b", b"2")
    await store.put("c", b"3")
    assert sorted(store.inner.contents) == ["a", "c"]
    assert store.faults.calls == 3


async def test_a_lost_response_fails_after_the_call_took_effect():
    store = FaultyStore(MemoryStore())
    store.faults.fail(1, PreconditionError("lost"), after=True)
    with pytest.raises(PreconditionError, match="lost"):
        await store.put("a", b"1")
    assert store.inner.contents == {"a": b"1"}


async def test_faults_can_look_at_one_operation_and_key_only():
    store = FaultyStore(MemoryStore())
    store.faults.fail(2, operation="put", key="x", times=None)
    await store.put("y", b"")
    await store.put("x1", b"")
    await store.head("x1")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await store.put("x2", b"")
    assert store.faults.count("put") == 4


async def test_a_hook_can_cancel_the_caller_at_the_nth_call():
    store = FaultyStore(MemoryStore())

    async def work():
        await store.put("a", b"1")
        await store.put("b", b"2")

    task = asyncio.create_task(work())
    store.faults.hook(2, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(store.inner.contents) == ["a"]
    assert store.faults.active == 0


@pytest.mark.virtual_time
async def test_a_hanging_call_continues_when_released():
    store = FaultyStore(MemoryStore())
    hang = store.faults.hang(1)
    async with asyncio.TaskGroup() as group:
        put = group.create_task(store.put("a", b"1"))
        await hang.reached.wait()
        await asyncio.sleep(1000)
        assert not put.done()
        assert store.faults.active == 1
        hang.release.set()
    assert store.inner.contents == {"a": b"1"}


async def test_injected_faults_strike_stores_opened_by_uri():
    faults = inject_faults("bucket")
    faults.fail(1)
    with pytest.raises(UnavailableError):
        await open_store("memory://bucket/p").put("a", b"1")
    await open_store("memory://bucket/q").put("a", b"1")
    assert faults.requests == [("put", "a"), ("put", "a")]


def test_calls_are_counted_from_one():
    with pytest.raises(ValueError, match="from 1"):
        Faults().fail(0)
