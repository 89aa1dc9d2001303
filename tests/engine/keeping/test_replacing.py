"""When too many checkpoints are pending, the newest may take the place of one that has not begun."""

from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import Checkpoint, CheckpointConfig, CheckpointReplacedError, ConfigError, Experiment, UploadMode
from asyncsync.disk.accepted_files import Accepted
from asyncsync.events import CheckpointReplaced, SyncWarning

pytestmark = pytest.mark.virtual_time
REPLACE = CheckpointConfig(max_pending_checkpoints=2, when_full="replace")


async def fill(bench: Bench, trial, *names: str, upload: UploadMode = UploadMode.ASYNC) -> list:
    return [
        (await trial.report({}, Checkpoint.take(bench.checkpoint(name)), upload=upload)).checkpoint for name in names
    ]


async def test_the_oldest_that_has_not_begun_is_replaced(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine(keep=REPLACE) as engine:
        trial, events = engine.trial("t"), engine.events()
        await trial.sync()
        hold = bench.faults.hang(key="checkpoint_")
        (begun,) = await fill(bench, trial, "a")
        await hold.reached.wait()
        second, third, fourth = await fill(bench, trial, "b", "c", "d")
        assert engine.status().trials["t"].pending_checkpoints == 2
        assert not (tmp_path / "b").exists()
        assert (tmp_path / "a").exists()
        hold.release.set()
        await begun.durable()
        await fourth.durable()
        for handle in (second, third):
            with pytest.raises(CheckpointReplacedError, match="before its upload began"):
                await handle.durable()
        await trial.report({})  # raises nothing: it was asked for
    replaced = [event async for event in events if isinstance(event, CheckpointReplaced)]
    assert [(event.checkpoint, event.by) for event in replaced] == [
        (second.name, third.name),
        (third.name, fourth.name),
    ]
    names = [item.name for item in (await Experiment.open("memory://b/exp")).checkpoints]
    assert names == [fourth.name, begun.name]


async def test_a_report_that_somebody_waits_for_is_never_replaced(bench: Bench) -> None:
    async with bench.engine(keep=CheckpointConfig(max_pending_checkpoints=1, when_full="replace")) as engine:
        trial = engine.trial("t")
        (first,) = await fill(bench, trial, "a")
        await fill(bench, trial, "b", upload=UploadMode.SYNC)
        (third,) = await fill(bench, trial, "c")
        await third.durable()
        assert first.is_durable


async def test_a_replaced_directory_that_was_lent_stays(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine(keep=REPLACE) as engine:
        trial = engine.trial("t")
        hold = bench.faults.hang(key="checkpoint_")
        for name in "abc":
            await trial.report({}, bench.checkpoint(name), upload=UploadMode.ASYNC)
            await hold.reached.wait()
        assert (tmp_path / "b/weights").exists()
        hold.release.set()


async def test_a_refused_report_replaces_nothing(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine(keep=REPLACE) as engine:
        trial = engine.trial("t")
        hold = bench.faults.hang(key="checkpoint_")
        await fill(bench, trial, "a")
        await hold.reached.wait()
        (second,) = await fill(bench, trial, "b")
        (tmp_path / "empty").mkdir()
        with pytest.raises(Exception, match="no file"):
            await trial.report({}, tmp_path / "empty", upload=UploadMode.ASYNC)
        hold.release.set()
        await second.durable()


async def test_a_replaced_checkpoint_is_not_resumed_by_the_next_process(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        async with bench.engine(keep=REPLACE, exit_grace=0.01) as engine:
            trial = engine.trial("t")
            await trial.sync()
            hold = bench.faults.hang(key="checkpoint_", times=None)
            begun, *_ = await fill(bench, trial, "a")
            await hold.reached.wait()
            _, last = await fill(bench, trial, "b", "c")
            raise KeyboardInterrupt
    bench.faults.clear()
    async with bench.engine(keep=REPLACE, resume=True):
        pass
    names = [item.name for item in (await Experiment.open("memory://b/exp")).checkpoints]
    assert names == [last.name, begun.name]


def test_several_ranks_cannot_replace(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="each rank would replace another step"):
        bench.engine(keep=REPLACE, role="worker", rank=1, world_size=2)


async def test_a_replaced_directory_that_cannot_be_deleted_is_a_warning(bench: Bench, monkeypatch) -> None:
    """The report that replaces it is recorded already."""

    def refused(accepted: Accepted) -> None:
        raise PermissionError(13, "Permission denied", accepted.path)

    async with bench.engine(keep=REPLACE) as engine:
        trial, events = engine.trial("t"), engine.events()
        hold = bench.faults.hang(key="checkpoint_")
        await fill(bench, trial, "a")
        await hold.reached.wait()
        await fill(bench, trial, "b")
        with monkeypatch.context() as patch:
            patch.setattr(Accepted, "remove", refused)
            (third,) = await fill(bench, trial, "c")
        hold.release.set()
        await third.durable()
    warnings = [event.message async for event in events if isinstance(event, SyncWarning)]
    assert any("Permission denied" in message and "checkpoint_000001" in message for message in warnings)
