"""A TCP proxy in front of an HTTP/1.1 server that injects the faults of a network.

Bytes pass unchanged, also the Host header, so that signatures stay valid. Rules select the requests for each fault::

    async with FaultProxy("127.0.0.1", 8333) as proxy:      # proxy.url is the endpoint to use
        proxy.on(r"^PUT .*/model.bin", BreakRequest(after=1 << 20))          # the first such request
        proxy.on(r"^GET ", Flip("response", at=100), skip=2)                   # the third
        proxy.on(r".", CannedResponse(503), times=None, share=0.05)                  # one in twenty, seeded
        ...
        proxy.log                                                            # all requests, each with its fault
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Literal

from asyncsync.testing.http import Body, Head, read_head

Side = Literal["request", "response"]


@dataclass(frozen=True)
class CannedResponse:
    """The proxy responds itself and the server receives nothing. ``early``: at once, closing the connection without
    reading the body of the request. ``code``: the code in the S3 error document."""

    status: int = 503
    code: str = "SlowDown"
    headers: Mapping[str, str] = field(default_factory=dict)
    early: bool = False

    def to_bytes(self) -> bytes:
        """The response as bytes."""
        body = f"<Error><Code>{self.code}</Code><Message>injected</Message></Error>".encode()
        lines = [f"HTTP/1.1 {self.status} Injected", f"Content-Length: {len(body)}", "Content-Type: application/xml"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Connection: close"] * self.early
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class BreakRequest:
    """The connections end after so many bytes of the request's body; 0: before the server receives anything. ``reset``:
    by RST, else by FIN. A shorter body passes."""

    after: int = 0
    reset: bool = True


@dataclass(frozen=True)
class BreakResponse:
    """The connection ends after so many bytes of the response's body. None: the server has processed the request and
    not a byte of its response arrives."""

    after: int | None = None
    reset: bool = True


@dataclass(frozen=True)
class Stall:
    """Nothing moves for ``seconds`` (None: for ever) after so many bytes of the body of one side, as behind a router
    that forgot the connection. ``after=0``: before the request, or the response, is passed on."""

    side: Side = "response"
    after: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Flip:
    """One bit of one byte of a body is flipped. A shorter body passes unchanged."""

    side: Side
    at: int = 0
    bit: int = 0


Fault = CannedResponse | BreakRequest | BreakResponse | Stall | Flip


@dataclass(slots=True)
class Rule:
    """Made by :meth:`FaultProxy.on`. ``struck`` counts the requests that got the fault."""

    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    skip: int
    share: float
    struck: int = 0

    def strikes(self, line: str, rng: Random) -> bool:
        """Whether this request gets the fault; counts it."""
        if not self.pattern.search(line) or self.times == self.struck:
            return False
        if self.share < 1 and rng.random() >= self.share:
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.struck += 1
        return True


@dataclass(slots=True)
class ProxiedRequest:
    """One request in the log. Sizes: bytes of bodies that passed."""

    line: str
    """Method and target, as ``PUT /bucket/key?query HTTP/1.1``."""
    sent: int = 0
    received: int = 0
    status: int | None = None
    """Of the response, if one passed."""
    fault: Fault | None = None


class _BrokenError(Exception):
    """A fault ends the connection."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("broken by a rule")
        self.reset = reset


