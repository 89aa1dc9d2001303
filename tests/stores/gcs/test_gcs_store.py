"""Errors, content and the clock of Google Cloud Storage, against the strict fake."""

import gzip
import json
import os
from dataclasses import replace

import google_crc32c
import pytest
from test_compose import upload_of
from yarl import URL

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.errors import failure

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, reading
from gcs_fake.replies import Reply

MIB = 1 << 20


# errors


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (400, StoreError, False),
        (401, AccessDeniedError, False),
        (403, AccessDeniedError, False),
        (404, NotFoundError, False),
        (405, UnsupportedError, False),
        (408, UnavailableError, True),
        (410, NotFoundError, False),
        (412, PreconditionError, False),
        (429, ThrottledError, True),
        (500, UnavailableError, True),
        (501, UnsupportedError, False),
        (502, UnavailableError, True),
        (503, UnavailableError, True),
        (504, UnavailableError, True),
    ],
)
async def test_statuses_are_errors_of_ours(gcs_strict, store, status, expected, retryable):
    gcs_strict.faults.append(Fault("", 2, status))
    for request in (store.put("x", b"1"), store.head("x")):
        with pytest.raises(expected, match=f"HTTP {status}") as caught:
            await request
        assert type(caught.value) is expected
        assert caught.value.retryable is retryable


@pytest.mark.parametrize("status", [408, 429, 503])
async def test_retry_after_is_reported(gcs_strict, store, status):
    gcs_strict.faults.append(Fault("POST", 1, status, {"Retry-After": "7"}))
    with pytest.raises(ThrottledError) as caught:
        await store.put("x", b"1")
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, 'Provided CRC32C "x" doesn\'t match calculated CRC32C "y".'),
        (412, "crc32c validation failed. Expected = 1 vs Actual = 2."),
    ],
)
def test_a_refused_checksum_is_an_integrity_error(status, message):
    error = failure("insert", "gs://b/x", status, {}, json.dumps({"error": {"message": message}}).encode())
    assert (type(error), error.retryable) == (IntegrityError, True)


def test_a_missing_bucket_is_recognised_from_each_servers_response():
    for message in ("The specified bucket does not exist.", "Bucket b does not exist."):
        said = json.dumps({"error": {"message": message}}).encode()
        assert "there is no bucket 'b'" in str(failure("list", "gs://b/x", 404, {}, said))
    for message in ("No such object: b/bucket", "Not Found", "the session for this bucket does not exist"):
        said = json.dumps({"error": {"message": message}}).encode()
        assert "there is no bucket" not in str(failure("get", "gs://b/bucket", 404, {}, said))


@pytest.mark.parametrize("message", ["object crc32c/match has a hold", "no match for md5 in the calculated condition"])
def test_words_inside_a_message_do_not_make_a_checksum_error(message):
    error = failure("insert", "gs://b/x", 412, {}, json.dumps({"error": {"message": message}}).encode())
    assert type(error) is PreconditionError


async def test_a_missing_bucket_is_named(gcs_strict):
    async with open_store("gs://nowhere/p", options=gcs_strict.storage_options) as opened:
        with pytest.raises(NotFoundError, match="there is no bucket 'nowhere'"):
            await opened.put("x", b"1")


async def test_a_path_in_the_address_of_the_server_goes_before_everything(gcs_strict, objects, tmp_path):
    """The address of an upload session has it already, or not: a proxy may have put it there."""
    (tmp_path / "f").write_bytes(bytes(9 * MIB))
    reply, session = gcs_strict.reply, gcs_strict.sessions.start

    async def below(request, seen):
        assert request.raw_path.startswith("/base/")
        return await reply(request.clone(rel_url=URL(request.raw_path.removeprefix("/base"), encoded=True)), seen)

    gcs_strict.reply = below
    options = gcs_strict.storage_options | {"endpoint_url": f"{gcs_strict.endpoint}/base"}
    async with open_store("gs://conformance/p", options=options) as opened:
        for number, where in enumerate((gcs_strict.endpoint, f"{gcs_strict.endpoint}/base")):
            gcs_strict.sessions.start = lambda *given, where=where: session(*given[:-1], where)
            await opened.put(f"{number}", FileRange(str(tmp_path / "f"), 0, 9 * MIB))
            assert len((await opened.get(f"{number}"))[0]) == 9 * MIB


