"""Every row of the table "Bad input" in docs/design.md, as a user meets it."""

import asyncio
import math
import os
import re
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from onebench import Bench
from rankbench import shard, together, world

from asyncsync import (
    AccessDeniedError,
    Checkpoint,
    CheckpointConfig,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    ConfigError,
    Experiment,
    NotFoundError,
    RunConfig,
    SourceChangedError,
    SyncConfig,
    SyncEngine,
    SyncError,
    SyncFailedError,
    TransferConfig,
    UploadMode,
    pull,
    push,
)
from asyncsync.disk.scan import scan
from asyncsync.errors import DamagedError
from asyncsync.events import SyncWarning
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.snapshot import Snapshot
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import MemoryStore, run_virtual

MIB = 1 << 20
URI = "memory://b/tree"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "a").write_bytes(b"data")
    return root


def named() -> set[str]:
    return set(Manifest.from_bytes(MemoryStore("b", "tree").contents[MANIFEST]).files)


ROWS = {
    "unknown scheme, relative or empty storage path": "test_a_storage_path_that_cannot_be_meant_is_refused",
    "no such bucket, or no permission": "test_a_missing_bucket_or_permission_is_found_at_start",
    "a file vanishes between scan and upload": "test_a_file_that_vanishes_is_counted",
    "a file changes while it is read": "test_a_file_that_does_not_stop_changing_is_named",
    "a file of a checkpoint changes, comes or vanishes before it is durable": "test_a_checkpoint_that_changes_fails",
    "a checkpoint without a file, or with a link that leads nowhere or in a circle": "test_a_checkpoint_is_refused",
    "a checkpoint that holds the trial's own files, or is taken twice": "test_files_that_are_not_its_own_are_refused",
    "ranks that report different steps": "test_ranks_of_different_steps_raise",
    "a record or manifest that is damaged, or of a later format": "test_a_damaged_record_costs_its_trial",
    "fifo, socket, device": "test_pipes_and_sockets_are_never_opened",
    "symbolic link": "test_links_are_followed_inside_the_tree",
    "names that are not UTF-8, too long for the store, or contain `..`": "test_names_are_refused_before_it_is_sent",
    "remote keys with `..`, absolute, or through a link, on `pull`": "test_nothing_is_written_outside_of_the_target",
    "disk full, target not writable, on `pull`": "test_a_target_that_cannot_be_written_is_an_error",
    "`NaN` or missing score": "test_a_score_that_is_not_a_number_ranks_worst",
    "two drivers of one experiment, two runners of one trial": "test_the_second_writer_raises",
}


def test_every_row_of_the_table_has_its_test() -> None:
    page = (Path(__file__).parents[2] / "docs/design.md").read_text(encoding="utf-8")
    table = page.partition("| input | what happens |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \|", table.partition("|---|---|")[2], re.MULTILINE)
    assert rows == list(ROWS)
    assert all(callable(globals()[name]) for name in ROWS.values())


@pytest.mark.parametrize("path", ["gopher://x/y", "results", "./results", "", "   ", "s3://"])
async def test_a_storage_path_that_cannot_be_meant_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"absolute path|s3://bucket"):
        async with SyncEngine(RunConfig(name="x", storage_path=path), local_dir=tmp_path):
            pass


@pytest.mark.parametrize(("operation", "verb"), [("put", "write"), ("read", "read")])
@pytest.mark.parametrize("error", [NotFoundError("no such bucket"), AccessDeniedError("403")])
def test_a_missing_bucket_or_permission_is_found_at_start(
    bench: Bench, operation: str, verb: str, error: Exception
) -> None:
    async def main() -> None:
        async with bench.engine():
            pytest.fail("the engine started")

    bench.faults.fail(operation=operation, key="probe", error=error, times=None)
    with pytest.raises(type(error)) as caught:
        run_virtual(main())
    assert f"must be able to {verb} below memory://b/exp" in caught.value.__notes__[-1]


