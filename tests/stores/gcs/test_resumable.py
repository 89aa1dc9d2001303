"""A body over 8 MiB uses a resumable session: after an interruption only unacknowledged bytes are sent again."""

import os
import re
from dataclasses import replace

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange, ResumeToken
from asyncsync.errors import IntegrityError, PreconditionError, UnavailableError
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.retry_policy import RetryPolicy

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault
from gcs_fake.replies import ApiError, as_json

MIB = 1 << 20
CHUNK = 8 * MIB
SIZE = 2 * CHUNK + MIB + 7


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


async def test_bytes_kept_of_a_broken_chunk_are_not_sent_again(gcs_strict, guarded, objects, body, data):
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


async def test_a_lost_last_response_is_queried(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#2", 1, lose=True)]
    info = await guarded.put("x", body, crc32c=google_crc32c.value(data), if_version=MISSING)
    assert str(objects["p/x"].generation) == info.version
    assert chunks(gcs_strict)[3:] == [(-1, 200)]


@pytest.mark.parametrize("short", [0, 10])
async def test_a_truncated_last_response_is_queried(gcs_strict, guarded, objects, body, data, short):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#[23]", 2, short=short)]
    info = await guarded.put("x", body, crc32c=google_crc32c.value(data), if_version=MISSING)
    assert str(objects["p/x"].generation) == info.version
    assert chunks(gcs_strict)[3:] == [(-1, 200), (-1, 200)]


@pytest.mark.parametrize("fault", [Fault("", 2, 503), Fault("", 2, 429), Fault("", 3, cut=0)], ids=str)
async def test_a_status_query_without_a_response_is_retried(gcs_strict, guarded, objects, body, data, fault):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, cut=MIB), replace(fault, pattern="^PUT .*#[2-5]")]
    await guarded.put("x", body, crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert len(gcs_strict.requests("POST /upload")) == 1


async def test_a_session_whose_questions_only_meet_errors_is_given_up(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, cut=MIB), Fault("^PUT .*#[2-9]", 3, 503)]
    await guarded.put("x", body, crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert [first for first, _ in chunks(gcs_strict)] == [0, CHUNK, -1, -1, -1, 0, CHUNK, 2 * CHUNK]


async def test_a_missing_session_starts_again(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, 404), Fault("^PUT .*#2", 1, 410)]
    await guarded.put("x", body, crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert len(gcs_strict.requests("POST /upload")) == 2


async def test_another_body_is_not_resumed_in_the_session_of_the_first(gcs_strict, store, objects, body, tmp_path):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#1", 1, cut=1)]
    with pytest.raises(UnavailableError):
        await store.put("x", body)
    (tmp_path / "f").write_bytes(bytes(SIZE + 6))
    await store.put("x", body)
    assert objects["p/x"].data == bytes(SIZE)


async def test_a_conflict_and_a_wrong_checksum_are_reported(gcs_strict, store, objects, body):
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


async def test_a_part_over_8_mib_resumes_too(gcs_strict, guarded, objects, body, data):
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#2", 1, cut=100)]
    upload = await guarded.create_multipart("x")
    part = await guarded.put_part(upload, 1, 0, body)
    await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(data))
    assert objects["p/x"].data == data
    assert sum(seen.size for seen in gcs_strict.requests("^PUT")) <= SIZE + CHUNK


# Another process: it knows a part from its journal


async def broken(gcs_strict, body, data, cut):
    """A part of which so many bytes had arrived when its process ended: the upload, and its row in the journal."""
    kept = []
    gcs_strict.faults += [Fault("^PUT", 1, lose=True)] if cut is None else []
    if cut is not None:
        cut_chunks(gcs_strict, cut)
    async with open_store("gs://conformance/p", options=gcs_strict.storage_options) as first:
        upload = await first.create_multipart("x")
        with pytest.raises(UnavailableError):
            await first.put_part(upload, 1, 0, replace(body, progress=ResumeToken(None, kept.append)))
    (token,) = kept
    gcs_strict.seen.clear()
    return upload, token


def cut_chunks(fake, kept):
    """The next chunk breaks off when so many bytes of it are there."""
    chunk, cuts = fake.sessions.chunk, iter([kept])

    async def half(upload_id, headers, pieces):
        if headers["Content-Range"].startswith("bytes */") or (count := next(cuts, None)) is None:
            return await chunk(upload_id, headers, pieces)
        come = b"".join([piece async for piece in pieces])
        fake.sessions.open[upload_id].data += come[:count]
        raise ApiError(503, "as planned")

    fake.sessions.chunk = half


@pytest.mark.parametrize("arrived", [0, 256 << 10, 5 * MIB])
async def test_a_part_resumes_in_another_process(gcs_strict, store, objects, body, data, arrived):
    body = replace(body, size=CHUNK)
    upload, token = await broken(gcs_strict, body, data, arrived)
    body = replace(body, progress=ResumeToken(token, pytest.fail))
    part = await store.put_part(upload, 1, 0, body)
    assert body.there == arrived
    assert objects[f"p/.asyncsync/parts/{upload.upload_id}/00001"].data == data[:CHUNK]
    assert sum(seen.size for seen in gcs_strict.seen) == CHUNK - arrived
    assert (await store.list_parts(upload))[0].etag == part.etag