async def test_a_broken_connection_is_unavailable(gcs_strict, store, tmp_path):
    (tmp_path / "f").write_bytes(bytes(3 * MIB))
    gcs_strict.faults.append(Fault("POST", 1, cut=MIB))
    with pytest.raises(UnavailableError):
        await store.put("x", FileRange(str(tmp_path / "f"), 0, 3 * MIB))
    with pytest.raises(NotFoundError):
        await store.head("x")


async def test_a_create_whose_response_was_lost_succeeds(gcs_strict, guarded):
    gcs_strict.faults.append(Fault("POST", 1, lose=True))
    info = await guarded.put("x", b"mine", if_version=MISSING)
    assert (await guarded.head("x")).version == info.version
    assert [seen.status for seen in gcs_strict.requests("POST")] == [200, 412]


@pytest.mark.parametrize("short", [0, 1, 15])
async def test_a_truncated_response_is_a_lost_one(gcs_strict, guarded, short):
    """Its announced length is correct, so only its text shows it."""
    patterns = ("POST /upload", "GET .*/o/p%2Fx", "GET .*prefix=", "rewriteTo", "compose")
    gcs_strict.faults += [Fault(pattern, 1, short=short) for pattern in patterns]
    info = await guarded.put("x", b"mine", if_version=MISSING)
    assert (await guarded.head("x")).version == info.version
    assert [found.key for found in (await guarded.list()).objects] == ["x"]
    await guarded.copy("x", "y")
    upload = await guarded.create_multipart("z")
    part = await guarded.put_part(upload, 1, 0, b"data")
    await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"data"), if_version=MISSING)
    assert guarded.retries == len(patterns)


@pytest.mark.parametrize("said", [b"<html>log in</html>", b"[]", b'"x"', b"\xff"])
async def test_a_response_of_something_else_is_reported(gcs_strict, store, monkeypatch, said):
    monkeypatch.setattr(gcs_strict, "_call", lambda *_: Reply(200, said))
    with pytest.raises(UnavailableError, match="not a response of Cloud Storage"):
        await store.head("x")


async def test_a_redirect_is_an_error(gcs_strict, store):
    """308 is one too, except for a resumable upload."""
    gcs_strict.faults.append(Fault("", 9, 308, {"Location": "https://elsewhere/"}))
    for request in (store.put("x", b"1"), store.delete(["x"]), store.get("x")):
        with pytest.raises(StoreError, match="HTTP 308"):
            await request


async def test_a_compose_whose_response_was_lost_is_repeated(gcs_strict, guarded, objects):
    upload = await guarded.create_multipart("x")
    part = await guarded.put_part(upload, 1, 0, b"data")
    gcs_strict.faults.append(Fault("/compose", 1, lose=True))
    info = await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"data"), if_version=MISSING)
    assert str(objects["p/x"].generation) == info.version


# content


async def test_objects_are_stored_without_caching_and_transformation(store, objects):
    await store.put("x", b"1")
    assert objects["p/x"].properties["cacheControl"] == "no-cache, no-transform"


async def test_a_gzip_object_is_read_as_it_is_stored(gcs_strict, store):
    zipped = gzip.compress(b"plain" * 1000)
    gcs_strict.buckets["conformance"].put("p/x", zipped, {"contentEncoding": "gzip"}, {})
    data, info = await store.get("x")
    assert (data, info.size, info.crc32c) == (zipped, len(zipped), google_crc32c.value(zipped))


async def test_bytes_that_do_not_fit_the_checksum_are_refused(gcs_strict, store, objects, monkeypatch):
    await store.put("x", b"right")
    monkeypatch.setattr("gcs_fake.reading.crc32c_text", lambda data: "AAAAAA==")
    with pytest.raises(IntegrityError, match="CRC32C"):
        await store.get("x")


async def test_media_without_a_length_are_read_to_their_end(gcs_strict, store, monkeypatch):
    """Some servers stream them so; the response to a range request names its own range."""
    data = os.urandom(2 * MIB + 3)
    info = await store.put("x", data)
    whole = reading.media

    def streamed(found, headers):
        reply = whole(found, headers)
        del reply.headers["x-goog-stored-content-length"]
        reply.chunked = True
        return reply

    monkeypatch.setattr(reading, "media", streamed)
    got = []

    async def sink(piece):
        got.append(bytes(piece))

    assert await store.get("x") == (data, replace(info, modified=(await store.read("x", sink)).modified))
    got.clear()
    assert (await store.read("x", sink, start=MIB, length=MIB)).size == len(data)
    assert b"".join(got) == data[MIB : 2 * MIB]


