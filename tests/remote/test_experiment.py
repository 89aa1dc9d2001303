"""Reading an experiment back: its records, the right checkpoint, and its errors if something is damaged or missing."""

import asyncio
import itertools
import math
import shutil

import pytest
from stored import files_of, put_experiment, put_tree, put_trial

from asyncsync.errors import (
    AccessDeniedError,
    CheckpointIncompleteError,
    ConfigError,
    DamagedError,
    IntegrityError,
    NotFoundError,
    SyncError,
    SyncFailedError,
)
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.remote.pull import pull
from asyncsync.remote.views.experiment import Experiment
from asyncsync.stores import open_store
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import MemoryStore, inject_faults

URI = "memory://lab/exp"


def checkpoint(text, **metrics):
    return ({"model.bin": text.encode() * 100, "deep/optim.bin": text.encode()}, metrics)


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exp")
    await put_experiment(store, a="finished", b="running", c="running")
    await put_trial(
        store,
        "a",
        {
            "checkpoint_000000": checkpoint("a0", loss=0.5, eval={"acc": 0.1}),
            "checkpoint_000001": checkpoint("a1", loss=0.2, eval={"acc": 0.9}),
        },
        started=100,
        params={"lr": 0.1},
        metrics={"loss": 0.2},
    )
    await put_trial(
        store,
        "b",
        {
            "checkpoint_000000": checkpoint("b0", loss=math.nan),
            "checkpoint_000001": checkpoint("b1", loss=0.3),
            "checkpoint_000002": checkpoint("b2", loss="n/a"),
        },
        status="running",
        started=200,
    )
    store.log.clear()
    return store


FILES_OF_B = {
    name: {"model.bin": text * 100, "deep/optim.bin": text}
    for name, text in (("checkpoint_000001", b"b1"), ("checkpoint_000002", b"b2"))
}


async def test_open_reads_trials_with_parameters_metrics_and_checkpoints(store):
    experiment = await Experiment.open(URI)
    assert (experiment.name, experiment.status) == ("exp", "running")
    assert [(trial.name, trial.status, len(trial.checkpoints)) for trial in experiment.trials] == [
        ("a", "finished", 2),
        ("b", "running", 3),
        ("c", "running", 0),
    ]
    trial = experiment.trial("a")
    assert (trial.params, trial.metrics) == ({"lr": 0.1}, {"loss": 0.2})
    first = trial.checkpoints[0]
    assert (first.name, first.trial, first.uri) == ("checkpoint_000000", "a", f"{URI}/a/checkpoint_000000")
    assert (first.metrics["loss"], first.metadata, first.files, first.bytes) == (0.5, {"epoch": 0}, 2, 202)


async def test_open_reads_records_only_one_request_each(store):
    await Experiment.open(URI)
    assert sorted(store.log) == [
        ("list", "exp/"),
        ("read", "exp/.asyncsync/experiment.json"),
        ("read", "exp/a/.asyncsync/trial.json"),
        ("read", "exp/b/.asyncsync/trial.json"),
    ]


async def test_a_missing_experiment_is_reported_with_the_searched_records(store):
    with pytest.raises(NotFoundError, match=r"memory://lab/elsewhere.*experiment\.json.*trial\.json"):
        await Experiment.open("memory://lab/elsewhere")


async def test_opening_a_trial_as_an_experiment_raises(store):
    with pytest.raises(NotFoundError, match="it is a trial"):
        await Experiment.open(f"{URI}/a")


async def test_an_experiment_of_workers_only_is_named_after_its_place(store):
    await store.delete([".asyncsync/experiment.json"])
    experiment = await Experiment.open(URI)
    assert (experiment.name, [trial.name for trial in experiment.trials]) == ("exp", ["a", "b"])


async def test_one_damaged_record_hides_no_other_trial(store):
    await store.put("a/.asyncsync/trial.json", b"{")
    experiment = await Experiment.open(URI)
    assert [(trial.name, trial.status) for trial in experiment.trials][:2] == [("a", "unreadable"), ("b", "running")]
    assert "not a trial record" in experiment.trial("a").error


