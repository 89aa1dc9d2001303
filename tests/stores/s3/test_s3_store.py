"""Requests of the S3 store and their errors, against a scripted server."""

import asyncio
import re
import ssl
import time
from email.utils import formatdate

import google_crc32c
import pytest
from s3_script import KEYS, OK, copied, fault, reply, scripted

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    SourceChangedError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.stores.base import MISSING, Part, Upload
from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.http.watchdog import Watchdog
from asyncsync.stores.s3.errors import MalformedError
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20


# Requests


async def test_a_put_is_one_signed_request_with_its_checksum_without_expect():
    async with scripted([OK]) as (store, script):
        info = await store.put("a b/ü+%.bin", b"data", crc32c=google_crc32c.value(b"data"), if_version=MISSING)
    [request] = script.requests
    assert (request.method, request.target) == ("PUT", "/bucket/p/a%20b/%C3%BC%2B%25.bin")
    assert request.body == b"data"
    assert request.headers["x-amz-checksum-crc32c"] == crc32c_to_text(google_crc32c.value(b"data"))
    assert request.headers["if-none-match"] == "*"
    assert "expect" not in request.headers
    assert "x-amz-checksum-crc32c" in re.search("SignedHeaders=(.*?),", request.headers["authorization"])[1]
    assert (info.version, info.size, info.crc32c) == ("abc", 4, google_crc32c.value(b"data"))


async def test_options_travel_as_headers():
    options = {"sse": "aws:kms", "sse_kms_key_id": "k", "storage_class": "STANDARD_IA", "request_payer": "requester"}
    async with scripted([OK], acl="private", **options) as (store, script):
        await store.put("k", b"")
    sent = script.requests[0].headers
    assert sent["x-amz-server-side-encryption"] == "aws:kms"
    assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
    assert (sent["x-amz-storage-class"], sent["x-amz-acl"]) == ("STANDARD_IA", "private")
    assert sent["x-amz-request-payer"] == "requester"


async def test_without_checksum_none_is_sent():
    async with scripted([OK], checksum="none") as (store, script):
        info = await store.put("k", b"data", crc32c=1)
    assert not any("checksum" in name for name in script.requests[0].headers)
    assert info.crc32c is None
    assert not store.traits.crc32c


async def test_an_anonymous_request_is_not_signed():
    async with scripted([OK], anonymous=True) as (store, script):
        await store.put("k", b"data")
    assert "authorization" not in script.requests[0].headers


async def test_a_session_token_is_sent_and_signed():
    async with scripted([OK], session_token="token") as (store, script):
        await store.put("k", b"data")
    sent = script.requests[0].headers
    assert sent["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in sent["authorization"]


async def test_virtual_addressing_puts_the_bucket_into_the_host():
    store = S3Store("bucket", "p", options=KEYS | {"addressing_style": "virtual", "endpoint_url": "http://s3.test:1"})
    async with store:
        assert store._bucket.opened.transport.endpoint.base == "http://bucket.s3.test:1/"
        assert store._bucket.opened.transport.endpoint.host == "bucket.s3.test:1"


async def test_aws_is_addressed_by_region():
    async with S3Store("bucket", "p", options=KEYS | {"region": "eu-central-1"}) as store:
        assert store._bucket.opened.transport.endpoint.base == "https://bucket.s3.eu-central-1.amazonaws.com/"
        assert store._bucket.opened.transport.endpoint.region == "eu-central-1"


async def test_the_environment_names_the_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with S3Store("bucket", "", options={}) as store:
        assert store._bucket.opened.transport.endpoint.base == "http://127.0.0.1:7/bucket/"


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB, MIB + 1, 3 * MIB + 7])
async def test_a_file_range_arrives_complete(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "f"
    path.write_bytes(b"head" + data[:size] + b"tail")
    async with scripted([OK]) as (store, script):
        await store.put("k", FileRange(str(path), 4, size))
    assert script.requests[0].body == data[:size]


async def test_tls_is_checked_against_the_bundle_that_is_named(certificate):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate[1:])
    data = bytes(range(256)) * 8192

    def say(request):
        return copied(crc=7) if "x-amz-copy-source" in request.headers else OK

    async with scripted(say, tls=tls, verify=certificate[0]) as (store, script):
        await store.put("k", data)
        await store.copy("k", "l", size=4)
        assert script.requests[0].body == data
        for verify, error in ((True, StoreError), (False, None)):
            options = KEYS | {"endpoint_url": store._options.endpoint_url, "verify": verify}
            async with S3Store("bucket", "", options=options) as other:
                if error is None:
                    await other.put("k", b"data")
                else:
                    with pytest.raises(error, match="certificate") as caught:
                        await other.put("k", b"data")
                    assert not caught.value.retryable
                    with pytest.raises(error, match="certificate") as caught:
                        await other.list()
                    assert not caught.value.retryable


