"""The life cycle of a checkpoint."""

import asyncio
import json
import math

import pytest
from onebench import Bench

from asyncsync import Checkpoint, CheckpointConfig, ConfigError, SyncConfig, UploadMode
from asyncsync.errors import (
    AccessDeniedError,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    SyncError,
    SyncFailedError,
)
from asyncsync.planning.manifest import Manifest
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import run_virtual

MANIFEST = ".asyncsync/manifest.json"


def record(bench: Bench, trial: str = "t") -> TrialRecord:
    return TrialRecord.from_bytes(bench.store.contents[f"{trial}/.asyncsync/trial.json"])


def names(bench: Bench) -> list[str]:
    return [item.name for item in record(bench).checkpoints]


def test_a_sync_report_returns_when_files_manifest_and_record_are_there(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            report = await trial.report({"loss": 0.5}, bench.checkpoint(a=b"1", b=b"22"), metadata={"epoch": 3})
            assert report.checkpoint is not None
            assert report.checkpoint.is_durable
            assert report.checkpoint.name == "checkpoint_000000"
            contents = bench.store.contents
            manifest = Manifest.from_bytes(contents[f"t/checkpoint_000000/{MANIFEST}"])
            assert {path: contents[f"t/checkpoint_000000/{path}"] for path in manifest.files} == {"a": b"1", "b": b"22"}
            item = record(bench).checkpoints[0]
            assert (item.metrics, item.metadata, item.files, item.bytes) == ({"loss": 0.5}, {"epoch": 3}, 2, 3)

    run_virtual(main())


def test_files_are_written_before_the_manifest_and_that_before_the_record(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.sync()
            bench.faults.requests.clear()
            await trial.report({}, bench.checkpoint(a=b"1", b=b"2"))
            puts = [request.key for request in bench.faults.requests if request.operation == "put"]
            mine = [key for key in puts if "checkpoint_000000" in key or key.endswith("trial.json")]
            assert mine[-2].endswith(MANIFEST)
            assert mine[-1].endswith("trial.json")

    run_virtual(main())


def test_reports_take_effect_in_order_in_any_mode(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            modes = [UploadMode.ASYNC, UploadMode.SYNC, UploadMode.ASYNC, UploadMode.NO_UPLOAD, UploadMode.SYNC]
            for step, mode in enumerate(modes):
                await trial.report({"step": step}, bench.checkpoint(f"c{step}"), upload=mode)
                if mode is UploadMode.SYNC:
                    assert [item.metrics["step"] for item in record(bench).checkpoints] == [
                        earlier for earlier in range(step + 1) if modes[earlier] is not UploadMode.NO_UPLOAD
                    ]

    run_virtual(main())
    assert names(bench) == [f"checkpoint_{number:06d}" for number in range(4)]


def test_upload_mode_none_sends_nothing_and_reports_it(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            report = await engine.trial("t").report({}, bench.checkpoint(), upload=UploadMode.NO_UPLOAD)
            assert report.checkpoint is not None
            assert not report.checkpoint.is_durable
            with pytest.raises(SyncError, match="NO_UPLOAD"):
                await report.checkpoint.durable()

    run_virtual(main())
    assert not bench.keys("weights")


def test_async_deletes_owned_directories_and_never_lent_ones(bench: Bench) -> None:
    owned, lent, plain = (bench.checkpoint(name) for name in ("owned", "lent", "plain"))

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            for source in (Checkpoint.take(owned), Checkpoint.lend(lent), plain):
                await trial.report({}, source, upload=UploadMode.ASYNC)

    run_virtual(main())
    assert (owned.exists(), lent.exists(), plain.exists()) == (False, True, True)


def test_deleting_a_lent_directory_is_refused(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(ConfigError, match="lent"):
                await engine.trial("t").report({}, bench.checkpoint(), delete_local=True)

    run_virtual(main())


def test_a_snapshot_equals_the_directory_at_that_moment(bench: Bench) -> None:
    source = bench.checkpoint("live", weights=b"before")

    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, Checkpoint.snapshot(source), upload=UploadMode.ASYNC)
            (source / "weights").write_bytes(b"after!")

    run_virtual(main())
    assert bench.store.contents["t/checkpoint_000000/weights"] == b"before"
    assert [path.name for path in bench.tmp_path.iterdir() if "asyncsync-tmp" in path.name] == []


def test_retention_keeps_the_best_and_the_latest(bench: Bench) -> None:
    keep = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="eval/loss", checkpoint_score_order="min")

    async def main() -> None:
        async with bench.engine(keep=keep) as engine:
            trial = engine.trial("t")
            for loss in (0.1, 0.5, math.nan, 0.2, 0.9):
                await trial.report({"eval": {"loss": loss}}, bench.checkpoint())

    run_virtual(main())
    assert names(bench) == ["checkpoint_000000", "checkpoint_000003", "checkpoint_000004"]
    there = {key.split("/")[1] for key in bench.keys() if "/checkpoint_" in key}
    assert there == set(names(bench))


def test_retiring_goes_record_then_manifest_then_data(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(keep=CheckpointConfig(num_to_keep=1)) as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint())
            bench.faults.requests.clear()
            await trial.report({}, bench.checkpoint())

    run_virtual(main())
    log = [(request.operation, request.key) for request in bench.faults.requests]
    without = next(index for index, (verb, key) in enumerate(log) if verb == "put" and key.endswith("trial.json"))
    deletes = [index for index, (verb, _) in enumerate(log) if verb == "delete"]
    assert without < deletes[0]
    assert log[deletes[0]][1].endswith(f"checkpoint_000000/{MANIFEST}")
    assert "weights" in log[deletes[1]][1]


def test_a_file_that_fails_leaves_no_manifest_and_no_data(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            bench.faults.fail(error=AccessDeniedError("not you"), operation="put", key="/b")
            with pytest.raises(SyncFailedError, match="not you"):
                await trial.report({}, bench.checkpoint(a=b"1", b=b"2"))

    run_virtual(main())
    assert not [key for key in bench.keys() if "checkpoint_000000" in key]
    assert names(bench) == []


def test_an_async_failure_is_reported_at_the_next_report(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            bench.faults.fail(error=AccessDeniedError("not you"), operation="put", key="weights")
            await trial.report({"step": 0}, bench.checkpoint(), upload=UploadMode.ASYNC)
            await asyncio.sleep(5)
            with pytest.raises(SyncFailedError, match="not you"):
                await trial.report({"step": 1})
            await trial.report({"step": 1})

    run_virtual(main())
    lines = bench.store.contents["t/result.json"].decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_an_async_failure_is_reported_at_exit(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(SyncFailedError, match="not you"):
            async with bench.engine() as engine:
                bench.faults.fail(error=AccessDeniedError("not you"), operation="put", key="weights")
                await engine.trial("t").report({"step": 0}, bench.checkpoint(), upload=UploadMode.ASYNC)

    run_virtual(main())


def test_a_missing_directory_is_refused_before_anything_is_recorded(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(CheckpointIncompleteError, match="neither a directory nor a file"):
                await engine.trial("t").report({}, bench.tmp_path / "nowhere")

    run_virtual(main())
    assert not bench.keys("result.json")


def test_a_checkpoint_directory_in_the_trial_is_not_an_artifact(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_artifacts=True)) as engine:
            trial = engine.trial("t")
            trial.dir.mkdir(parents=True, exist_ok=True)
            inside = trial.dir / "out"
            inside.mkdir()
            (inside / "weights").write_bytes(b"w")
            await trial.report({}, inside)

    run_virtual(main())
    assert bench.keys("weights") == ["t/checkpoint_000000/weights"]


def test_resuming_numbers_on_and_appends(bench: Bench) -> None:
    async def main(local: str) -> None:
        async with bench.engine(resume=True, local_dir=bench.tmp_path / local) as engine:
            trial = engine.trial("t")
            await trial.report({"where": local}, bench.checkpoint())

    run_virtual(main("one"))
    run_virtual(main("another machine"))
    assert names(bench) == ["checkpoint_000000", "checkpoint_000001"]
    lines = bench.store.contents["t/result.json"].decode().splitlines()
    assert [json.loads(line)["where"] for line in lines] == ["one", "another machine"]
    assert [json.loads(line)["training_iteration"] for line in lines] == [1, 2]


def test_resuming_adopts_committed_but_unregistered_checkpoints(bench: Bench) -> None:
    async def first() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({"loss": 7.0}, bench.checkpoint())

    async def second() -> None:
        async with bench.engine(resume=True, local_dir=bench.tmp_path / "other") as engine:
            await engine.trial("t").report({})

    run_virtual(first())
    lost = record(bench)
    lost.checkpoints, lost.next_checkpoint = [], 0
    bench.store._store("t/.asyncsync/trial.json", lost.to_bytes(), "lost")
    run_virtual(second())
    assert [(item.name, item.metrics) for item in record(bench).checkpoints] == [("checkpoint_000000", {"loss": 7.0})]


def test_a_directory_without_manifest_keeps_its_number(bench: Bench) -> None:
    async def first() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, bench.checkpoint())

    async def second() -> str:
        async with bench.engine(resume=True) as engine:
            report = await engine.trial("t").report({}, bench.checkpoint())
            assert report.checkpoint is not None
            return report.checkpoint.name

    run_virtual(first())
    asyncio.run(bench.store.put("t/checkpoint_000005/half", b"x"))
    assert run_virtual(second()) == "checkpoint_000006"
    assert "checkpoint_000005" not in names(bench)


def test_a_report_of_one_trial_rewrites_that_trials_record_only(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trials = [engine.trial(f"t{index}") for index in range(200)]
            await engine.sync()
            bench.faults.requests.clear()
            await trials[7].report({"loss": 1.0}, bench.checkpoint())
            written = [request.key for request in bench.faults.requests if request.operation == "put"]
            assert [key for key in written if key.endswith(("trial.json", "experiment.json"))] == [
                "t7/.asyncsync/trial.json"
            ]

    run_virtual(main())


def test_a_second_runner_of_a_trial_overwrites_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({"who": "first"}, bench.checkpoint())
            await engine.trial("t").sync()
            with pytest.raises(ConcurrentWriterError):
                async with bench.engine(role="worker", local_dir=bench.tmp_path / "other") as second:
                    await second.trial("t").report({"who": "second"}, bench.checkpoint())

    run_virtual(main())
    assert b"second" not in b"".join(bench.store.contents.values())
    assert names(bench) == ["checkpoint_000000"]


def test_a_zombie_loses_at_its_next_write(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(SyncFailedError) as caught:
            async with bench.engine() as zombie:
                trial = zombie.trial("t")
                await trial.sync()
                async with bench.engine(resume=True, local_dir=bench.tmp_path / "other") as heir:
                    await heir.trial("t").report({"who": "heir"}, bench.checkpoint())
                with pytest.raises(ConcurrentWriterError):
                    await trial.report({"who": "zombie"}, bench.checkpoint())
        assert all(isinstance(error, ConcurrentWriterError) for error in caught.value.failures.values())

    run_virtual(main())
    assert names(bench) == ["checkpoint_000000"]
    assert record(bench).metrics == {"who": "heir"}
    assert bench.store.contents["t/checkpoint_000000/weights"]
