"""A feature that a store does not support is omitted once it is identified; everything else stays."""

import logging

import google_crc32c
import pytest
from s3_script import OK, fault, reply, scripted
from test_s3_results import result

from asyncsync.errors import IntegrityError, PreconditionError, StoreError, UnsupportedError
from asyncsync.stores.base import MISSING, Part, Upload
from asyncsync.stores.s3 import bucket as s3_bucket

CRC = google_crc32c.value(b"data")
UPLOAD = Upload("k", "u")
PARTS = [Part(1, 0, 4, "e", CRC)]


def unknown(status, header):
    code = "NotImplemented" if status.startswith("501") else "InvalidArgument"
    text = f"<Error><Code>{code}</Code><Message>Unsupported header '{header}' received</Message></Error>"
    return reply(status, text.encode())


ANSWERS = {
    "PUT": lambda: OK,
    "HEAD": lambda: b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: "abc"\r\n\r\n',
    "GET": lambda: reply(body=b"data", ETag='"abc"'),
    "DELETE": lambda: reply("204 No Content"),
}


def normal(request):
    if request.method == "POST":
        return reply(body=result("create" if "uploads" in request.target else "complete"))
    if "x-amz-copy-source" in request.headers:
        return reply(body=result("copy"))
    return ANSWERS[request.method]()


def refusing(prefix, *answers):
    """Each request with such a header gets the next of the responses, the last one repeatedly."""
    left = list(answers)

    def answer(request):
        if any(name.startswith(prefix) for name in request.headers):
            return left.pop(0) if len(left) > 1 else left[0]
        return normal(request)

    return answer


CALLS = {
    "put": lambda store: store.put("k", b"data", crc32c=CRC),
    "part": lambda store: store.put_part(UPLOAD, 1, 0, b"data", crc32c=CRC),
    "create": lambda store: store.create_multipart("k"),
    "complete": lambda store: store.complete_multipart(UPLOAD, PARTS, crc32c=CRC),
    "copy": lambda store: store.copy("a", "k", size=4, if_source_version="abc"),
    "head": lambda store: store.head("k"),
    "get": lambda store: store.get("k"),
}


@pytest.mark.parametrize(
    "refusal",
    [
        unknown("501 Not Implemented", "x-amz-checksum-crc32c"),
        unknown("400 Bad Request", "x-amz-checksum-crc32c"),
        reply("501 Not Implemented"),
        fault("501 Not Implemented", "NotImplemented"),
        reply("400 Bad Request", b"<Error><Code>InvalidRequest</Code><Message>checksum unsupported</Message></Error>"),
    ],
    ids=["501", "400", "501 without a document", "501 that names nothing", "400 in other words"],
)
@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"complete"}))
async def test_an_unsupported_checksum_is_omitted_and_logged_once(call, refusal, caplog):
    bare = reply("400 Bad Request") if b"400" in refusal else reply("501 Not Implemented")
    async with scripted(refusing("x-amz-checksum", bare if call == "head" else refusal)) as (store, script):
        with caplog.at_level(logging.WARNING, "asyncsync"):
            await CALLS[call](store)
            first = len(script.requests)
            await CALLS[call](store)
            await store.put("l", b"data")
        assert not store.traits.crc32c
    assert len(script.requests) == first + 2
    assert not any(name.startswith("x-amz-checksum") for r in script.requests[first:] for name in r.headers)
    assert [r.message.count('checksum="none"') for r in caplog.records if r.name == "asyncsync"] == [1]


async def test_only_the_header_that_is_named_is_left_out():
    async with scripted(refusing("x-amz-mp-object-size", unknown("400 Bad Request", "x-amz-mp-object-size"))) as found:
        store, script = found
        await CALLS["complete"](store)
        await CALLS["complete"](store)
        assert store.traits.crc32c
    assert ["x-amz-mp-object-size" in request.headers for request in script.requests] == [True, False, False]
    assert all("x-amz-checksum-crc32c" in request.headers for request in script.requests)