# Responses


@pytest.mark.parametrize(
    ("answer", "error", "retryable"),
    [
        (fault("404 Not Found", "NoSuchBucket"), NoSuchBucketError, False),
        (fault("404 Not Found", "NoSuchKey"), NotFoundError, False),
        (fault("403 Forbidden", "AccessDenied"), AccessDeniedError, False),
        (fault("412 Precondition Failed", "PreconditionFailed"), PreconditionError, False),
        (fault("409 Conflict", "ConditionalRequestConflict"), UnavailableError, True),
        (fault("409 Conflict", "OperationAborted"), UnavailableError, True),
        (fault("503 Service Unavailable", "SlowDown"), ThrottledError, True),
        (reply("429 Too Many Requests"), ThrottledError, True),
        (fault("500 Internal Server Error", "InternalError"), UnavailableError, True),
        (reply("502 Bad Gateway", b"<html>"), UnavailableError, True),
        (fault("400 Bad Request", "BadDigest"), IntegrityError, True),
        (fault("400 Bad Request", "InvalidDigest"), IntegrityError, True),
        (fault("400 Bad Request", "RequestTimeout"), UnavailableError, True),
        (fault("400 Bad Request", "InvalidArgument"), StoreError, False),
    ],
)
@pytest.mark.parametrize("call", ["put", "copy"])
async def test_an_error_of_the_store_has_one_meaning_either_way(answer, error, retryable, call):
    async with scripted([answer]) as (store, script):
        with pytest.raises(error) as caught:
            await (store.put("k", b"data") if call == "put" else store.copy("a", "k", size=4))
    assert type(caught.value) is error
    assert caught.value.retryable is retryable
    assert "s3://bucket/p/k" in str(caught.value)
    assert "very-secret" not in str(caught.value)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("SlowDown", ThrottledError),
        ("AccessDenied", AccessDeniedError),
        ("RequestTimeout", UnavailableError),
        ("MalformedXML", MalformedError),
    ],
)
async def test_a_known_code_outweighs_the_words_of_its_message(code, error):
    refusal = f"<Error><Code>{code}</Code><Message>unsupported checksum header</Message></Error>"
    async with scripted([reply("400 Bad Request", refusal.encode())]) as (store, _):
        with pytest.raises(StoreError) as caught:
            await store.put("k", b"data")
    assert type(caught.value) is error


async def test_retry_after_is_reported_in_seconds():
    async with scripted([fault("503 Slow", "SlowDown", Retry_After="7")]) as (store, _):
        with pytest.raises(ThrottledError) as caught:
            await store.put("k", b"data")
    assert caught.value.retry_after == 7


async def test_a_missing_bucket_is_named():
    async with scripted([fault("404 Not Found", "NoSuchBucket")]) as (store, _):
        with pytest.raises(NoSuchBucketError, match="no bucket 'bucket'"):
            await store.put("k", b"data")


async def test_an_error_inside_a_200_of_complete_is_an_error():
    body = b'<?xml version="1.0"?>\n<Error><Code>InternalError</Code><Message>later</Message></Error>'
    async with scripted([reply(body=body, Content_Type="application/xml")]) as (store, script):
        with pytest.raises(UnavailableError, match="InternalError"):
            await store.complete_multipart(Upload("k", "u"), [Part(1, 0, 4, "e")])
    assert len(script.requests) == 1


