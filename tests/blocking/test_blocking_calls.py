"""The names of asyncsync without await: functions, experiments and syncers."""

import asyncio
import inspect
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import asyncsync
from asyncsync import (
    ConfigError,
    EngineClosedError,
    IntegrityError,
    RunConfig,
    StoreError,
    SyncConfig,
    SyncFailedError,
    TransferConfig,
    UploadMode,
    blocking,
)

MIB = 1 << 20


def tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"a" * 1000)
    (root / "sub/b").write_bytes(b"b")
    return root


COROUTINES = [name for name in asyncsync.__all__ if inspect.iscoroutinefunction(getattr(asyncsync, name))]


@pytest.mark.parametrize("name", COROUTINES)
def test_functions_have_the_signatures_of_their_twins(name: str) -> None:
    twin, function = getattr(asyncsync, name), getattr(blocking, name)
    assert name in blocking.__all__
    assert list(inspect.signature(function).parameters) == list(inspect.signature(twin).parameters)
    assert not inspect.iscoroutinefunction(function)


def test_the_contents_of_any_address_are_read(tmp_path: Path) -> None:
    run = RunConfig(name="exp", storage_path=tmp_path / "store")
    with blocking.SyncEngine(run, local_dir=tmp_path / "local") as engine:
        engine.trial("t").report({"loss": 1.0}, checkpoint=tree(tmp_path / "checkpoint"))
    assert [found.name for found in blocking.contents(tmp_path / "store")] == ["exp"]  # type: ignore[union-attr]
    experiment, trial = blocking.contents(run.uri), blocking.contents(f"{run.uri}/t")
    assert isinstance(experiment, blocking.Experiment)
    assert isinstance(trial, blocking.StoredTrial)
    assert [checkpoint.manifest().bytes_total for checkpoint in trial.checkpoints] == [1001]
    assert set(blocking.contents(f"{run.uri}/t/checkpoint_000000").files) == {"a", "sub/b"}  # type: ignore[union-attr]


def test_an_object_is_read_piece_by_piece(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"a" * (2 * MIB + 1))
    pieces: list[bytes] = []
    assert blocking.read_object(tmp_path / "object", pieces.append) == 2 * MIB + 1
    assert b"".join(pieces) == b"a" * (2 * MIB + 1)
    assert len(pieces) > 1


@pytest.mark.parametrize(
    ("twin", "own", "leaves_out"),
    [
        (asyncsync.Syncer, blocking.Syncer, {"sync_config"}),
        (asyncsync.Experiment, blocking.Experiment, set()),
        (asyncsync.Trial, blocking.BlockingTrial, set()),
        (asyncsync.SyncEngine, blocking.SyncEngine, {"blocking"}),
    ],
)
def test_classes_have_the_methods_of_their_twins(twin: type, own: type, leaves_out: set[str]) -> None:
    for name in {name for name in dir(twin) if not name.startswith("_")} - leaves_out:
        method = getattr(twin, name)
        if inspect.isfunction(method) or inspect.ismethod(method):
            parameters = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(own, name)).parameters) == parameters, name


def test_push_pull_verify_and_repair(tmp_path: Path) -> None:
    uri, root = str(tmp_path / "store"), tree(tmp_path / "tree")
    assert blocking.push(root, uri).files_sent == 2
    (tmp_path / "store/a").write_bytes(b"x" * 1000)
    with pytest.raises(IntegrityError):
        blocking.pull(uri, tmp_path / "copy", transfer=TransferConfig(max_attempts=1))
    assert not blocking.verify(uri, deep=True).ok
    assert blocking.repair(uri, root, deep=True).ok
    blocking.pull(uri, tmp_path / "part", include="a")
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["a"]


async def test_calls_work_inside_a_running_event_loop(tmp_path: Path) -> None:
    assert blocking.push(tree(tmp_path / "tree"), str(tmp_path / "store")).files_sent == 2
    await asyncio.sleep(0)


def experiment(tmp_path: Path, data: bytes) -> blocking.Experiment:
    run = RunConfig(name="exp", storage_path=tmp_path / "store", transfer=TransferConfig(part_size=5 * MIB))
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/model").write_bytes(data)
    with blocking.SyncEngine(run, local_dir=tmp_path / "local") as engine:
        trial = engine.trial("t")
        assert trial.latest() is None
        for step in (1, 2):
            trial.report({"loss": step}, tmp_path / "ckpt", step=step)
        trial.set_params({"lr": 1})
        trial.pin("checkpoint_000000")
        trial.unpin("checkpoint_000000")
        assert trial.latest().step == 2
        assert trial.restore(tmp_path / "restored").checkpoint.name == "checkpoint_000001"
        trial.retire("checkpoint_000001")
        assert trial.status == "running"
    return blocking.Experiment.open(tmp_path / "store/exp")


