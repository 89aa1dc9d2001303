"""An S3 server that responds by a script, and a store that uses it."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3.store import S3Store

KEYS = {"region": "us-east-1", "access_key": "AKID", "secret_key": "very-secret"}


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Script:
    """Responds by ``answer``, which returns raw bytes, or None for no response on an open connection."""

    answer: Callable[[Request], bytes | None]
    requests: list[Request] = field(default_factory=list)
    read_bodies: bool = True
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader, writer):
        self.connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
                request = Request(method, target, headers)
                self.requests.append(request)
                if self.read_bodies:
                    request.body = await reader.readexactly(int(headers.get("content-length", 0)))
                said = self.answer(request)
                if said is None:
                    await asyncio.get_running_loop().create_future()
                writer.write(said)
                await writer.drain()
                if b"connection: close" in said.lower():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(status="200 OK", body=b"", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fault(status, code, **headers):
    return reply(status, f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode(), **headers)


OK = reply(ETag='"abc"')


def copied(etag="abc", crc=None, kind="CopyObjectResult"):
    checksum = "" if crc is None else f"<ChecksumCRC32C>{crc32c_to_text(crc)}</ChecksumCRC32C>"
    return reply(body=f'<{kind}><ETag>"{etag}"</ETag>{checksum}</{kind}>'.encode())


@asynccontextmanager
async def scripted(answer, *, stall_timeout=30.0, prefix="p", read_bodies=True, tls=None, **options):
    """A store whose server responds by ``answer``: a function, or a list of raw responses, one a request."""
    if isinstance(answer, list):
        answers = iter(answer)
        script = Script(lambda request: next(answers), read_bodies=read_bodies)
    else:
        script = Script(answer, read_bodies=read_bodies)
    tasks: set[asyncio.Task] = set()

    async def accept(reader, writer):
        tasks.add(asyncio.current_task())
        await script.serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    endpoint = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    options = KEYS | {"endpoint_url": endpoint} | options
    store = S3Store("bucket", prefix, options=options, limits=ConnectionLimits(stall_timeout))
    try:
        async with store:
            yield store, script
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
