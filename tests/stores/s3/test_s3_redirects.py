"""A redirect is followed to another region of the same service; signature, token and data go nowhere else."""

import asyncio

import pytest
from s3_script import fault, reply, scripted

from asyncsync.errors import AccessDeniedError, NotFoundError, StoreError
from asyncsync.stores.s3.endpoint import regional, shown

DATA = b"the weights"
OPERATIONS = {
    "put": lambda store: store.put("k", DATA),
    "head": lambda store: store.head("k"),
    "get": lambda store: store.get("k"),
    "copy": lambda store: store.copy("a", "k", size=4),
    "delete": lambda store: store.delete(["k"]),
    "create": lambda store: store.create_multipart("k"),
    "list": lambda store: store.list(),
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", OPERATIONS)
async def test_another_host_gets_nothing_and_is_named(status, call):
    got = []

    async def other(reader, writer):
        got.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(other, "localhost", 0, family=2)
    location = f"http://localhost:{server.sockets[0].getsockname()[1]}/bucket/k?signature=S"
    body = b"" if call == "head" else b"<Error><Code>TemporaryRedirect</Code></Error>"
    redirect = reply(f"{status} Elsewhere", body, Location=location)
    async with scripted(lambda request: redirect, session_token="secret-token") as (store, _):
        with pytest.raises(StoreError) as caught:
            await OPERATIONS[call](store)
    server.close()
    await server.wait_closed()
    assert got == []
    assert "signature=S" not in str(caught.value)
    assert call == "list" or location.partition("/bucket")[0] in str(caught.value)


HERE = "https://b.s3.us-east-1.amazonaws.com/"


@pytest.mark.parametrize(
    ("base", "location", "found"),
    [
        (HERE, "https://b.s3.eu-west-1.amazonaws.com/k", ("https://b.s3.eu-west-1.amazonaws.com/", "eu-west-1")),
        (HERE, "https://b.s3-us-west-2.amazonaws.com/", ("https://b.s3-us-west-2.amazonaws.com/", "us-west-2")),
        ("https://s3.io/b/", "https://s3.io/b/k", ("https://s3.io/b/", "")),
        ("http://s3.w.com:9/b/", "http://s3.ap-south-1.w.com:9/x", ("http://s3.ap-south-1.w.com:9/b/", "ap-south-1")),
        (HERE, "http://b.s3.eu-west-1.amazonaws.com/", None),
        (HERE, "https://b.s3.eu-west-1.amazonaws.com:444/", None),
        (HERE, "https://c.s3.eu-west-1.amazonaws.com/", None),
        (HERE, "https://b.s3.eu-west-1.amazonaws.com.evil.org/", None),
        (HERE, "https://b.s3.eu-west-1.evil.org/", None),
        (HERE, "https://evil.org/.amazonaws.com", None),
        (HERE, "https://b.s3.us-east-1.amazonaws.com@evil.org/", None),
        (HERE, "https://amazonaws.com/", None),
        ("https://s3.firm.co.uk/b/", "https://s3.evil.co.uk/b/", None),
        ("https://s3.us-east-1.org/b/", "https://s3.eu-west-1.org/b/", None),
        ("http://127.0.0.1:9000/b/", "http://127.0.0.1:9001/b/", None),
        ("http://127.0.0.1:9000/b/", "http://localhost:9000/b/", None),
        *(
            (HERE, odd, None)
            for odd in ("http://[::1/", "https://h:99999/", "https://h:abc/", "/k", "", "ftp://h/", "²")
        ),
    ],
)
def test_only_regions_of_the_same_service_are_its_kin(base, location, found):
    assert regional(base, location) == found


@pytest.mark.parametrize("location", ["http://[::1/", "http://h:99999/", "http://h:abc/", "//", "http://h:0/"])
async def test_a_redirect_to_no_address_is_an_error_of_the_store(location):
    async with scripted([reply("307 Elsewhere", Location=location)]) as (store, _):
        with pytest.raises(StoreError, match="invalid URL"):
            await store.put("k", DATA)


def test_an_error_shows_no_secret_of_an_address():
    assert shown("https://user:password@h.example:8/bucket/k?X-Amz-Signature=s") == "https://h.example:8"


@pytest.mark.parametrize("region", ["evil.example/", "²", "a" * 64, "-", "a_b", "x@y"])
async def test_a_region_that_is_none_is_not_signed_for(region):
    moved = f"<Error><Code>PermanentRedirect</Code><Region>{region}</Region></Error>".encode()
    async with scripted([reply("301 Moved", moved)]) as (store, script):
        with pytest.raises(StoreError):
            await store.put("k", DATA)
    assert len(script.requests) == 1


# A HEAD has no document


def _region(request):
    return request.headers["authorization"].split("/")[2]


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "301 Moved"])
@pytest.mark.parametrize("header", [True, False])
async def test_a_head_for_the_wrong_region_learns_the_right_one(status, header):
    """From its header; where there is none, from the document of one GET of a byte."""

    def say(request):
        if _region(request) == "eu-central-1":
            return b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 4\r\n\r\n'
        if request.method == "HEAD":
            return reply(status, **({"x_amz_bucket_region": "eu-central-1"} if header else {}))
        text = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
        return reply("400 Bad Request", text)

    async with scripted(say) as (store, script):
        if status.startswith("301") and not header:
            with pytest.raises(StoreError, match="301"):
                await store.head("k")
            return
        assert (await store.head("k")).size == 4
        assert (await store.head("k")).size == 4
    asked = [request.method for request in script.requests]
    assert asked == ["HEAD", "HEAD", "HEAD"] if header else ["HEAD", "GET", "HEAD", "HEAD"]