async def test_completing_does_without_the_checksum_of_the_whole_alone():
    async with scripted(refusing("x-amz-checksum", reply("501 Not Implemented"))) as (store, script):
        await CALLS["complete"](store)
        await CALLS["complete"](store)
        assert store.traits.crc32c
    assert "x-amz-mp-object-size" in script.requests[-1].headers
    assert len(script.requests) == 4


async def test_the_checksum_of_the_whole_goes_before_those_of_the_parts():
    async with scripted(refusing("x-amz-checksum-type", reply("501 Not Implemented"))) as (store, script):
        await store.create_multipart("k")
        await CALLS["complete"](store)
        await CALLS["part"](store)
        assert store.traits.crc32c
    assert "x-amz-checksum-crc32c" in script.requests[-1].headers


@pytest.mark.parametrize("call", ["put", "complete"])
async def test_nothing_is_given_up_for_a_request_that_is_refused_in_any_case(call):
    async with scripted(lambda request: reply("501 Not Implemented")) as (store, script):
        with pytest.raises(UnsupportedError) as caught:
            await CALLS[call](store)
        assert not caught.value.retryable
        assert store.traits.crc32c
        sent = len(script.requests)
        with pytest.raises(UnsupportedError):
            await CALLS[call](store)
    assert "x-amz-checksum-crc32c" in script.requests[sent].headers


async def test_damage_is_not_taken_for_a_header_that_is_not_known():
    text = (
        b"<Error><Code>BadDigest</Code><Message>unsupported: the x-amz-checksum header did not match</Message></Error>"
    )
    async with scripted([reply("400 Bad Request", text)]) as (store, script):
        with pytest.raises(IntegrityError):
            await CALLS["put"](store)
    assert len(script.requests) == 1


async def test_a_checksum_that_is_insisted_on_is_not_left_out():
    async with scripted(refusing("x-amz-checksum", reply("501 Not Implemented")), checksum="crc32c") as (store, script):
        with pytest.raises(UnsupportedError, match='checksum="auto"'):
            await CALLS["put"](store)
    assert len(script.requests) == 1


@pytest.mark.parametrize("via", ["signed", "aiobotocore"])
async def test_without_checksums_requests_have_no_checksum_header(via, monkeypatch):
    if via == "aiobotocore":
        pytest.importorskip("aiobotocore")
        monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)
    seen = refusing("x-amz-", *[reply("501 Not Implemented")])

    def answer(request):
        request.headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("x-amz-date", "x-amz-content-sha256", "x-amz-copy-source", "x-amz-copy-source-if-match")
        }
        bad = [name for name in request.headers if name.startswith(("x-amz-checksum", "x-amz-sdk-ch", "x-amz-mp"))]
        return seen(request) if bad or "x-amz-trailer" in request.headers else by_kind(request)

    def by_kind(request):
        if "delete" in request.target:
            return reply(body=result("delete many"))
        return reply(body=result("copy")) if request.target.endswith("/copied") else normal(request)

    async with scripted(answer, checksum="none") as (store, _):
        for name, call in CALLS.items():
            await (store.copy("a", "copied", size=4, if_source_version="abc") if name == "copy" else call(store))
        await store.delete(["a", "b"])


async def test_an_unsupported_condition_is_an_error_that_names_the_option():
    async with scripted(refusing("if-none-match", reply("501 Not Implemented"))) as (store, _):
        with pytest.raises(StoreError, match="conditional_writes=False") as caught:
            await store.put("k", b"data", if_version=MISSING)
        assert not caught.value.retryable
        assert store.traits.crc32c


async def test_conditions_can_be_switched_off():
    async with scripted(refusing("if-", reply("501 Not Implemented")), conditional_writes=False) as (store, script):
        assert not store.traits.conditional_writes
        await store.put("k", b"data", if_version=MISSING)
        await store.put("k", b"data", if_version="abc")
        await store.complete_multipart(UPLOAD, PARTS, crc32c=CRC, if_version=MISSING)
    assert len(script.requests) == 3


# Deleting


