"""TLS in the HTTP/1.1 client of the data plane. test_http_client runs with TLS too."""

import asyncio
import os
import ssl
from contextlib import suppress

import pytest
from http_wire import MIB, REQUEST, Wire, answer

from asyncsync.disk.files import FileRange
from asyncsync.stores.http.errors import BrokenError


@pytest.fixture
def wire(certificate):
    return Wire(certificate)


async def test_a_further_connection_resumes_the_tls_session_of_the_first(wire):
    closing = [answer(Content_Length=0, Connection="close")]
    async with wire.serving(*[closing] * 3) as (http, made):
        for _ in range(3):
            await http.send(REQUEST, None)
        assert [one.get_extra_info("ssl_object").session_reused for one in made] == [False, True, True]


async def test_a_tls_end_without_close_notify_does_not_end_a_body(wire):
    """Otherwise an attacker who cuts the connection could shorten a body."""

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"half of it", Connection="close"))
        await writer.drain()
        writer.get_extra_info("socket").shutdown(1)  # no close_notify
        with suppress(ssl.SSLError):  # the client complains
            await reader.read()
        writer.transport.abort()

    async with wire.listening(accept) as http:
        with pytest.raises(BrokenError, match="EOF"):
            await http.send(REQUEST, None)


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_a_server_that_reads_slowly_gets_every_byte(wire, tmp_path, kind):
    content = os.urandom(20 * MIB)
    (tmp_path / "file").write_bytes(content)
    got = bytearray()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        while len(got) < len(content):
            for _ in range(200):
                await asyncio.sleep(0)
            got.extend(await reader.read(300_000))
        writer.write(answer(Content_Length=0))
        writer.close()

    body = content if kind == "memory" else FileRange(str(tmp_path / "file"), 0, len(content))
    async with wire.listening(accept, limit=1000) as http:
        assert (await http.send(REQUEST, body)).status == 200
    assert got == content


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_a_server_that_stops_reading_is_cut_off(wire, tmp_path, kind):
    (tmp_path / "file").write_bytes(bytes(40 * MIB))
    cut = asyncio.Event()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        await cut.wait()
        writer.transport.abort()

    body = bytes(40 * MIB) if kind == "memory" else FileRange(str(tmp_path / "file"), 0, 40 * MIB)
    async with wire.listening(accept, limit=1000, stall_timeout=0.2) as http:
        with pytest.raises(BrokenError, match="no byte moved"):
            await http.send(REQUEST, body)
        assert http.busy == 0
        cut.set()


async def test_a_server_that_does_not_shake_hands_is_given_up(certificate):
    """It accepts the connection and sends nothing."""
    wire = Wire(certificate)
    wire.server = None

    async def accept(reader, writer):
        await reader.read()
        writer.close()

    async with wire.listening(accept, connect_timeout=0.1) as http:
        with pytest.raises(BrokenError, match="no connection"):
            await http.send(REQUEST, None)
        assert http.busy == 0


async def test_a_server_without_tls_is_a_broken_exchange(certificate):
    wire = Wire(certificate)
    wire.server = None

    async def accept(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with wire.listening(accept) as http:
        with pytest.raises(BrokenError, match="SSLError"):
            await http.send(REQUEST, None)


async def test_requests_that_are_cancelled_at_any_turn_leave_nothing(wire, tmp_path):
    """At the n-th turn of the loop, for every n until the request is complete: handshake, body, response."""
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    body = FileRange(str(tmp_path / "file"), 0, 3 * MIB)

    async def accept(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(3 * MIB)
            writer.write(answer(Content_Length=0, Connection="close"))
        except (asyncio.IncompleteReadError, OSError):
            pass
        writer.close()

    async with wire.listening(accept) as http:
        turns, through = 0, False
        while not through:
            turns += 1
            sending = asyncio.create_task(http.send(REQUEST, body))
            for _ in range(turns):
                if not sending.done():
                    await asyncio.sleep(0)
            through = sending.done()
            sending.cancel()
            await asyncio.wait([sending])
            assert http.busy == 0
        assert sending.result().status == 200
        assert turns > 10


def test_files_go_through_uvloop_too(wire, tmp_path, on_uvloop):
    content = os.urandom(12 * MIB)
    (tmp_path / "file").write_bytes(content)
    got = bytearray()

    async def accept(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        got.extend(await reader.readexactly(len(content)))
        writer.write(answer(Content_Length=0))
        writer.close()

    async def main():
        async with wire.listening(accept) as http:
            return await http.send(REQUEST, FileRange(str(tmp_path / "file"), 0, len(content)))

    assert on_uvloop(main()).status == 200
    assert got == content
