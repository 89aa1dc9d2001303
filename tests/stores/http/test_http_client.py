"""The HTTP/1.1 client of the data plane against a server that controls every byte."""

import asyncio
import errno
import os
import ssl
from contextlib import asynccontextmanager, suppress

import pytest
from http_wire import MIB, REQUEST, answer, asked

from asyncsync.disk.files import FileRange
from asyncsync.errors import SourceChangedError
from asyncsync.stores.http.byte_stream import INPUT_BUFFER_SIZE
from asyncsync.stores.http.client import HttpClient
from asyncsync.stores.http.connection import MAX_COLLECTED_BODY, Connection
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.pool import Host
from asyncsync.stores.http.response import parse_head
from asyncsync.stores.options import ConnectionLimits


async def fetched(http, size):
    got = bytearray()

    async def take(piece):
        assert len(piece) <= MIB
        got.extend(piece)

    found = await http.fetch(REQUEST, lambda _: size, take)
    return found, bytes(got)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (answer(b"hello", Content_Length=5), b"hello"),
        (answer(Content_Length=0), b""),
        (answer(status="204 No Content"), b""),
        (answer(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", Transfer_Encoding="chunked"), b"hello world"),
        (answer(b"1\r\na\r\n0\r\nTrailer: t\r\n\r\n", Transfer_Encoding="chunked"), b"a"),
        (answer(status="100 Continue") + answer(b"hi", Content_Length=2), b"hi"),
    ],
)
async def test_a_response_cut_anywhere_is_parsed_and_its_connection_reused(wire, raw, content, step):
    pieces = [raw[at : at + step] for at in range(0, len(raw), step)]
    async with wire.serving(pieces, pieces) as (http, made):
        for _ in range(2):
            assert (await http.send(REQUEST, None)).content == content
        assert len(made) == 1


@pytest.mark.parametrize(
    "raw",
    [
        answer(b"bye", Content_Length=3, Connection="close"),
        answer(b"more than was promised", Content_Length=4),
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_connection_that_cannot_serve_again_is_not_used_again(wire, raw):
    async with wire.serving([raw], [raw]) as (http, made):
        await http.send(REQUEST, None)
        await http.send(REQUEST, None)
        assert len(made) == 2


async def test_a_body_without_a_length_ends_with_the_connection(wire):
    async with wire.serving([answer(b"until the end", Connection="close")], cut=True) as (http, _):
        assert (await http.send(REQUEST, None)).content == b"until the end"


async def test_a_response_to_head_has_no_body_whatever_its_headers(wire):
    async with wire.serving([answer(Content_Length=1000)], [answer(Content_Length=1000)]) as (http, made):
        for _ in range(2):
            assert (await http.send(REQUEST, None, bodiless=True)).headers["content-length"] == "1000"
        assert len(made) == 1


@pytest.mark.parametrize(
    "size", [1, INPUT_BUFFER_SIZE - 60, INPUT_BUFFER_SIZE, INPUT_BUFFER_SIZE + 1, MIB, MIB + 1, 3 * MIB + 5]
)
async def test_a_download_comes_whole_in_pieces_and_its_connection_serves_again(wire, size):
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    raw = answer(body, Content_Length=size)
    async with wire.serving([raw], [raw[:70], raw[70:]]) as (http, made):
        for _ in range(2):
            found, got = await fetched(http, size)
            assert (found.status, got) == (200, body)
        assert len(made) == 1


async def test_a_truncated_download_names_the_received_bytes(wire):
    async with wire.serving([answer(bytes(1000), Content_Length=5000)], cut=True) as (http, _):
        with pytest.raises(BrokenError, match="1000 of 5000"):
            await fetched(http, 5000)


async def test_an_error_in_place_of_a_download_is_collected(wire):
    async with wire.serving([answer(b"<Error/>", "404 Not Found", Content_Length=8)]) as (http, _):
        found, got = await fetched(http, 5000)
        assert (found.status, found.content, got) == (404, b"<Error/>", b"")


async def test_a_long_error_document_is_kept_to_its_limit(wire):
    async with wire.serving([answer(bytes(MIB), "500 No", Content_Length=MIB)]) as (http, _):
        assert len((await http.send(REQUEST, None)).content) == MAX_COLLECTED_BODY


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 20² OK\r\n\r\n".encode("latin-1"),
        answer(Content_Length="five"),
        "HTTP/1.1 200 OK\r\nContent-Length: 1²\r\n\r\n".encode("latin-1"),
        answer(Content_Length="-1"),
        answer(Content_Length="9" * 5000),
        answer(b"-5\r\nhello\r\n", Transfer_Encoding="chunked"),
        answer(b"0x5\r\nhello\r\n", Transfer_Encoding="chunked"),
        answer(b"1_0\r\nhello\r\n", Transfer_Encoding="chunked"),
        answer(b"f" * 5000 + b"\r\n", Transfer_Encoding="chunked"),
        answer(b"zz\r\n", Transfer_Encoding="chunked"),
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * INPUT_BUFFER_SIZE,
    ],
)
async def test_a_response_that_is_not_http_is_a_broken_exchange(wire, raw):
    async with wire.serving([raw]) as (http, _):
        with pytest.raises(BrokenError, match=r"not an HTTP|not a Content-Length|not a chunk|longer than 64 KiB"):
            await http.send(REQUEST, None)
        assert http.busy == 0