@pytest.mark.virtual_time
async def test_a_record_with_a_rotten_digit_is_unreadable_and_not_believed(store):
    store.damage("a/.asyncsync/trial.json", store.contents["a/.asyncsync/trial.json"].replace(b"1", b"2", 1))
    assert (await Experiment.open(URI)).trial("a").status == "unreadable"


async def test_a_copied_and_renamed_experiment_opens_and_downloads(tmp_path):
    async with open_store(tmp_path / "old") as store:
        await put_experiment(store, a="finished")
        await put_trial(store, "a", {"checkpoint_000000": checkpoint("a0", loss=1)})
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    experiment = await Experiment.open(tmp_path / "new")
    report = await experiment.latest_checkpoint().download(tmp_path / "model")
    assert files_of(tmp_path / "model") == checkpoint("a0")[0]
    assert report.files_fetched == 2


async def _with_clocks(name, *clocks):
    """A trial whose n-th checkpoint became durable at the n-th time of its machine's clock; its record lists them in
    another order.
    """
    store = MemoryStore("lab", "exp")
    made = {f"checkpoint_{at:06d}": checkpoint(f"{name}{at}", loss=1.0) for at in range(len(clocks))}
    await put_trial(store, name, made)
    record = TrialRecord.from_bytes(store.contents[f"{name}/{TRIAL_RECORD}"])
    for item, clock in zip(record.checkpoints, clocks, strict=True):
        item.time = clock
    record.checkpoints.reverse()
    await store.put(f"{name}/{TRIAL_RECORD}", record.to_bytes())


@pytest.mark.parametrize("clocks", list(itertools.permutations((1000.0, 500.0, 4e9))))
async def test_within_a_trial_the_number_decides_not_the_clock(tmp_path, clocks):
    await _with_clocks("t", *clocks)
    experiment = await Experiment.open(URI)
    newest = "checkpoint_000002"
    assert [item.number for item in experiment.checkpoints] == [2, 1, 0]
    assert [item.number for item in experiment.trial("t").checkpoints] == [0, 1, 2]
    assert {experiment.latest_checkpoint(trial).name for trial in (None, "t")} == {newest}
    assert {experiment.best_checkpoint("loss", order=order).name for order in ("min", "max")} == {newest}
    assert (await experiment.restore(tmp_path / "r")).checkpoint.name == newest


async def test_between_trials_the_time_of_the_newest_checkpoint_decides():
    """The clock of ``a`` went back after a wrong hour: its newest is older than that of ``b``."""
    await _with_clocks("a", 9000.0, 100.0)
    await _with_clocks("b", 200.0, 300.0)
    names = [f"{item.trial}{item.number}" for item in (await Experiment.open(URI)).checkpoints]
    assert names == ["b1", "b0", "a1", "a0"]


async def test_an_experiments_latest_checkpoint_is_the_latest_of_its_trials(store):
    experiment = await Experiment.open(URI)
    assert experiment.latest_checkpoint().uri == f"{URI}/b/checkpoint_000002"
    assert experiment.latest_checkpoint("a").name == "checkpoint_000001"
    assert experiment.latest_checkpoint("c") is None
    with pytest.raises(ConfigError, match="no trial 'z'; it has 3: a, b, c"):
        experiment.latest_checkpoint("z")


@pytest.mark.parametrize(
    ("metric", "order", "best"), [("loss", "min", "a1"), ("loss", "max", "a0"), ("eval/acc", "max", "a1")]
)
async def test_the_best_checkpoint_has_the_best_number(store, metric, order, best):
    found = (await Experiment.open(URI)).best_checkpoint(metric, order=order)
    assert f"{found.trial}{found.number}" == best


async def test_nan_and_text_are_never_best(store):
    best = (await Experiment.open(URI)).best_checkpoint("loss", trial="b")
    assert best.name == "checkpoint_000001"


async def test_an_unknown_metric_is_reported_with_those_that_exist(store):
    experiment = await Experiment.open(URI)
    with pytest.raises(SyncError, match="'accuracy'; metrics there are: eval/acc, loss"):
        experiment.best_checkpoint("accuracy")
    with pytest.raises(ConfigError, match="max"):
        experiment.best_checkpoint("loss", order="least")
    assert experiment.best_checkpoint("loss", trial="c") is None


