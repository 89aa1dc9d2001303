"""A response that arrives byte by byte ends: its head has a deadline, its body a least rate, repeated parts a limit.

Client and server share the loop, and bytes between them are there at once: so the drips pass in virtual time.
"""

import asyncio

import pytest
from http_wire import REQUEST, Wire, asked

from asyncsync.stores.http.errors import BrokenError

pytestmark = pytest.mark.virtual_time
STALL = 0.2
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
ERROR = b"HTTP/1.1 500 X\r\ncontent-length: 100000\r\n\r\n"


def dripping(begin, piece):
    """A server that sends ``begin`` and then ``piece`` again and again, far oftener than the stall timeout."""

    async def accept(reader, writer):
        try:
            await asked(reader)
            writer.write(begin)
            while not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(STALL / 20)
        except ConnectionError:
            pass
        finally:
            writer.close()

    return accept


async def _take(piece):
    return None


SLOW = {
    "a status line": (b"HTTP/1.1 200 ", b"a"),
    "a header": (OK + b"x: ", b"a"),
    "headers": (OK, b"a: b\r\n"),
    "a hundred and more": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a head after a hundred": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: ", b"a"),
    "an error document": (ERROR, b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n"),
    "a chunk's line": (CHUNKED + b"1;", b"a"),
}


@pytest.mark.parametrize("begin_and_piece", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("call", ["send", "fetch"])
async def test_a_response_that_arrives_byte_by_byte_ends(begin_and_piece, call):
    async with Wire(None).listening(dripping(*begin_and_piece), stall_timeout=STALL) as http:
        with pytest.raises(BrokenError) if begin_and_piece[0] != ERROR else _ending():
            async with asyncio.timeout(50 * STALL):
                if call == "send":
                    await http.send(REQUEST, None)
                else:
                    await http.fetch(REQUEST, lambda answer: None, _take)


class _ending:
    """Half an error document is better than none."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, BrokenError)


BODIES = {
    "of known length": (OK + b"content-length: 100000\r\n\r\n", b"a"),
    "in chunks": (CHUNKED, b"1\r\na\r\n"),
}


@pytest.mark.parametrize("begin_and_piece", BODIES.values(), ids=BODIES)
async def test_a_download_comes_at_a_least_rate(begin_and_piece):
    async with Wire(None).listening(dripping(*begin_and_piece), stall_timeout=STALL) as http:
        with pytest.raises(BrokenError, match=r"too few|after .* of 100000 bytes"):
            async with asyncio.timeout(20 * STALL):
                await http.fetch(REQUEST, lambda answer: None if b"chunked" in begin_and_piece[0] else 100_000, _take)


async def test_a_server_may_keep_us_waiting_with_blanks_while_it_works():
    async def accept(reader, writer):
        await asked(reader)
        writer.write(CHUNKED)
        for _ in range(30):
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(STALL / 10)
        writer.write(b"4\r\ndone\r\n0\r\n\r\n")
        writer.close()

    async with Wire(None).listening(accept, stall_timeout=STALL) as http:
        assert (await http.send(REQUEST, None)).content.strip() == b"done"
