"""Composed uploads of Google Cloud Storage: trees of parts, generations, and appends."""

import json
import os
import random

import google_crc32c
import pytest
from yarl import URL

from asyncsync.disk.files import FileRange
from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.planning.crc32c import crc32c_of_pieces
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, reading
from gcs_fake.replies import ApiError

MIB = 1 << 20


# uploads in parts


async def upload_of(store, key, bodies):
    upload = await store.create_multipart(key)
    return upload, [await store.put_part(upload, number, -1, body) for number, body in enumerate(bodies, 1)]


def combined_crc32c(parts):
    return crc32c_of_pieces((part.crc32c, part.size) for part in parts)


@pytest.mark.parametrize(("count", "composes"), [(1, 1), (32, 1), (33, 3), (70, 4), (1025, 36)])
async def test_parts_are_composed_in_a_tree(gcs_strict, store, objects, count, composes):
    bodies = [b"%05d" % number for number in range(count)]
    upload, parts = await upload_of(store, "x", bodies)
    whole = b"".join(bodies)
    info = await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(whole), if_version=MISSING)
    assert (objects["p/x"].data, info.crc32c) == (whole, google_crc32c.value(whole))
    assert list(objects) == ["p/x"]
    assert len(gcs_strict.requests("/compose")) == composes


async def test_parts_are_hidden_from_lists_and_found_as_uploads(gcs_strict, store, objects):
    upload, _ = await upload_of(store, "dir/ünï %", [b"1", b"2"])
    await store.put("dir/x", b"1")
    async with open_store("gs://conformance", options=gcs_strict.storage_options) as above:
        assert [info.key for info in (await above.list()).objects] == ["p/dir/x"]
    assert [info.key for info in (await store.list()).objects] == ["dir/x"]
    assert [(found.key, found.upload_id) for found in await store.list_multiparts("dir/")] == [
        ("dir/ünï %", upload.upload_id)
    ]


async def test_a_part_without_its_upload_is_found_and_removed(store, objects):
    upload, _ = await upload_of(store, "x", [b"1"])
    await store.abort_multipart(upload)
    await store.put_part(upload, 1, 0, b"late")
    (found,) = await store.list_multiparts()
    assert (found.key, found.upload_id) == ("x", upload.upload_id)
    await store.abort_multipart(found)
    assert objects == {}


async def test_a_part_that_was_replaced_is_not_composed(store):
    upload, parts = await upload_of(store, "x", [b"1"])
    await store.put_part(upload, 1, 0, b"2")
    with pytest.raises(NotFoundError):
        await store.complete_multipart(upload, parts)


async def test_a_compose_names_the_generations_of_its_sources_and_demands_them(gcs_strict, store, monkeypatch):
    seen = []
    real = reading.compose

    def compose(bucket, name, query, headers, body):
        seen.extend(json.loads(body)["sourceObjects"])
        return real(bucket, name, query, headers, body)

    monkeypatch.setattr(reading, "compose", compose)
    upload, parts = await upload_of(store, "x", [b"1", b"2"])
    await store.complete_multipart(upload, parts)
    assert [source["generation"] for source in seen] == [part.etag for part in parts]
    assert all(source["objectPreconditions"] == {"ifGenerationMatch": source["generation"]} for source in seen)


async def test_a_request_without_a_body_has_no_content_type(gcs_strict, store):
    await store.put("x", b"1")
    await store.copy("x", "y")
    (copy,) = gcs_strict.requests("rewriteTo")
    headers = {name.lower(): value for name, value in copy.headers.items()}
    assert headers["content-length"] == "0"
    assert "content-type" not in headers


@pytest.mark.parametrize("size", [1, 2 * MIB, 9 * MIB])
async def test_a_create_replaces_nothing_that_came_while_it_was_sent(
    gcs_strict, store, objects, tmp_path, monkeypatch, size
):
    """A session sends its condition when it is opened, and the service checks it at the end."""
    (tmp_path / "f").write_bytes(bytes(size))
    bucket = gcs_strict.buckets["conformance"]
    real = bucket.put

    def put(name, data, properties, query, **more):
        assert query["ifGenerationMatch"] == "0"
        real(name, b"theirs", {}, {})
        return real(name, data, properties, query, **more)

    monkeypatch.setattr(bucket, "put", put)
    with pytest.raises(PreconditionError):
        await store.put("x", FileRange(str(tmp_path / "f"), 0, size), if_version=MISSING)
    assert objects["p/x"].data == b"theirs"


async def test_a_session_whose_end_is_refused_is_not_resumed(gcs_strict, store, objects, tmp_path):
    (tmp_path / "f").write_bytes(bytes(9 * MIB))
    body = FileRange(str(tmp_path / "f"), 0, 9 * MIB)
    start = gcs_strict.sessions.start

    def late(bucket, *given):
        reply = start(bucket, *given)
        bucket.put("p/x", b"theirs", {}, {})
        return reply

    gcs_strict.sessions.start = late
    for _ in range(2):
        with pytest.raises(PreconditionError, match="HTTP 412"):
            await store.put("x", body, if_version=MISSING)
    assert objects["p/x"].data == b"theirs"
    assert [seen.status for seen in gcs_strict.seen] == [200, 308, 412, 412]


