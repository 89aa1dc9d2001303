"""Features of Google Cloud Storage only: conditions, tokens, errors, composed uploads. Against the strict fake."""

import gzip
import json
import os
import random
from dataclasses import replace

import google_crc32c
import pytest
from yarl import URL

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
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
from asyncsync.stores.gcs.multipart_layout import combined_crc32c
from asyncsync.stores.gcs.options import GcsOptions
from asyncsync.stores.gcs.requests import batch_responses

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, GcsFake, reading
from gcs_fake.replies import ApiError, Reply

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
def test_a_refused_checksum_is_no_conflict(status, message):
    error = failure("insert", "gs://b/x", status, {}, json.dumps({"error": {"message": message}}).encode())
    assert (type(error), error.retryable) == (IntegrityError, True)


def test_a_missing_bucket_is_recognised_from_each_servers_response():
    for message in ("The specified bucket does not exist.", "Bucket b does not exist."):
        said = json.dumps({"error": {"message": message}}).encode()
        assert "there is no bucket 'b'" in str(failure("list", "gs://b/x", 404, {}, said))
    said = json.dumps({"error": {"message": "No such object: b/bucket"}}).encode()
    assert "there is no bucket" not in str(failure("get", "gs://b/bucket", 404, {}, said))


async def test_a_missing_bucket_is_named(gcs_strict):
    async with open_store("gs://nowhere/p", options=gcs_strict.storage_options) as opened:
        with pytest.raises(NotFoundError, match="there is no bucket 'nowhere'"):
            await opened.put("x", b"1")


async def test_a_path_in_the_address_of_the_server_goes_before_everything(gcs_strict, objects, tmp_path):
    """The address of an upload session has it already, or not: a proxy may have put it there."""
    (tmp_path / "f").write_bytes(bytes(9 * MIB))
    reply, session = gcs_strict._reply, gcs_strict.sessions.start

    async def below(request, seen):
        assert request.raw_path.startswith("/base/")
        return await reply(request.clone(rel_url=URL(request.raw_path.removeprefix("/base"), encoded=True)), seen)

    gcs_strict._reply = below
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


async def test_a_lost_response_to_a_create_is_no_conflict(gcs_strict, guarded):
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


async def test_a_redirect_is_no_success(gcs_strict, store):
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


# tokens


@pytest.fixture
def credentials(gcs_strict, tmp_path):
    path = tmp_path / "credentials.json"
    secrets = {"client_id": "id", "client_secret": "secret", "refresh_token": "refresh"}
    path.write_text(json.dumps({"type": "authorized_user", "token_uri": f"{gcs_strict.endpoint}/token", **secrets}))
    return {"endpoint_url": gcs_strict.endpoint, "credentials": str(path)}


async def test_a_token_is_asked_for_once(gcs_strict, credentials):
    gcs_strict.tokens = {"fresh"}
    async with open_store("gs://conformance/p", options=credentials) as opened:
        for key in "abc":
            await opened.put(key, b"1")
    assert len(gcs_strict.requests("/token")) == 1


async def test_a_refused_token_is_renewed_once(gcs_strict, credentials):
    gcs_strict.tokens = {"fresh"}
    async with open_store("gs://conformance/p", options=credentials) as opened:
        await opened.put("a", b"1")
        gcs_strict.tokens, gcs_strict.fresh_token = {"second"}, "second"
        await opened.put("a", bytes(MIB))
        assert [seen.status for seen in gcs_strict.requests("/upload/")] == [200, 401, 200]
        gcs_strict.tokens = {"none of these"}
        with pytest.raises(AccessDeniedError, match="401"):
            await opened.head("a")
    assert [seen.status for seen in gcs_strict.requests("GET /storage")] == [401, 401]


async def test_a_given_token_is_sent_as_it_is(gcs_strict):
    gcs_strict.tokens = {"given"}
    options = {"endpoint_url": gcs_strict.endpoint, "token": "given"}
    async with open_store("gs://conformance/p", options=options) as opened:
        await opened.put("a", b"1")


async def test_credentials_that_are_refused_say_so(gcs_strict, credentials):
    gcs_strict.faults.append(Fault("/token", 9, 400))
    async with open_store("gs://conformance/p", options=credentials) as opened:
        with pytest.raises(AccessDeniedError, match="give no access token") as caught:
            await opened.put("a", b"1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, b""),
        (200, b"<html>log in</html>"),
        (200, b"[]"),
        (200, b'"x"'),
        (200, b'{"expires_in": 5}'),
        (200, b'{"access_token": "x"}'),
        (200, b'{"access_token": "x", "expires_in": "' + b"9" * 400 + b'"}'),
        (200, b'{"access_token": "a\\r\\nHost: b", "expires_in": 5}'),
        (200, b'{"access_token": "", "expires_in": 5}'),
        (200, b"[" * 60_000),
        (500, b""),
        (503, b"{}"),
        (429, b""),
    ],
)
async def test_a_token_server_that_fails_for_a_moment_is_retried(gcs_strict, credentials, status, said):
    gcs_strict.faults.append(Fault("/token", 9, status, {"Content-Type": "application/json"}, body=said))
    async with open_store("gs://conformance/p", options=credentials) as opened:
        with pytest.raises(UnavailableError, match="no access token"):
            await opened.put("a", b"1")
        gcs_strict.faults.clear()
        await opened.put("a", b"1")


