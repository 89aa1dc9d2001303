"""The fault proxy passes every byte unchanged, except those that a rule selects."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from asyncsync.testing import BreakRequest, BreakResponse, CannedResponse, FaultProxy, Flip, Stall

BODY = bytes(range(256)) * 400
heard: list[bytes] = []


@asynccontextmanager
async def proxied(**options):
    """A proxy in front of a server that keeps each request and sends a body back."""
    heard.clear()

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"), 0)
                heard.append(head)
                heard[-1] += await reader.readexactly(length)
                if b"/chunked" in head:
                    half = BODY[: len(BODY) // 2]
                    framed = b"%x\r\n%s\r\n" % (len(half), half) * 2 + b"0\r\n\r\n"
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed)
                else:
                    said = b"" if head.startswith(b"HEAD") else BODY
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1], **options) as proxy:
            yield proxy
    finally:
        server.close()
        await asyncio.sleep(0.01)  # the server's connections see their end
        await server.wait_closed()


async def ask(proxy, line="PUT /key", body=b"", most=None):
    """Send one request on a connection of its own; everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(f"{line} HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        got = await reader.readuntil(b"\r\n\r\n")
        size = most if most is not None else int(got.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return got + (b"" if line.startswith("HEAD") else await reader.readexactly(size))
    finally:
        writer.close()


async def test_bytes_pass_as_they_are_in_both_directions():
    async with proxied() as proxy:
        assert (await ask(proxy, body=BODY)).endswith(b"\r\n\r\n" + BODY)
    assert heard == [b"PUT /key HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 102400\r\n\r\n" + BODY]
    [seen] = proxy.log
    assert (seen.line, seen.sent, seen.received, seen.status) == ("PUT /key HTTP/1.1", 102400, 102400, 200)


async def test_chunks_and_responses_without_body_pass():
    async with proxied() as proxy:
        assert (await ask(proxy, "HEAD /key")).startswith(b"HTTP/1.1 200")
        answer = await ask(proxy, "GET /chunked", most=len(BODY) + 21)
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert proxy.log[1].received == len(BODY)


async def test_a_rule_matches_its_requests_so_often_and_so_late():
    async with proxied() as proxy:
        rule = proxy.on("^GET .*/key", CannedResponse(503), skip=1, times=2)
        codes = [(await ask(proxy, line))[9:12] for line in ("GET /key",) * 4 + ("GET /other", "PUT /key")]
    assert codes == [b"200", b"503", b"503", b"200", b"200", b"200"]
    assert rule.struck == 2
    assert len(heard) == 4


async def test_a_share_is_random_and_the_same_each_time():
    struck = []
    for _ in range(2):
        async with proxied(seed=3) as proxy:
            proxy.on(".", CannedResponse(503), times=None, share=0.2)
            for _ in range(50):
                await ask(proxy)
            struck.append([seen.status for seen in proxy.log])
    assert struck[0] == struck[1]
    assert 4 < struck[0].count(503) < 18


async def test_an_early_response_does_not_wait_for_the_body():
    async with proxied() as proxy:
        proxy.on(".", CannedResponse(403, "AccessDenied", {"Retry-After": "7"}, early=True))
        answer = await ask(proxy, body=b"x" * 100)
    assert b"Retry-After: 7" in answer
    assert b"<Code>AccessDenied</Code>" in answer
    assert proxy.log[0].sent == 0


@pytest.mark.parametrize("after", [0, 1000, 70_000])
async def test_a_request_ends_in_the_middle_of_its_body(after):
    async with proxied() as proxy:
        proxy.on(".", BreakRequest(after))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(proxy, body=BODY)
        async with asyncio.timeout(30):
            while len(heard) < (after > 0):
                await asyncio.sleep(0.01)
    assert len(heard) == (after > 0)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_response_ends_in_the_middle_of_its_body(reset):
    async with proxied() as proxy:
        proxy.on(".", BreakResponse(70_000, reset=reset))
        with pytest.raises(ConnectionResetError if reset else asyncio.IncompleteReadError):
            await ask(proxy)


async def test_a_lost_response_is_one_whose_request_was_heard():
    async with proxied() as proxy:
        proxy.on(".", BreakResponse())
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(proxy, body=b"data")
    assert heard[0].endswith(b"data")
    assert proxy.log[0].status is None


@pytest.mark.parametrize("at", [0, 65_536, 102_399])
async def test_one_bit_of_a_body_is_flipped(at):
    flipped = bytearray(BODY)
    flipped[at] ^= 8
    async with proxied() as proxy:
        proxy.on("^PUT", Flip("request", at, bit=3))
        proxy.on("^GET", Flip("response", at, bit=3))
        await ask(proxy, body=BODY)
        assert (await ask(proxy, "GET /key")).endswith(flipped)
    assert heard[0].endswith(flipped)


@pytest.mark.parametrize("fault", [Stall("request"), Stall("response"), Stall("request", 50), Stall("response", 50)])
async def test_a_stall_moves_nothing_and_ends_with_the_proxy(fault):
    async with proxied() as proxy:
        proxy.on(".", fault)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(proxy, body=BODY)
    assert proxy.log[0].received == 0


async def test_a_delay_is_a_stall_that_ends():
    async with proxied() as proxy:
        proxy.on(".", Stall("response", 50_000, seconds=0.01))
        assert (await ask(proxy, body=BODY)).endswith(BODY)


async def test_a_server_that_is_away_resets_everything_until_it_is_back():
    async with proxied() as proxy:
        proxy.on(".", Stall("response"))
        waiting = asyncio.create_task(ask(proxy))
        await asyncio.sleep(0.05)
        proxy.set_away(True)
        for asked in (waiting, ask(proxy)):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asked
        proxy.set_away(False)
        assert (await ask(proxy)).startswith(b"HTTP/1.1 200")


async def test_bandwidth_is_shared():
    async with proxied(bandwidth=1_000_000) as proxy:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(ask(proxy), ask(proxy))
        assert asyncio.get_running_loop().time() - started > 0.15