async def test_an_append_sends_only_the_tail(gcs_strict, store, objects):
    old = await store.put("log", bytes(MIB))
    upload = await store.create_multipart("log")
    before = len(gcs_strict.seen)
    whole = await store.copy_part(upload, 1, 0, "log", 0, MIB, if_source_version=old.version)
    tail = await store.put_part(upload, 2, MIB, b"tail")
    crc = google_crc32c.value(bytes(MIB) + b"tail")
    await store.complete_multipart(upload, [whole, tail], crc32c=crc, if_version=old.version)
    assert objects["p/log"].data == bytes(MIB) + b"tail"
    assert sum(seen.size for seen in gcs_strict.seen[before:]) < 4000


async def test_an_append_to_a_changed_object_is_refused(store):
    old = await store.put("log", b"old")
    upload = await store.create_multipart("log")
    whole = await store.copy_part(upload, 1, 0, "log", 0, 3, if_source_version=old.version)
    await store.put("log", b"new")
    with pytest.raises((NotFoundError, PreconditionError)):
        await store.complete_multipart(upload, [whole])


# the object that a compose replaces


async def complete_x(store, data=b"mine"):
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, data)
    return await store.complete_multipart(upload, [part], crc32c=google_crc32c.value(data))


@pytest.fixture
def before_compose(monkeypatch):
    """Calls that are served just before the next composes of ``p/x``, one for each."""
    calls = []
    real = reading.compose

    def compose(bucket, name, *given):
        if name == "p/x" and calls:
            calls.pop(0)(bucket)
        return real(bucket, name, *given)

    monkeypatch.setattr(reading, "compose", compose)
    return calls


def writes(data):
    return lambda bucket: bucket.put("p/x", data, {}, {})


def refuses(bucket):
    raise ApiError(503, "not now")


def conditions(gcs_strict):
    """Object -> the generation at which each compose of it was to find it."""
    composes = [URL(seen.target, encoded=True) for seen in gcs_strict.requests("/compose")]
    return [(url.path.split("/o/")[1].removesuffix("/compose"), url.query["ifGenerationMatch"]) for url in composes]


