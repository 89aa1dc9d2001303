"""The network between processes and store. Requests are refused, lost, left without response, or land late, whatever
happens to their sender."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from asyncsync.config import TransferConfig
from asyncsync.errors import SourceChangedError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores import register_scheme
from asyncsync.stores.base import (
    Body,
    ObjectInfo,
    Page,
    Part,
    Piece,
    Sink,
    Store,
    Traits,
    Upload,
    lease_of,
)
from asyncsync.testing.memory import Bucket, MemoryStore, split_uri
from asyncsync.testing.simulation.loop import PROCESS, Process, SimulationLoop

T = TypeVar("T")

SCHEME = "simulated"
PART_SIZE = 1500
MIN_PART_SIZE = 500
MIN_RANGE_SOURCE = 400
"""Bytes. Files of a simulation are small, yet must use every way of transfer."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Probabilities of faults per request, and their durations in seconds."""

    refused: float = 0.0
    """The response is an error; the request has no effect."""
    request_lost: float = 0.0
    """The request never reaches the store; the sender waits up to ``patience``."""
    response_lost: float = 0.0
    """The request takes effect; its response is lost."""
    late: float = 0.0
    """The request takes effect up to ``lateness`` later; most often its sender has given up before."""
    lateness: float = 600.0
    withdrawn: float = 0.5
    """Probability that a request never lands if its sender gives up while it is in flight."""
    patience: float = 30.0
    latency: float = 0.05