class FaultProxy:
    """Use it as ``async with FaultProxy(host, port) as proxy``; afterwards all connections are closed.

    ``bandwidth``: bytes per second, shared by all connections in both directions. ``seed``: of the choices of
    ``share``.
    """

    def __init__(self, host: str, port: int, *, bandwidth: float | None = None, seed: int = 0) -> None:
        self._target = host, port
        self._bandwidth, self._paid = bandwidth, 0.0
        self._rng = Random(seed)  # noqa: S311 (faults, not secrets)
        self._rules: list[Rule] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._away = False
        self.log: list[ProxiedRequest] = []
        """Every request so far, oldest first; clear it freely."""

    async def __aenter__(self) -> FaultProxy:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self._abort_all()
        await self._group.__aexit__(None, None, None)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The endpoint for the client."""
        return f"http://127.0.0.1:{self.port}"

    def on(self, pattern: str, fault: Fault, *, times: int | None = 1, skip: int = 0, share: float = 1.0) -> Rule:
        """Inject ``fault`` into requests whose line matches ``pattern`` (a regular expression, searched).

        ``skip``: the first so many matching requests pass. ``times``: requests to strike (None: all). ``share``: random
        share of the matching requests. If several rules match, the first applies.
        """
        rule = Rule(re.compile(pattern), fault, times, skip, share)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules; stalled requests stay stalled."""
        self._rules.clear()

    def set_away(self, away: bool) -> None:
        """True: the server is unreachable, and every connection is reset, new ones at once. False: it is back."""
        self._away = away
        if away:
            self._abort_all()

    def _abort_all(self) -> None:
        for writer in tuple(self._open):
            _abort(writer, reset=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._away:
            _abort(writer, reset=True)
            return
        self._open.add(writer)
        task = self._group.create_task(self._serve(reader, writer), name="fault proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with its own connection to the server."""
        link = _Link(self, reader, writer)
        reset = False
        try:
            while await link.exchange():
                pass
        except _BrokenError as broken:
            reset = broken.reset
        except (ConnectionError, asyncio.IncompleteReadError):
            reset = True  # one of the two closed: close the other
        finally:
            for each in (writer, link.upstream):
                if each is not None:
                    _abort(each, reset=reset)
                    self._open.discard(each)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server; one for each connection of a client."""
        reader, writer = await asyncio.open_connection(*self._target)
        self._open.add(writer)
        return reader, writer

    def find(self, line: str) -> Fault | None:
        """The fault of this request, if any."""
        return next((rule.fault for rule in self._rules if rule.strikes(line, self._rng)), None)

    async def pay(self, nbytes: int) -> None:
        """Wait until the bandwidth limit allows ``nbytes`` more."""
        if self._bandwidth is not None:
            now = asyncio.get_running_loop().time()
            self._paid = max(self._paid, now) + nbytes / self._bandwidth
            await asyncio.sleep(self._paid - now)


class _Link:
    """One connection of a client: its requests in sequence."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._client, self._to_client = proxy, reader, writer
        self._server: asyncio.StreamReader | None = None
        self.upstream: asyncio.StreamWriter | None = None

    async def exchange(self) -> bool:
        """One request and its response; False: the connection ends."""
        head = await read_head(self._client)
        if head is None:
            return False
        seen = ProxiedRequest(head.line, fault=self._proxy.find(head.line))
        self._proxy.log.append(seen)
        if isinstance(seen.fault, CannedResponse):
            return await self._respond(head, seen, seen.fault)
        if isinstance(seen.fault, BreakRequest) and not seen.fault.after:
            raise _BrokenError(reset=seen.fault.reset)
        if self.upstream is None:
            self._server, self.upstream = await self._proxy.connect()
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._up(head, seen), name="fault proxy, request")
                keep = await self._down(head, seen)
                keep = keep and sending.done()  # else the server responded early and reads no more
                sending.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return keep

    async def _respond(self, head: Head, seen: ProxiedRequest, response: CannedResponse) -> bool:
        if not response.early:
            if "expect" in head.headers:
                self._to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = head.request_body(self._client)
            while (piece := await body.read())[0]:
                seen.sent += piece[1]
        seen.status = response.status
        self._to_client.write(response.to_bytes())
        await self._to_client.drain()
        if response.early:
            raise _BrokenError(reset=False)
        return True

    async def _up(self, head: Head, seen: ProxiedRequest) -> None:
        assert self.upstream is not None
        if isinstance(seen.fault, Stall) and seen.fault.side == "request" and not seen.fault.after:
            await self._stand(seen.fault)
        try:
            self.upstream.write(head.raw)
            await self._pass(head.request_body(self._client), self.upstream, seen, "request")
        except ConnectionError:
            return  # the server reads no more; its response, or the end of its connection, has the reason

    async def _down(self, request: Head, seen: ProxiedRequest) -> bool:
        assert self._server is not None
        while True:
            head = await read_head(self._server)
            if head is None:
                raise ConnectionResetError("the server ended the connection")
            if isinstance(seen.fault, BreakResponse) and seen.fault.after is None:
                raise _BrokenError(reset=seen.fault.reset)
            if isinstance(seen.fault, Stall) and seen.fault.side == "response" and not seen.fault.after:
                await self._stand(seen.fault)
            self._to_client.write(head.raw)
            if head.status >= 200:
                break
        seen.status = head.status
        body = head.response_body(self._server, request.method)
        await self._pass(body, self._to_client, seen, "response")
        return body.is_framed and not head.closes

    async def _pass(self, body: Body, sink: asyncio.StreamWriter, seen: ProxiedRequest, side: Side) -> None:
        at = 0
        while True:
            raw, size = await body.read()
            if not raw:
                break
            await self._proxy.pay(len(raw))
            sink.write(await self._harm(raw, size, at, sink, seen, side) if size else raw)
            await sink.drain()
            at += size
            if side == "request":
                seen.sent = at
            else:
                seen.received = at
        await sink.drain()

    async def _harm(
        self, data: bytes, size: int, at: int, sink: asyncio.StreamWriter, seen: ProxiedRequest, side: Side
    ) -> bytes:
        """The bytes of a piece of a body that pass; the piece begins at ``at``."""
        fault = seen.fault
        match fault:
            case Flip() if fault.side == side and at <= fault.at < at + size:
                changed = bytearray(data)
                changed[fault.at - at] ^= 1 << fault.bit
                return bytes(changed)
            case BreakRequest(after=after) if side == "request" and at < after <= at + size:
                await _flush(sink, data[: after - at])
                raise _BrokenError(reset=fault.reset)
            case BreakResponse(after=int(after)) if side == "response" and at <= after <= at + size:
                await _flush(sink, data[: after - at])
                raise _BrokenError(reset=fault.reset)
            case Stall() if fault.after and fault.side == side and at < fault.after <= at + size:
                await _flush(sink, data[: fault.after - at])
                await self._stand(fault)
                return data[fault.after - at :]
        return data

    @staticmethod
    async def _stand(stall: Stall) -> None:
        """For ever means until the proxy is closed."""
        if stall.seconds is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(stall.seconds)


async def _flush(sink: asyncio.StreamWriter, data: bytes) -> None:
    """Bytes that passed arrive before the connection ends: a reset discards buffered ones."""
    sink.write(data)
    await sink.drain()
    await asyncio.sleep(0.01)


def _abort(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if reset and sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
