"""Requests through aiobotocore have the same bounds as our own, and a refused HEAD the same reason."""

import asyncio

import pytest
from s3_script import KEYS, fault, reply, scripted

from asyncsync.errors import AccessDeniedError, UnavailableError
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3 import bucket as s3_bucket
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20
LIMITS = ConnectionLimits(stall_timeout=0.3)


@pytest.fixture(autouse=True)
def through_aiobotocore(monkeypatch):
    monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)


async def test_a_refused_head_is_explained_by_a_get():
    def answer(request):
        if request.method == "HEAD":
            return reply("403 Forbidden").replace(b"Content-Length: 0\r\n", b"")
        assert request.headers["range"] == "bytes=0-0"
        return fault("403 Forbidden", "InvalidAccessKeyId")

    async with scripted(answer) as (store, script):
        with pytest.raises(AccessDeniedError, match="InvalidAccessKeyId"):
            await store.head("k")
    assert [request.method for request in script.requests] == ["HEAD", "GET"]


async def test_a_head_whose_reason_nobody_gives_keeps_its_status():
    def answer(request):
        return reply("403 Forbidden") if request.method == "HEAD" else reply(body=b"x", ETag='"e"')

    async with scripted(answer) as (store, _):
        with pytest.raises(AccessDeniedError, match="HTTP 403"):
            await store.head("k")


async def test_a_body_that_drips_is_cut():
    """Each byte in time, but too few of them."""

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 100000\r\n\r\n')
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with listening(drip) as store:
        with pytest.raises(UnavailableError, match=r"no byte moved for .* s, or too few"):
            await store.get("k")


async def test_a_body_that_nobody_reads_is_given_up():
    async def ignore(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        while True:
            await asyncio.sleep(0.02)

    async with listening(ignore) as store:
        with pytest.raises(UnavailableError, match="no complete response in time"):
            await store.put("k", bytes(16 * MIB))


def listening(serve):
    return _Listening(serve)


class _Listening:
    """A store of a server whose connections go to ``serve``."""

    def __init__(self, serve):
        self._serve, self._tasks = serve, set()

    async def __aenter__(self):
        async def accept(reader, writer):
            self._tasks.add(asyncio.current_task())
            try:
                await self._serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._store = S3Store("bucket", "p", options=KEYS | {"endpoint_url": endpoint}, limits=LIMITS)
        return await self._store.__aenter__()

    async def __aexit__(self, *exc):
        await self._store.close()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
