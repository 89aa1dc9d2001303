"""Signals that announce the end: one cancel, its grace, and the program's own handlers restored."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from asyncsync import ConfigError, Experiment, RunConfig, SyncConfig, SyncEngine, TransferConfig, UploadMode

KINDS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Signals that reached the program's own handlers, which were installed before the engine."""
    seen: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, own) for number in KINDS}
    yield seen
    for number, handler in before.items():
        assert signal.getsignal(number) is own
        signal.signal(number, handler)


def made(tmp_path: Path, wanted: object = True, grace: float = 20.0, limit: float | None = None) -> SyncEngine:
    run = RunConfig(
        name="exp",
        storage_path=tmp_path / "store",
        sync_config=SyncConfig(sync_artifacts=True, sync_period=3600),
        transfer=TransferConfig(bandwidth_limit=limit),
    )
    return SyncEngine(run, local_dir=tmp_path / "local", handle_signals=wanted, exit_grace=grace)  # type: ignore[arg-type]


def files(tmp_path: Path, size: int = 10) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "weights").write_bytes(os.urandom(size))
    return directory


@pytest.mark.parametrize("number", KINDS)
def test_the_signals_that_are_asked_for_leave_the_block(tmp_path: Path, handled: list[int], number: int) -> None:
    async def main() -> None:
        async with made(tmp_path, set(KINDS)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            (trial.dir / "last").write_text("words")
            signal.raise_signal(number)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert (tmp_path / "store/exp/t/last").read_text() == "words"
    assert handled == [number]


def test_a_signal_wakes_a_loop_that_waits(tmp_path: Path, handled: list[int]) -> None:
    async def main() -> None:
        async with made(tmp_path):
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            await asyncio.get_running_loop().create_future()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_signals_that_are_not_asked_for_stay_the_programs(tmp_path: Path, handled: list[int]) -> None:
    async def main() -> None:
        async with made(tmp_path, {signal.SIGUSR1}):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)

    asyncio.run(main())
    assert handled == [signal.SIGTERM]


@pytest.mark.parametrize("repeat", [signal.SIGTERM, signal.SIGUSR1])
def test_repeats_change_nothing_within_the_grace(tmp_path: Path, handled: list[int], repeat: int) -> None:
    async def main() -> None:
        async with made(tmp_path, {signal.SIGTERM, signal.SIGUSR1}, limit=4e6) as engine:
            await engine.trial("t").report({}, files(tmp_path, 4_000_000), upload=UploadMode.ASYNC)
            for delay in (0.0, 0.0, 0.05, 0.2, 0.4):
                asyncio.get_running_loop().call_later(delay, signal.raise_signal, repeat)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert len(asyncio.run(Experiment.open(tmp_path / "store/exp")).checkpoints) == 1
    assert handled == [signal.SIGTERM]


def test_a_programs_own_cancel_of_the_task_does_not_shorten_the_grace(tmp_path: Path) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        before = signal.signal(signal.SIGTERM, lambda *_: task.cancel())
        try:
            async with made(tmp_path, limit=4e6) as engine:
                await engine.trial("t").report({}, files(tmp_path, 2_000_000), upload=UploadMode.ASYNC)
                signal.raise_signal(signal.SIGTERM)
                await asyncio.Event().wait()
        finally:
            signal.signal(signal.SIGTERM, before)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert len(asyncio.run(Experiment.open(tmp_path / "store/exp")).checkpoints) == 1


def test_a_handled_ctrl_c_is_still_a_keyboard_interrupt_with_a_note(tmp_path: Path) -> None:
    """The note is in its context."""

    async def main() -> None:
        async with made(tmp_path, {signal.SIGINT}, grace=0.1, limit=1e5) as engine:
            await engine.trial("t").report({}, files(tmp_path, 4_000_000), upload=UploadMode.ASYNC)
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    context = caught.value.__context__
    assert context is not None
    assert "not durable" in context.__notes__[0]


def test_engines_that_end_in_any_order_give_the_handler_back(tmp_path: Path, handled: list[int]) -> None:
    async def main() -> None:
        first, second = made(tmp_path / "1"), made(tmp_path / "2")
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)

    asyncio.run(main())


def test_signals_off_the_main_thread_are_refused_before_the_start(tmp_path: Path) -> None:
    seen: list[BaseException] = []

    async def main() -> None:
        with pytest.raises(ConfigError, match="signals only in the main thread") as caught:
            await made(tmp_path).__aenter__()
        seen.append(caught.value)
        assert len(asyncio.all_tasks()) == 1

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert seen
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("wanted", [signal.SIGTERM, {signal.SIGKILL}, {"SIGTERM"}, "SIGTERM", 15, None, {99}, {True}])
def test_other_signals_are_refused(tmp_path: Path, wanted: object) -> None:
    with pytest.raises(ConfigError, match="handle_signals"):
        made(tmp_path, wanted)