def test_an_experiment_is_read_and_its_files_are_opened(tmp_path: Path) -> None:
    data = os.urandom(40 * MIB)
    stored = experiment(tmp_path, data)
    assert (stored.name, stored.trial("t").params, len(stored.checkpoints)) == ("exp", {"lr": 1}, 1)
    checkpoint = stored.checkpoint("t", step=1)
    assert stored.latest_checkpoint(stored.trial("t")).name == checkpoint.name
    assert stored.best_checkpoint("loss", "min").name == checkpoint.name
    assert (checkpoint.verify().ok, list(checkpoint.manifest().files)) == (True, ["model"])
    checkpoint.download(tmp_path / "out")
    stored.restore(tmp_path / "out2", "t")
    assert (tmp_path / "out/model").read_bytes() == (tmp_path / "out2/model").read_bytes() == data
    with checkpoint.open("model") as file:
        file.seek(-7, os.SEEK_END)
        assert (file.read(), file.tell()) == (data[-7:], len(data))
        buffer = bytearray(100)
        file.seek(6 * MIB)
        assert (file.readinto(buffer), bytes(buffer)) == (100, data[6 * MIB :][:100])
        file.seek(0)
        assert io.BufferedReader(file).read(10) == data[:10]
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 9)
    with pytest.raises(ConfigError, match="has no file 'x'"), checkpoint.open("x"):
        pass
    with pytest.raises(ZeroDivisionError), checkpoint.open("model"):
        raise ZeroDivisionError


# Syncer


def test_a_syncer_syncs_on_request(tmp_path: Path) -> None:
    root, store = tree(tmp_path / "tree"), tmp_path / "store"
    with blocking.Syncer(root, str(store)) as syncer:
        assert syncer.plan().bytes_sent == 1001
        syncer.request()
        syncer.wait()
        assert (store / "sub/b").read_bytes() == b"b"
        (root / "c").write_bytes(b"c")
        assert syncer.sync_up_if_needed() is None
        assert syncer.sync_up().files_sent == 1
        (root / "c").unlink()
        assert syncer.sync_down().files_sent == 1
        (root / "d").write_bytes(b"d")
        for _ in range(100):
            syncer.request()
    assert (store / "d").exists()  # leaving waits for what was requested
    with pytest.raises(EngineClosedError):
        syncer.request()
    syncer.start()
    assert syncer.delete() == 4
    syncer.close()


def test_the_failure_of_a_requested_sync_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    with blocking.Syncer(root, str(tmp_path / "store")) as syncer:
        (tmp_path / "store").write_text("no directory")
        syncer.request()
        with pytest.raises((SyncFailedError, StoreError)):
            syncer.wait()
        syncer.wait()  # told once
        syncer.request()
        with pytest.raises((SyncFailedError, StoreError)):
            syncer.close()


def test_a_later_success_makes_up_for_a_failure(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    with blocking.Syncer(root, str(tmp_path / "store")) as syncer:
        (tmp_path / "store").write_text("no directory")
        syncer.request()
        with pytest.raises((SyncFailedError, StoreError)):
            syncer.sync_up()
        (tmp_path / "store").unlink()
        syncer.request()
        syncer.wait()
    assert (tmp_path / "store/a").exists()


def test_requests_may_come_from_any_thread(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    with blocking.Syncer(root, str(tmp_path / "store"), SyncConfig()) as syncer:
        threads = [threading.Thread(target=syncer.request) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "store/a").exists()


def test_a_syncer_never_closed_ends_with_the_interpreter(tmp_path: Path) -> None:
    code = (
        "import sys; from asyncsync import blocking\n"
        "syncer = blocking.Syncer(sys.argv[1], sys.argv[2]); syncer.start(); syncer.request()\n"
        "raise RuntimeError('training failed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree(tmp_path / "tree")), str(tmp_path / "store")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "training failed" in done.stderr
    assert (tmp_path / "store/.asyncsync/manifest.json").exists()
    assert (tmp_path / "store/sub/b").exists()


def test_an_async_report_of_a_blocking_trial(tmp_path: Path) -> None:
    run = RunConfig(name="exp", storage_path=tmp_path / "store")
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/model").write_bytes(b"m")
    engine = blocking.SyncEngine(run, local_dir=tmp_path / "local")
    engine.start()
    handle = engine.trial("t").report({}, tmp_path / "ckpt", upload=UploadMode.ASYNC).checkpoint
    handle.durable()
    engine.close(grace=10)


def test_an_experiment_that_is_being_opened_shows_what_is_known_so_far(tmp_path: Path) -> None:
    experiment(tmp_path, b"data")
    seen: list[blocking.Experiment] = []
    whole = blocking.Experiment.open(str(tmp_path / "store/exp"), on_partial=seen.append)
    assert [type(found) for found in seen] == [type(whole)]
    assert [[trial.name for trial in found.trials] for found in (*seen, whole)] == [["t"], ["t"]]