@pytest.mark.parametrize(
    "refusal",
    [reply("501 Not Implemented"), fault("405 Method Not Allowed", "MethodNotAllowed"), reply("404 Not Found")],
    ids=["501", "405", "404"],
)
async def test_objects_are_deleted_singly_where_the_store_cannot_delete_many(refusal, caplog):
    async with scripted(lambda r: refusal if r.method == "POST" else normal(r)) as (store, script):
        await store.delete(["a", "b", "c"])
        await store.delete(["d", "e"])
    assert [r.method for r in script.requests] == ["POST", *["DELETE"] * 5]
    assert [r.message.count("multi_delete=False") for r in caplog.records if r.name == "asyncsync"] == [1]


async def test_an_unreadable_batch_is_deleted_singly_the_next_as_a_batch():
    said = [fault("400 Bad Request", "MalformedXML"), reply(body=result("delete many"))]
    async with scripted(lambda r: said.pop(0) if r.method == "POST" else normal(r)) as (store, script):
        await store.delete(["a", "b"])
        await store.delete(["c", "d"])
    assert [r.method for r in script.requests] == ["POST", "DELETE", "DELETE", "POST"]


async def test_a_key_that_xml_cannot_hold_is_deleted_singly():
    async with scripted(lambda r: reply(body=result("delete many")) if r.method == "POST" else normal(r)) as found:
        store, script = found
        await store.delete(["a", "b\x01", "c\nd", "e\uffff"])
    assert sorted(r.target for r in script.requests if r.method == "DELETE") == [
        "/bucket/p/b%01",
        "/bucket/p/e%EF%BF%BF",
    ]
    [many] = [r for r in script.requests if r.method == "POST"]
    assert many.body.count(b"<Key>") == 2


async def test_many_deletions_can_be_switched_off():
    async with scripted(normal, multi_delete=False) as (store, script):
        await store.delete(["a", "b"])
    assert [r.method for r in script.requests] == ["DELETE", "DELETE"]


async def test_a_bucket_that_is_not_there_is_not_a_missing_operation():
    async with scripted(lambda r: fault("404 Not Found", "NoSuchBucket")) as (store, script):
        with pytest.raises(StoreError, match="no bucket"):
            await store.delete(["a", "b"])
    assert len(script.requests) == 1


# Storage classes


@pytest.mark.parametrize(
    "key", [".asyncsync/experiment.json", "t/.asyncsync/trial.json", "t/c/.asyncsync/manifest.json"]
)
async def test_the_storage_class_is_for_data_only(key):
    async with scripted(normal, storage_class="GLACIER", sse="AES256") as (store, script):
        await store.put(key, b"data")
        await store.copy("a", key, size=4, if_source_version="abc")
        await store.create_multipart(key)
        await store.put("t/my.asyncsync/x", b"data")
        await store.create_multipart("w")
    classes = [request.headers.get("x-amz-storage-class") for request in script.requests]
    assert classes == [None, None, None, "GLACIER", "GLACIER"]
    assert all(request.headers["x-amz-server-side-encryption"] == "AES256" for request in script.requests)


async def test_an_archived_object_is_not_a_matter_of_permissions():
    cold = fault("403 Forbidden", "InvalidObjectState")
    async with scripted(lambda r: cold) as (store, _):
        with pytest.raises(StoreError, match="restored") as caught:
            await store.get("k")
        assert not isinstance(caught.value, PermissionError)
        with pytest.raises(PreconditionError):  # as for any source that cannot be copied, its bytes are sent
            await store.copy_part(UPLOAD, 1, 0, "a", 0, 4)


# Parts of one size


@pytest.mark.parametrize(("sizes", "learnt"), [((5, 6, 1), True), ((5, 6), True), ((5, 5, 1), False), ((5, 5), False)])
async def test_that_parts_must_be_of_one_size_is_learnt_from_a_refusal_of_others(sizes, learnt):
    parts = [Part(number, 0, size, "e") for number, size in enumerate(sizes, 1)]
    async with scripted(lambda request: fault("400 Bad Request", "InvalidPart")) as (store, _):
        with pytest.raises(StoreError, match="InvalidPart"):
            await store.complete_multipart(UPLOAD, parts)
        assert store.traits.equal_parts is learnt


async def test_equal_parts_can_be_demanded_by_an_option():
    async with scripted(normal, equal_parts=True) as (store, _):
        assert store.traits.equal_parts
