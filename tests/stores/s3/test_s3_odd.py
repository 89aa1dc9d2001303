"""Unusual responses of S3 stores, with missing or unexpected fields: they are accepted where every byte can be checked;
otherwise they are an error of ours.
"""

import re

import pytest
from s3_script import reply, scripted

from asyncsync.errors import StoreError
from asyncsync.stores.base import Upload
from asyncsync.stores.listing_position import ListingPosition

DATA = b"0123456789"


def chunked(body, status="200 OK", **headers):
    frame = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = reply(status, ETag='"e"', Transfer_Encoding="chunked", **headers).replace(b"Content-Length: 0\r\n", b"")
    return head + frame


async def got(store, **bounds):
    pieces = []

    async def take(piece):
        pieces.append(bytes(piece))

    info = await store.read("k", take, **bounds)
    return b"".join(pieces), info.size


# Bodies


@pytest.mark.parametrize(
    ("response", "bounds", "data"),
    [
        (chunked(DATA), {}, DATA),
        (chunked(b""), {}, b""),
        (chunked(DATA), {"start": 0, "length": 10}, DATA),
        (chunked(DATA), {"start": 0, "length": 99}, DATA),
        (chunked(DATA[2:5], "206 Partial", Content_Range="bytes 2-4/10"), {"start": 2, "length": 3}, DATA[2:5]),
        (reply(body=DATA, ETag='"e"'), {"start": 0, "length": 10}, DATA),
        (reply(body=DATA, ETag='"e"'), {"start": 0, "length": 11}, DATA),
        (reply("206 Partial", DATA, ETag='"e"', Content_Range="bytes 0-9/10"), {}, DATA),
        (reply("206 Partial", DATA[8:], ETag='"e"', Content_Range="bytes 8-9/10"), {"start": 8, "length": 9}, b"89"),
        (reply("206 Partial", DATA[8:], ETag='"e"', Content_Range="bytes 8-9/10"), {"start": 8}, b"89"),
    ],
)
async def test_a_range_is_read_from_every_form_of_response(response, bounds, data):
    async with scripted([response]) as (store, _):
        assert await got(store, **bounds) == (data, 10 if data else 0)


@pytest.mark.parametrize(
    "response",
    [
        reply(body=DATA),
        chunked(DATA),
        reply("206 Partial", DATA[2:5]),
        *(
            reply("206 Partial", DATA[2:5], Content_Range=said)
            for said in ("bytes 0-2/10", "bytes 3-5/10", "bytes 2-5/10", "bytes 2-3/10", "bytes 2-4/*", "2-4/10")
        ),
        reply("206 Partial", DATA[2:6], Content_Range="bytes 2-4/10"),
        reply("206 Partial", DATA[2:4], Content_Range="bytes 2-4/10"),
        reply("206 Partial", DATA[2:5], Content_Range="bytes 2-\xb2/10"),
    ],
)
async def test_another_range_than_requested_is_refused_before_its_first_byte(response):
    taken = []
    async with scripted([response]) as (store, _):
        with pytest.raises(StoreError) as caught:
            await store.read("k", taken.append, start=2, length=3)
    assert not taken
    assert not caught.value.retryable


async def test_more_bytes_than_were_asked_for_are_not_taken():
    async with scripted([chunked(DATA)]) as (store, _):
        with pytest.raises(StoreError, match="more than the 9 requested bytes"):
            await got(store, start=0, length=9)


# Heads


@pytest.mark.parametrize("length", [None, "-1", "abc", "9" * 5000, "\xb2", "1e3"])
@pytest.mark.parametrize("size", [10, 0])
async def test_a_length_that_head_does_not_tell_is_found_out_with_a_byte(length, size):
    def say(request):
        if request.method == "HEAD":
            line = "" if length is None else f"Content-Length: {length}\r\n"
            return f'HTTP/1.1 200 OK\r\nETag: "e"\r\n{line}\r\n'.encode("latin-1")
        if not size:
            return reply("416 Range Not Satisfiable")
        return reply("206 Partial", DATA[:1], ETag='"e"', Content_Range="bytes 0-0/10")

    async with scripted(say) as (store, _):
        assert (await store.head("k")).size == size


async def test_a_missing_length_is_unknown_not_zero():
    def say(request):
        return b'HTTP/1.1 200 OK\r\nETag: "e"\r\n\r\n' if request.method == "HEAD" else reply("400 Bad Request")

    async with scripted(say) as (store, _):
        with pytest.raises(StoreError, match="Content-Length"):
            await store.head("k")


async def drop(piece):
    raise AssertionError("no byte of an unknown version is delivered")


async def test_a_store_without_etags_is_reported_to_have_none():
    part = reply("206 Partial", DATA[:1], Content_Range="bytes 0-0/10")
    async with scripted([reply(), reply(), reply(body=DATA), part, reply(body=DATA, ETag='""')]) as (store, _):
        with pytest.raises(StoreError, match="ETag"):
            await store.head("k")
        with pytest.raises(StoreError, match="ETag"):
            await store.put("k", b"data")
        for call in (store.get("k"), store.read("k", drop, length=1), store.get("k")):
            with pytest.raises(StoreError, match="ETag") as caught:
                await call
            assert not caught.value.retryable


# Lists


def page(keys=(), token=None, more="<IsTruncated>true</IsTruncated>"):
    named = "".join(f"<Contents><Key>p/{key}</Key><Size>1</Size></Contents>" for key in keys)
    following = "" if token is None else f"<NextContinuationToken>{token}</NextContinuationToken>"
    return reply(body=f"<ListBucketResult>{more}{named}{following}</ListBucketResult>".encode())