@pytest.mark.parametrize(
    "line",
    [b'ETag: "a\nx-evil: 1"', b'ETag: "a\rx-evil: 1"', b'ETag: "a\0"', b"E\nTag: a", b"\nETag: a", b"ETag: \x7f"],
)
async def test_a_header_with_a_control_character_is_refused(wire, line):
    """Its line break would become one of a later request, which sends an ETag back."""
    async with wire.serving([b"HTTP/1.1 200 OK\r\n" + line + b"\r\ncontent-length: 0\r\n\r\n"]) as (http, _):
        with pytest.raises(BrokenError, match="not an HTTP header"):
            await http.send(REQUEST, None)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "identity", "chunked, chunked", "xchunked", ""])
@pytest.mark.parametrize("ending", [{}, {"Connection": "close"}])
async def test_a_coding_of_the_transfer_other_than_chunked_is_refused(wire, coding, ending):
    """Its frames are not the bytes of the object, even if there are as many as expected."""
    async with wire.serving([answer(b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding=coding, **ending)], cut=True) as (
        http,
        _,
    ):
        with pytest.raises(BrokenError, match="unsupported Transfer-Encoding"):
            await fetched(http, 5)


async def test_a_response_of_two_lengths_is_refused(wire):
    raw = answer(b"5\r\nhello\r\n0\r\n\r\n", Content_Length=5, Transfer_Encoding="chunked")
    async with wire.serving([raw]) as (http, _):
        with pytest.raises(BrokenError, match="one of them is wrong"):
            await fetched(http, 5)


async def test_a_body_longer_than_expected_is_refused_before_its_first_byte(wire):
    async with wire.serving([answer(b"hello!", Content_Length=6)]) as (http, _):
        with pytest.raises(BrokenError, match="has 6 bytes instead of 5"):
            await fetched(http, 5)


async def test_a_connection_that_the_store_closed_while_idle_is_not_used(wire):
    async with wire.serving([answer(Content_Length=0)], [answer(Content_Length=0)]) as (http, made):
        await http.send(REQUEST, None)
        made[0].close()
        await made[0].wait_closed()
        await http._pool._idle[0].connection.closed.wait()
        await http.send(REQUEST, None)
        assert len(made) == 2


async def test_all_requests_are_served_within_the_connection_limit(wire):
    async with wire.serving(*[[answer(Content_Length=0)]] * 12, max_connections=3) as (http, made):
        await asyncio.gather(*(http.send(REQUEST, None) for _ in range(12)))
        assert len(made) == 3


async def test_a_cancelled_request_frees_its_place(wire):
    async with wire.serving([], [answer(Content_Length=0)], max_connections=1) as (http, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await http.send(REQUEST, None)
        assert http.busy == 0
        assert (await http.send(REQUEST, None)).status == 200


async def body_of(wire, tmp_path, size, *, cut=False, status="200 OK"):
    """The bytes that a server received of a file of ``size`` bytes, and the file's bytes; ``cut``: it reads the
    beginning only.
    """
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    got = bytearray()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        while len(got) < size - 10 and (piece := await reader.read(50_000)):
            got.extend(piece)
            if cut:
                break
        writer.write(answer(status=status, Content_Length=0))
        await writer.drain()
        writer.close()

    async with wire.listening(accept) as http:
        found = await http.send(b"PUT /k HTTP/1.1\r\n\r\n", FileRange(str(tmp_path / "file"), 10, size - 10))
        assert str(found.status) == status[:3]
    return bytes(got), content[10:]


@pytest.mark.parametrize("size", [70_000, 3 * MIB, 12 * MIB])
async def test_a_range_of_a_file_arrives_complete(wire, tmp_path, size):
    got, sent = await body_of(wire, tmp_path, size)
    assert got == sent


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
async def test_a_file_that_the_kernel_cannot_send_is_read_and_written(wire, monkeypatch, tmp_path, number):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "sendfile", refuse)
    got, sent = await body_of(wire, tmp_path, 3 * MIB)
    assert got == sent


