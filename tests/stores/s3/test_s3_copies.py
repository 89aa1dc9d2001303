"""Copies and deletes inside an S3 store, against a scripted server."""

import asyncio
import base64
import hashlib
import re

import google_crc32c
import pytest
from s3_script import OK, copied, fault, reply, scripted

from asyncsync.errors import AccessDeniedError, PreconditionError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.base import MISSING, Part, Upload
from asyncsync.stores.s3 import bucket as s3_bucket
from asyncsync.stores.s3.sdk.aiobotocore_requests import AiobotocoreRequests
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20


# Copies and deletes inside the store


async def test_a_copy_is_one_signed_request_that_names_its_source_encoded():
    async with scripted([copied(crc=7)]) as (store, script):
        info = await store.copy("a b/ü+%&.bin", "dir/k", if_source_version="old", size=4)
    [request] = script.requests
    assert (request.method, request.target, request.body) == ("PUT", "/bucket/p/dir/k", b"")
    assert request.headers["content-length"] == "0"
    assert request.headers["x-amz-copy-source"] == "bucket/p/a%20b/%C3%BC%2B%25%26.bin"
    assert request.headers["x-amz-copy-source-if-match"] == '"old"'
    assert request.headers["x-amz-checksum-algorithm"] == "CRC32C"
    assert "x-amz-copy-source-if-match" in re.search("SignedHeaders=(.*?),", request.headers["authorization"])[1]
    assert (info.key, info.size, info.version, info.crc32c) == ("dir/k", 4, "abc", 7)


@pytest.mark.parametrize(
    ("answer", "methods"),
    [
        (copied(crc=7), ["PUT"]),
        (copied(etag="old"), ["PUT"]),
        (copied(), ["PUT", "HEAD"]),
    ],
    ids=["a checksum", "the ETag of the source", "another ETag"],
)
async def test_a_copy_is_read_back_only_if_its_response_lacks_the_result(answer, methods):
    def say(request):
        if request.method == "PUT":
            return answer
        made = "Last-Modified: Sat, 01 Jan 2000 00:00:00 GMT"
        return f'HTTP/1.1 200 OK\r\nETag: "abc"\r\n{made}\r\nContent-Length: 4\r\n\r\n'.encode()

    async with scripted(say) as (store, script):
        info = await store.copy("a", "k", if_source_version="old", size=4)
    assert [request.method for request in script.requests] == methods
    assert info.size == 4
    assert (info.modified is not None) is (len(methods) == 2)


@pytest.mark.parametrize("there", [('"before"', 4), ('"abc"', 5)])
async def test_an_older_object_at_the_target_is_not_taken_for_the_copy(there):
    def say(request):
        if request.method == "PUT":
            return copied(etag="abc")
        return f"HTTP/1.1 200 OK\r\nETag: {there[0]}\r\nContent-Length: {there[1]}\r\n\r\n".encode()

    async with scripted(say) as (store, _):
        with pytest.raises(UnavailableError, match="reported a copy of 4 bytes"):
            await store.copy("a", "k", if_source_version="old", size=4)


async def test_a_copy_of_unknown_size_heads_the_source_and_pins_its_version():
    def say(request):
        if request.method == "HEAD":
            return b'HTTP/1.1 200 OK\r\nETag: "seen"\r\nContent-Length: 9\r\n\r\n'
        return copied(etag="seen")

    async with scripted(say) as (store, script):
        assert (await store.copy("a", "k")).size == 9
    assert [(request.method, request.target) for request in script.requests] == [
        ("HEAD", "/bucket/p/a"),
        ("PUT", "/bucket/p/k"),
    ]
    assert script.requests[1].headers["x-amz-copy-source-if-match"] == '"seen"'


@pytest.mark.parametrize("call", ["copy", "copy_part"])
async def test_an_error_inside_a_200_of_a_copy_is_an_error(call):
    body = b'<?xml version="1.0"?>\n<Error><Code>SlowDown</Code><Message>later</Message></Error>'
    async with scripted([reply(body=body)]) as (store, script):
        with pytest.raises(ThrottledError, match="later"):
            if call == "copy":
                await store.copy("a", "k", size=4)
            else:
                await store.copy_part(Upload("k", "u"), 1, 0, "a", 0, 9)
    assert len(script.requests) == 1


class Bucket:
    """A server that supports, or does not support, create-only copies."""

    def __init__(self, say):
        self.say, self.keys = say, {"/bucket/p/a"}

    def __call__(self, request):
        if request.method != "PUT":
            return reply(body=b"<DeleteResult></DeleteResult>")
        if "x-amz-copy-source" in request.headers and (said := self.say(request, request.target in self.keys)):
            return said
        self.keys.add(request.target)
        return copied(crc=7) if "x-amz-copy-source" in request.headers else OK


def keeps_to_the_condition(request, there):
    refused = there and request.headers.get("if-none-match") == "*"
    return fault("412 Precondition Failed", "PreconditionFailed") if refused else None


