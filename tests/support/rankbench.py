"""A trial that several ranks train, all in one process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from machines import record
from onebench import Bench

from asyncsync import Report, SyncEngine
from asyncsync.planning.manifest import MANIFEST, Manifest

N = 3
TEXTS = ("", "a", "lost", "old", "b", "c", "new", "newer", "late", "next", "second", "zombie")
STEPS = {text: 10 * place for place, text in enumerate(TEXTS)}
"""Training step of a report, by the text in its shards."""


def rank(bench: Bench, number: int, *, of: int = N, machine: str = "", **options: object) -> SyncEngine:
    place = bench.tmp_path / f"{machine or 'machine'}-{number}"
    return bench.engine(role="worker", rank=number, world_size=of, local_dir=place, **options)


def shard(bench: Bench, number: int, text: str = "", **files: bytes) -> Path:
    name = f"shard{number}{text}"
    return bench.checkpoint(name, **(files or {f"shard_{number}.pt": f"{number} {text}".encode() * 100}))


def share(bench: Bench, engine: SyncEngine, number: int, text: str = "", **options: object) -> Awaitable[Report]:
    """One rank reports its shard at the step of ``text``."""
    return engine.trial("t").report({}, shard(bench, number, text), step=STEPS[text], **options)


def shard_of_step(bench: Bench, number: int, step: int, **more: bytes) -> Path:
    """The shard of one rank at one step; its bytes name both."""
    return bench.checkpoint(f"of-{number}-{step}", **{f"shard_{number}": b"%d %d" % (number, step)}, **more)


def share_step(bench: Bench, engine: SyncEngine, number: int, step: int, **options: object) -> Awaitable[Report]:
    """One rank reports its shard of ``step``."""
    return engine.trial("t").report({}, shard_of_step(bench, number, step), step=step, **options)


def now() -> float:
    """Virtual seconds since the test began."""
    return asyncio.get_running_loop().time()


async def together(*work: Awaitable[object]) -> list[object]:
    return list(await asyncio.gather(*work, return_exceptions=True))


async def all_report(bench: Bench, engines: Sequence[SyncEngine], text: str = "", **options: object) -> list[str]:
    """Every rank reports its shard; returns the name of the checkpoint at each rank."""
    options.setdefault("step", STEPS.get(text))
    reports = await asyncio.gather(
        *(
            engine.trial("t").report({"loss": 1.0, "from": number}, shard(bench, number, text), **options)
            for number, engine in enumerate(engines)
        )
    )
    return [report.checkpoint.name for report in reports]


async def world(bench: Bench, stack: AsyncExitStack, *, of: int = N, **options: object) -> list[SyncEngine]:
    return [await stack.enter_async_context(rank(bench, number, of=of, **options)) for number in range(of)]


def manifest(bench: Bench, name: str) -> Manifest:
    return Manifest.from_bytes(bench.store.contents[f"t/{name}/{MANIFEST}"])


class KilledError(Exception):
    """Ends engines in a test; the store is reset to its contents at that moment."""


async def killed(bench: Bench, act: Callable[[list[SyncEngine]], Awaitable[None]], *who: int) -> None:
    """Run ``act`` with ranks ``who`` (default: all), then end them like kill -9: without a further request."""
    then: dict[str, object] = {}
    try:
        async with AsyncExitStack() as stack:
            numbers = who or range(N)
            engines = [await stack.enter_async_context(rank(bench, n, exit_grace=0.001)) for n in numbers]
            await act(engines)
            then.update(bench.store.bucket.objects)
            raise KilledError
    except KilledError:
        bench.faults.clear()
        bench.store.bucket.objects = then


def check_shards(bench: Bench, name: str, text: str) -> None:
    assert sorted(manifest(bench, name).files) == ["shard_0.pt", "shard_1.pt", "shard_2.pt"]
    for number in range(N):
        assert bench.store.contents[f"t/{name}/shard_{number}.pt"].startswith(f"{number} {text}".encode())
    assert record(bench).checkpoints[-1].name == name