async def test_a_credentials_file_that_is_missing_is_named(gcs_strict):
    options = {"endpoint_url": gcs_strict.endpoint, "credentials": "/nowhere.json"}
    async with open_store("gs://conformance/p", options=options) as opened:
        with pytest.raises(ConfigError, match=r"/nowhere\.json"):
            await opened.put("a", b"1")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "unknown"}', "{}"])
async def test_an_empty_credentials_file_does_not_fall_back_to_the_machine(
    gcs_strict, tmp_path, monkeypatch, text, given
):
    path = tmp_path / "broken.json"
    path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    options = {"endpoint_url": gcs_strict.endpoint.replace("http://", "https://")}
    options |= {"credentials": str(path)} if given else {}
    async with open_store("gs://conformance/p", options=options) as opened:
        with pytest.raises(ConfigError, match=r"broken\.json"):
            await opened.put("a", b"1")


@pytest.mark.parametrize("spelled", ["http://{}", "{}", "http://{}/"])
async def test_the_emulator_of_the_environment_is_used_without_a_token(gcs_strict, monkeypatch, spelled):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", spelled.format(gcs_strict.endpoint.removeprefix("http://")))
    async with open_store("gs://conformance/p") as opened:
        await opened.put("a", b"1")
    assert "Authorization" not in gcs_strict.seen[0].headers


@pytest.mark.parametrize(
    ("emulator", "options", "needs"),
    [
        ("https://localhost:4443", {}, False),
        ("https://localhost:4443", {"token": "given"}, True),
        ("http://localhost:4443", {"credentials": "/file"}, True),
        ("https://storage.googleapis.com", {}, True),
        ("localhost:4443", {"endpoint_url": "https://private.example"}, True),
        (None, {}, True),
        (None, {"anonymous": True}, False),
        (None, {"endpoint_url": "http://localhost:1"}, False),
    ],
)
def test_an_emulator_gets_no_credentials_that_are_only_found(monkeypatch, emulator, options, needs):
    if emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    assert GcsOptions.parse(options).needs_token() is needs


