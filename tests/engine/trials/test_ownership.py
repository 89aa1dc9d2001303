"""Ownership of directories: which may be reported, how a checkpoint may be named, and which files are deleted."""

import asyncio
import os
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import (
    Checkpoint,
    CheckpointConfig,
    ConfigError,
    Experiment,
    RunConfig,
    SyncConfig,
    SyncEngine,
    UploadMode,
    verify,
)
from asyncsync.engine.trials.context import DirectoryInUse, UsedDirectories
from asyncsync.errors import CheckpointIncompleteError
from asyncsync.events import SyncWarning
from asyncsync.planning.manifest import MANIFEST
from asyncsync.testing import run_virtual

ASYNC = UploadMode.ASYNC
ARTIFACTS = SyncConfig(sync_artifacts=True)


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize(
    "which",
    [
        "trial",
        "trial/",
        "trial/.",
        "trial/sub/..",
        "link to trial",
        "relative",
        "engine",
        "above",
        "other trial",
        "result.json",
        "state",
    ],
)
def test_asyncsyncs_own_files_cannot_be_a_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, which: str, *, owned: bool
) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial, other = engine.trial("t"), engine.trial("u")
            await trial.report({"x": 1})
            (trial.dir / "sub").mkdir()
            link = bench.tmp_path / "link"
            link.symlink_to(trial.dir)
            (other.dir / "file").write_bytes(b"file")
            monkeypatch.chdir(trial.dir)
            path = {
                "trial": trial.dir,
                "trial/": f"{trial.dir}/",
                "trial/.": f"{trial.dir}/.",
                "relative": ".",
                "trial/sub/..": f"{trial.dir}/sub/..",
                "link to trial": link,
                "engine": engine.local_dir,
                "above": bench.tmp_path,
                "other trial": other.dir,
                "result.json": trial.dir / "result.json",
                "state": bench.tmp_path / "state",
            }[which]
            with pytest.raises(ConfigError, match="directory of its own"):
                await trial.report({"x": 2}, Checkpoint.take(path) if owned else path)
            assert (trial._state.record.reports, trial._state.jobs) == (1, ())

    run_virtual(main())


@pytest.mark.parametrize("which", ["home", "above home", "mount"])
def test_a_home_or_a_mount_point_is_not_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    home = bench.tmp_path / "users/me"
    home.mkdir(parents=True)
    (home / "file").write_bytes(b"file")
    monkeypatch.setenv("HOME", str(home))
    mounts = {str(home)} if which == "mount" else set()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounts)

    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(ConfigError, match="mount point or holds a home"):
                await engine.trial("t").report({}, Checkpoint.take(home if which != "above home" else home.parent))
        assert (home / "file").exists()

    run_virtual(main())


@pytest.mark.parametrize("path", ["c", "c/", "c/sub", ".", "link", "link/sub", "c/sub/../sub", "c/sub/b"])
@pytest.mark.parametrize("taken_first", [True, False])
def test_files_of_a_pending_checkpoint_are_not_given_to_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, path: str, *, taken_first: bool
) -> None:
    root = bench.tmp_path / "work"
    (root / "c/sub").mkdir(parents=True)
    (root / "c/sub/b").write_bytes(b"b")
    (root / "link").symlink_to(root / "c")
    monkeypatch.chdir(root)

    async def main() -> None:
        async with bench.engine() as engine:
            hang = bench.faults.hang(operation="put", key="checkpoint_000000/")
            first = Checkpoint.take("c") if taken_first else Checkpoint.lend("c")
            await engine.trial("t").report({}, first, upload=ASYNC)
            await hang.reached.wait()
            with pytest.raises(ConfigError, match="is not durable yet"):
                await engine.trial("u").report({}, path if taken_first else Checkpoint.take(path), upload=ASYNC)
            hang.release.set()

    run_virtual(main())


def test_of_two_reports_at_once_one_gets_the_directory(bench: Bench) -> None:
    async def main() -> list[object]:
        source = Checkpoint.take(bench.checkpoint())
        async with bench.engine() as engine:
            reports = [engine.trial(name).report({}, source, upload=ASYNC) for name in ("t", "u", "v")]
            return await asyncio.gather(*reports, return_exceptions=True)

    results = run_virtual(main())
    assert sum(isinstance(result, ConfigError) for result in results) == 2
    assert len(bench.keys(f"checkpoint_000000/{MANIFEST}")) == 1