async def test_a_download_returns_the_path_and_a_second_fetches_nothing(store, tmp_path):
    best = (await Experiment.open(URI)).best_checkpoint("loss", order="min")
    report = await best.download(tmp_path / "m")
    assert files_of(tmp_path / "m") == checkpoint("a1")[0]
    assert (tmp_path / "m").samefile(report)
    assert (await best.download(tmp_path / "m")).files_fetched == 0


async def test_a_checkpoint_that_was_retired_since_is_incomplete(store, tmp_path):
    item = (await Experiment.open(URI)).trial("a").checkpoints[0]
    await store.delete(["a/checkpoint_000000/.asyncsync/manifest.json"])
    with pytest.raises(CheckpointIncompleteError, match=r"a/checkpoint_000000 has no manifest"):
        await item.download(tmp_path)
    assert (await item.verify()).missing == [".asyncsync/manifest.json"]


async def test_a_checkpoint_verifies_itself(store):
    item = (await Experiment.open(URI)).trial("a").checkpoints[0]
    assert (await item.verify()).ok
    store.damage("a/checkpoint_000000/model.bin", b"A0" * 100)
    assert list((await item.verify()).damaged) == ["model.bin"]
    assert sorted((await item.manifest()).files) == ["deep/optim.bin", "model.bin"]


async def test_restore_takes_the_newest_complete_and_reports_the_skipped(store, tmp_path):
    store.damage("b/checkpoint_000002/model.bin", b"x" * 200)
    report = await (await Experiment.open(URI)).restore(tmp_path / "r")
    assert report.checkpoint.name == "checkpoint_000001"
    [(name, why)] = report.passed_over
    assert name == "b/checkpoint_000002"
    assert "model.bin" in why
    assert files_of(tmp_path / "r") == FILES_OF_B["checkpoint_000001"]


async def test_restore_never_mixes_two_checkpoints(store, tmp_path):
    files = {"only_here": b"1", "z_big": b"z" * (2 << 20)}
    await put_tree(store, "b/checkpoint_000002/", files)
    store.damage("b/checkpoint_000002/z_big", b"y" * (2 << 20))
    await (await Experiment.open(URI)).restore(tmp_path / "r")
    assert files_of(tmp_path / "r") == FILES_OF_B["checkpoint_000001"]


async def test_restore_skips_missing_files_and_missing_or_unreadable_manifests(store, tmp_path):
    await store.delete(["b/checkpoint_000002/.asyncsync/manifest.json", "b/checkpoint_000001/model.bin"])
    await store.put("b/checkpoint_000000/.asyncsync/manifest.json", b"{}")
    report = await (await Experiment.open(URI)).restore(tmp_path)
    assert f"{report.checkpoint.trial}{report.checkpoint.number}" == "a1"
    assert [name for name, _ in report.passed_over] == [f"b/checkpoint_00000{number}" for number in (2, 1, 0)]


async def test_restore_reports_trials_with_an_unreadable_record(store, tmp_path):
    """Nobody knows whether they had a newer one."""
    await store.put("a/.asyncsync/trial.json", b"{")
    report = await (await Experiment.open(URI)).restore(tmp_path / "out")
    assert report.checkpoint.trial == "b"
    assert [name for name, _ in report.passed_over] == ["a"]
    with pytest.raises(CheckpointIncompleteError, match="none of the 0 checkpoints"):
        await (await Experiment.open(URI)).restore(tmp_path / "other", "a")


async def test_restore_without_any_complete_checkpoint_names_them_all(store, tmp_path):
    for number in range(2):
        store.damage(f"a/checkpoint_00000{number}/model.bin", b"")
    experiment = await Experiment.open(URI)
    with pytest.raises(CheckpointIncompleteError, match=r"none of the 2 checkpoints.*checkpoint_000001.*000000"):
        await experiment.restore(tmp_path, trial="a")
    with pytest.raises(NotFoundError, match="no checkpoint"):
        await experiment.restore(tmp_path, trial="c")


