"""Who may write a record: whoever wrote the version that the store has."""

import pytest

from asyncsync.errors import ConcurrentWriterError
from asyncsync.recordfile import RecordFile
from asyncsync.testing import MemoryStore


async def test_another_version_in_the_store_is_another_writers():
    store, record = MemoryStore(), RecordFile("record", lambda: b"ours")
    await record.save(store)
    await record.confirm(store)
    await store.put("record", b"theirs")
    with pytest.raises(ConcurrentWriterError, match="another process"):
        await record.confirm(store)


async def test_a_record_that_is_gone_is_nobodys():
    """A successor leaves its record; whoever deletes one, or a server that keeps nothing, is none."""
    store, record = MemoryStore(), RecordFile("record", lambda: b"ours")
    await record.save(store)
    await store.delete(["record"])
    await record.confirm(store)