CALM = Weather()


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The outcome of one request, in seconds from now; None: never."""

    lands: float | None
    responds: float | None
    """Seconds after it has landed."""
    fails: float | None
    """The sender receives an error, unless it received a response before."""
    error: str = "connection reset by peer"
    throttled: bool = False


def draw(weather: Weather, dice: random.Random, *, max_lateness: float) -> RequestOutcome:
    """Draw the outcome of a request that is sent now. ``max_lateness`` limits how late it may land."""
    way_in, way_back = dice.uniform(0, weather.latency), dice.uniform(0, weather.latency)
    roll = dice.random()
    if roll < weather.refused:
        return RequestOutcome(None, None, way_in + way_back, "503 Slow Down", throttled=dice.random() < 0.3)
    roll -= weather.refused
    if roll < weather.request_lost:
        return RequestOutcome(None, None, dice.uniform(0, weather.patience), "no response")
    roll -= weather.request_lost
    if roll < weather.response_lost:
        return RequestOutcome(way_in, None, way_in + dice.uniform(0, weather.patience))
    roll -= weather.response_lost
    if roll < weather.late:
        late = min(max_lateness, weather.lateness) * dice.random() ** 3
        return RequestOutcome(late, way_back, dice.uniform(0, weather.patience))
    return RequestOutcome(way_in, way_back, None)


class Network:
    """Shared by all processes of a world: the bucket, the weather, and the observers of requests."""

    def __init__(self, loop: SimulationLoop, bucket: str, *, conditional: bool) -> None:
        self.loop = loop
        self.conditional = conditional
        self.inner = MemoryStore(bucket, min_part_size=MIN_PART_SIZE, page_size=50)
        self.bucket: Bucket = self.inner.bucket
        self.bucket.clock = loop.true_time
        self.bucket_name = bucket
        self.weather = CALM
        self.max_lateness: Callable[[str, str, str | None], float] = lambda *_: float("inf")
        self.sent: Callable[[Process, str, str], None] = lambda *_: None
        self.landed: Callable[[Process, str, str, str], None] = lambda *_: None
        self.under_way = 0
        """Requests in flight that may still land."""


class SimulatedStore(Store):
    """The store as one process sees it."""

    def __init__(self, network: Network, process: Process, prefix: str) -> None:
        self._network, self._process = network, process
        self._inner = MemoryStore(network.bucket_name, prefix, min_part_size=MIN_PART_SIZE, page_size=50)
        self._inner.bucket = network.bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.uri = f"{SCHEME}://{network.bucket_name}/{prefix}".rstrip("/")
        conditional = network.conditional
        self.traits: Traits = replace(
            self._inner.traits,
            scheme=SCHEME,
            part_size=PART_SIZE,
            min_range_source=MIN_RANGE_SOURCE,
            conditional_writes=conditional,
            conditional_copy=conditional,
        )

    async def close(self) -> None:
        """Nothing to free."""

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        data, condition = await self._read_body(body), self._condition(if_version)
        return await self._send(
            "put", key, lambda: self._inner.put(key, data, crc32c=crc32c, if_version=condition), version=condition
        )

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        async def whole() -> tuple[ObjectInfo, list[bytes]]:
            pieces: list[bytes] = []

            async def keep(piece: Piece) -> None:
                pieces.append(bytes(piece))

            info = await self._inner.read(key, keep, start=start, length=length, if_version=if_version)
            return info, pieces

        info, pieces = await self._send("read", key, whole, changes=False)
        for piece in pieces:
            await sink(piece)
        return info

    async def head(self, key: str) -> ObjectInfo:
        return await self._send("head", key, lambda: self._inner.head(key), changes=False)

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        return await self._send(
            "list", prefix, lambda: self._inner.list(prefix, delimiter=delimiter, token=token), changes=False
        )

    async def delete(self, keys: Sequence[str]) -> None:
        await self._send("delete", "\n".join(keys), lambda: self._inner.delete(keys))

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        condition = self._condition(if_version)
        more: dict[str, Any] = {} if condition is None else {"if_version": condition}
        return await self._send(
            "copy",
            key,
            lambda: self._inner.copy(source, key, if_source_version=if_source_version, size=size, **more),
            version=condition,
        )

    async def create_multipart(self, key: str) -> Upload:
        return await self._send("create_multipart", key, lambda: self._inner.create_multipart(key))

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        data = await self._read_body(body)
        return await self._send(
            "put_part", upload.key, lambda: self._inner.put_part(upload, number, offset, data, crc32c=crc32c)
        )

    async def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: str,
        start: int,
        length: int,
        *,
        if_source_version: str | None = None,
    ) -> Part:
        return await self._send(
            "copy_part",
            upload.key,
            lambda: self._inner.copy_part(
                upload, number, offset, source, start, length, if_source_version=if_source_version
            ),
        )

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        condition = self._condition(if_version)
        return await self._send(
            "complete_multipart",
            upload.key,
            lambda: self._inner.complete_multipart(upload, parts, crc32c=crc32c, if_version=condition),
            version=condition,
        )

    async def abort_multipart(self, upload: Upload) -> None:
        await self._send("abort_multipart", upload.key, lambda: self._inner.abort_multipart(upload))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await self._send("list_parts", upload.key, lambda: self._inner.list_parts(upload), changes=False)

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        return await self._send("list_multiparts", prefix, lambda: self._inner.list_multiparts(prefix), changes=False)

    def _condition(self, if_version: str | None) -> str | None:
        return if_version if self._network.conditional else None

    async def _read_body(self, body: Body) -> bytes:
        """Read the body. As with a real store, the lease is checked before the first byte and before the last; a
        process that is stopped in between sends the rest when it continues."""
        lease = lease_of(body)
        if lease is not None:
            lease.check()
        if isinstance(body, bytes):
            return bytes(body)
        try:
            first = body.read(0, body.size // 2)
            if body.size > MIN_PART_SIZE:
                await asyncio.sleep(self._process.network_dice.uniform(0, self._network.weather.latency))
            data = first + body.read(len(first), body.size - len(first))
        except FileNotFoundError as error:
            raise SourceChangedError(f"{body.path} is missing") from error
        if len(data) != body.size:
            raise SourceChangedError(f"{body.path} was truncated")
        if lease is not None:
            lease.check()
        return data

    async def _send(
        self,
        operation: str,
        key: str,
        apply: Callable[[], Coroutine[Any, Any, T]],
        *,
        changes: bool = True,
        version: str | None = None,
    ) -> T:
        network, process, loop = self._network, self._process, self._network.loop
        key = "\n".join(self._prefix + one for one in key.split("\n"))
        network.sent(process, operation, key)
        await asyncio.sleep(0)  # trouble that strikes at this request happens here
        if process.ghost:
            raise UnavailableError("the simulation is over")
        outcome = self._draw_outcome(operation, key, version)
        response: asyncio.Future[T] = loop.create_future()
        request = _Request(network, process, operation, key, apply, response, outcome, changes=changes)
        request.start()
        process.under_way += 1
        try:
            return await response
        finally:
            process.under_way -= 1
            request.sender_left()

    def _draw_outcome(self, operation: str, key: str, version: str | None) -> RequestOutcome:
        network, process = self._network, self._process
        if process.partitioned:
            return RequestOutcome(
                None, None, process.network_dice.uniform(0, network.weather.patience), "no route to host"
            )
        return draw(network.weather, process.network_dice, max_lateness=network.max_lateness(operation, key, version))


class _Request:
    """One request in flight. Its callbacks belong to the world: they run whatever happens to the sender."""

    def __init__(
        self,
        network: Network,
        process: Process,
        operation: str,
        key: str,
        apply: Callable[[], Coroutine[Any, Any, Any]],
        response: asyncio.Future[Any],
        outcome: RequestOutcome,
        *,
        changes: bool,
    ) -> None:
        self._network, self._process, self._operation, self._key = network, process, operation, key
        self._apply, self._response, self._draw_outcome, self._changes = apply, response, outcome, changes
        self._withdrawn = False
        self._landed = False

    def start(self) -> None:
        loop, outcome = self._network.loop, self._draw_outcome
        if outcome.lands is not None:
            self._network.under_way += self._changes
            loop.in_world(loop.time() + outcome.lands, self._land)
        if outcome.fails is not None:
            loop.in_world(loop.time() + outcome.fails, self._fail)

    def sender_left(self) -> None:
        """The sender does not wait any more."""
        if not self._landed and self._process.network_dice.random() < self._network.weather.withdrawn:
            self._withdrawn = self._response.cancelled()

    def _land(self) -> None:
        network, loop = self._network, self._network.loop
        self._landed = True
        network.under_way -= self._changes
        if self._withdrawn or (not self._changes and self._response.done()):
            return
        error, result = None, None
        try:
            result = run_memory_call(self._apply())
        except StoreError as refused:
            error = refused
        if self._changes:
            network.landed(self._process, self._operation, self._key, type(error).__name__ if error else "ok")
        if self._draw_outcome.responds is not None:
            loop.in_world(loop.time() + self._draw_outcome.responds, self._respond, result, error)

    def _respond(self, result: object, error: StoreError | None) -> None:
        if self._response.done() or self._process.partitioned:
            if self._process.partitioned:
                self._network.loop.in_world(self._network.loop.time() + self._network.weather.patience, self._fail)
            return
        if error is not None:
            self._response.set_exception(error)
        else:
            self._response.set_result(result)

    def _fail(self) -> None:
        if self._response.done():
            return
        text = f"{SCHEME}: {self._draw_outcome.error}"
        self._response.set_exception(ThrottledError(text) if self._draw_outcome.throttled else UnavailableError(text))


def run_memory_call(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine of the memory store, which only ever yields to the loop."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


_networks: dict[str, Network] = {}


def connect(network: Network) -> None:
    """Connect stores of this bucket's name to the network."""
    _networks[network.bucket_name] = network


def disconnect(network: Network) -> None:
    """Disconnect them; the schedule is over."""
    del _networks[network.bucket_name]


def _open(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> SimulatedStore:
    del options, transfer
    name, prefix = split_uri(uri)
    process = PROCESS.get()
    assert process is not None, "a simulated store belongs to a simulated process"
    return SimulatedStore(_networks[name], process, prefix)


register_scheme(SCHEME, _open)
