"""A success counts only with the result that S3 documents: any other 2xx response is a failed request."""

import re

import pytest
from s3_script import fault, reply, scripted

from asyncsync.errors import AccessDeniedError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.base import Part, Upload
from asyncsync.stores.s3 import bucket as s3_bucket

UPLOAD = Upload("k", "u")
PARTS = [Part(1, 0, 4, "e")]
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

CALLS = {
    "put": lambda store: store.put("k", b"data"),
    "part": lambda store: store.put_part(UPLOAD, 1, 0, b"data"),
    "create": lambda store: store.create_multipart("k"),
    "complete": lambda store: store.complete_multipart(UPLOAD, PARTS),
    "copy": lambda store: store.copy("a", "k", if_source_version="abc", size=4),
    "copy part": lambda store: store.copy_part(UPLOAD, 1, 0, "a", 0, 4),
    "delete": lambda store: store.delete(["k"]),
    "delete many": lambda store: store.delete(["k", "l"]),
    "abort": lambda store: store.abort_multipart(UPLOAD),
    "list": lambda store: store.list(),
    "list parts": lambda store: store.list_parts(UPLOAD),
    "list uploads": lambda store: store.list_multiparts(),
}
RESULTS = {
    "create": ("InitiateMultipartUploadResult", "<UploadId>u</UploadId>"),
    "complete": ("CompleteMultipartUploadResult", "<ETag>&quot;abc&quot;</ETag>"),
    "copy": ("CopyObjectResult", '<ETag>"abc"</ETag>'),
    "copy part": ("CopyPartResult", '<ETag><![CDATA["abc"]]></ETag>'),
    "delete many": ("DeleteResult", ""),
    "list": ("ListBucketResult", "<IsTruncated>false</IsTruncated>"),
    "list parts": ("ListPartsResult", "<IsTruncated>false</IsTruncated>"),
    "list uploads": ("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>"),
}
"""Root element and its required children."""
NEEDED = ("create", "complete", "copy", "copy part")
HEADER = ("put", "part")
EMPTY = ("delete", "abort")
ERROR = "<Code>AccessDenied</Code><Message>not you</Message>"
CDATA = "<Code><![CDATA[AccessDenied]]></Code><Message>not you</Message>"


@pytest.fixture(params=["signed", "aiobotocore"])
def via(request, monkeypatch):
    """Both ways to a bucket."""
    if request.param == "aiobotocore":
        pytest.importorskip("aiobotocore")
        monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)
    return request.param


def chunked(body):
    frame = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frame


def result(call, inner=None, attribute="", encoding="utf-8"):
    name, needed = RESULTS[call]
    inner = needed if inner is None else inner
    return f'<?xml version="1.0" encoding="{encoding}"?>\n<{name}{attribute}>{inner}</{name}>'.encode(encoding)


async def failure(call, raw):
    """The error that the store raises if one of its requests gets ``raw`` as response."""
    return (await failures(call, [raw]))[0]


async def failures(call, responses):
    """The errors that one store raises if its requests get these responses."""
    errors = []
    async with scripted(list(responses)) as (store, script):
        for _ in responses:
            with pytest.raises(StoreError) as caught:
                await CALLS[call](store)
            errors.append(caught.value)
        assert len(script.requests) == len(responses)
    return errors