async def test_a_restore_does_not_fall_back_when_the_store_refuses(store, tmp_path):
    experiment = await Experiment.open(URI)
    inject_faults("lab").fail(1, AccessDeniedError("no"), key="model.bin", times=None)
    with pytest.raises(SyncFailedError, match="no"):
        await experiment.restore(tmp_path)


async def test_a_pulled_experiment_has_every_tree_and_checkpoint(store, tmp_path):
    report = await pull(URI, tmp_path)
    found = files_of(tmp_path)
    assert {name.split("/")[0] for name in found} == {"searcher.pkl", "a", "b"}
    assert found["b/checkpoint_000002/deep/optim.bin"] == b"b2"
    assert found["a/result.json"] == b'{"loss": 1}\n'
    assert report.files_sent == len(found) == 1 + 2 * 1 + 5 * 2
    assert (await pull(URI, tmp_path)).files_sent == 0


async def test_a_pulled_trial_has_its_ranks_and_checkpoints(store, tmp_path):
    await put_tree(store, "a/rank_00001/", {"log": b"rank"})
    await pull(f"{URI}/a", tmp_path)
    assert {"result.json", "rank_00001/log", "checkpoint_000001/model.bin"} <= files_of(tmp_path).keys()


async def test_a_pulled_checkpoint_is_just_that(store, tmp_path):
    await pull(f"{URI}/a/checkpoint_000001", tmp_path)
    assert files_of(tmp_path) == checkpoint("a1")[0]


async def test_pull_from_nowhere_names_the_next_command(store, tmp_path):
    with pytest.raises(CheckpointIncompleteError, match="nothing complete at memory://lab/nowhere"):
        await pull("memory://lab/nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_one_damaged_tree_does_not_stop_the_others(store, tmp_path):
    store.damage("a/checkpoint_000000/model.bin", b"")
    with pytest.raises(IntegrityError):
        await pull(URI, tmp_path)
    assert len(files_of(tmp_path)) >= 11


async def test_a_checkpoint_retired_during_the_pull_is_a_warning(store, tmp_path):
    def retire():
        store.bucket.objects.pop("exp/a/checkpoint_000000/.asyncsync/manifest.json")
        key = "exp/a/.asyncsync/trial.json"
        raw = store.bucket.objects[key].data
        other = raw.replace(b'"name":"checkpoint_000000"', b'"name":"checkpoint_000009"')
        store._store("a/.asyncsync/trial.json", other, "replaced")

    inject_faults("lab").hook(1, retire, operation="read", key="a/checkpoint_000000/.asyncsync/manifest.json")
    report = await pull(URI, tmp_path)
    assert report.warnings == ("a/checkpoint_000000: retired during the pull",)


@pytest.mark.virtual_time
async def test_a_tree_that_is_being_synced_is_read_again(tmp_path):
    store = MemoryStore("lab", "tree")
    await put_tree(store, "", {"log": b"old"})
    await put_tree(store, "", {"log": b"newer"}, manifest=False)
    task = asyncio.create_task(pull("memory://lab/tree", tmp_path))
    await asyncio.sleep(0.1)
    await put_tree(store, "", {"log": b"newer"})
    await task
    assert files_of(tmp_path) == {"log": b"newer"}


@pytest.mark.parametrize("name", ["..", "a/b", ".asyncsync"])
async def test_a_record_cannot_lead_a_pull_astray(store, tmp_path, name):
    record = store.contents["a/.asyncsync/trial.json"].replace(b"checkpoint_000000", name.encode())
    await store.put("a/.asyncsync/trial.json", record)
    with pytest.raises(DamagedError, match=r"^memory://lab/exp/a/.asyncsync/trial.json is damaged.*invalid"):
        await pull(f"{URI}/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_progress_of_a_pull_ends_with_everything(store, tmp_path):
    seen = []
    await pull(URI, tmp_path, on_progress=seen.append)
    assert (seen[-1].files_done, seen[-1].files_total) == (13, 13)
