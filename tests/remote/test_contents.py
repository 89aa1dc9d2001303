"""The contents of any URL: a storage path, an experiment, a trial, a synced directory, and nothing."""

import pytest
from stored import put_experiment, put_tree, put_trial

from asyncsync import Experiment, ExperimentSummary, TrialView, contents
from asyncsync.errors import DamagedError, NotFoundError
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import Manifest
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord
from asyncsync.testing import MemoryStore

CHECKPOINT = ({"model.bin": b"weights"}, {"loss": 0.5})


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exps/sweep")
    await put_experiment(store, a="finished", b="running", c="running")
    await put_trial(store, "a", {"checkpoint_000000": CHECKPOINT})
    return store


async def test_a_storage_path_holds_experiments_with_their_trials_counted(store):
    (found,) = await contents("memory://lab/exps")
    assert isinstance(found, ExperimentSummary)
    assert (found.name, found.uri) == ("sweep", "memory://lab/exps/sweep")
    assert found.trials == {"finished": 1, "running": 2}


async def test_an_unreadable_experiment_is_listed_with_its_error(store):
    await MemoryStore("lab", "exps/old").put(EXPERIMENT_RECORD, b"{")
    old, sweep = await contents("memory://lab/exps")
    assert (old.name, old.status, sweep.error) == ("old", "unreadable", None)
    assert "damaged" in old.error


async def test_an_experiment_is_opened(store):
    found = await contents("memory://lab/exps/sweep/")
    assert isinstance(found, Experiment)
    assert [trial.name for trial in found.trials] == ["a", "b", "c"]


async def test_a_trial_is_shown_with_checkpoints_that_can_be_downloaded(store, tmp_path):
    found = await contents("memory://lab/exps/sweep/a/")
    assert isinstance(found, TrialView)
    (checkpoint,) = found.checkpoints
    assert checkpoint.uri == "memory://lab/exps/sweep/a/checkpoint_000000"
    await checkpoint.download(tmp_path / "model")
    assert (tmp_path / "model" / "model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("files", [True, False])
async def test_a_synced_directory_is_a_manifest(files):
    await put_tree(MemoryStore("lab", "tree"), "", {"f": b"data"})
    found = await contents("memory://lab/tree", files=files)
    assert isinstance(found, Manifest)
    assert list(found.files) == ["f"]


async def test_the_files_of_an_experiment_are_those_of_its_own_manifest(store):
    await put_tree(store, "", {"search.pkl": b"state"})
    found = await contents("memory://lab/exps/sweep", files=True)
    assert isinstance(found, Manifest)
    assert list(found.files) == ["search.pkl"]


async def test_a_damaged_trial_record_is_an_error(store):
    await store.put(f"a/{TRIAL_RECORD}", b"{")
    with pytest.raises(DamagedError):
        await contents("memory://lab/exps/sweep/a")


@pytest.mark.parametrize("files", [True, False])
async def test_an_address_that_holds_nothing_is_an_error(files):
    MemoryStore("lab", "x")
    with pytest.raises(NotFoundError, match="memory://lab/x holds no experiment"):
        await contents("memory://lab/x/", files=files)


@pytest.mark.parametrize("status", ["running", "interrupted", "finished"])
async def test_a_trial_alone_has_the_status_that_it_has_in_its_experiment(status):
    """Also if nothing is known of its process: it ran on another machine, and the heartbeat is old."""
    store = MemoryStore("lab", "exps/other")
    driver = ExperimentRecord("other", {"t": "running"}, status=status, runner="elsewhere/1", heartbeat=1.0)
    driver.heartbeat_period = 60.0
    await store.put(EXPERIMENT_RECORD, driver.to_bytes())
    await store.put(f"t/{TRIAL_RECORD}", TrialRecord("t", "other", runner="elsewhere/1").to_bytes())
    alone = await contents("memory://lab/exps/other/t")
    together = (await Experiment.open("memory://lab/exps/other")).trial("t")
    assert alone.shown_status == together.shown_status == ("lost" if status == "running" else "unfinished")