@pytest.mark.parametrize("status", ["301 Moved", "403 Forbidden", "503 Slow Down"])
async def test_a_refusal_midway_stops_the_body_and_is_the_result(wire, tmp_path, status):
    got, sent = await body_of(wire, tmp_path, 40 * MIB, cut=True, status=status)
    assert 0 < len(got) < len(sent)


OK = answer(ETag='"abc"', Content_Length=0)


@asynccontextmanager
async def hasty(wire, *, read=0, before=b"", after=b""):
    """A client of a server that responds 200 after the head and ``read`` bytes of the body, and reads on only when the
    yielded event is set. ``before`` and ``after``: sent around the response.
    """
    over, got = asyncio.Event(), bytearray()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if read:
            got.extend(await reader.readexactly(read))
        writer.transport.pause_reading()
        writer.write(before + OK + after)
        await writer.drain()
        await over.wait()
        writer.transport.resume_reading()
        with suppress(ConnectionError, ssl.SSLError):
            while piece := await reader.read(MIB):
                got.extend(piece)
        writer.close()

    async with wire.listening(accept, limit=1000) as http:
        try:
            yield http, got
        finally:
            over.set()


def body_in(kind, tmp_path, size):
    if kind == "memory":
        return bytes(size)
    (tmp_path / "file").write_bytes(bytes(size))
    return FileRange(str(tmp_path / "file"), 0, size)


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("size", [MIB, 4 * MIB, 20 * MIB])
async def test_a_success_before_the_body_has_left_is_a_broken_exchange(wire, tmp_path, kind, size):
    if wire.server is not None and size == MIB:
        pytest.skip("the server's TLS takes it all, read or not")
    for more in ({}, {"read": 1}, {"read": 5000}, {"before": answer(status="100 Continue")}):
        async with hasty(wire, **more) as (http, got):
            with pytest.raises(BrokenError, match="before the whole request had left"):
                await http.send(REQUEST, body_in(kind, tmp_path, size))
            assert http.busy == 0
        assert len(got) < 20 * MIB  # nor is the rest sent after all


async def test_a_success_before_the_suffix_was_sent_is_a_broken_exchange(wire, tmp_path):
    async with hasty(wire) as (http, _):
        with pytest.raises(BrokenError, match="before the whole request had left"):
            await http.send(REQUEST, bytes(4 * MIB), suffix=b"tail")


async def test_an_unsolicited_response_is_not_used_for_the_next_request(wire, monkeypatch):
    """It comes between the look at the idle connection and the request."""
    async with wire.serving([OK], [OK]) as (http, made):
        await http.send(REQUEST, None)
        monkeypatch.setattr(Connection, "usable", True)
        made[0].write(OK)
        await made[0].drain()
        idle = http._pool._idle[0].connection
        async with asyncio.timeout(30):
            while idle._start == idle._end:  # until it has arrived
                await asyncio.sleep(0)
        with pytest.raises(BrokenError, match="without a request"):
            await http.send(REQUEST, b"")


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("size", [10, 20_000, 65_537, MIB, 9 * MIB])
async def test_an_interim_response_is_not_the_response(wire, tmp_path, kind, size):
    """A server may say so at any time, several times."""
    interim = answer(status="100 Continue") + answer(status="103 Early Hints", Link="</x>")
    got = []

    async def accept(reader, writer):
        try:
            while await asked(reader):
                writer.write(interim[:30])
                await writer.drain()
                writer.write(interim[30:] + interim)
                got.append(len(await reader.readexactly(size)))
                writer.write(interim + OK)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async with wire.listening(accept, limit=1 << 24) as http:
        for _ in range(3):
            assert (await http.send(REQUEST, body_in(kind, tmp_path, size))).status == 200
    assert got == [size] * 3


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_a_quick_response_to_a_whole_body_is_never_taken_for_an_early_one(wire, tmp_path, kind):
    async def accept(reader, writer):
        try:
            while await asked(reader):
                await reader.readexactly(MIB)
                writer.write(OK)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    body = body_in(kind, tmp_path, MIB)
    async with wire.listening(accept, limit=2 * MIB, max_connections=8) as http:
        for _ in range(5):
            found = await asyncio.gather(*(http.send(REQUEST, body) for _ in range(16)))
            assert {one.status for one in found} == {200}


