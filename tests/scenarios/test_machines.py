"""Several engines on one store, as on several machines: a driver and workers, each with its own records."""

import json
from functools import partial
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import ConfigError, Experiment, SyncConfig, SyncEngine
from asyncsync.errors import ConcurrentWriterError
from asyncsync.events import Event, SyncWarning
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.stores.base import Traits
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord
from asyncsync.testing import run_virtual


def worker(bench: Bench, name: str = "elsewhere", **options: object) -> SyncEngine:
    return bench.engine(role="worker", local_dir=bench.tmp_path / name, **options)


def the_experiment(bench: Bench) -> ExperimentRecord:
    return ExperimentRecord.from_bytes(bench.store.contents[EXPERIMENT_RECORD])


def test_a_worker_runs_trials_and_leaves_the_drivers_record_alone(bench: Bench) -> None:
    async def main() -> Experiment:
        async with bench.engine() as driver:
            await driver.trial("mine").report({"loss": 2.0})
            await driver.sync()
            before = bench.store.contents[EXPERIMENT_RECORD]
            async with worker(bench) as engine:
                trial = engine.trial("theirs", params={"lr": 1})
                await trial.report({"loss": 1.0}, bench.checkpoint())
                await trial.finish()
            assert bench.store.contents[EXPERIMENT_RECORD] == before
            return await Experiment.open("memory://b/exp")

    experiment = run_virtual(main())
    assert [trial.name for trial in experiment.trials] == ["mine", "theirs"]
    theirs = experiment.trial("theirs")
    assert (theirs.status, theirs.params, theirs.metrics) == ("finished", {"lr": 1}, {"loss": 1.0})
    assert experiment.best_checkpoint("loss", "min") == theirs.checkpoints[0]
    assert the_experiment(bench).trials == {"mine": "running"}


def test_a_worker_may_come_before_the_driver(bench: Bench) -> None:
    async def main() -> list[str]:
        async with worker(bench) as engine:
            await engine.trial("t").report({"loss": 1.0}, bench.checkpoint())
            async with bench.engine():
                pass
        return [trial.name for trial in (await Experiment.open("memory://b/exp")).trials]

    assert run_virtual(main()) == ["t"]


def test_two_workers_cannot_run_one_trial(bench: Bench) -> None:
    async def main() -> None:
        async with worker(bench) as first:
            await first.trial("t").report({"who": "first"}, bench.checkpoint())
            await first.sync()
            before = bench.store.contents
            with pytest.raises(ConcurrentWriterError):
                async with worker(bench, "third") as second:
                    await second.trial("t").report({"who": "second"}, bench.checkpoint())
            assert bench.store.contents == before

    run_virtual(main())


def test_a_worker_resumes_a_trial_of_another_machine(bench: Bench) -> None:
    async def main() -> None:
        async with worker(bench, "first") as engine:
            await engine.trial("t", params={"lr": 1}).report({"step": 1}, bench.checkpoint())
        async with worker(bench, "second", resume=True) as engine:
            report = await engine.trial("t").report({"step": 2}, bench.checkpoint())
            assert report.checkpoint is not None
            assert report.checkpoint.name == "checkpoint_000001"

    run_virtual(main())
    lines = bench.store.contents["t/result.json"].splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    record = TrialRecord.from_bytes(bench.store.contents["t/.asyncsync/trial.json"])
    assert (record.epoch, record.params) == (2, {"lr": 1})


def test_a_driver_does_not_sync_a_workers_trial_on_the_same_machine(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_artifacts=False)) as driver:
            async with bench.engine(role="worker") as engine:
                trial = engine.trial("t")
                (trial.dir / "artifact").write_bytes(b"stays")
                (driver.local_dir / "searcher").write_bytes(b"goes")
                await driver.sync()

    run_virtual(main())
    assert "searcher" in bench.store.contents
    assert "t/artifact" not in bench.store.contents


def test_an_unknown_role_is_refused(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(ConfigError, match="driver"):
        bench.engine(role="boss")


def test_a_store_without_conditional_writes_is_reported_at_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asyncsync.testing.memory.Traits", partial(Traits, conditional_writes=False))

    async def main() -> tuple[bool, Event]:
        engine = bench.engine()
        events = engine.events()
        async with engine:
            return engine.status().conditional_writes, await anext(events)

    able, event = run_virtual(main())
    assert not able
    assert isinstance(event, SyncWarning)
    assert "no conditional writes" in event.message
    assert event.message in caplog.text
