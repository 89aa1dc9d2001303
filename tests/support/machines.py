"""Several machines on one store in memory: each has its own directories, journal and network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from onebench import Bench

from asyncsync import CheckpointConfig, SyncConfig, SyncEngine
from asyncsync.errors import AsyncsyncError, UnavailableError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import Faults, faulty
from asyncsync.testing.memory import Request

T = TypeVar("T")


class Network(Faults):
    """The network between one machine and the store. ``late`` selects requests that fail at once with a lost response,
    and that reach the store at :meth:`land`, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.late: Callable[[Request], bool] = lambda _: False
        self.under_way: list[Callable[[], Awaitable[object]]] = []

    async def run(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        if self.late(request):
            self.requests.append(request)
            self.under_way.append(call)
            raise UnavailableError("the answer was lost")
        return await super().run(request, call)

    async def land(self) -> list[object]:
        """Deliver the requests in flight; returns their results or errors."""
        calls, self.under_way = self.under_way, []
        return [await _outcome(call) for call in calls]


async def _outcome(call: Callable[[], Awaitable[object]]) -> object:
    try:
        return await call()
    except AsyncsyncError as error:
        return error


class Machine:
    """A machine: ``engine()`` is an engine on it, ``network`` carries its requests to the store."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.home = bench.tmp_path / name
        self.network = Network()

    @asynccontextmanager
    async def engine(
        self,
        sync: SyncConfig | None = None,
        keep: CheckpointConfig | None = None,
        *,
        resume: bool = True,
        **options: Any,
    ) -> AsyncIterator[SyncEngine]:
        engine = self.bench.engine(sync, keep, resume=resume, local_dir=self.home / "local", **options)
        os.environ["ASYNCSYNC_STATE_DIR"] = str(self.home / "state")  # each test has an environment of its own
        faulty._injected["b"] = self.network
        async with engine:
            yield engine

    @asynccontextmanager
    async def killed(self, *args: Any, **options: Any) -> AsyncIterator[SyncEngine]:
        """An engine whose process is killed at the end of the block: its requests get no response any more."""
        try:
            async with self.engine(*args, **{"exit_grace": 0.01, **options}) as engine:
                yield engine
                self.network.hang(times=None)
                raise Killed
        except Killed:
            self.network.clear()


class Killed(BaseException):
    """The end of a process."""


def record(bench: Bench, trial: str = "t") -> TrialRecord:
    return TrialRecord.from_bytes(bench.store.contents[f"{trial}/{TRIAL_RECORD}"])


def names(bench: Bench, trial: str = "t") -> list[str]:
    return [item.name for item in record(bench, trial).checkpoints]


def stored(bench: Bench, prefix: str) -> dict[str, bytes]:
    """Files in the manifest below ``prefix``, with their bytes in the store."""
    contents = bench.store.contents
    manifest = Manifest.from_bytes(contents[prefix + MANIFEST])
    return {path: contents[prefix + path] for path in manifest.files}


async def told(work: Awaitable[T]) -> T | AsyncsyncError:
    """The result, or the error."""
    try:
        return await work
    except AsyncsyncError as error:
        return error


async def turns(count: int = 50) -> None:
    """Let every task run as far as it can without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)