async def test_a_file_that_is_shorter_than_promised_is_a_changed_source(wire, tmp_path):
    (tmp_path / "file").write_bytes(bytes(MIB))
    async with wire.serving([]) as (http, _):
        with pytest.raises(SourceChangedError, match="ends after"):
            await http.send(REQUEST, FileRange(str(tmp_path / "file"), 0, 2 * MIB))
        assert http.busy == 0


async def test_a_file_whose_sending_is_cancelled_is_let_go(wire, tmp_path):
    (tmp_path / "file").write_bytes(bytes(40 * MIB))
    reached = asyncio.Event()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        try:
            await reader.read()
        except (ConnectionError, ssl.SSLError):
            pass
        writer.close()

    async with wire.listening(accept, limit=1000) as http:
        sending = asyncio.create_task(http.send(REQUEST, FileRange(str(tmp_path / "file"), 0, 40 * MIB)))
        await reached.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert http.busy == 0


async def test_a_client_that_was_closed_sends_nothing_more(wire):
    async with wire.serving([answer(Content_Length=0)]) as (http, _):
        opening = asyncio.create_task(http.send(REQUEST, None))
        await asyncio.sleep(0)  # it is on its way to a connection
        await http.close()
        with pytest.raises(BrokenError):
            await opening
        with pytest.raises(BrokenError, match="closed"):
            await http.send(REQUEST, None)
        assert http.busy == 0


async def test_a_refused_connection_is_a_broken_exchange():
    http = HttpClient(Host("127.0.0.1", 1, None), ConnectionLimits(5, 5, 1))
    with pytest.raises(BrokenError, match="no connection"):
        await http.send(REQUEST, None)
    await http.close()


def test_headers_that_come_twice_are_joined():
    found = parse_head(b"HTTP/1.1 200 OK\r\nA: 1\r\nB:2 \r\na: 3")
    assert found.headers == {"a": "1, 3", "b": "2"}


@pytest.mark.parametrize(
    "raw", [b"", b"5", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nT: x\r\n", b"xyz\r\n"]
)
async def test_a_chunked_body_that_is_not_all_there_is_broken(wire, raw):
    whole = answer(raw, Transfer_Encoding="chunked")
    for ask in (lambda http: http.send(REQUEST, None), lambda http: fetched(http, None)):
        async with wire.serving([whole], cut=True) as (http, _):
            with pytest.raises(BrokenError):
                await ask(http)


CHUNKS = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"


@pytest.mark.parametrize("size", [11, None])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_a_chunked_body_is_fetched_and_its_connection_serves_again(wire, size, step):
    raw = answer(CHUNKS, Transfer_Encoding="chunked")
    pieces = [raw[at : at + step] for at in range(0, len(raw), step)]
    async with wire.serving(pieces, pieces) as (http, made):
        for _ in range(2):
            assert (await fetched(http, size))[1] == b"hello world"
        assert len(made) == 1


async def test_chunks_of_any_size_are_given_in_pieces(wire):
    data = os.urandom(3 * MIB + 5)
    raw = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    async with wire.serving([answer(raw, Transfer_Encoding="chunked")]) as (http, _):
        assert (await fetched(http, len(data)))[1] == data


async def test_another_size_than_was_expected_is_a_break(wire):
    async with wire.serving([answer(CHUNKS, Transfer_Encoding="chunked")]) as (http, _):
        with pytest.raises(BrokenError, match="11 of 12"):
            await fetched(http, 12)


async def test_a_body_that_must_be_fetched_has_a_known_length(wire):
    async with wire.serving([answer(b"until the end", Connection="close")], cut=True) as (http, _):
        with pytest.raises(BrokenError, match="does not give its length"):
            await fetched(http, None)