@pytest.mark.parametrize("count", [1, 32, 70])
@pytest.mark.parametrize("old", [None, b"left by a sync that was broken off"])
async def test_every_compose_names_the_generation_that_it_replaces(gcs_strict, guarded, objects, count, old):
    """Intermediate results replace nothing."""
    version = "0" if old is None else (await guarded.put("x", old)).version
    upload, parts = await upload_of(guarded, "x", [b"%05d" % number for number in range(count)])
    info = await guarded.complete_multipart(upload, parts, crc32c=combined_crc32c(parts))
    *steps, (name, last) = conditions(gcs_strict)
    assert (name, last) == ("p/x", version)
    assert [condition for _, condition in steps] == ["0"] * (0 if count <= 32 else -(-count // 32))
    assert str(objects["p/x"].generation) == info.version
    assert list(objects) == ["p/x"]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("between", [[writes(b"other")], [refuses, writes(b"other")]])
async def test_an_object_of_another_writer_before_a_compose_stays(guarded, objects, before_compose, old, between):
    """Between the question and the compose, and also between two attempts."""
    if old is not None:
        await guarded.put("x", old)
    before_compose.extend(between)
    with pytest.raises(PreconditionError, match="it has generation"):
        await complete_x(guarded)
    assert objects["p/x"].data == b"other"


async def test_an_object_removed_by_another_before_a_compose_stays_removed(guarded, objects, before_compose):
    await guarded.put("x", b"old")
    before_compose.append(lambda bucket: bucket.objects.pop("p/x"))
    with pytest.raises(PreconditionError, match="it has generation 0"):
        await complete_x(guarded)
    assert "p/x" not in objects


async def test_the_same_bytes_of_another_are_as_good(guarded, objects, before_compose):
    """Ranks may write a file of one name if it has the same content."""
    before_compose.append(writes(b"mine"))
    info = await complete_x(guarded)
    assert {name: str(item.generation) for name, item in objects.items()} == {"p/x": info.version}


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("fault", [{"lose": True}, {"short": 5}])
async def test_a_compose_whose_response_was_lost_succeeds(gcs_strict, guarded, objects, old, fault):
    if old is not None:
        await guarded.put("x", old)
    gcs_strict.faults.append(Fault("/compose", 1, **fault))
    info = await complete_x(guarded)
    assert [seen.status for seen in gcs_strict.requests("/compose")] == [200, 412]
    assert {name: str(item.generation) for name, item in objects.items()} == {"p/x": info.version}
    assert objects["p/x"].data == b"mine"


async def test_after_a_lost_response_parts_that_cannot_be_removed_stay_for_prune(gcs_strict, guarded, objects):
    gcs_strict.faults += [Fault("/compose", 1, lose=True), Fault("batch", 1, 403)]
    await complete_x(guarded)
    assert objects["p/x"].data == b"mine"
    assert [found.key for found in await guarded.list_multiparts()] == ["x"]


async def test_a_tree_of_composes_is_repeated_with_names_of_its_own(gcs_strict, guarded, objects):
    upload, parts = await upload_of(guarded, "x", [b"%05d" % number for number in range(70)])
    gcs_strict.faults.append(Fault("POST .*p%2Fx/compose", 1, 503))
    await guarded.complete_multipart(upload, parts, crc32c=combined_crc32c(parts))
    assert sorted(seen.status for seen in gcs_strict.requests("/compose")) == [200] * 7 + [503]
    assert list(objects) == ["p/x"]


async def test_a_changed_source_is_not_reported_as_another_writer(gcs_strict, guarded, monkeypatch):
    """Servers respond 412 for the source as for the destination."""
    upload, parts = await upload_of(guarded, "x", [b"1"])
    await guarded.put_part(upload, 1, 0, b"2")
    real = reading._source

    def only_the_condition(bucket, source):
        return real(bucket, {name: value for name, value in source.items() if name != "generation"})

    monkeypatch.setattr(reading, "_source", only_the_condition)
    with pytest.raises(NotFoundError, match="a source object has changed"):
        await guarded.complete_multipart(upload, parts)
    assert [seen.status for seen in gcs_strict.requests("/compose")] == [412]


@pytest.mark.parametrize("late", [True, False])
async def test_an_append_replaces_only_its_own_base(guarded, objects, before_compose, late):
    """Also where old generations are kept, which a compose could still read."""
    old = await guarded.put("x", b"old")
    upload = await guarded.create_multipart("x")
    whole = await guarded.copy_part(upload, 1, 0, "x", 0, 3, if_source_version=old.version)
    tail = await guarded.put_part(upload, 2, 3, b"tail")
    if late:
        before_compose.append(writes(b"other"))
    else:
        await guarded.put("x", b"other")
    with pytest.raises(PreconditionError):
        await guarded.complete_multipart(upload, [whole, tail], crc32c=google_crc32c.value(b"oldtail"))
    assert objects["p/x"].data == b"other"


async def test_an_append_whose_response_was_lost_succeeds(gcs_strict, guarded, objects):
    old = await guarded.put("x", b"old")
    upload = await guarded.create_multipart("x")
    whole = await guarded.copy_part(upload, 1, 0, "x", 0, 3, if_source_version=old.version)
    tail = await guarded.put_part(upload, 2, 3, b"tail")
    gcs_strict.faults.append(Fault("/compose", 1, lose=True))
    info = await guarded.complete_multipart(upload, [whole, tail], crc32c=google_crc32c.value(b"oldtail"))
    assert {name: str(item.generation) for name, item in objects.items()} == {"p/x": info.version}
    assert objects["p/x"].data == b"oldtail"


async def test_parts_that_cannot_be_removed_after_a_compose_stay_for_prune(gcs_strict, store, objects):
    upload, parts = await upload_of(store, "x", [b"1"])
    gcs_strict.faults.append(Fault("batch", 1, 403))
    await store.complete_multipart(upload, parts)
    assert objects["p/x"].data == b"1"
    assert [found.key for found in await store.list_multiparts()] == ["x"]


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"cut": 0}, {"lose": True}], ids=str)
@pytest.mark.parametrize("request_", ["GET .*prefix=", "batch"])
@pytest.mark.parametrize("version", [None, MISSING])
async def test_parts_not_removed_after_a_compose_are_removed_later(
    gcs_strict, guarded, objects, request_, fault, version
):
    upload, parts = await upload_of(guarded, "x", [b"1", b"2"])
    gcs_strict.faults.append(Fault(request_, 2, **fault))
    info = await guarded.complete_multipart(upload, parts, if_version=version, crc32c=google_crc32c.value(b"12"))
    assert (list(objects), str(objects["p/x"].generation)) == (["p/x"], info.version)


async def test_random_requests_are_cut_and_the_next_attempt_is_right(gcs_strict, guarded, objects, tmp_path):
    rng = random.Random(5)
    data = os.urandom(3 * MIB)
    (tmp_path / "f").write_bytes(data)
    for number in range(20):
        gcs_strict.faults[:] = [Fault("POST", 2, cut=rng.choice([0, 100, MIB, 2 * MIB]), lose=False)]
        await guarded.put(f"{number}", FileRange(str(tmp_path / "f"), 0, len(data)), crc32c=google_crc32c.value(data))
        assert objects[f"p/{number}"].data == data