async def listed(store, most=3000):
    found, token = [], None
    for _ in range(most):
        answer = await store.list(token=token)
        found += [info.key for info in answer.objects]
        token = answer.token
        if token is None:
            return found
    raise AssertionError("the list has no end")


async def test_pages_are_read_in_turn_by_the_markers_of_the_store():
    pages = {None: ("a", "1:,"), "1:,": ("b", "x y"), "x y": ("c", None)}

    def say(request):
        found = re.search("continuation-token=([^&]*)", request.target)
        key, token = pages[found and found[1].replace("%3A", ":").replace("%2C", ",").replace("%20", " ")]
        return page([key], token, more="" if key == "a" else f"<IsTruncated>{str(key != 'c').lower()}</IsTruncated>")

    async with scripted(say) as (store, _):
        assert await listed(store) == ["a", "b", "c"]


@pytest.mark.parametrize("circle", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("of", ["tokens", "keys with new tokens"])
async def test_pages_that_go_in_a_circle_are_an_error_soon(of, circle):
    count = 0

    def say(request):
        nonlocal count
        count += 1
        key, token = (count, count % circle) if of == "tokens" else (count % circle, count)
        return page([f"key{key}"], f"t{token}")

    async with scripted(say) as (store, script):
        with pytest.raises(StoreError, match="the pages repeat"):
            await listed(store)
    assert len(script.requests) < 4 * circle + 4


async def test_a_truncated_page_without_a_token_is_an_error():
    for token in (None, "", " "):
        async with scripted([page(["a"], token)]) as (store, _):
            with pytest.raises(StoreError, match="no token of the next one"):
                await listed(store)


def test_pages_that_name_nothing_end():
    place = ListingPosition()
    with pytest.raises(StoreError, match="in a row are empty"):
        for number in range(5000):
            place = ListingPosition.parse(place.further("list", str(number), "").text())


@pytest.mark.parametrize(
    "entry",
    [
        "<Contents><Size>1</Size></Contents>",
        "<Contents><Key></Key><Size>1</Size></Contents>",
        "<Contents><Key>p/a</Key></Contents>",
        "<Contents><Key>p/a</Key><Size>-1</Size></Contents>",
        "<Contents><Key>p/a</Key><Size>abc</Size></Contents>",
        f"<Contents><Key>p/a</Key><Size>{'9' * 30}</Size></Contents>",
        "<Contents><Key>q/a</Key><Size>1</Size></Contents>",
        "<Contents><Key>p/a</Key><Size>1</Size><LastModified>no date</LastModified></Contents>",
        "<CommonPrefixes></CommonPrefixes>",
        "<CommonPrefixes><Prefix>q/</Prefix></CommonPrefixes>",
    ],
)
async def test_an_entry_that_cannot_be_read_is_an_error_of_the_list(entry):
    async with scripted([reply(body=f"<ListBucketResult>{entry}</ListBucketResult>".encode())]) as (store, _):
        with pytest.raises(StoreError):
            await store.list()


UPLOAD = "<Upload><Key>p/a</Key><UploadId>u</UploadId></Upload>"
PART = "<Part><PartNumber>1</PartNumber><Size>1</Size><ETag>e</ETag></Part>"
MORE = "<IsTruncated>true</IsTruncated>"


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        *(
            ("ListMultipartUploadsResult", MORE + inner)
            for inner in (
                "",
                UPLOAD,
                "<NextKeyMarker>k</NextKeyMarker>",
                "<NextUploadIdMarker>u</NextUploadIdMarker>",
                UPLOAD + "<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>",
            )
        ),
        ("ListMultipartUploadsResult", "<Upload><Key>p/a</Key></Upload>"),
        ("ListMultipartUploadsResult", "<Upload><UploadId>u</UploadId></Upload>"),
        ("ListMultipartUploadsResult", UPLOAD.replace("p/", "q/")),
        *(
            ("ListPartsResult", MORE + PART + inner)
            for inner in ("", *(f"<NextPartNumberMarker>{n}</NextPartNumberMarker>" for n in (0, 1, -1, "x", "\u00b2")))
        ),
        ("ListPartsResult", PART.replace("<PartNumber>1</PartNumber>", "")),
        ("ListPartsResult", PART.replace("1", "0", 1)),
        ("ListPartsResult", PART.replace("<Size>1</Size>", "")),
        ("ListPartsResult", PART.replace("<Size>1</Size>", "<Size>x</Size>")),
        ("ListPartsResult", PART.replace("<ETag>e</ETag>", "")),
    ],
)
async def test_uploads_and_parts_without_their_place_are_an_error(name, inner):
    body = f"<{name}>{inner}</{name}>".encode()
    async with scripted(lambda request: reply(body=body)) as (store, script):
        with pytest.raises(StoreError):
            await (store.list_parts(Upload("k", "u")) if "Parts" in name else store.list_multiparts())
    assert len(script.requests) <= 2


async def test_an_invalid_date_is_ignored():
    far = "Fri, 18446744073709551616 Nov 2026 18:46:42 -2359"
    for date in ("Fri, 99 Zzz 99999", far, "Fri, 31 Dec 9999 23:59:59 -2359"):
        async with scripted([reply(ETag='"e"', Last_Modified=date)]) as (store, _):
            assert (await store.head("k")).modified is None
