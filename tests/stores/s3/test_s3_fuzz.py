"""Whatever bytes a server sends, the readers of heads, chunks and documents, and the store, raise only our errors."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_script import reply, scripted
from test_s3_results import CALLS, RESULTS, result

from asyncsync.errors import AsyncsyncError, StoreError
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.response import chunk_size, length_of, parse_head
from asyncsync.stores.s3.endpoint import regional, shown
from asyncsync.stores.s3.errors import parse_failure
from asyncsync.stores.s3.responses import check_result
from asyncsync.stores.xml_reader import document

MANY = settings(max_examples=300, derandomize=True, deadline=None)
HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nETag: "e"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\nDate: x'
ERROR = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>m &amp; &#x22;</Message><Region>r</Region></Error>"


@st.composite
def damaged(draw, whole):
    """``whole`` with some bytes replaced, inserted or removed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@MANY
@given(st.one_of(st.binary(max_size=200), damaged(HEAD)))
def test_a_head_is_read_or_is_none(head):
    try:
        answer = parse_head(head)
        length = length_of(answer)
    except BrokenError:
        return
    assert 100 <= answer.status <= 999
    assert length is None or 0 <= length < 10**18


def test_every_flip_of_a_bit_of_a_head_is_read_or_is_none():
    for at in range(8 * len(HEAD)):
        data = bytearray(HEAD)
        data[at // 8] ^= 1 << at % 8
        try:
            length_of(parse_head(bytes(data)))
        except BrokenError:
            continue


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.1 200 OK\r\ncontent-length : 5",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded: b",
        b"HTTP/1.1 200 OK\r\n: b",
    ],
)
def test_an_ambiguous_head_is_refused(head):
    with pytest.raises(BrokenError):
        parse_head(head)


@MANY
@given(st.one_of(st.binary(max_size=40), damaged(b"1f4;name=value")))
def test_a_line_before_a_chunk_is_a_size_or_none(line):
    try:
        assert 0 <= chunk_size(line) < 1 << 60
    except BrokenError:
        return


@MANY
@given(st.one_of(st.binary(max_size=200), damaged(ERROR)), st.integers(300, 599), st.text(max_size=30))
def test_an_error_document_is_an_error_of_ours(body, status, header):
    assert document(body) is None or document(body) is not None
    headers = {"retry-after": header, "date": header, "location": header, "x-amz-bucket-region": header}
    error = parse_failure("GetObject", "s3://b/k", status, headers, body).error()
    assert isinstance(error, StoreError)


@MANY
@given(st.sampled_from(sorted(RESULTS)), st.data())
def test_a_result_is_read_or_is_an_error_of_ours(call, data):
    content = data.draw(damaged(result(call)))
    names = {"create": "CreateMultipartUpload", "list": "ListObjectsV2", "delete many": "DeleteObjects"}
    name = names.get(call, "CopyObject")
    try:
        check_result(name, "s3://b/k", 200, {}, content)
    except StoreError:
        return


@MANY
@given(st.one_of(st.text(max_size=60), damaged(b"https://b.s3.eu-west-1.amazonaws.com:443/k").map(bytes.hex)))
def test_a_location_is_an_address_or_none(location):
    shown(location)
    found = regional("https://b.s3.us-east-1.amazonaws.com/", location)
    assert found is None or ".amazonaws.com" in found[0]


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
async def test_only_errors_of_ours_leave_the_store_for_any_response(data):
    call = data.draw(st.sampled_from(sorted([*CALLS, "head", "get"])))
    good = reply(body=result(call), ETag='"e"') if call in RESULTS else reply(body=b"data", ETag='"e"')
    raw = data.draw(damaged(good))
    operation = CALLS.get(call) or (lambda store: store.head("k") if call == "head" else store.get("k"))
    async with scripted(lambda request: raw, stall_timeout=0.2) as (store, _):
        try:
            await operation(store)
        except AsyncsyncError:
            return
