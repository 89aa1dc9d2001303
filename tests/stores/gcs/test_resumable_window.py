"""A file has one unacknowledged chunk in flight to a near service, however many parts are sent."""

import asyncio
import os

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange, ResumeToken
from asyncsync.stores.gcs import resumable as gcs_window
from asyncsync.stores.gcs.resumable import (
    CHUNK_MULTIPLE,
    CHUNK_SIZE,
    FAR_ROUND_TRIP,
    MIN_CHUNK_SIZE,
    UploadWindow,
    UploadWindows,
)

pytest.importorskip("gcloud.aio.auth")


GIB = 1 << 30


def window(*trips, bodies=1):
    made = UploadWindow(trips)
    made.bodies = bodies
    return made


async def test_a_part_by_itself_has_a_whole_chunk():
    assert await window().take(GIB) == CHUNK_SIZE


async def test_the_last_chunk_may_be_smaller():
    assert await window(bodies=9).take(7) == 7


@pytest.mark.parametrize("bodies", [2, 3, 16])
async def test_parts_side_by_side_have_one_chunk_between_them(bodies):
    shared = window(bodies=bodies)
    takes = [asyncio.ensure_future(shared.take(GIB)) for _ in range(bodies)]
    await asyncio.sleep(0)
    assert [take.result() for take in takes if take.done()] == [MIN_CHUNK_SIZE] * (CHUNK_SIZE // MIN_CHUNK_SIZE)
    for _ in range(bodies):
        shared.give(MIN_CHUNK_SIZE)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert all(take.done() for take in takes)


async def test_a_waiter_that_is_cancelled_has_taken_nothing():
    shared = window(bodies=2)
    assert [await shared.take(GIB), await shared.take(GIB)] == [MIN_CHUNK_SIZE, MIN_CHUNK_SIZE]
    third = asyncio.ensure_future(shared.take(GIB))
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    shared.give(MIN_CHUNK_SIZE)
    assert await shared.take(GIB) == MIN_CHUNK_SIZE


@pytest.mark.parametrize(
    "trips", [(), (FAR_ROUND_TRIP * 0.9,), (10 * FAR_ROUND_TRIP, FAR_ROUND_TRIP * 0.9, 3 * FAR_ROUND_TRIP)]
)
async def test_a_near_service_has_one_chunk_of_a_file(trips):
    shared = window(*trips, bodies=4)
    assert [await shared.take(GIB), await shared.take(GIB)] == [MIN_CHUNK_SIZE, MIN_CHUNK_SIZE]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shared.take(GIB), 0)


async def test_a_far_service_has_a_chunk_of_each_part():
    shared = window(FAR_ROUND_TRIP, 3 * FAR_ROUND_TRIP, bodies=4)
    assert [await shared.take(GIB) for _ in range(4)] == [CHUNK_SIZE] * 4
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shared.take(GIB), 0)


async def test_a_near_service_gets_one_chunk_at_a_time():
    trips = [FAR_ROUND_TRIP]
    shared = UploadWindow(trips)
    shared.bodies = 2
    assert [await shared.take(GIB), await shared.take(GIB)] == [CHUNK_SIZE, CHUNK_SIZE]
    trips.append(FAR_ROUND_TRIP / 2)
    waiting = asyncio.ensure_future(shared.take(GIB))
    for _ in range(2):
        await asyncio.sleep(0)
        assert not waiting.done()
        shared.give(CHUNK_SIZE)
    assert await waiting == MIN_CHUNK_SIZE


@pytest.mark.parametrize("bodies", range(1, 20))
async def test_a_chunk_that_is_not_the_last_is_a_multiple_of_256_kib(bodies):
    size = await window(bodies=bodies).take(GIB)
    assert size % CHUNK_MULTIPLE == 0
    assert MIN_CHUNK_SIZE <= size <= CHUNK_SIZE


def test_a_window_is_forgotten_with_its_last_body():
    windows = UploadWindows(())
    with windows.of("a") as first, windows.of("a") as second, windows.of("b") as other:
        assert first is second
        assert first is not other
        assert first.bodies == 2
    with windows.of("a") as third:
        assert third is not first
        assert third.bodies == 1


@pytest.mark.parametrize("far", [False, True])
async def test_one_chunk_is_in_flight_unless_the_server_is_far(gcs_strict, store, tmp_path, monkeypatch, far):
    monkeypatch.setattr(gcs_window, "FAR_ROUND_TRIP", 1e-9 if far else 60.0)  # the round trips are real ones
    data = os.urandom(6 * CHUNK_SIZE)
    (tmp_path / "f").write_bytes(data)
    real, under_way, most = gcs_strict.sessions.chunk, 0, 0

    async def chunk(upload_id, headers, pieces):
        nonlocal under_way, most
        size = int(headers["Content-Length"])
        under_way += size
        most = max(most, under_way)
        try:
            return await real(upload_id, headers, pieces)
        finally:
            under_way -= size

    gcs_strict.sessions.chunk = chunk
    await store.list()
    upload = await store.create_multipart("x")

    async def part(number):
        at = (number - 1) * CHUNK_SIZE
        body = FileRange(str(tmp_path / "f"), at, CHUNK_SIZE, progress=ResumeToken(None, lambda _: None))
        return await store.put_part(upload, number, at, body, crc32c=google_crc32c.value(data[at : at + CHUNK_SIZE]))

    parts = await asyncio.gather(*map(part, range(1, 7)))
    info = await store.complete_multipart(upload, parts)
    assert info.crc32c == google_crc32c.value(data)
    assert most > CHUNK_SIZE if far else CHUNK_SIZE // 2 < most <= CHUNK_SIZE