@pytest.mark.parametrize(
    "address", ["grpc://localhost:1", "localhost:http", "localhost:99999", "http://", "http://:1/x"]
)
def test_an_invalid_address_is_reported(monkeypatch, address):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    with pytest.raises(ConfigError, match=r"STORAGE_EMULATOR_HOST=.* is not an address"):
        open_store("gs://conformance/p")


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_server_below_a_path_is_reached(tmp_path, hidden):
    """Itself it may or may not know of the path: one that a proxy strips is in no address of its own."""
    (tmp_path / "f").write_bytes(os.urandom(9 * MIB))
    with GcsFake("b", base="/storage/gcs", hidden=hidden) as fake:
        async with open_store("gs://b/p", options=fake.storage_options) as opened:
            await opened.put("x", FileRange(str(tmp_path / "f"), 0, 9 * MIB))
            await opened.put("y", b"1")
            await opened.copy("x", "y")
            assert [info.key for info in (await opened.list()).objects] == ["x", "y"]
            assert (await opened.get("y"))[0] == (tmp_path / "f").read_bytes()
            await opened.delete(["x", "y"])
        assert {seen.status for seen in fake.seen} == {200, 308}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "x"}, "unknown storage option 'region'"),
        ({"endpoint_url": "host:1"}, "must start with"),
        ({"endpoint_url": "http://host:port"}, "is not an address"),
        ({"anonymous": "yes"}, "True or False"),
        ({"token": ""}, "must be non-empty text"),
        ({"token": "x", "anonymous": True}, "exclude each other"),
        ({"verify": 3}, "CA bundle"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        open_store("gs://b/p", options=options)


def test_a_token_is_not_shown():
    assert "hush" not in repr(GcsOptions.parse({"token": "hush"}))


async def test_options_reach_the_requests(gcs_strict, objects):
    options = {**gcs_strict.storage_options, "user_project": "payer", "storage_class": "NEARLINE"}
    async with open_store("gs://conformance/p", options=options) as opened:
        upload = await opened.create_multipart("x")
        part = await opened.put_part(upload, 1, 0, b"data")
        await opened.complete_multipart(upload, [part])
        await opened.copy("x", "y")
        await opened.get("x")
        await opened.list()
        await opened.delete(["y"])
    assert all("userProject=payer" in seen.target for seen in gcs_strict.seen)
    assert objects["p/x"].storage_class == "NEARLINE"


# content


async def test_no_cache_and_no_gzip_comes_between(store, objects):
    await store.put("x", b"1")
    assert objects["p/x"].properties["cacheControl"] == "no-cache, no-transform"


async def test_what_somebody_else_compressed_is_read_as_it_is_stored(gcs_strict, store):
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


async def test_where_media_tell_no_generation_only_who_needs_it_asks_for_it(gcs_strict, store, monkeypatch):
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


# deleting, copying, listing


async def test_hundreds_are_deleted_in_batches(gcs_strict, store, objects):
    for number in range(250):
        gcs_strict.buckets["conformance"].put(f"p/{number} ä/b", b"", {}, {})
    await store.delete([*(f"{number} ä/b" for number in range(250)), "never was"])
    assert objects == {}
    assert len(gcs_strict.requests("POST /batch")) == len(gcs_strict.seen) == 3


def test_responses_of_a_batch_belong_to_their_calls_in_any_order():
    answer = "--b\r\nContent-ID: <response-{}>\r\n\r\nHTTP/1.1 {} Said\r\nA: b\r\n\r\n{}\r\n".format
    said = (answer(1, 404, "{}") + answer(0, 204, "") + answer(2, 503, "later") + "--b--\r\n").encode()
    assert batch_responses(said) == [(1, 404, b"{}"), (0, 204, b""), (2, 503, b"later")]


def test_responses_of_a_batch_without_names_come_in_order():
    said = b"--b\r\n\r\nHTTP/1.1 204 Said\r\n\r\n--b\r\n\r\nHTTP/1.1 404 Said\r\n\r\n--b--"
    assert batch_responses(said) == [(0, 204, b""), (1, 404, b"")]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_where_there_are_no_batches_objects_are_deleted_one_by_one(gcs_strict, store, objects, status):
    gcs_strict.faults.append(Fault("POST /batch", 9, status))
    for number in range(12):
        gcs_strict.buckets["conformance"].put(f"p/{number}", b"", {}, {})
    for keys in (range(5), range(5, 13)):
        await store.delete([f"{number}" for number in keys])
    assert objects == {}
    assert len(gcs_strict.requests("POST /batch")) == 1


async def test_a_failure_inside_a_batch_is_reported(gcs_strict, store, monkeypatch):
    await store.put("a", b"1")
    await store.put("b", b"1")
    inner = gcs_strict._inner

    def refuse(method, target, headers):
        if target.endswith("b"):
            raise ApiError(403, "no storage.objects.delete access")
        return inner(method, target, headers)

    monkeypatch.setattr(gcs_strict, "_inner", refuse)
    with pytest.raises(AccessDeniedError, match=r"gs://conformance/p/b: no storage\.objects\.delete"):
        await store.delete(["a", "b"])


async def test_a_copy_continues_until_the_service_has_finished(gcs_strict, store, objects):
    await store.put("x", b"0123456789")
    gcs_strict.rewrites.step = 4
    info = await store.copy("x", "y")
    assert (objects["p/y"].data, info.size) == (b"0123456789", 10)
    assert len(gcs_strict.requests("rewriteTo")) == 3


@pytest.mark.parametrize("size", [0, 10])
async def test_a_create_only_copy_sends_its_condition_in_every_step(gcs_strict, store, objects, size):
    """It sends no other request first."""
    await store.put("x", bytes(size))
    gcs_strict.rewrites.step = 4
    gcs_strict.seen.clear()
    info = await store.copy("x", "y", if_version=MISSING)
    assert str(objects["p/y"].generation) == info.version
    assert {URL(seen.target, encoded=True).query["ifGenerationMatch"] for seen in gcs_strict.seen} == {"0"}
    assert len(gcs_strict.seen) == len(gcs_strict.requests("rewriteTo")) == max(1, -(-size // 4))


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_copy_that_only_creates_replaces_nothing(gcs_strict, store, objects, monkeypatch, written):
    """Whether it was there before, or came between two steps."""
    await store.put("x", b"0123456789")
    gcs_strict.rewrites.step, run, steps = 4, gcs_strict.rewrites.run, iter(range(9))

    def step(source, *given):
        if next(steps) == written:
            source.put("p/y", b"theirs", {}, {})
        return run(source, *given)

    monkeypatch.setattr(gcs_strict.rewrites, "run", step)
    with pytest.raises(PreconditionError):
        await store.copy("x", "y", if_version=MISSING)
    assert objects["p/y"].data == b"theirs"


async def test_a_copy_replaces_no_version_that_is_named(gcs_strict, store):
    info = await store.put("x", b"1")
    gcs_strict.seen.clear()
    with pytest.raises(StoreError, match="can only create"):
        await store.copy("x", "x", if_version=info.version)
    assert gcs_strict.seen == []


# uploads in parts


async def upload_of(store, key, bodies):
    upload = await store.create_multipart(key)
    return upload, [await store.put_part(upload, number, -1, body) for number, body in enumerate(bodies, 1)]


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


async def test_a_request_without_a_body_names_no_type(gcs_strict, store):
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


async def test_an_append_to_what_has_changed_is_refused(store):
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
async def test_a_compose_whose_response_was_lost_is_no_conflict(gcs_strict, guarded, objects, old, fault):
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


async def test_a_source_that_has_changed_is_no_other_writer(gcs_strict, guarded, monkeypatch):
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
async def test_an_append_replaces_only_what_it_appends_to(guarded, objects, before_compose, late):
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


async def test_an_append_whose_response_was_lost_is_no_conflict(gcs_strict, guarded, objects):
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