@pytest.mark.server
async def test_a_bucket_that_is_not_there_is_named(seaweedfs, tmp_path: Path) -> None:
    run = RunConfig(name="x", storage_path="s3://nobody-made-this", storage_options=seaweedfs.storage_options)
    with pytest.raises(NotFoundError, match="nobody-made-this"):
        async with SyncEngine(run, local_dir=tmp_path):
            pass


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.write_bytes(b"other"), SourceChangedError),
        (lambda path: path.with_name("more").touch(), SourceChangedError),
        (lambda path: path.unlink(), CheckpointIncompleteError),
    ],
    ids=["changes", "comes", "vanishes"],
)
def test_a_checkpoint_that_changes_fails(bench: Bench, change: Any, error: type[Exception]) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            source = bench.checkpoint()
            hang = bench.faults.hang(operation="put", key="weights")
            report = asyncio.ensure_future(engine.trial("t").report({}, source))
            await hang.reached.wait()
            change(source / "weights")
            hang.release.set()
            with pytest.raises(error, match=r"weights|more"):
                await report

    run_virtual(main())
    assert not bench.keys(f"checkpoint_000000/{MANIFEST}")


@pytest.mark.parametrize("what", ["nothing", "nowhere", "circle"])
def test_a_checkpoint_is_refused(bench: Bench, what: str) -> None:
    source = bench.tmp_path / "source"
    source.mkdir()
    if what != "nothing":
        (source / "weights").touch()
        (source / what).symlink_to("nowhere-at-all" if what == "nowhere" else ".")

    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(CheckpointIncompleteError, match="no file" if what == "nothing" else what):
                await engine.trial("t").report({}, source)
            assert not (engine.trial("t").dir / "result.json").exists()

    run_virtual(main())


def test_files_that_are_not_its_own_are_refused(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({"loss": 1})
            for directory in (trial.dir, trial.dir.parent):
                with pytest.raises(ConfigError, match="files that asyncsync itself writes"):
                    await trial.report({}, Checkpoint.take(directory))
            twice = Checkpoint.take(bench.checkpoint())
            hang = bench.faults.hang(operation="put", key="weights")
            await trial.report({}, twice, upload=UploadMode.ASYNC)
            with pytest.raises(ConfigError, match="not durable yet"):
                await trial.report({}, twice, upload=UploadMode.ASYNC)
            hang.release.set()

    run_virtual(main())


def test_ranks_of_different_steps_raise(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, of=2)
            return await together(
                *(engine.trial("t").report({}, shard(bench, n), step=n) for n, engine in enumerate(engines))
            )

    for error in run_virtual(main()):
        assert isinstance(error, CheckpointIncompleteError)
        assert "rank 0 reported step 0" in str(error)


@pytest.mark.parametrize("damage", [b"{", b'{"format":2,"kind":"trial"}'], ids=["damaged", "later"])
def test_a_damaged_record_costs_its_trial(bench: Bench, damage: bytes) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            for name in ("bad", "good"):
                await engine.trial(name).report({"loss": 1})
        await bench.store.put("bad/" + TRIAL_RECORD, damage)
        async with bench.engine(resume=True) as engine:
            with pytest.raises(DamagedError, match=f"bad/{TRIAL_RECORD}"):
                engine.trial("bad")
            await engine.trial("good").report({"loss": 2})

    run_virtual(main())
    assert bench.store.contents["bad/" + TRIAL_RECORD] == damage


def test_a_file_that_vanishes_is_counted(bench: Bench, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_and_remove(*how: Any) -> Snapshot:
        found = scan(*how)
        (tree / "gone").unlink()
        return found

    (tree / "gone").write_bytes(b"soon")
    monkeypatch.setattr("asyncsync.sync.tree.scan", look_and_remove)
    report = run_virtual(push(tree, URI))
    assert (report.files_vanished, named()) == (1, {"a"})


def test_a_file_that_does_not_stop_changing_is_named(bench: Bench, tree: Path) -> None:
    big, split = tree / "big", TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)
    big.write_bytes(bytes(12 * MIB))
    change = bench.faults.hook(1, lambda: big.write_bytes(os.urandom(12 * MIB)), operation="put_part", times=None)
    with pytest.raises(SyncFailedError, match="big") as caught:
        run_virtual(push(tree, URI, transfer=split))
    assert isinstance(caught.value.failures["big"], SourceChangedError)
    assert change.seen >= 3
    assert named() == {"a"}


def test_pipes_and_sockets_are_never_opened(bench: Bench, tree: Path) -> None:
    """Opening the pipe would wait for a writer for ever."""
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "sock"))
        report = run_virtual(push(tree, URI))
    assert sorted(warning.partition(":")[0] for warning in report.warnings) == ["'pipe'", "'sock'"]
    assert named() == {"a"}