async def test_a_refused_head_has_the_reason_of_a_get_of_one_byte():
    def say(request):
        return reply("403 Forbidden") if request.method == "HEAD" else fault("403 Forbidden", "InvalidAccessKeyId")

    async with scripted(say) as (store, script):
        with pytest.raises(AccessDeniedError, match=r"HeadObject .*InvalidAccessKeyId"):
            await store.head("k")
    assert [request.method for request in script.requests] == ["HEAD", "GET"]
    assert script.requests[1].headers["range"] == "bytes=0-0"


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken"])
async def test_clock_and_token_are_put_right_for_a_head_too(code):
    refused = []

    def say(request):
        if len(refused) < 2:
            refused.append(request.method)
            return (
                reply("403 Forbidden")
                if request.method == "HEAD"
                else fault("403 Forbidden", code, Date="Wed, 01 Jan 2031 00:00:00 GMT")
            )
        return b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 4\r\n\r\n'

    async with scripted(say) as (store, script):
        assert (await store.head("k")).size == 4
    assert [request.method for request in script.requests] == ["HEAD", "GET", "HEAD"]
    assert script.requests[-1].headers["x-amz-date"].startswith("2031") is (code == "RequestTimeTooSkewed")


# The code of an error is data


@pytest.mark.parametrize("key", ["NoSuchBucket", "InvalidRange", "checksum", "SlowDown"])
async def test_a_key_spelled_like_a_code_does_not_change_an_error(key):
    async with scripted(lambda request: fault("404 Not Found", "NoSuchKey")) as (store, _):
        await store.delete([key])
    async with scripted(lambda request: fault("503 Away", "ServiceUnavailable")) as (store, script):
        with pytest.raises(StoreError) as caught:
            await store.read(key, None, start=3, length=2)
        assert caught.value.retryable
    assert len(script.requests) == 1
    said = f"<Error><Code>InvalidRequest</Code><Message>p/{key} is locked</Message></Error>".encode()
    async with scripted([reply("400 Bad Request", said)]) as (store, _):
        with pytest.raises(StoreError) as caught:
            await store.put(key, DATA)
        assert type(caught.value) is StoreError


async def test_a_delete_in_a_missing_bucket_is_an_error():
    async with scripted(lambda request: fault("404 Not Found", "NoSuchBucket")) as (store, _):
        with pytest.raises(NotFoundError):
            await store.delete(["k"])


async def test_a_range_behind_the_end_is_known_without_a_document():
    def say(request):
        head = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 4\r\n\r\n'
        return head if request.method == "HEAD" else reply("416 Range Not Satisfiable")

    async with scripted(say) as (store, _):
        assert (await store.read("k", None, start=9, length=2)).size == 4
