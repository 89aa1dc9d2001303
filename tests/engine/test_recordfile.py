"""Who may write a record: whoever wrote the version that the store has."""

import asyncio

import pytest

from asyncsync.errors import ConcurrentWriterError, UnavailableError
from asyncsync.recordfile import RecordFile
from asyncsync.testing import FaultyStore, MemoryStore


async def test_another_version_in_the_store_is_another_writers():
    store, record = MemoryStore(), RecordFile("record", lambda _: b"ours")
    await record.save(store)
    await record.confirm(store)
    await store.put("record", b"theirs")
    with pytest.raises(ConcurrentWriterError, match="another process"):
        await record.confirm(store)


async def test_a_record_that_is_gone_is_nobodys():
    """A successor leaves its record; whoever deletes one, or a server that keeps nothing, is none."""
    store, record = MemoryStore(), RecordFile("record", lambda _: b"ours")
    await record.save(store)
    await store.delete(["record"])
    await record.confirm(store)


@pytest.mark.parametrize("error", [None, UnavailableError("away")])
async def test_those_who_ask_while_somebody_does_share_one_answer_or_its_failure(error: Exception | None) -> None:
    store, record = FaultyStore(MemoryStore()), RecordFile("record", lambda _: b"ours")
    await record.save(store)
    hang = store.faults.hang(operation="head")
    first = asyncio.create_task(record.confirm(store))
    await hang.reached.wait()
    others = [asyncio.create_task(record.confirm(store)) for _ in range(50)]
    await asyncio.sleep(0)
    if error is not None:
        store.faults.fail(error=error, operation="head", times=None)
    hang.release.set()
    await first
    await asyncio.gather(*others, return_exceptions=True)
    assert {type(task.exception()) for task in others} == {type(error)}
    assert store.faults.count("head") == 2
    store.faults.clear()
    await record.confirm(store)  # the failure is not kept


@pytest.mark.virtual_time
async def test_what_the_store_was_asked_since_then_is_not_asked_again() -> None:
    """A write is an answer as well; before ``since`` it does not count, nor does one whose end nobody heard."""
    store, record = FaultyStore(MemoryStore()), RecordFile("record", lambda _: b"ours")
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(1)
    await record.save(store)
    assert await record.confirm(store, before) == loop.time()
    assert store.faults.count("head") == 0
    later = loop.time()
    await asyncio.sleep(1)
    await record.confirm(store, later)
    assert store.faults.count("head") == 1
    await record.confirm(store, later)
    await record.confirm(store, before)
    assert store.faults.count("head") == 1
    await store.put("record", b"theirs")
    with pytest.raises(ConcurrentWriterError):
        await record.confirm(store)
    with pytest.raises(ConcurrentWriterError):  # once lost, always lost
        await record.confirm(store, before)