async def test_a_broken_connection_is_not_tried_again_behind_our_back():
    """Not on a connection that has served before either, which is where aiohttp repeats a PUT."""
    async with scripted([OK, b"connection: close", b"connection: close"]) as (store, script):
        await store.put("k", b"data")
        with pytest.raises(UnavailableError):
            await store.put("k", b"data")
        with pytest.raises(UnavailableError):
            await store.copy("k", "l", size=4)
    assert [request.method for request in script.requests] == ["PUT", "PUT", "PUT"]


async def test_a_refused_connection_is_unavailable():
    store = S3Store("bucket", "p", options=KEYS | {"endpoint_url": "http://127.0.0.1:1"})
    async with store:
        with pytest.raises(UnavailableError):
            await store.put("k", b"data")
        with pytest.raises(UnavailableError):
            await store.head("k")


async def test_missing_credentials_are_reported():
    store = S3Store("bucket", "p", options={"endpoint_url": "http://127.0.0.1:1", "region": "r"})
    with pytest.raises(AccessDeniedError, match="credentials"):
        await store.head("k")
    await store.close()


async def test_a_stored_checksum_that_differs_is_damage():
    async with scripted([reply(ETag='"abc"', x_amz_checksum_crc32c="AAAAAA==")]) as (store, _):
        with pytest.raises(IntegrityError):
            await store.put("k", b"data")


async def test_a_body_that_is_cut_is_unavailable():
    cut = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 100\r\nConnection: close\r\n\r\nonly this'
    async with scripted([cut]) as (store, _):
        with pytest.raises(UnavailableError, match="9 of 100"):
            await store.get("k")


async def test_pieces_of_a_download_are_at_most_a_mebibyte():
    data = bytes(4 * MIB + 5)
    sizes = []

    async def sink(piece):
        sizes.append(len(piece))

    async with scripted([reply(body=data, ETag='"e"')]) as (store, _):
        info = await store.read("k", sink)
    assert sum(sizes) == len(data) == info.size
    assert max(sizes) <= MIB + 2**18


async def test_content_encoding_is_left_alone():
    async with scripted([reply(body=b"plain", ETag='"e"', Content_Encoding="gzip")]) as (store, _):
        assert (await store.get("k"))[0] == b"plain"


async def test_a_store_that_ignores_a_range_is_refused():
    async with scripted([reply(body=b"0123456789", ETag='"e"')]) as (store, _):
        with pytest.raises(StoreError, match="range"):
            await store.read("k", _nowhere, start=2, length=3)


async def _nowhere(piece):
    return None


async def test_a_failing_sink_ends_the_download_with_its_own_error():
    async def full(piece):
        raise OSError(28, "disk full")

    async with scripted([reply(body=bytes(2 * MIB), ETag='"e"')]) as (store, _):
        with pytest.raises(OSError, match="disk full") as caught:
            await store.read("k", full)
    assert not isinstance(caught.value, StoreError)


# The source of a body