FOREIGN = {
    "nothing": b"",
    "blanks": b" \n\t ",
    "a page": b"<!DOCTYPE html><html><head><title>Log in</title></head><body><br>hello</body></html>",
    "a page that is XML": b"<html><body>hello</body></html>",
    "foreign JSON": b'{"status": "ok"}',
    "bytes": bytes(range(256)),
    "a BOM": b"\xef\xbb\xbf",
    "another document": b"<ListAllMyBucketsResult><ETag>abc</ETag><UploadId>u</UploadId></ListAllMyBucketsResult>",
    "an error without a code": b"<Error/>",
    "an encoding that nobody knows": b'<?xml version="1.0" encoding="klingon"?><CopyObjectResult/>',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("call", RESULTS)
async def test_a_200_with_a_foreign_body_is_a_transient_failure(via, call, body):
    as_document = reply(body=body, ETag='"abc"', Content_Type="application/xml")
    for error in await failures(call, [reply(body=body), chunked(body), as_document]):
        assert type(error) is UnavailableError
        assert "s3://bucket/" in str(error)


@pytest.mark.parametrize("call", RESULTS)
async def test_a_200_whose_document_was_cut_is_a_transient_failure(via, call):
    whole = result(call)
    sizes = (len(whole) - 1, len(whole) // 2, 30)
    for error in await failures(call, [reply(body=whole[:size]) for size in sizes]):
        assert type(error) is UnavailableError


@pytest.mark.parametrize("call", NEEDED)
async def test_a_200_without_its_documented_result_is_a_transient_failure(via, call):
    elsewhere = f"<Other>{RESULTS[call][1]}</Other>"
    hidden = f"<!-- {RESULTS[call][1]} -->"
    inners = ("", "<ETag/><UploadId/>", "<ETag> </ETag><UploadId> </UploadId>", elsewhere, hidden)
    for error in await failures(call, [reply(body=result(call, inner)) for inner in inners]):
        assert type(error) is UnavailableError


@pytest.mark.parametrize("call", [*RESULTS, *HEADER])
async def test_another_2xx_than_200_is_a_transient_failure(via, call):
    body = b"" if call in HEADER else result(call)
    replies = [
        reply(status, b"" if status.startswith("204") else body, ETag='"abc"')
        for status in ("201 Created", "202 Accepted", "203 Elsewhere", "204 No Content", "206 Partial")
    ]
    for error in await failures(call, replies):
        assert type(error) is UnavailableError


@pytest.mark.parametrize("call", HEADER)
async def test_a_200_without_etag_is_a_transient_failure_with_a_hint(via, call):
    replies = [reply(), reply(ETag=""), reply(ETag='""'), chunked(b""), reply(body=FOREIGN["a page"])]
    for error in await failures(call, replies):
        assert type(error) is UnavailableError
        assert "without an ETag" in str(error)
        assert "proxy" in str(error)


@pytest.mark.parametrize("call", EMPTY)
async def test_a_delete_gets_an_empty_response(via, call):
    replies = [reply(body=FOREIGN["a page"]), reply(body=FOREIGN["foreign JSON"]), reply("202 Accepted")]
    for error in await failures(call, replies):
        assert type(error) is UnavailableError
    replies = [reply("204 No Content"), reply("200 OK"), reply("200 OK", b"\n")]
    async with scripted(replies) as (store, _):
        for _ in replies:
            await CALLS[call](store)


@pytest.mark.parametrize(
    "document",
    [
        f"<Error>{ERROR}</Error>",
        f'<?xml version="1.0"?>\n<Error xmlns="{NAMESPACE}">{ERROR}</Error>',
        '<s:Error xmlns:s="urn:x"><s:Code>AccessDenied</s:Code><s:Message>not you</s:Message></s:Error>',
        f"<Error a='b'><!-- <Code>SlowDown</Code> -->{CDATA}</Error>",
        "<Error><Detail><Code>SlowDown</Code></Detail><Code>Access&#x44;enied</Code><Message>not you</Message></Error>",
    ],
    ids=["plain", "in a name space", "with a prefix", "CDATA", "a character reference"],
)
@pytest.mark.parametrize("call", RESULTS)
async def test_an_error_inside_a_200_is_that_error(via, call, document):
    encodings = ("utf-8", "utf-8-sig", "utf-16")
    for error in await failures(call, [reply(body=document.encode(encoding)) for encoding in encodings]):
        assert type(error) is AccessDeniedError
        assert "not you" in str(error)


async def test_the_name_of_a_key_does_not_change_the_error():
    body = b"<Error><Code>SlowDown</Code><Key>&lt;Code>AccessDenied&lt;/Code></Key></Error>"
    assert type(await failure("complete", reply(body=body))) is ThrottledError


@pytest.mark.parametrize("call", RESULTS)
async def test_a_result_is_read_as_xml_is_read(via, call):
    plain = result(call)
    name, inner = RESULTS[call]
    prefixed = re.sub(r"<(/?)(?=[A-Z][A-Za-z]+>)", r"<\1s:", f"<{name}>{inner}</{name}>")
    forms = [plain, b"\n  \n" + plain, b"\xef\xbb\xbf" + plain, result(call, attribute=f' xmlns="{NAMESPACE}"')]
    forms += [prefixed.replace(">", f' xmlns:s="{NAMESPACE}">', 1).encode(), result(call, encoding="utf-16")]
    async with scripted([reply(body=form) for form in forms]) as (store, _):
        for _ in forms:
            made = await CALLS[call](store)
            if call in NEEDED:
                assert "abc" in (getattr(made, "version", ""), getattr(made, "etag", "")) or made.upload_id == "u"


async def test_a_truncated_error_document_still_shows_its_code():
    body = b"<Error><Code>SlowDown</Code><Message>more tha"
    raw = b"HTTP/1.1 503 Busy\r\nContent-Length: 500\r\nConnection: close\r\n\r\n" + body
    assert type(await failure("put", raw)) is ThrottledError


async def test_keys_that_could_not_be_deleted_are_reported_with_their_blanks():
    body = f'<DeleteResult xmlns="{NAMESPACE}"><Error><Key> p/k </Key><Code>AccessDenied</Code></Error></DeleteResult>'
    error = await failure("delete many", reply(body=body.encode()))
    assert "s3://bucket/ p/k :" in str(error)


async def test_a_conflict_of_conditional_writes_is_transient_either_way(via):
    for code in ("ConditionalRequestConflict", "OperationAborted"):
        for call in ("put", "complete", "copy"):
            error = await failure(call, fault("409 Conflict", code))
            assert type(error) is UnavailableError