async def test_a_generation_missing_in_media_is_asked_for_only_if_needed(gcs_strict, store, monkeypatch):
    info = await store.put("x", b"12345")
    whole = reading.media

    def untold(found, headers):
        reply = whole(found, headers)
        del reply.headers["x-goog-generation"]
        return reply

    async def sink(piece):
        assert piece in (b"12345", b"2345")

    async def requests(read):
        gcs_strict.seen.clear()
        return (await read).version, len(gcs_strict.seen)

    monkeypatch.setattr(reading, "media", untold)
    assert await requests(store.read("x", sink, start=1, length=9)) == ("", 1)
    assert await requests(store.read("x", sink, start=1, length=9, if_version=info.version)) == (info.version, 2)
    assert await requests(store.read("x", sink)) == (info.version, 2)


async def read_with(store, monkeypatch, change):
    """Bytes 2-5 of ten, from a response that ``change`` modified."""
    await store.put("x", b"0123456789")
    media, got = reading.media, []

    def changed(found, headers):
        reply = media(found, headers)
        change(reply)
        return reply

    monkeypatch.setattr(reading, "media", changed)

    async def sink(piece):
        got.append(bytes(piece))

    await store.read("x", sink, start=2, length=4)
    return b"".join(got)


async def test_a_range_that_comes_with_another_status_is_taken(store, monkeypatch):
    def change(reply):
        reply.status = 200

    assert await read_with(store, monkeypatch, change) == b"2345"


@pytest.mark.parametrize("bounds", [None, "bytes 1-4/10", "bytes 2-4/10", "bytes 2-9/10", "bytes 2-5/*", "2-5/10"])
async def test_another_range_is_refused(store, monkeypatch, bounds):
    def change(reply):
        del reply.headers["Content-Range"]
        reply.headers |= {"Content-Range": bounds} if bounds else {}

    with pytest.raises(StoreError, match=r"ignored the requested range|instead of 2-5"):
        await read_with(store, monkeypatch, change)


async def test_conditions_travel_with_reads(gcs_strict, store):
    info = await store.put("x", b"12345")

    async def sink(piece):
        assert piece == b"23"

    await store.read("x", sink, start=1, length=2, if_version=info.version)
    assert f"ifGenerationMatch={info.version}" in gcs_strict.seen[-1].target


# the clock of the service


async def test_every_response_about_an_object_has_its_time_of_writing(gcs_strict, store, objects, tmp_path):
    """The time is that of the service's clock: a writer learns the current time there from it."""
    (tmp_path / "f").write_bytes(bytes(9 * MIB))
    upload, parts = await upload_of(store, "composed", [b"1"])
    told = {
        "put": (await store.put("put", b"1")),
        "session": (await store.put("session", FileRange(str(tmp_path / "f"), 0, 9 * MIB))),
        "composed": (await store.complete_multipart(upload, parts)),
        "copy": (await store.copy("put", "copy")),
    }
    listed = {info.key: info for info in (await store.list()).objects}
    for key, info in told.items():
        assert info.modified == int(objects[f"p/{key}"].created)
        assert info == listed[key] == await store.head(key)


@pytest.mark.parametrize(
    ("updated", "unix"),
    [
        ("1970-01-01T00:01:40Z", 100.0),
        ("1970-01-01T02:01:40.5+02:00", 100.5),
        ("1970-01-01T00:01:40.123456789Z", 100.123456),
        ("1970-01-01T00:01:40", None),
        ("yesterday", None),
        ("", None),
        (100, None),
        ([], None),
        ("9999-99-99T00:00:00Z", None),
        ("0001-01-01T00:00:00+23:59", -62135683140.0),
    ],
)
async def test_a_time_that_is_none_is_not_known(gcs_strict, store, updated, unix):
    """Least of all in the zone of this machine."""

    def change(body):
        return json.dumps(json.loads(body) | {"updated": updated}).encode()

    gcs_strict.faults.append(Fault("POST", 1, change=change))
    assert (await store.put("x", b"1")).modified == unix


async def test_without_a_time_of_change_the_time_of_creation_counts(gcs_strict, store):
    def change(body):
        document = json.loads(body)
        document["timeCreated"] = document.pop("updated")
        return json.dumps(document).encode()

    gcs_strict.faults.append(Fault("POST", 1, change=change))
    info = await store.put("x", b"1")
    assert info.modified == (await store.head("x")).modified
