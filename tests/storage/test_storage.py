"""A storage path that stays open: files, directories, and checkpoints that several processes write."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from asyncsync import (
    AccessDeniedError,
    CheckpointIncompleteError,
    CheckpointSummary,
    ConcurrentWriterError,
    ConfigError,
    EngineClosedError,
    Experiment,
    NotFoundError,
    Storage,
    TrialSummary,
    Writer,
    pull,
    verify,
)

URI = "memory://b/exp"
ALONE = Writer("attempt1", "process1")


@asynccontextmanager
async def opened(**options):
    async with Storage(URI, **options) as storage:
        yield storage


def names(entries):
    return None if entries is None else sorted(entry.path + ("" if entry.is_file else "/") for entry in entries)


async def pulled(storage, path, target):
    await storage.pull(path, target)
    return {str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()}


async def test_a_checkpoint_exists_when_its_push_returns(bench, tmp_path):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1", b=b"2"), "t/checkpoint_000000", ALONE, alone=True)
        assert await pulled(storage, "t/checkpoint_000000", tmp_path / "to") == {"a": b"1", "b": b"2"}
        assert names(await storage.entries("t")) == ["t/checkpoint_000000/"]
        assert names(await storage.entries("t/checkpoint_000000")) == ["t/checkpoint_000000/a", "t/checkpoint_000000/b"]
    assert (await verify(URI, deep=True)).ok


async def test_a_part_alone_is_no_checkpoint(bench, tmp_path):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "run/step", Writer("g", "p0"), alone=False)
        assert await storage.stat("run/step") is None
        assert await storage.entries("run/step") is None
        assert names(await storage.entries("run")) == []
        assert await storage.entries("run", recursive=True) == []
        with pytest.raises(CheckpointIncompleteError, match="never completed"):
            await storage.pull("run/step", tmp_path / "to")


async def test_any_subset_of_ranks_may_take_part(bench, tmp_path):
    async with opened() as storage:
        for rank in (2, 5):
            files = bench.checkpoint(f"c{rank}", **{f"rank{rank}": b"%d" % rank})
            await storage.push_checkpoint(files, "run/step", Writer("g", f"p{rank}", rank), alone=False)
        await storage.commit_checkpoint("run/step", "g", {2: "p2", 5: "p5", 7: "p7"})
        await storage.commit_checkpoint("run/step", "g", {2: "p2", 5: "p5"})
        assert await pulled(storage, "run/step", tmp_path / "to") == {"rank2": b"2", "rank5": b"5"}
    assert (await verify(URI, deep=True)).ok
    assert [key for key in bench.keys() if "/parts/" in key or "/intents/" in key] == []


async def test_nothing_of_a_dead_attempt_is_committed(bench, tmp_path):
    old = bench.checkpoint("old", shared=b"old", only_old=b"x")
    async with opened() as storage:
        await storage.push_checkpoint(old, "run/step", Writer("first", "p0"), alone=False)
        await storage.push_checkpoint(old, "run/step", Writer("first", "p1", 1), alone=False)
        new = bench.checkpoint("new", shared=b"new!")
        await storage.push_checkpoint(new, "run/step", Writer("second", "p2"), alone=False)
        await storage.commit_checkpoint("run/step", "second", {0: "p2", 1: "p1"})
        assert await pulled(storage, "run/step", tmp_path / "to") == {"shared": b"new!"}
    assert [key for key in bench.keys() if "only_old" in key] == []


async def test_a_replaced_process_of_one_rank_leaves_nothing(bench, tmp_path):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a"), "run/step", Writer("g", "p0"), alone=False)
        await storage.push_checkpoint(bench.checkpoint("b", g=b"b"), "run/step", Writer("g", "p9"), alone=False)
        await storage.commit_checkpoint("run/step", "g", {0: "p9"})
        assert await pulled(storage, "run/step", tmp_path / "to") == {"g": b"b"}


async def test_two_contents_of_one_name_name_the_ranks(bench):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a"), "run/step", Writer("g", "p0"), alone=False)
        with pytest.raises(ConcurrentWriterError, match="ranks 0 and 3 both wrote 'f' with different content"):
            await storage.push_checkpoint(bench.checkpoint("b", f=b"b"), "run/step", Writer("g", "p3", 3), alone=False)


async def test_equal_content_of_one_name_is_no_conflict(bench, tmp_path):
    async with opened() as storage:
        for rank in range(2):
            files = bench.checkpoint("same", f=b"same")
            await storage.push_checkpoint(files, "run/step", Writer("g", f"p{rank}", rank), alone=False)
        await storage.commit_checkpoint("run/step", "g", {0: "p0", 1: "p1"})
        assert await pulled(storage, "run/step", tmp_path / "to") == {"f": b"same"}


async def test_a_number_that_is_used_again_holds_the_new_files_only(bench, tmp_path):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a", old=b"x"), "t/c", ALONE, alone=True)
        await storage.push_checkpoint(bench.checkpoint("b", f=b"b"), "t/c", Writer("attempt2", "p"), alone=True)
        assert await pulled(storage, "t/c", tmp_path / "to") == {"f": b"b"}
    assert [key for key in bench.keys() if key.endswith("old")] == []


async def test_a_registered_checkpoint_is_never_replaced(bench, tmp_path):
    async def refuse():
        return False

    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a"), "t/c", ALONE, alone=True)
        with pytest.raises(ConcurrentWriterError, match="registered checkpoint"):
            await storage.push_checkpoint(
                bench.checkpoint("b", f=b"b"), "t/c", Writer("two", "p"), alone=False, may_replace=refuse
            )
        assert await pulled(storage, "t/c", tmp_path / "to") == {"f": b"a"}


async def test_one_attempt_cannot_use_a_committed_name_again(bench):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a"), "t/c", Writer("g", "p"), alone=False)
        await storage.commit_checkpoint("t/c", "g", {0: "p"})
        with pytest.raises(ConcurrentWriterError, match="committed already"):
            await storage.push_checkpoint(bench.checkpoint("b", f=b"b"), "t/c", Writer("g", "p"), alone=False)
        with pytest.raises(ConcurrentWriterError, match="another attempt"):
            await storage.commit_checkpoint("t/c", "other", {0: "p"})


async def test_a_commit_without_any_part_is_incomplete(bench):
    async with opened() as storage:
        with pytest.raises(CheckpointIncompleteError, match="no rank of attempt g"):
            await storage.commit_checkpoint("t/c", "g", {0: "p"})


async def test_a_commit_refuses_a_file_that_has_gone(bench):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"a", g=b"g"), "t/c", Writer("g", "p"), alone=False)
        await storage.delete("t/c/f")
        with pytest.raises(CheckpointIncompleteError, match="f is missing"):
            await storage.commit_checkpoint("t/c", "g", {0: "p"})


async def test_a_commit_refuses_a_file_that_a_late_process_has_replaced(bench):
    """By one of the same size: a process of an earlier attempt was taken for dead, and still runs."""
    async with opened() as storage, opened() as elsewhere:
        await storage.push_checkpoint(bench.checkpoint("a", f=b"new"), "t/c", Writer("g", "p"), alone=False)
        await elsewhere.push_checkpoint(bench.checkpoint("b", f=b"old"), "t/c", Writer("earlier", "q"), alone=False)
        with pytest.raises(CheckpointIncompleteError, match="f was replaced"):
            await storage.commit_checkpoint("t/c", "g", {0: "p"})
        await storage.push_checkpoint(bench.checkpoint("a", f=b"new"), "t/c", Writer("g", "p"), alone=False)
        await storage.commit_checkpoint("t/c", "g", {0: "p"})
    assert (await verify(URI, deep=True)).ok


async def test_an_empty_or_missing_directory_is_refused(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    async with opened() as storage:
        for path in ("empty", "missing"):
            with pytest.raises(CheckpointIncompleteError):
                await storage.push_checkpoint(tmp_path / path, "t/c", ALONE, alone=True)
    assert bench.keys() == []


@pytest.mark.parametrize("name", ["", "a/b", "..\n", "x" * 101])
def test_a_writer_needs_a_plain_identity(name):
    with pytest.raises(ConfigError, match="cannot identify a writer"):
        Writer(name, "p")


# Metadata, after the fact


@pytest.mark.parametrize("times", [1, 2])
async def test_a_file_written_into_a_checkpoint_belongs_to_it(bench, tmp_path, times):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c", ALONE, alone=True)
        for number in range(times):
            await storage.write("t/c/.metadata.json", b"%d" % number)
        assert await pulled(storage, "t/c", tmp_path / "to") == {"a": b"1", ".metadata.json": b"%d" % (times - 1)}
    assert (await verify(URI, deep=True)).ok


async def test_a_file_written_into_a_part_is_committed_with_it(bench, tmp_path):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c", Writer("g", "p"), alone=False)
        await storage.write("t/c/.metadata.json", b"early")
        await storage.commit_checkpoint("t/c", "g", {0: "p"})
        assert await pulled(storage, "t/c", tmp_path / "to") == {"a": b"1", ".metadata.json": b"early"}
        await storage.write("t/c/.metadata.json", b"late")
        assert await pulled(storage, "t/c", tmp_path / "to") == {"a": b"1", ".metadata.json": b"late"}


async def test_a_file_elsewhere_is_just_written(bench):
    async with opened() as storage:
        await storage.write("tuner.pkl", b"pickle")
        assert (await storage.read("tuner.pkl"), await storage.read("tuner.pkl", 2, 3)) == (b"pickle", b"ckl")
        assert (await storage.is_file("tuner.pkl"), await storage.is_file("other")) == (True, False)
    assert bench.keys() == ["tuner.pkl"]


# Deleting


async def test_a_deleted_checkpoint_is_gone(bench):
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c", ALONE, alone=True)
        await storage.delete_directory("t/c")
        assert (await storage.stat("t/c"), bench.keys()) == (None, [])


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_checkpoint_deleted_in_part_does_not_exist(bench, at):
    """Whichever request of the deletion fails."""
    async with opened() as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c", ALONE, alone=True)
        bench.faults.fail(at, AccessDeniedError("no"), operation="delete")
        with pytest.raises(AccessDeniedError):
            await storage.delete_directory("t/c")
        assert (await storage.stat("t/c") is None) == (at > 1)
        await storage.delete_directory("t/c")
    assert bench.keys() == []


# Directories


async def test_an_unchanged_directory_costs_no_request(bench):
    async with opened() as storage:
        directory = bench.checkpoint("artifacts", log=b"line\n")
        await storage.push(directory, "t")
        before = bench.faults.calls
        for _ in range(5):
            report = await storage.push(directory, "t")
        assert (bench.faults.calls, report.files_sent) == (before, 0)
        (directory / "log").write_bytes(b"line\nline\n")
        assert (await storage.push(directory, "t")).files_sent == 1
        assert await storage.read("t/log") == b"line\nline\n"


async def test_two_processes_may_sync_into_one_directory(bench):
    async with opened() as first, opened() as second:
        await first.push(bench.checkpoint("one", a=b"1"), "t")
        await second.push(bench.checkpoint("two", b=b"2"), "t")
        await first.push(bench.checkpoint("one", a=b"11"), "t")
    assert (await verify(URI, deep=True)).ok
    assert (await verify(URI)).files == 2


async def test_an_excluded_directory_stays_here(bench, tmp_path):
    directory = bench.checkpoint("all", keep=b"1")
    (directory / "checkpoint_1").mkdir()
    (directory / "checkpoint_1" / "big").write_bytes(b"2")
    async with opened() as storage:
        await storage.push(directory, "", exclude=("/checkpoint_1",))
        assert names(await storage.entries("")) == ["keep"]


async def test_a_directory_comes_back_without_incomplete_checkpoints(bench, tmp_path):
    async with opened() as storage:
        await storage.write("t/result.json", b"{}")
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c0", ALONE, alone=True)
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c1", Writer("g", "p"), alone=False)
        assert await pulled(storage, "t", tmp_path / "to") == {"result.json": b"{}", "c0/a": b"1"}
        with pytest.raises(NotFoundError):
            await storage.pull("nothing", tmp_path / "no")


async def test_a_directory_of_other_tools_is_listed_and_pulled(bench, tmp_path):
    async with opened() as storage:
        for name in ("x/f", "x/sub/g"):
            await storage.write(name, name.encode())
        assert names(await storage.entries("x", recursive=True)) == ["x/f", "x/sub/", "x/sub/g"]
        assert (await storage.stat("x")).is_file is False
        assert await pulled(storage, "x", tmp_path / "to") == {"f": b"x/f", "sub/g": b"x/sub/g"}


# Records


async def test_other_frameworks_trials_are_seen(bench):
    async with opened() as storage:
        for number in range(2):
            await storage.push_checkpoint(
                bench.checkpoint(a=b"1"), f"sweep/t0/checkpoint_00000{number}", ALONE, alone=True
            )
        checkpoints = [CheckpointSummary(f"checkpoint_00000{n}", n, {"loss": 3 - n}) for n in range(3)]
        trial = TrialSummary("t0", "finished", {"lr": 0.1}, {"loss": 2}, 3, checkpoints)
        await storage.save_trial("sweep/t0", trial, "sweep")
        await storage.save_experiment("sweep", "sweep", "finished", {"t0": "finished"})
        before = bench.faults.calls
        await storage.save_trial("sweep/t0", trial, "sweep")
        assert bench.faults.calls == before
    experiment = await Experiment.open(f"{URI}/sweep")
    assert [item.name for item in experiment.checkpoints] == ["checkpoint_000001", "checkpoint_000000"]
    assert experiment.best_checkpoint("loss", "min").number == 1
    assert (experiment.trials[0].params, experiment.trials[0].status) == ({"lr": 0.1}, "finished")


async def test_a_record_stays_readable_whatever_it_is_told(bench):
    async with opened() as storage:
        for name in ("deep/name", "plain"):
            await storage.push_checkpoint(bench.checkpoint(a=b"1"), f"run/{name}", ALONE, alone=True)
        checkpoints = [CheckpointSummary("deep/name", 0), CheckpointSummary("plain", 1, {"loss": float("nan")})]
        await storage.save_trial("run/t", TrialSummary("t", checkpoints=checkpoints), "run")
        await storage.save_trial(
            "run", TrialSummary("run", metrics={"x": float("inf")}, checkpoints=checkpoints), "run"
        )
        await storage.save_experiment("run", "run", "running", {})
    experiment = await Experiment.open(f"{URI}/run")
    assert [trial.status for trial in experiment.trials] == ["running"]


async def test_a_run_may_be_its_own_only_trial(bench, tmp_path):
    async with opened() as storage:
        for number in range(2):
            await storage.push_checkpoint(bench.checkpoint(a=b"%d" % number), f"run/step_{number}", ALONE, alone=True)
        checkpoints = [CheckpointSummary(f"step_{number}", number, {"loss": number}) for number in range(2)]
        await storage.save_trial("run", TrialSummary("run", checkpoints=checkpoints), "run")
        await storage.save_experiment("run", "run", "running", {"run": "running"})
    experiment = await Experiment.open(f"{URI}/run")
    assert [item.uri for item in experiment.checkpoints] == [f"{URI}/run/step_1", f"{URI}/run/step_0"]
    await experiment.restore(tmp_path / "to", "run")
    assert (tmp_path / "to" / "a").read_bytes() == b"1"
    await pull(f"{URI}/run", tmp_path / "all")
    assert (tmp_path / "all" / "step_0" / "a").read_bytes() == b"0"


@pytest.mark.server
async def test_an_empty_directory_of_a_server_is_not_listed(seaweedfs, bench):
    """SeaweedFS lists the directory of deleted objects."""
    seaweedfs.create_bucket("storage")
    async with Storage("s3://storage/exp", storage_options=seaweedfs.storage_options) as storage:
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "t/c", ALONE, alone=True)
        await storage.delete_directory("t/c")
        assert not await storage.entries("t")


# Use


async def test_it_is_used_inside_its_block_only():
    storage = Storage(URI)
    with pytest.raises(EngineClosedError):
        await storage.read("x")


async def test_directories_that_were_not_synced_for_long_are_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr("asyncsync.storage.storage.MOST_TREES", 2)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"1")
    async with opened() as storage:
        for path in ("a", "b", "a", "c"):
            await storage.push(tmp_path / "source", path)
        assert [path for _, path in storage._trees] == ["a/", "c/"]
        before = storage.status().requests
        await storage.push(tmp_path / "source", "a")
        assert storage.status().requests == before
        assert (await storage.push(tmp_path / "source", "b")).bytes_sent == 0  # its manifest says what is there


async def test_a_rank_may_report_an_empty_directory_but_not_all(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    async with opened() as storage:
        await storage.push_checkpoint(tmp_path / "empty", "run/step", Writer("g", "p0", 0), alone=False)
        with pytest.raises(CheckpointIncompleteError, match="reported a file"):
            await storage.commit_checkpoint("run/step", "g", {0: "p0"})
        await storage.push_checkpoint(bench.checkpoint(a=b"1"), "run/step", Writer("g", "p1", 1), alone=False)
        await storage.commit_checkpoint("run/step", "g", {0: "p0", 1: "p1"})
        assert await pulled(storage, "run/step", tmp_path / "to") == {"a": b"1"}
    assert (await verify(URI, deep=True)).ok
