"""A body over 8 MiB goes in a resumable session: after a break only what was not acknowledged is sent again."""

import os
import re

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, PreconditionError, UnavailableError
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING
from asyncsync.stores.budget import Budget
from asyncsync.stores.guarded import GuardedStore, RetryPolicy

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault
from gcs_fake.replies import ApiError

MIB = 1 << 20
CHUNK = 8 * MIB
SIZE = 2 * CHUNK + MIB + 7
AT_ONCE = RetryPolicy(attempts=5, base=0.0, cap=0.0)


@pytest.fixture
def objects(gcs_strict):
    return gcs_strict.buckets["conformance"].objects


@pytest.fixture
async def store(gcs_strict):
    async with open_store("gs://conformance/p", options=gcs_strict.storage_options) as opened:
        yield opened


@pytest.fixture
def guarded(store):
    return GuardedStore(store, Budget(max_concurrency=8), retry=AT_ONCE)


@pytest.fixture(scope="module")
def data():
    return os.urandom(SIZE)


@pytest.fixture
def body(tmp_path, data):
    (tmp_path / "f").write_bytes(b"before" + data)
    return FileRange(str(tmp_path / "f"), 6, SIZE)


def chunks(fake):
    """First byte and status of every chunk; -1 for a question."""
    first = [re.match(r"bytes (?:(\d+)|\*)", seen.headers["Content-Range"]) for seen in fake.requests("^PUT")]
    return [(int(at[1] or -1), seen.status) for at, seen in zip(first, fake.requests("^PUT"), strict=True)]


async def test_chunks_follow_each_other(gcs_strict, store, objects, body, data):
    info = await store.put("x", body, crc32c=google_crc32c.value(data), if_version=MISSING)
    assert (objects["p/x"].data, str(objects["p/x"].generation)) == (data, info.version)
    assert chunks(gcs_strict) == [(0, 308), (CHUNK, 308), (2 * CHUNK, 200)]


async def test_a_chunk_has_at_most_8_mib_and_a_body_of_8_mib_needs_no_session(gcs_strict, store, body):
    await store.put("x", FileRange(body.path, 6, CHUNK))
    assert [seen.method for seen in gcs_strict.seen] == ["POST"]


@pytest.mark.parametrize("cut", [0, 3 * MIB + 5])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_after_a_break_at_most_one_chunk_is_sent_again(gcs_strict, guarded, objects, body, data, number, cut):
    gcs_strict.faults += [Fault(f"^PUT .*#{number}", 1, cut=cut)]
    counted(gcs_strict)
    await guarded.put("x", body, crc32c=google_crc32c.value(data), if_version=MISSING)
    assert objects["p/x"].data == data
    assert sum(seen.size for seen in gcs_strict.requests("^PUT")) <= SIZE + CHUNK
    assert len(gcs_strict.requests("uploadType=resumable&.*fields")) == 1


def counted(fake):
    """Faults may name the number of a chunk: ``#0`` and so on."""
    fault, numbers = fake._fault, iter(range(100))

    def find(seen):
        target = seen.target
        if seen.method == "PUT":
            seen.target = f"{target}#{next(numbers)}"
        try:
            return fault(seen)
        finally:
            seen.target = target

    fake._fault = find


async def test_what_the_service_kept_of_a_broken_chunk_is_not_sent_again(gcs_strict, guarded, objects, body, data):
    chunk, broken = gcs_strict.sessions.chunk, []

    async def half(upload_id, headers, pieces):
        if not broken and headers["Content-Range"].startswith(f"bytes {CHUNK}-"):
            broken.append(upload_id)
            gcs_strict.sessions.open[upload_id].data += data[CHUNK : CHUNK + 5 * MIB]
            raise ApiError(503, "as planned")
        return await chunk(upload_id, headers, pieces)

    gcs_strict.sessions.chunk = half
    await guarded.put("x", body, crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert chunks(gcs_strict)[2:] == [(-1, 308), (CHUNK + 5 * MIB, 200)]


async def test_a_lost_last_answer_is_asked_for(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#2", 1, lose=True)]
    info = await guarded.put("x", body, crc32c=google_crc32c.value(data), if_version=MISSING)
    assert str(objects["p/x"].generation) == info.version
    assert chunks(gcs_strict)[3:] == [(-1, 200)]


async def test_a_session_that_is_gone_begins_anew(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, 404), Fault("^PUT .*#2", 1, 410)]
    await guarded.put("x", body, crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert len(gcs_strict.requests("POST /upload")) == 2


async def test_another_body_does_not_go_on_in_the_session_of_the_first(gcs_strict, store, objects, body, tmp_path):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, cut=1)]
    with pytest.raises(UnavailableError):
        await store.put("x", body)
    (tmp_path / "f").write_bytes(bytes(SIZE + 6))
    await store.put("x", body)
    assert objects["p/x"].data == bytes(SIZE)


async def test_a_conflict_and_a_wrong_checksum_are_told(gcs_strict, store, objects, body):
    with pytest.raises(IntegrityError):
        await store.put("x", body, crc32c=7)
    await store.put("x", b"first")
    with pytest.raises(PreconditionError):
        await store.put("x", body, if_version=MISSING)
    assert objects["p/x"].data == b"first"


async def test_a_store_that_keeps_nothing_is_not_asked_for_ever(gcs_strict, guarded, body):
    async def nothing(upload_id, headers, pieces):
        async for _ in pieces:
            pass
        raise ApiError(308, "")

    gcs_strict.sessions.chunk = nothing
    with pytest.raises(UnavailableError, match="kept 0 bytes"):
        await guarded.put("x", body)


async def test_a_part_over_8_mib_goes_on_too(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#2", 1, cut=100)]
    upload = await guarded.create_multipart("x")
    part = await guarded.put_part(upload, 1, 0, body)
    await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert sum(seen.size for seen in gcs_strict.requests("^PUT")) <= SIZE + CHUNK