def test_a_device_is_never_opened(bench: Bench, tree: Path) -> None:
    """Reading this one would never end."""
    try:
        os.mknod(tree / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    report = run_virtual(push(tree, URI))
    assert [warning.partition(":")[0] for warning in report.warnings] == ["'zero'"]
    assert named() == {"a"}


def test_skipped_files_are_reported_as_events(bench: Bench) -> None:
    async def main() -> set[str]:
        told: set[str] = set()
        async with bench.engine(SyncConfig(sync_artifacts=True)) as engine:
            events = engine.events()
            trial = engine.trial("t")
            os.mkfifo(trial.dir / "pipe")
            (trial.dir / "away").symlink_to(bench.tmp_path)
            await trial.sync()
        async for event in events:
            if isinstance(event, SyncWarning) and event.tree == "t":
                told.add(event.message)
        return told

    pipe, link = sorted(run_virtual(main()))
    assert pipe.startswith("'pipe': skipped")
    assert link.startswith("away: skipped")


def test_links_are_followed_inside_the_tree(bench: Bench, tree: Path) -> None:
    (tree.parent / "outside").write_bytes(b"o")
    (tree / "inside").symlink_to("a")
    (tree / "outside").symlink_to(tree.parent / "outside")
    (tree / "loop").symlink_to(".")
    report = run_virtual(push(tree, URI))
    assert named() == {"a", "inside"}
    assert len(report.warnings) == 2
    run_virtual(push(tree, URI, sync_config=SyncConfig(symlinks="follow")))
    assert named() == {"a", "inside", "outside"}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"d/" + b"n" * 250])
def test_names_are_refused_before_it_is_sent(bench: Bench, tree: Path, name: bytes) -> None:
    place = os.fsencode(tree) + (b"/" + b"d" * 200) * 4
    os.makedirs(os.path.dirname(place + b"/" + name))
    with open(place + b"/" + name, "wb"):
        pass
    there = len(list(tree.iterdir())) - 1
    report = run_virtual(push(tree, URI))
    assert (report.files_left_out, len(named())) == (1, there)
    assert [warning for warning in report.warnings if "left out" in warning]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "\ud800", "x" * 201])
def test_a_trial_cannot_be_named_out_of_its_place(bench: Bench, name: str) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(ConfigError, match="trial name"):
                engine.trial(name)

    run_virtual(main())


@pytest.mark.parametrize("path", ["../evil", "/evil", "link/evil", "b/../../evil"])
def test_nothing_is_written_outside_of_the_target(bench: Bench, tree: Path, tmp_path: Path, path: str) -> None:
    run_virtual(push(tree, URI))
    store, target = MemoryStore("b", "tree"), tmp_path / "in/target"
    target.mkdir(parents=True)
    (target / "link").symlink_to(tmp_path)
    manifest = store.contents[MANIFEST].replace(b'"path":"a"', f'"path":"{path}"'.encode())
    store._store(MANIFEST, manifest, "evil")
    before = {item for item in tmp_path.rglob("*") if "state" not in item.parts}
    with pytest.raises(SyncError):
        run_virtual(pull(URI, target))
    assert {item for item in tmp_path.rglob("*") if "state" not in item.parts} == before


