"""Fails the n-th system call of a push, a pull or an engine, for every n, and checks what is left.

``python sweep.py push --how once --error EIO`` runs itself with the library preloaded and prints what broke:

- anything but an error of asyncsync is raised;
- a file is neither as it was before nor as it should be;
- a temporary file or an open upload is left beside the data, although its removal was allowed;
- a descriptor is left open;
- the same work fails afterwards, on a disk that works again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine, pull, push
from asyncsync.errors import AsyncsyncError
from asyncsync.stores.guard.retry_policy import RetryPolicy
from failing_calls import FailingCalls, Plan, build, scratch

OLDER = b"older"
CHECKPOINTS = 3
TIME_LIMIT = 60.0
"""Seconds after which a run counts as hanging."""


@dataclass
class World:
    """The directories of one run."""

    room: Path
    source: dict[str, bytes]

    @property
    def state(self) -> Path:
        return self.room / "state"

    def write(self, directory: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            path = self.room / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@dataclass(frozen=True)
class Work:
    """What is swept: its preparation, the work itself, and the directories that must be right afterwards."""

    prepare: Callable[[World], Awaitable[None]]
    run: Callable[[World], Awaitable[None]]
    results: Callable[[World], Iterator[Path]]


async def _nothing(world: World) -> None:
    world.write("source", world.source)


async def _push(world: World) -> None:
    await push(world.room / "source", world.room / "store")


async def _stored(world: World) -> None:
    world.write("source", world.source)
    await push(world.room / "source", world.room / "store")
    world.write("target", dict.fromkeys(list(world.source)[:2], OLDER))


async def _pull(world: World) -> None:
    await pull(world.room / "store", world.room / "target")


async def _checkpoints(world: World) -> None:
    for number in range(CHECKPOINTS):
        world.write(f"checkpoint{number}", world.source)


async def _train(world: World) -> None:
    run = RunConfig(
        name="e",
        storage_path=world.room / "store",
        sync_config=SyncConfig(sync_timeout=20),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    async with SyncEngine(run, local_dir=world.room / "local", resume=True, leave_timeout=30) as engine:
        trial = engine.trial("t")
        for number in range(CHECKPOINTS):
            await trial.report({"loss": number}, checkpoint=world.room / f"checkpoint{number}", upload="sync")


def _committed(world: World) -> Iterator[Path]:
    for manifest in world.room.glob("store/e/t/checkpoint_*/.asyncsync/manifest.json"):
        yield manifest.parent.parent


WORK = {
    "push": Work(_nothing, _push, lambda world: iter((world.room / "store",))),
    "pull": Work(_stored, _pull, lambda world: iter((world.room / "target",))),
    "engine": Work(_checkpoints, _train, _committed),
}


def files_of(root: Path) -> dict[str, bytes]:
    """The files of a tree by name, without asyncsync's own."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".asyncsync" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def leftovers(room: Path) -> list[str]:
    """Temporary files and open uploads. An unfinished large file of a download stays for the next one to resume."""
    found = [path for path in room.rglob("*") if path.name.endswith("-tmp") or ".asyncsync/uploads/" in str(path)]
    return [str(path.relative_to(room)) for path in found if not path.name.startswith(".large.")]


def causes(error: BaseException) -> list[BaseException]:
    """The errors in a group, or the error."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for each in error.exceptions for cause in causes(each)]
    return [error]


class Sweep:
    """One work under one plan; ``found`` says what broke."""

    def __init__(self, calls: FailingCalls, work: Work, plan: Plan, root: Path) -> None:
        self._calls, self._work, self._plan, self._root = calls, work, plan, root
        self._source = {f"d/file{n}": os.urandom(1000 + n) for n in range(3)}
        self._source |= {"large": os.urandom(3 << 20), "d/e/empty": b""}
        self.found: list[str] = []
        self.runs = 0

    def run(self, first: int, stride: int, most: int) -> None:
        """Fail the calls number ``first``, ``first + stride`` and so on, until one run makes fewer calls."""
        for n in range(first, first + most * stride, stride):
            if self._once(n) < n:
                return

    def _once(self, n: int) -> int:
        world = World(self._root / f"run{n}", self._source)
        os.environ["ASYNCSYNC_STATE_DIR"] = str(world.state)
        world.room.mkdir()
        asyncio.run(self._work.prepare(world))
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        self._calls.arm(self._plan, world.room, n)
        error = self._attempt(world)
        count, call = self._calls.disarm()
        broken = [*self._wrong(error), *self._left(world, call), *self._content(world, complete=error is None)]
        error = None
        gc.collect()
        if len(os.listdir("/proc/self/fd")) > before:
            broken.append("a descriptor is left open")
        broken += self._afterwards(world)
        self.found += [f"call {n}, {call.replace(str(world.room), '')}: {what}" for what in broken]
        self.runs += 1
        shutil.rmtree(world.room)
        return count

    def _attempt(self, world: World) -> BaseException | None:
        try:
            asyncio.run(asyncio.wait_for(self._work.run(world), TIME_LIMIT))
        except BaseException as error:
            return error
        return None

    @staticmethod
    def _wrong(error: BaseException | None) -> list[str]:
        errors = [] if error is None else causes(error)
        return [f"{type(one).__name__}: {one}" for one in errors if not isinstance(one, AsyncsyncError)]

    def _left(self, world: World, call: str) -> list[str]:
        if self._plan.how != "once" or call.startswith(("unlink", "rmdir")):
            return []  # what cannot be removed stays
        return [f"left: {name}" for name in leftovers(world.room)]

    def _content(self, world: World, *, complete: bool) -> Iterator[str]:
        for root in self._work.results(world):
            files = files_of(root)
            for name, data in files.items():
                if name in self._source and data not in (self._source[name], OLDER):
                    yield f"{root.name}/{name} is half"
            if complete and any(files.get(name) != data for name, data in self._source.items()):
                yield f"it succeeded, but {root.name} is not complete"

    def _afterwards(self, world: World) -> Iterator[str]:
        error = self._attempt(world)
        if error is not None:
            yield f"afterwards: {type(error).__name__}: {error}"
        yield from (f"afterwards: {what}" for what in self._content(world, complete=error is None))
        yield from (f"afterwards left: {name}" for name in leftovers(world.room))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--how", default="once", choices=("once", "always", "short"))
    parser.add_argument("--error", default="EIO")
    parser.add_argument("--calls", default="", help="names, separated by commas; default: all")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--most", type=int, default=100_000, help="runs")
    given = parser.parse_args()
    with scratch() as directory:
        preloaded = os.environ.get("LD_PRELOAD")
        if preloaded is None:
            library = build(Path(directory))
            if library is None:
                sys.exit("there is no C compiler that builds the library")
            environment = os.environ | {"LD_PRELOAD": str(library)}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
        warnings.simplefilter("error")
        logging.disable(logging.CRITICAL)
        RetryPolicy.pause = lambda self, attempt, error, rng: 0.0  # the next attempt meets a disk that works
        plan = Plan(given.how, given.error, given.calls)
        sweep = Sweep(FailingCalls(preloaded), WORK[given.work], plan, Path(directory))
        sweep.run(given.first, given.stride, given.most)
    print(f"{given.work}: {sweep.runs} runs, {len(sweep.found)} faults", *sweep.found[:40], sep="\n")
    return bool(sweep.found)


if __name__ == "__main__":
    sys.exit(main())
