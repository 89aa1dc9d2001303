"""A retried write whose first response was lost: the store already has our object, or another writer's."""

from __future__ import annotations

import google_crc32c
import pytest
from guarded_world import World

from asyncsync.disk.files import FileRange
from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.stores.base import MISSING
from asyncsync.testing import MemoryStore

pytestmark = pytest.mark.virtual_time
MIB = 1 << 20


class NoChecksum(MemoryStore):
    """Reports no CRCs, like some servers."""

    async def head(self, key):
        info = await super().head(key)
        return type(info)(info.key, info.size, info.version)


async def test_a_create_whose_response_was_lost_succeeds():
    world = World()
    world.faults.fail(1, after=True, operation="put")
    info = await world.view.put("k", b"mine", if_version=MISSING)
    assert info.size == 4


async def test_a_replacement_whose_response_was_lost_succeeds():
    world = World()
    first = await world.view.put("k", b"one")
    world.faults.fail(1, after=True, operation="put")
    info = await world.view.put("k", b"two", if_version=first.version)
    assert (await world.view.get("k"))[0] == b"two"
    assert info.version == (await world.view.head("k")).version


async def test_somebody_elses_object_is_a_conflict():
    world = World()
    await world.memory.put("k", b"them")
    world.faults.fail(1, operation="put")
    with pytest.raises(PreconditionError):
        await world.view.put("k", b"mine", if_version=MISSING)
    assert (await world.view.get("k"))[0] == b"them"


async def test_equal_bytes_of_another_writer_conflict_at_the_first_attempt():
    world = World()
    await world.memory.put("k", b"same")
    with pytest.raises(PreconditionError):
        await world.view.put("k", b"same", if_version=MISSING)


@pytest.mark.parametrize(("theirs", "conflict"), [(None, False), (b"B" * 3 * MIB, True)])
async def test_without_checksums_the_bytes_themselves_decide(tmp_path, theirs, conflict):
    world = World(NoChecksum())
    (tmp_path / "f").write_bytes(b"A" * 3 * MIB)
    body = FileRange(str(tmp_path / "f"), 0, 3 * MIB)
    if theirs:
        await world.memory.put("k", theirs)
    world.faults.fail(1, after=not theirs, operation="put")
    if conflict:
        with pytest.raises(PreconditionError):
            await world.view.put("k", body, if_version=MISSING)
    else:
        assert (await world.view.put("k", body, if_version=MISSING)).size == 3 * MIB


async def complete(world, *, data=b"x" * 100):
    upload = await world.view.create_multipart("k")
    part = await world.view.put_part(upload, 1, 0, data)
    crc32c = google_crc32c.value(data)
    return await world.view.complete_multipart(upload, [part], crc32c=crc32c, if_version=MISSING)


async def test_a_completion_whose_response_was_lost_succeeds():
    world = World()
    world.faults.fail(1, after=True, operation="complete_multipart")
    # The second time the upload is missing, as after a completion on most stores.
    world.faults.fail(2, NotFoundError("no such upload"), operation="complete_multipart")
    assert (await complete(world)).size == 100


async def test_another_object_of_the_same_size_is_not_our_completion():
    world = World()
    await world.memory.put("k", b"y" * 100)
    world.faults.fail(1, operation="complete_multipart")
    world.faults.fail(2, NotFoundError("no such upload"), operation="complete_multipart")
    with pytest.raises(NotFoundError):
        await complete(world)