async def test_create_only_copies_are_probed_once_under_names_of_their_own():
    async with scripted(Bucket(keeps_to_the_condition)) as (store, script):
        copies = (store.copy("a", key, size=4, if_version=MISSING) for key in ("k", "l"))
        await asyncio.gather(*copies)
        with pytest.raises(PreconditionError):
            await store.copy("a", "k", size=4, if_version=MISSING)
        assert store.traits.conditional_copy
    tried = [r for r in script.requests if "probe-copy" in r.target or r.method == "POST"]
    assert [r.method for r in tried] == ["PUT", "PUT", "PUT", "POST"]
    assert len(script.requests) == len(tried) + 3
    assert all(r.headers["if-none-match"] == "*" for r in script.requests if "x-amz-copy-source" in r.headers)


@pytest.mark.parametrize(
    "say",
    [
        lambda request, there: None,
        lambda request, there: fault("400 Bad Request", "InvalidArgument"),
        lambda request, there: fault("501 Not Implemented", "NotImplemented"),
        lambda request, there: reply("501 Not Implemented"),
        lambda request, there: fault("412 Precondition Failed", "PreconditionFailed"),
    ],
    ids=["overwrites", "400", "501", "501 without a document", "412 for what is not there"],
)
async def test_a_copy_that_the_server_cannot_make_on_condition_is_not_made(say):
    async with scripted(Bucket(say)) as (store, script):
        for _ in range(2):
            with pytest.raises(StoreError, match="send its bytes") as caught:
                await store.copy("a", "k", size=4, if_version=MISSING)
            assert not caught.value.retryable
        assert not store.traits.conditional_copy
    assert not any(request.target == "/bucket/p/k" for request in script.requests)


async def test_a_copy_is_tried_out_again_where_the_server_was_only_away():
    away = [reply("503 Service Unavailable"), fault("409 Conflict", "ConditionalRequestConflict")]

    def say(request, there):
        return away.pop() if away else keeps_to_the_condition(request, there)

    async with scripted(Bucket(say)) as (store, _):
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                await store.copy("a", "k", size=4, if_version=MISSING)
            assert caught.value.retryable
        await store.copy("a", "k", size=4, if_version=MISSING)
        assert store.traits.conditional_copy


async def test_a_copied_part_names_its_range():
    async with scripted([copied(crc=7, kind="CopyPartResult")]) as (store, script):
        upload = Upload("k", "u/+")
        part = await store.copy_part(upload, 3, 100, "a b", 5, 10, if_source_version="old")
    [request] = script.requests
    assert request.target == "/bucket/p/k?partNumber=3&uploadId=u%2F%2B"
    assert request.headers["x-amz-copy-source"] == "bucket/p/a%20b"
    assert request.headers["x-amz-copy-source-range"] == "bytes=5-14"
    assert request.headers["x-amz-copy-source-if-match"] == '"old"'
    assert part == Part(3, 100, 10, "abc", 7)


async def test_more_than_one_request_may_copy_is_refused_before_it_is_asked_for():
    """The caller has to open an upload for a copy in parts, because it cleans up after a cancel."""
    async with scripted([]) as (store, script):
        with pytest.raises(StoreError, match="copy it in parts"):
            await store.copy("a", "k", if_source_version="old", size=(5 << 30) + 1)
    assert not script.requests


async def test_many_are_deleted_in_one_request_and_failures_are_reported():
    failed = "".join(f"<Error><Key>p/{n}</Key><Code>NoSuchKey</Code></Error>" for n in range(3000))
    denied = "<Error><Key>p/b&lt;</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    answers = [f"<DeleteResult>{failed}{more}</DeleteResult>".encode() for more in ("", denied)]
    async with scripted([reply(body=body) for body in answers]) as (store, script):
        await store.delete(["a&\n", "b<"])  # more than 64 KiB of missing keys
        with pytest.raises(AccessDeniedError, match="s3://bucket/p/b<"):
            await store.delete(["a", "b<"])
    request = script.requests[0]
    assert (request.method, request.target) == ("POST", "/bucket?delete=")
    assert b"<Object><Key>p/a&amp;&#10;</Key></Object><Object><Key>p/b&lt;</Key></Object>" in request.body
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    assert request.headers["content-md5"] == base64.b64encode(digest).decode()


@pytest.mark.server
@pytest.mark.parametrize("via", ["signed", "aiobotocore"])
async def test_an_upload_is_filled_with_ranges_of_another_object(monkeypatch, seaweedfs, via):
    data = bytes(range(256)) * (11 * MIB // 256) + b"end"
    monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: via == "signed")
    bucket = seaweedfs.create_bucket(f"ranges-{via}")
    async with S3Store(bucket, "p", options=seaweedfs.storage_options) as store:
        assert isinstance(store._bucket.opened, AiobotocoreRequests) is (via == "aiobotocore")
        old = await store.put("a b", data)
        upload = await store.create_multipart("k")
        cuts = [(1, 0, 6 * MIB), (2, 6 * MIB, len(data) - 6 * MIB)]
        parts = [
            await store.copy_part(upload, number, start, "a b", start, size, if_source_version=old.version)
            for number, start, size in cuts
        ]
        with pytest.raises(PreconditionError):
            await store.copy_part(upload, 3, 0, "a b", 0, 6 * MIB, if_source_version="other")
        info = await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(data))
        assert (info.size, info.crc32c) == (len(data), google_crc32c.value(data))
        assert (await store.get("k"))[0] == data
        assert await store.list_multiparts() == []
