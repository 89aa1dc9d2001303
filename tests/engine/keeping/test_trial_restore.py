"""Restoring inside a running engine, parameters that come later, and one checkpoint of a stored experiment."""

import asyncio
import json
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import ConfigError, Experiment, NotFoundError, UploadMode
from asyncsync.disk.results import write_params
from asyncsync.engine.trials import state
from asyncsync.sync.records.model import TrialRecord

pytestmark = pytest.mark.virtual_time


async def test_a_resumed_trial_restores_its_newest_checkpoint(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        assert trial.latest() is None
        with pytest.raises(NotFoundError, match="no checkpoint"):
            await trial.restore(tmp_path / "none")
        for step in (1, 2):
            await trial.report({"loss": step}, bench.checkpoint(f"c{step}", w=b"%d" % step, x=b"x"), step=step)
    async with bench.engine(resume=True) as engine:
        trial = engine.trial("t")
        assert (trial.latest().step, trial.latest().metrics) == (2, {"loss": 2})
        report = await trial.restore(tmp_path / "out", include="w")
        assert report.checkpoint.step == 2
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["w"]
        assert (tmp_path / "out/w").read_bytes() == b"2"


async def test_a_damaged_checkpoint_is_passed_over(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine() as engine:
        for step in (1, 2):
            await engine.trial("t").report({}, bench.checkpoint(f"c{step}", w=b"%d" % step), step=step)
        bench.store.contents.pop("t/checkpoint_000001/w", None)
        await bench.store.delete(["t/checkpoint_000001/w"])
        report = await engine.trial("t").restore(tmp_path / "out")
    assert (report.checkpoint.step, [name for name, _ in report.passed_over]) == (1, ["t/checkpoint_000001"])
    assert (tmp_path / "out/w").read_bytes() == b"1"


async def test_every_rank_restores_a_checkpoint_that_no_record_names(bench: Bench, tmp_path: Path) -> None:
    """The process ended between manifest and record: each rank adopts it by itself."""
    async with bench.engine() as engine:
        for step in (1, 2):
            await engine.trial("t").report({}, bench.checkpoint(f"c{step}", w=b"%d" % step), step=step)
    record = TrialRecord.from_bytes(bench.store.contents["t/.asyncsync/trial.json"])
    record.checkpoints.pop()
    await bench.store.put("t/.asyncsync/trial.json", record.to_bytes())
    options = {"resume": True, "world_size": 2}
    one = bench.engine(local_dir=tmp_path / "one", role="worker", rank=1, **options)
    async with bench.engine(**options) as zero, one:
        steps = [
            (await engine.trial("t").restore(tmp_path / f"out{rank}")).checkpoint.step
            for rank, engine in ((1, one), (0, zero))
        ]
    assert steps == [2, 2]


async def test_parameters_may_be_set_after_the_trial_began(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await trial.report({"loss": 1})
        trial.set_params({"lr": 0.1})
        await trial.sync()
        assert json.loads(bench.store.contents["t/params.json"]) == {"lr": 0.1}
        trial.set_params({"lr": 0.2})
    assert json.loads(bench.store.contents["t/params.json"]) == {"lr": 0.2}
    assert (await Experiment.open("memory://b/exp")).trial("t").params == {"lr": 0.2}


async def test_a_checkpoint_is_found_by_step_or_name(bench: Bench) -> None:
    async with bench.engine() as engine:
        for step in (5, 10):
            await engine.trial("t").report({}, bench.checkpoint(f"c{step}"), step=step)
    experiment = await Experiment.open("memory://b/exp")
    assert experiment.checkpoint("t", step=10).name == "checkpoint_000001"
    assert experiment.checkpoint("t", name="checkpoint_000000").step == 5
    with pytest.raises(ConfigError, match=r"with step 7; the newest are: checkpoint_000001 \(step 10\)"):
        experiment.checkpoint("t", step=7)
    for wrong in ({}, {"step": 5, "name": "checkpoint_000000"}):
        with pytest.raises(ConfigError, match="either step or name"):
            experiment.checkpoint("t", **wrong)


async def test_the_latest_checkpoint_is_one_that_the_record_names(bench: Bench, tmp_path: Path) -> None:
    """Until the record is stored, the newest one may still fail, and be deleted."""
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await trial.report({}, bench.checkpoint("c1", w=b"1"), step=1)
        hold = bench.faults.hang(operation="put", key="trial.json", times=None)
        report = await trial.report({}, bench.checkpoint("c2", w=b"2"), step=2, upload=UploadMode.ASYNC)
        await hold.reached.wait()
        assert not report.checkpoint.is_durable
        assert trial.latest().step == 1
        assert (await trial.restore(tmp_path / "out")).checkpoint.step == 1
        hold.release.set()
        await report.checkpoint.durable()
        assert trial.latest().step == 2


async def test_parameters_set_while_the_first_are_written_are_written_too(bench: Bench, monkeypatch) -> None:
    began, free = asyncio.Event(), asyncio.Event()

    async def slow(directory: Path, params: dict) -> None:
        await write_params(directory, dict(params))
        began.set()
        await free.wait()

    monkeypatch.setattr(state, "write_params", slow)
    async with bench.engine() as engine:
        trial = engine.trial("t", params={"lr": 1})
        report = asyncio.create_task(trial.report({}))
        await began.wait()
        trial.set_params({"lr": 2})
        free.set()
        await report
        await trial.report({})
        assert json.loads((trial.dir / "params.json").read_text()) == {"lr": 2}
