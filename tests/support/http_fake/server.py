"""A fake of an object store as an HTTP server in a thread of its own, with a log of requests and faults on demand."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Self

from aiohttp import web


@dataclass
class Reply:
    """One response; ``body`` is complete."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    """Sent without its length."""


@dataclass
class Fault:
    """A fault of the next ``times`` requests whose ``METHOD target`` matches ``pattern``.

    ``status``: respond with it, at once with an error document, or with ``body`` after the request; do nothing.
    ``lose``: serve the request and lose its response. ``short``: send so many bytes of the response's body only.
    ``change``: a function of the response's body. ``cut``: close the connection after so many bytes of the request's
    body (0: before any) and serve nothing.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    lose: bool = False
    short: int | None = None
    cut: int | None = None
    body: bytes | None = None
    change: Callable[[bytes], bytes] | None = None


@dataclass
class Seen:
    """One request; ``size`` counts the received bytes of its body."""

    method: str
    target: str
    headers: dict[str, str]
    size: int = 0
    status: int = 0


class HttpFake:
    """Use a subclass as ``with Fake() as fake``; then ``fake.endpoint``. It defines :meth:`reply` and
    :meth:`planned_error`. ``tls``: use HTTPS. ``base``: a path below which everything is."""

    name = "http-fake"

    def __init__(self, *, tls: ssl.SSLContext | None = None, base: str = "") -> None:
        self._tls, self._base = tls, base
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._serve, name=self.name)
        self._ready = threading.Event()

    async def reply(self, request: web.Request, seen: Seen) -> Reply:
        """The response to a request, whose body this reads."""
        raise NotImplementedError

    def planned_error(self, status: int, headers: dict[str, str]) -> Reply:
        """The response of a fault with this status and no body of its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        assert self._runner is not None
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self._server = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        self.endpoint = self._server + self._base

    def requests(self, pattern: str = "") -> list[Seen]:
        """Those whose ``METHOD target`` contains a match of ``pattern``."""
        return [seen for seen in self.seen if re.search(pattern, f"{seen.method} {seen.target}")]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, dict(request.headers))
        self.seen.append(seen)
        fault = self._fault(seen)
        if fault is not None and fault.cut is not None:
            while seen.size < fault.cut and (piece := await request.content.readany()):
                seen.size += len(piece)
            return self._hang_up(request)
        if fault is not None and fault.status is not None:
            seen.status = fault.status
            if fault.body is not None:
                await request.read()
                return _response(Reply(fault.status, fault.body, fault.headers))
            return _response(self.planned_error(fault.status, fault.headers))
        reply = await self.reply(request, seen)
        seen.status = reply.status
        if fault is not None and fault.short is not None:
            reply = replace(reply, body=reply.body[: fault.short])
        if fault is not None and fault.change is not None:
            reply = replace(reply, body=fault.change(reply.body))
        return self._hang_up(request) if fault is not None and fault.lose else _response(reply)

    def _fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{seen.method} {seen.target}"):
                fault.times -= 1
                return fault
        return None

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError  # no response may be sent any more


async def counted(request: web.Request, seen: Seen) -> AsyncIterator[bytes]:
    """The pieces of a request's body, counted in the log."""
    async for piece in request.content.iter_any():
        seen.size += len(piece)
        yield piece


def _response(reply: Reply) -> web.Response:
    answer = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
    if reply.chunked:
        answer.enable_chunked_encoding()
    return answer