def test_files_changed_after_the_commit_stay_and_are_reported(bench: Bench) -> None:
    source = bench.checkpoint(a=b"a", b=b"b")

    def late() -> None:
        (source / "late").write_bytes(b"late")
        (source / "b").write_bytes(b"other")

    async def main() -> list[str]:
        async with bench.engine() as engine:
            events = engine.events()
            bench.faults.hook(1, late, after=True, operation="put", key=f"checkpoint_000000/{MANIFEST}")
            report = await engine.trial("t").report({}, Checkpoint.take(source), upload=ASYNC)
            assert report.checkpoint is not None
            await report.checkpoint.durable()
        return [event.message async for event in events if isinstance(event, SyncWarning)]

    [message] = run_virtual(main())
    assert "b, late" in message
    assert sorted(path.name for path in source.iterdir()) == ["b", "late"]


def test_one_file_can_be_taken(bench: Bench) -> None:
    source = bench.checkpoint(a=b"a", b=b"b")

    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, source / "b")
            await engine.trial("t").report({}, Checkpoint.take(source / "b"), upload=ASYNC)

    run_virtual(main())
    assert bench.store.contents["t/checkpoint_000000/b"] == bench.store.contents["t/checkpoint_000001/b"] == b"b"
    assert not bench.keys("/a")
    assert [path.name for path in source.iterdir()] == ["a"]


def test_a_pipe_in_a_checkpoint_is_reported(bench: Bench) -> None:
    source = bench.checkpoint()
    os.mkfifo(source / "pipe")

    async def main() -> list[str]:
        async with bench.engine() as engine:
            events = engine.events()
            await engine.trial("t").report({}, source)
        return [event.message async for event in events if isinstance(event, SyncWarning)]

    [message] = run_virtual(main())
    assert "'pipe'" in message


def test_a_too_long_name_is_refused_before_anything_is_recorded(bench: Bench) -> None:
    source = bench.tmp_path / "deep"
    deep = source.joinpath(*["x" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / "weights").write_bytes(b"w")

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            with pytest.raises(CheckpointIncompleteError, match=r"longer than the store allows.*x/weights"):
                await trial.report({}, source)
            assert trial._state.record.reports == 0
            assert not (trial.dir / "result.json").exists()

    run_virtual(main())


# Names of checkpoints.


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        ".asyncsync",
        "checkpoint_000007",
        "checkpoint_1",
        "rank_00001",
        "result.json",
        "params.json",
        "x.asyncsync-tmp",
        "a\n",
        "\udcff",
        "x" * 201,
        7,
        b"best",
    ],
)
def test_names_of_files_and_of_asyncsync_itself_are_refused(bench: Bench, name: object) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(ConfigError, match="name"):
                await engine.trial("t").report({}, bench.checkpoint(), name=name)  # type: ignore[arg-type]

    run_virtual(main())


def test_a_name_is_new_in_its_trial(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint("a"), name="best", step=3)
            with pytest.raises(ConfigError, match="already has a checkpoint of this name"):
                await trial.report({}, bench.checkpoint("b"), name="best")
            hang = bench.faults.hang(operation="put", key="next/")
            reports = [trial.report({}, bench.checkpoint(f"c{i}"), name="next", upload=ASYNC) for i in range(2)]
            results = await asyncio.gather(*reports, return_exceptions=True)
            assert [isinstance(result, ConfigError) for result in results] == [False, True]
            hang.release.set()
            assert trial._state.record.reports == 2
            await trial.report({}, bench.checkpoint("d"))

    run_virtual(main())
    trial = run_virtual(Experiment.open("memory://b/exp")).trials[0]
    assert [item.name for item in trial.checkpoints] == [
        "best",
        "next",
        "checkpoint_000002",
    ]


@pytest.mark.parametrize("gone", [True, False])
def test_a_name_that_an_artifact_has_is_refused(bench: Bench, *, gone: bool) -> None:
    """Artifacts are deleted and overwritten; files of a checkpoint are not."""

    async def main() -> None:
        async with bench.engine(ARTIFACTS) as engine:
            trial = engine.trial("t")
            (trial.dir / "best").mkdir()
            (trial.dir / "best/weights").write_bytes(b"w" * 1000)
            if gone:
                await trial.sync()
                (trial.dir / "best/weights").unlink()
                (trial.dir / "best").rmdir()
            with pytest.raises(ConfigError, match="artifact of this name"):
                await trial.report({}, bench.checkpoint(), name="best")

    run_virtual(main())