@pytest.mark.parametrize("size", [1000, 3 * MIB])
async def test_a_file_shorter_than_promised_is_a_changed_source(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(bytes(size - 1))
    async with scripted(lambda request: OK) as (store, _):
        with pytest.raises(SourceChangedError, match="f: "):
            await store.put("k", FileRange(str(path), 0, size), crc32c=0)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
async def test_a_missing_file_is_the_plain_error_of_the_disk(tmp_path, size):
    async with scripted(lambda request: OK) as (store, _):
        with pytest.raises(FileNotFoundError) as caught:
            await store.put("k", FileRange(str(tmp_path / "gone"), 0, size), crc32c=0)
    assert not isinstance(caught.value, StoreError)


# Requests that stand still


async def test_a_server_that_stops_reading_ends_the_request():
    async with scripted(lambda request: None, read_bodies=False, stall_timeout=0.2) as (store, _):
        with pytest.raises(UnavailableError, match="no byte moved for"):
            await store.put("k", bytes(64 * MIB))


async def test_a_server_that_never_responds_ends_the_request():
    async with scripted(lambda request: None, stall_timeout=0.2) as (store, _):
        with pytest.raises(UnavailableError):
            await store.put("k", b"data")
        with pytest.raises(UnavailableError):
            await store.get("k")
        with pytest.raises(UnavailableError):
            await store.head("k")


async def test_the_watchdog_cuts_only_stalled_requests():
    class Body:
        seen, since, stalled, at = -1, 0.0, False, 0

        def progress(self):
            return self.at

        def min_progress(self):
            return 1

        def stall(self):
            self.stalled = True

    now = 0.0
    watchdog = Watchdog(30.0, lambda: now)
    moving, still = Body(), Body()
    watchdog.add(moving)
    watchdog.add(still)
    for now in range(0, 60, 10):
        moving.at += 1
        watchdog.look()
    watchdog.close()
    assert (moving.stalled, still.stalled) == (False, True)


async def test_an_early_refusal_in_the_middle_of_a_body_is_the_error():
    refusal = fault("403 Forbidden", "AccessDenied", Connection="close")
    async with scripted([refusal], read_bodies=False) as (store, _):
        with pytest.raises((AccessDeniedError, UnavailableError)):
            await store.put("k", bytes(32 * MIB))


async def test_a_cancelled_put_closes_its_connection(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(32 * MIB))
    async with scripted(lambda request: None, read_bodies=False) as (store, script):
        put = asyncio.create_task(store.put("k", FileRange(str(path), 0, 32 * MIB), crc32c=0))
        while not script.requests:
            await asyncio.sleep(0)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert store._bucket.opened.transport.busy == 0


# Errors that are corrected once


@pytest.mark.parametrize("call", ["put", "copy"])
async def test_a_wrong_clock_is_corrected_from_the_server_s_date(call):
    ahead = 3600
    seen = []

    def answer(request):
        seen.append(request.headers["x-amz-date"])
        if len(seen) == 1:
            return fault("403 Forbidden", "RequestTimeTooSkewed", Date=formatdate(time.time() + ahead, usegmt=True))
        return OK if call == "put" else copied(crc=7)

    async with scripted(answer) as (store, _):
        await (store.put("k", b"data") if call == "put" else store.copy("a", "k", size=4))
    assert len(seen) >= 2
    assert 3500 < _seconds(seen[1]) - _seconds(seen[0]) < 3700


def _seconds(stamp):
    return time.mktime(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))


@pytest.mark.parametrize("call", ["put", "delete"])
async def test_expired_credentials_are_asked_for_again(monkeypatch, call):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    keys = []

    def answer(request):
        keys.append(re.search("Credential=(.*?)/", request.headers["authorization"])[1])
        return fault("400 Bad Request", "ExpiredToken") if keys[-1] == "old" else OK

    async with scripted(answer, access_key=None, secret_key=None) as (store, _):
        await store._bucket.open_client()  # both have read the old ones
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
        await (store.put("k", b"") if call == "put" else store.delete(["k"]))
    assert keys == ["old", "new"]


async def test_credentials_that_stay_expired_are_refused_after_one_more_try():
    async with scripted(lambda request: fault("400 Bad Request", "ExpiredToken")) as (store, script):
        with pytest.raises(AccessDeniedError, match="ExpiredToken"):
            await store.put("k", b"data")
    assert len(script.requests) == 2


async def test_a_bucket_in_another_region_is_followed():
    def answer(request):
        if "/us-east-1/" in request.headers["authorization"]:
            return fault("301 Moved", "PermanentRedirect", x_amz_bucket_region="eu-west-3")
        return OK

    async with scripted(answer) as (store, script):
        await store.put("k", b"data")
        await store.put("l", b"data")
    assert len(script.requests) == 3
    assert "/eu-west-3/s3/" in script.requests[-1].headers["authorization"]