@pytest.mark.parametrize("reason", ["full", "not writable"])
def test_a_target_that_cannot_be_written_is_an_error(
    bench: Bench, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    run_virtual(push(tree, URI))
    target = tmp_path / "target"
    if reason == "full":
        target.mkdir()
        (target / "a").write_bytes(b"old and dear")
        monkeypatch.setattr(os, "write", refuse)
        monkeypatch.setattr(os, "pwrite", refuse)
    else:
        target.write_bytes(b"old and dear")  # a file: root may write into any directory
    with pytest.raises(SyncFailedError, match=r"No space|a directory|exists"):
        run_virtual(pull(URI, target))
    monkeypatch.undo()
    assert (target / "a" if reason == "full" else target).read_bytes() == b"old and dear"
    assert reason != "full" or os.listdir(target) == ["a"]


@pytest.mark.parametrize("order", ["max", "min"])
@pytest.mark.parametrize("worst", [{"loss": math.nan}, {}, {"loss": "low"}, {"loss": None}])
def test_a_score_that_is_not_a_number_ranks_worst(bench: Bench, order: str, worst: dict[str, object]) -> None:
    async def main() -> str:
        keep = CheckpointConfig(
            num_to_keep=2,
            checkpoint_score_attribute="loss",
            checkpoint_score_order=order,  # type: ignore[arg-type]
        )
        async with bench.engine(keep=keep) as engine:
            trial = engine.trial("t")
            for metrics in (worst, {"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}):
                await trial.report(metrics, bench.checkpoint())
        best = (await Experiment.open("memory://b/exp")).best_checkpoint("loss", order)  # type: ignore[arg-type]
        assert best is not None
        return best.name

    assert run_virtual(main()) == ("checkpoint_000003" if order == "max" else "checkpoint_000001")
    record = TrialRecord.from_bytes(bench.store.contents[f"t/{TRIAL_RECORD}"])
    assert "checkpoint_000000" not in {item.name for item in record.checkpoints}


def test_of_two_drivers_that_start_at_the_same_moment_one_raises(bench: Bench) -> None:
    """Both found no experiment before either wrote its record."""

    async def main() -> list[object]:
        hang = bench.faults.hang(operation="put", key="experiment.json", times=2)
        engines = [bench.engine(local_dir=bench.tmp_path / name) for name in ("one", "two")]
        entering = [asyncio.create_task(engine.__aenter__()) for engine in engines]
        while bench.puts("experiment.json") < 2:
            await asyncio.sleep(0.1)
        hang.release.set()
        entered = await asyncio.gather(*entering, return_exceptions=True)
        for engine in entered:
            if isinstance(engine, SyncEngine):
                await engine.__aexit__(None, None, None)
        return entered

    entered = run_virtual(main())
    assert sum(isinstance(item, ConcurrentWriterError) for item in entered) == 1
    assert sum(isinstance(item, SyncEngine) for item in entered) == 1


@pytest.mark.parametrize("role", ["driver", "worker"])
def test_the_second_writer_raises(bench: Bench, role: str) -> None:
    """After a takeover the first writer writes nothing more; its successor continues."""

    async def main() -> None:
        first = bench.engine(local_dir=bench.tmp_path / "first", role=role)
        await first.__aenter__()
        await first.trial("t").report({"loss": 1.0}, bench.checkpoint())
        async with bench.engine(local_dir=bench.tmp_path / "second", role=role, resume=True) as second:
            await second.trial("t").report({"loss": 2.0}, bench.checkpoint("other"))
            with pytest.raises((ConcurrentWriterError, SyncFailedError), match=r"(?i)somebody else|another|writer"):
                await first.trial("t").report({"loss": 3.0}, bench.checkpoint("third"))
            with pytest.raises((ConcurrentWriterError, SyncFailedError)):
                await first.__aexit__(None, None, None)

    run_virtual(main())
    record = TrialRecord.from_bytes(bench.store.contents[f"t/{TRIAL_RECORD}"])
    assert [item.metrics["loss"] for item in record.checkpoints] == [1.0, 2.0]