@pytest.mark.parametrize("resumed", [True, False])
def test_an_artifact_never_overwrites_a_checkpoint(bench: Bench, *, resumed: bool) -> None:
    async def main() -> None:
        async with bench.engine(ARTIFACTS) as engine:
            await engine.trial("t").report({}, bench.checkpoint(), name="best")
            await engine.trial("t").sync()
            if not resumed:
                await artifact(engine.trial("t"))
        if resumed:
            async with bench.engine(ARTIFACTS, resume=True) as engine:
                await artifact(engine.trial("t"))

    async def artifact(trial) -> None:
        (trial.dir / "best").mkdir()
        (trial.dir / "best/weights").write_bytes(b"artifact")
        await trial.sync()

    run_virtual(main())
    assert bench.store.contents["t/best/weights"] == b"w" * 1000


def test_a_named_checkpoint_is_adopted_retired_and_restored_like_any_other(bench: Bench) -> None:
    async def first() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, bench.checkpoint("a", w=b"a"), name="first", step=1)
            hang = bench.faults.hang(operation="put", key="trial.json", times=None)
            task = asyncio.create_task(
                engine.trial("t").report({}, bench.checkpoint("b", w=b"b"), name="second", step=2)
            )
            while f"t/second/{MANIFEST}" not in bench.keys():
                await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task])
            hang.release.set()
            raise KeyError

    async def second() -> None:
        async with bench.engine(resume=True, keep=CheckpointConfig(num_to_keep=1)) as engine:
            trial = engine.trial("t")
            await trial.report({})
            assert [(item.name, item.step) for item in trial._state.record.checkpoints] == [("first", 1), ("second", 2)]
            await trial.report({}, bench.checkpoint("c", w=b"c"), name="third")

    with pytest.raises(KeyError):
        run_virtual(first())
    bench.faults.clear()
    run_virtual(second())
    assert not [key for key in bench.keys() if key.startswith(("t/first/", "t/second/"))]
    experiment = run_virtual(Experiment.open("memory://b/exp"))
    run_virtual(experiment.restore(bench.tmp_path / "restored"))
    assert (bench.tmp_path / "restored/w").read_bytes() == b"c"


@pytest.fixture
def used(tmp_path: Path) -> UsedDirectories:
    used = UsedDirectories()
    used.add_trial(str(tmp_path / "runs" / "a"))
    return used


def test_a_directory_above_a_trial_holds_the_trial(used: UsedDirectories, tmp_path: Path) -> None:
    trial = os.path.realpath(tmp_path / "runs" / "a")
    assert used.trial_within(trial) == used.trial_within(os.path.dirname(trial)) == used.trial_within("/") == trial


def test_directories_beside_or_below_a_trial_hold_none(used: UsedDirectories, tmp_path: Path) -> None:
    trial = os.path.realpath(tmp_path / "runs" / "a")
    assert used.trial_within(f"{trial}/model") is None
    assert used.trial_within(f"{trial}b") is None
    assert used.is_trial(trial) and not used.is_trial(f"{trial}/model")


def test_a_trial_behind_a_link_is_known_by_where_it_is(used: UsedDirectories, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    used.add_trial(str(tmp_path / "runs" / "linked"))
    assert used.is_trial(os.path.realpath(tmp_path / "disk"))


def test_a_pending_checkpoint_counts_until_it_ends_and_not_for_itself(used: UsedDirectories) -> None:
    mine, other = DirectoryInUse("/data/1", "t/1", True), DirectoryInUse("/data/2", "t/2", False)
    used.add_pending("mine", mine)
    used.add_pending("other", other)
    assert used.pending(but="mine") == [other]
    used.drop_pending("other")
    used.drop_pending("other")
    assert used.pending(but="mine") == []


async def test_what_a_store_keeps_is_never_taken(tmp_path: Path) -> None:
    """A file system is a store: taking a file of a stored checkpoint would delete it there."""
    run = RunConfig(name="exp", storage_path=tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "store/exp/t/checkpoint_000000/deep")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "weights").write_bytes(b"w")
    (source / "deep/more").write_bytes(b"m")
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        trial = engine.trial("t")
        await trial.report({}, source)
        stored = tmp_path / "store/exp/t/checkpoint_000000"
        for path in (stored / "weights", stored / "deep", stored / "deep/more", tmp_path / "link"):
            with pytest.raises(ConfigError, match=r"is stored in .*checkpoint_000000"):
                await trial.report({}, Checkpoint.take(path), upload=ASYNC)
        await trial.report({}, stored / "weights")
    assert (await verify(tmp_path / "store/exp", deep=True)).ok
