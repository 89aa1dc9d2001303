"""A server that controls every byte of its responses, and a client of it, with or without TLS."""

import asyncio
import ssl
from contextlib import asynccontextmanager

from asyncsync.stores.http.client import HttpClient
from asyncsync.stores.http.pool import Host
from asyncsync.stores.options import ConnectionLimits

REQUEST = b"GET /k HTTP/1.1\r\nhost: h\r\n\r\n"
MIB = 1 << 20


async def asked(reader):
    """The head of the next request, empty if there is none; a long body is read and dropped."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        while await reader.read(50_000):
            pass
    return b""


class Wire:
    """Servers and their clients, without TLS or with it."""

    def __init__(self, certificate):
        self.server = self.client = None
        if certificate:
            self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.server.load_cert_chain(*certificate[1:])
            self.client = ssl.create_default_context(cafile=certificate[0])

    @asynccontextmanager
    async def listening(self, accept, *, max_connections=1, stall_timeout=5, connect_timeout=5, **limits):
        """A client of a server whose connections go to ``accept``."""
        tasks = []

        async def begin(reader, writer):
            tasks.append(asyncio.current_task())
            await accept(reader, writer)

        server = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=self.server, **limits)
        host = Host("127.0.0.1", server.sockets[0].getsockname()[1], self.client)
        http = HttpClient(host, ConnectionLimits(stall_timeout, connect_timeout, max_connections))
        try:
            yield http
        finally:
            await http.close()
            server.close()
            await asyncio.gather(*tasks)
            await server.wait_closed()

    @asynccontextmanager
    async def serving(self, *answers, max_connections=4, cut=False):
        """Each request gets the next of ``answers``: a list of pieces, sent one by one. ``cut`` closes the connection
        afterwards. Yields the client and the list of connections."""
        script, made = iter(answers), []

        async def accept(reader, writer):
            made.append(writer)
            try:
                while await asked(reader):
                    for piece in next(script):
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    if cut:
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        async with self.listening(accept, max_connections=max_connections) as http:
            yield http, made


def answer(body=b"", status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *[f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]]
    return "\r\n".join([*lines, "\r\n"]).encode() + body
