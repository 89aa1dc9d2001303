"""An engine is entered once; if entering fails, it undoes all that it began."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

import asyncsync
from asyncsync import ConfigError, EngineClosedError, RunConfig, SyncEngine
from asyncsync.errors import UnavailableError
from asyncsync.testing import inject_faults, reset_memory
from asyncsync.testing.virtual import run_virtual


def made(tmp_path: Path, address: object = None) -> SyncEngine:
    run = RunConfig(name="exp", storage_path=address or tmp_path / "store")
    return SyncEngine(run, local_dir=tmp_path / "local", resume=True)


def test_a_second_entry_raises_that_an_engine_is_entered_once(tmp_path: Path) -> None:
    engine = made(tmp_path)

    async def once() -> None:
        async with engine:
            await engine.trial("t").report({"a": 1})

    asyncio.run(once())
    with pytest.raises(EngineClosedError, match="entered once"):
        asyncio.run(once())


def test_entering_an_open_engine_is_refused_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    engine = made(tmp_path)

    async def nested() -> tuple[int, int]:
        async with engine:
            before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            with pytest.raises(EngineClosedError, match="entered once"):
                await engine.__aenter__()
            after = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            assert before == after
            await engine.trial("t").report({"a": 1})
        return after

    asyncio.run(nested())
    assert '"a": 1' in (tmp_path / "store/exp/t/result.json").read_text()


def test_an_engine_that_could_not_be_entered_may_be_entered_later(tmp_path: Path) -> None:
    reset_memory()

    async def main() -> None:
        faults = inject_faults("b")
        engine = made(tmp_path, "memory://b")
        faults.fail(1, UnavailableError("away"), times=None)
        with pytest.raises(UnavailableError):
            await engine.__aenter__()
        faults.clear()
        async with engine:
            await engine.trial("t").report({"a": 1})

    run_virtual(main())
    reset_memory()


@pytest.mark.parametrize("turns", range(40))
def test_a_cancel_at_any_turn_of_entering_leaves_no_descriptor(tmp_path: Path, turns: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(made(tmp_path).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            engine = await task
            await engine.__aexit__(None, None, None)
            return
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        asyncio.run(main())
        for thread in threading.enumerate():
            if thread.name.startswith("asyncsync"):
                thread.join(5)  # already ending
        assert len(os.listdir("/proc/self/fd")) == len(before)
    finally:
        gc.enable()


async def _read(place: str) -> None:
    await asyncsync.Experiment.open(place)


async def _engine(place: str) -> None:
    await SyncEngine(RunConfig(name="exp", storage_path=place + "/store"), local_dir=place + "/l").__aenter__()


async def _syncer(place: str) -> None:
    await asyncsync.Syncer(place, place + "/to").__aenter__()


async def _push(place: str) -> None:
    await asyncsync.push(place, place + "/to")


async def _pull(place: str) -> None:
    await asyncsync.pull(place, place + "/to")


@pytest.mark.parametrize("use", [_read, _engine, _syncer, _push, _pull])
def test_under_another_event_loop_one_sentence_says_that_asyncio_is_needed(
    tmp_path: Path, use: Callable[[str], Coroutine[object, object, None]]
) -> None:
    coroutine = use(str(tmp_path))
    with pytest.raises(ConfigError, match="asyncsync needs asyncio"):
        coroutine.send(None)  # as any scheduler of coroutines begins, trio's too
    assert not list(tmp_path.iterdir())
