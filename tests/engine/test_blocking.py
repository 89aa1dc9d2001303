"""The engine for training loops that are not async."""

from pathlib import Path

import pytest

from asyncsync import Checkpoint, EngineClosedError, RunConfig, SyncConfig, SyncEngine, UploadMode
from asyncsync.errors import CheckpointIncompleteError, ExperimentExistsError


def run(tmp_path: Path) -> RunConfig:
    return RunConfig(name="exp", storage_path=tmp_path / "store", sync_config=SyncConfig(sync_artifacts=True))


def checkpoint(tmp_path: Path, name: str) -> Path:
    directory = tmp_path / name
    directory.mkdir()
    (directory / "weights").write_bytes(name.encode())
    return directory


def test_the_same_methods_without_await(tmp_path: Path) -> None:
    with SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local") as engine:
        trial = engine.trial("t", params={"lr": 0.1})
        report = trial.report({"loss": 1.0}, checkpoint(tmp_path, "a"))
        assert report.checkpoint is not None
        assert report.checkpoint.is_durable
        later = trial.report({"loss": 0.5}, Checkpoint.take(checkpoint(tmp_path, "b")), upload=UploadMode.ASYNC)
        assert later.checkpoint is not None
        later.checkpoint.durable()
        (trial.dir / "plot").write_text("x")
        trial.sync()
        assert (tmp_path / "store/exp/t/plot").read_text() == "x"
        assert engine.status().trials["t"].last_durable == 1
        assert engine.flush(deadline=10).not_durable == ()
        trial.finish()
    assert (tmp_path / "store/exp/t/checkpoint_000001/weights").read_bytes() == b"b"
    assert (tmp_path / "store/exp/t/plot").read_text() == "x"
    assert not (tmp_path / "b").exists()


def test_an_exception_of_the_body_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local") as engine:
        engine.trial("t").report({"loss": 1.0})
        raise ZeroDivisionError
    assert (tmp_path / "store/exp/t/result.json").exists()


def test_an_error_of_entering_is_raised(tmp_path: Path) -> None:
    with SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local"):
        pass
    with pytest.raises(ExperimentExistsError), SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local"):
        pass


def test_outside_its_block_it_refuses(tmp_path: Path) -> None:
    engine = SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local")
    with pytest.raises(EngineClosedError):
        engine.trial("t")
    with engine:
        pass
    with pytest.raises(EngineClosedError):
        engine.status()


def test_events_end_with_the_engine(tmp_path: Path) -> None:
    with SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / "local") as engine:
        events = engine.events()
        engine.trial("t").sync()
        assert next(events).kind.startswith("Sync")


def test_a_rank_that_is_not_async_reports_its_step_or_gives_it_up(tmp_path: Path) -> None:
    ranks = [
        SyncEngine.blocking(run(tmp_path), local_dir=tmp_path / f"{n}", rank=n, world_size=2, role="worker")
        for n in range(2)
    ]
    with ranks[0] as zero, ranks[1] as one:
        (checkpoint(tmp_path, "other") / "weights").rename(tmp_path / "other" / "of_rank_1")
        first = zero.trial("t").report({}, checkpoint(tmp_path, "shard"), step=1, upload=UploadMode.ASYNC)
        one.trial("t").report({}, tmp_path / "other", step=1)
        first.checkpoint.durable()
        waiting = zero.trial("t").report({}, checkpoint(tmp_path, "lost"), step=2, upload=UploadMode.ASYNC)
        one.trial("t").skip(2, reason="no memory")
        with pytest.raises(CheckpointIncompleteError, match="rank 1 gave up step 2: no memory"):
            waiting.checkpoint.durable()
