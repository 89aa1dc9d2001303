"""``on_durable``, and the file that names the newest checkpoint."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import CheckpointConfig, ConfigError, SyncConfig, UploadMode, pull
from asyncsync.events import CallbackFailed, CheckpointDurable
from asyncsync.planning.manifest import Manifest


async def test_it_is_called_in_order_for_each_durable_checkpoint(bench: Bench) -> None:
    seen: list[tuple[str, int | None, str]] = []

    def note(event: CheckpointDurable) -> None:
        assert threading.current_thread() is not threading.main_thread()
        seen.append((event.checkpoint, event.step, event.uri))

    async with bench.engine(keep=CheckpointConfig(on_durable=note)) as engine:
        for step in (3, 4):
            await engine.trial("t").report({}, bench.checkpoint(f"c{step}"), step=step, upload=UploadMode.ASYNC)
    assert seen == [
        ("checkpoint_000000", 3, "memory://b/exp/t/checkpoint_000000"),
        ("checkpoint_000001", 4, "memory://b/exp/t/checkpoint_000001"),
    ]


async def test_a_coroutine_runs_on_the_loop_and_delays_no_checkpoint(bench: Bench) -> None:
    free, began = asyncio.Event(), asyncio.Event()

    async def slow(_event: CheckpointDurable) -> None:
        began.set()
        await free.wait()

    async with bench.engine(keep=CheckpointConfig(on_durable=slow)) as engine:
        await engine.trial("t").report({}, bench.checkpoint("a"))
        await began.wait()
        await engine.trial("t").report({}, bench.checkpoint("b"))
        free.set()


async def test_its_failure_is_an_event_and_harms_nothing(bench: Bench) -> None:
    def fails(_event: CheckpointDurable) -> None:
        raise ZeroDivisionError("no")

    async with bench.engine(keep=CheckpointConfig(on_durable=fails)) as engine:
        events = engine.events()
        report = await engine.trial("t").report({}, bench.checkpoint())
        assert report.checkpoint.is_durable
    errors = [event.error async for event in events if isinstance(event, CallbackFailed)]
    assert errors == ["on_durable failed for memory://b/exp/t/checkpoint_000000: ZeroDivisionError: no"]


@pytest.mark.virtual_time
async def test_a_call_that_hangs_ends_with_the_limit_of_leaving(bench: Bench) -> None:
    async def hangs(_event: CheckpointDurable) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(700):
        async with bench.engine(keep=CheckpointConfig(on_durable=hangs), leave_timeout=60) as engine:
            await engine.trial("t").report({}, bench.checkpoint())


@pytest.mark.virtual_time
async def test_the_latest_file_follows_the_record(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine(keep=CheckpointConfig(latest_file="latest")) as engine:
        trial = engine.trial("t")
        for step in (1, 2):
            await trial.report({}, bench.checkpoint(f"c{step}"))
            assert (trial.dir / "latest").read_text() == f"checkpoint_00000{step - 1}"
    assert bench.store.contents["t/latest"] == b"checkpoint_000001"
    assert "latest" in Manifest.from_bytes(bench.store.contents["t/.asyncsync/manifest.json"]).files
    await pull("memory://b/exp", tmp_path / "copy")
    assert os.path.isdir(tmp_path / "copy/t" / (tmp_path / "copy/t/latest").read_text())


@pytest.mark.virtual_time
async def test_the_latest_file_is_right_after_a_crash_and_after_a_retirement(bench: Bench) -> None:
    keep = CheckpointConfig(latest_file="latest")
    async with bench.engine(keep=keep, sync=SyncConfig(sync_artifacts=True)) as engine:
        for step in (1, 2):
            await engine.trial("t").report({}, bench.checkpoint(f"c{step}"))
    os.unlink(bench.tmp_path / "local/exp/t/latest")
    async with bench.engine(keep=keep, resume=True) as engine:
        trial = engine.trial("t")
        await trial.sync()
        assert (trial.dir / "latest").read_text() == "checkpoint_000001"
        await trial.retire("checkpoint_000001")
    assert bench.store.contents["t/latest"] == b"checkpoint_000000"


@pytest.mark.parametrize("name", ["result.json", "checkpoint_000000", "a/b", ".asyncsync", ""])
def test_a_latest_file_with_another_meaning_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(ConfigError, match="latest_file"):
        bench.engine(keep=CheckpointConfig(latest_file=name))


@pytest.mark.virtual_time
async def test_the_latest_file_goes_with_the_last_checkpoint(bench: Bench) -> None:
    """A loader that looks for it would look for a checkpoint that is deleted."""
    async with bench.engine(keep=CheckpointConfig(latest_file="latest")) as engine:
        trial = engine.trial("t")
        for name in ("a", "b"):
            await trial.report({}, bench.checkpoint(name))
        await trial.retire("checkpoint_000001")
        await asyncio.sleep(5)
        assert bench.store.contents["t/latest"] == b"checkpoint_000000"
        await trial.retire("checkpoint_000000")
        await asyncio.sleep(5)
        assert not (trial.dir / "latest").exists()
        assert bench.keys("t/latest") == []


@pytest.mark.virtual_time
@pytest.mark.parametrize("on_loop", [True, False], ids=["coroutine", "thread"])
async def test_a_call_that_raises_a_cancel_does_not_end_the_others(bench: Bench, on_loop: bool) -> None:
    seen = []

    def note(event: CheckpointDurable) -> None:
        seen.append(event.checkpoint)
        raise asyncio.CancelledError

    async def note_on_loop(event: CheckpointDurable) -> None:
        note(event)

    keep = CheckpointConfig(on_durable=note_on_loop if on_loop else note)
    async with bench.engine(keep=keep, leave_timeout=50) as engine:
        events = engine.events()
        for name in ("a", "b"):
            await engine.trial("t").report({}, bench.checkpoint(name))
    assert seen == ["checkpoint_000000", "checkpoint_000001"]
    assert sum([isinstance(event, CallbackFailed) async for event in events]) == 2


@pytest.mark.virtual_time
async def test_a_call_may_flush_the_engine(bench: Bench) -> None:
    reports = []

    async def flush(_event: CheckpointDurable) -> None:
        reports.append(await engine.flush())

    async with bench.engine(keep=CheckpointConfig(on_durable=flush), leave_timeout=50) as engine:
        for name in ("a", "b"):
            await engine.trial("t").report({}, bench.checkpoint(name))
        await asyncio.sleep(10)
        assert len(reports) == 2