async def test_a_part_whose_last_response_was_lost_is_not_sent_again(gcs_strict, store, body, data):
    body = replace(body, size=CHUNK)
    upload, token = await broken(gcs_strict, body, data, None)
    body = replace(body, progress=ResumeToken(token, pytest.fail))
    part = await store.put_part(upload, 1, 0, body)
    assert body.there == CHUNK
    assert (await store.list_parts(upload))[0].etag == part.etag
    assert sum(seen.size for seen in gcs_strict.requests("^PUT")) == 0


async def test_a_replaced_result_of_a_session_is_sent_again(gcs_strict, store, objects, body, data):
    """A session reports for a week that it has created an object."""
    counted(gcs_strict)
    gcs_strict.faults += [Fault("^PUT .*#2", 1, lose=True)]
    with pytest.raises(UnavailableError):
        await store.put("x", body, crc32c=google_crc32c.value(data))
    await store.put("x", b"another")
    info = await store.put("x", body, crc32c=google_crc32c.value(data))
    assert (objects["p/x"].data, str(objects["p/x"].generation)) == (data, info.version)


async def test_a_part_whose_session_is_missing_starts_again(gcs_strict, store, objects, body, data):
    body = replace(body, size=CHUNK)
    upload, token = await broken(gcs_strict, body, data, MIB)
    gcs_strict.sessions.open.clear()
    kept = []
    await store.put_part(upload, 1, 0, replace(body, progress=ResumeToken(token, kept.append)))
    assert objects[f"p/.asyncsync/parts/{upload.upload_id}/00001"].data == data[:CHUNK]
    assert len(kept) == 1
    assert kept[0] != token


async def test_a_session_that_gives_another_object_is_used_once(gcs_strict, guarded, objects, body, data):
    """Some servers publish the received bytes when they are asked for the status of an upload."""
    upload, token = await broken(gcs_strict, replace(body, size=CHUNK), data, MIB)
    chunk = gcs_strict.sessions.chunk

    async def published(upload_id, headers, pieces):
        if headers["Content-Range"].startswith("bytes */"):
            return as_json({"generation": "1", "crc32c": "AAAAAA==", "size": str(MIB)})
        return await chunk(upload_id, headers, pieces)

    gcs_strict.sessions.chunk = published
    body, before = replace(body, size=CHUNK, progress=ResumeToken(token, lambda _: None)), guarded.bytes_sent
    await guarded.put_part(upload, 1, 0, body, crc32c=google_crc32c.value(data[:CHUNK]))
    assert guarded.bytes_sent - before == CHUNK
    assert objects[f"p/.asyncsync/parts/{upload.upload_id}/00001"].data == data[:CHUNK]


@pytest.mark.parametrize("again", [0, MIB])
async def test_a_second_break_counts_the_bytes_of_the_first_process(gcs_strict, guarded, body, data, again):
    body = replace(body, size=CHUNK)
    upload, token = await broken(gcs_strict, body, data, 3 * MIB)
    cut_chunks(gcs_strict, again)
    body, before = replace(body, progress=ResumeToken(token, pytest.fail)), guarded.bytes_sent
    await guarded.put_part(upload, 1, 0, body, crc32c=google_crc32c.value(data[:CHUNK]))
    assert (body.there, guarded.bytes_sent - before) == (3 * MIB, 5 * MIB)


async def test_a_session_that_was_given_up_begins_anew(gcs_strict, store, objects, body, data):
    body = replace(body, size=CHUNK)
    upload, token = await broken(gcs_strict, body, data, MIB)
    gcs_strict.faults += [Fault("^PUT", 1, 499)]
    await store.put_part(upload, 1, 0, replace(body, progress=ResumeToken(token, lambda _: None)))
    assert objects[f"p/.asyncsync/parts/{upload.upload_id}/00001"].data == data[:CHUNK]


@pytest.mark.parametrize(
    "server",
    [
        "gcs_strict",
        pytest.param("gcp_storage_emulator", marks=pytest.mark.server),  # reports bytes=0-0 for no byte
        pytest.param("fake_gcs_server", marks=pytest.mark.server),  # ends a session that it is asked about
    ],
)
async def test_a_session_that_was_opened_and_not_used_is_resumed(request, server, body, data):
    """So the end of a process leaves those that waited for their turn."""
    options = request.getfixturevalue(server).storage_options
    async with open_store("gs://conformance/unused", options=options) as opened:
        upload = await opened.create_multipart("x")
        kept = []

        def keep(token):
            kept.append(token)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await opened.put_part(upload, 1, 0, replace(body, progress=ResumeToken(None, keep)))
        again = replace(body, progress=ResumeToken(kept[0], kept.append))
        guarded = GuardedStore(opened, Budget(), retry=RetryPolicy(attempts=3, base=0.0, cap=0.0))
        part = await guarded.put_part(upload, 1, 0, again, crc32c=google_crc32c.value(data))
        assert (again.there, part.size) == (0, SIZE)
        info = await opened.complete_multipart(upload, [part])
        assert info.crc32c == google_crc32c.value(data)
