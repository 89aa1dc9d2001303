"""Readers of an experiment that is still written move forward only, and never mix files of two checkpoints."""

import asyncio
import itertools
import threading

import pytest
from stored import entry_of, files_of, put_experiment, put_trial

from asyncsync import CheckpointIncompleteError, CheckpointRetiredError, NotFoundError, pull
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.remote.views.experiment import Experiment
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord
from asyncsync.testing import MemoryStore, inject_faults, reset_memory

URI = "memory://lab/exp"
BIG = 2 << 20
MOST_CALLS = 200


class Writer:
    """Commits checkpoints of trial ``t`` between two requests of a reader, and retires old ones."""

    def __init__(self, keep: int = 1) -> None:
        self.store, self.keep = MemoryStore("lab", "exp"), keep
        self.numbers: list[int] = []

    def files(self, number: int) -> dict[str, bytes]:
        """Each checkpoint has its own bytes, and a file that no other one has."""
        text = f"step {number} ".encode()
        return {"a/small": text, f"only-{number}": text * 2, "big": (text * BIG)[:BIG]}

    def commit(self, name: str = "") -> None:
        number = self.numbers[-1] + 1 if self.numbers else 0
        self.numbers.append(number)
        self._put(number, name)
        gone, self.numbers = self.numbers[: -self.keep], self.numbers[-self.keep :]
        self._record()
        for number in gone:
            self._delete(number)

    def _put(self, number: int, name: str = "") -> None:
        prefix, entries = self._prefix(number, name), {}
        for path, data in self.files(number).items():
            info = self.store._store(prefix + path, data, f"{number}-{path}")
            entries[path] = entry_of(path, data, version=info.version)
        self.store._store(prefix + MANIFEST, Manifest(entries).to_bytes(), f"manifest {number}")

    def _record(self) -> None:
        known = [CheckpointRecord(f"checkpoint_{at:06d}", at, {}, {}, 3, BIG, 10.0 * at) for at in self.numbers]
        record = TrialRecord("t", "exp", "running", checkpoints=known)
        self.store._store("t/" + TRIAL_RECORD, record.to_bytes(), f"record {self.numbers}")

    def _delete(self, number: int) -> None:
        prefix = "exp/" + self._prefix(number)
        for key in [key for key in self.store.bucket.objects if key.startswith(prefix)]:
            del self.store.bucket.objects[key]

    @staticmethod
    def _prefix(number: int, name: str = "") -> str:
        return f"t/{name or f'checkpoint_{number:06d}'}/"


@pytest.mark.parametrize("keep", [1, 2])
async def test_a_restore_goes_forward_whenever_retention_strikes(tmp_path, keep):
    """At the n-th request, for every n: the result is one checkpoint, not older than the newest known one."""
    for at in itertools.count(1):
        assert at < MOST_CALLS
        reset_memory()
        writer, faults = Writer(keep), inject_faults("lab")
        for _ in range(keep):
            writer.commit()
        experiment = await Experiment.open(URI)
        newest = writer.numbers[-1]
        fault = faults.hook(at, lambda: [writer.commit() for _ in range(keep)])
        target = tmp_path / f"{at}"
        report = await experiment.restore(target, "t")
        assert report.checkpoint.number >= newest
        assert files_of(target) == writer.files(report.checkpoint.number)
        assert report.passed_over == []
        if fault.seen < at:
            return


async def test_a_restore_goes_forward_as_long_as_something_newer_comes(tmp_path):
    """Each manifest that is read was retired just before, ten times; then the writer rests."""
    writer, faults = Writer(), inject_faults("lab")
    writer.commit()
    experiment = await Experiment.open(URI)
    faults.hook(1, writer.commit, operation="read", key="manifest.json", times=10)
    report = await experiment.restore(tmp_path / "r")
    assert (report.checkpoint.number, report.passed_over) == (10, [])
    assert files_of(tmp_path / "r") == writer.files(10)


async def test_a_restore_does_not_chase_a_writer_for_ever(tmp_path):
    writer, faults = Writer(), inject_faults("lab")
    writer.commit()
    experiment = await Experiment.open(URI)
    faults.hook(1, writer.commit, operation="read", key="manifest.json", times=None)
    with pytest.raises(CheckpointIncompleteError, match=r"100 checkpoints in a row were retired.*num_to_keep"):
        await experiment.restore(tmp_path / "r")
    assert files_of(tmp_path / "r") == {}


async def test_a_retired_checkpoint_is_not_replaced_by_an_older_kept_one(tmp_path):
    """Checkpoints 0 and 1 were known; 1 is retired and 2 exists: 0 is complete, but not the wanted one."""
    writer = Writer(keep=2)
    writer.commit()
    writer.commit()
    experiment = await Experiment.open(URI)
    writer._put(2)
    writer.numbers = [0, 2]
    writer._record()
    writer._delete(1)
    assert (await experiment.restore(tmp_path / "r")).checkpoint.number == 2


async def test_a_second_look_at_one_trial_reads_its_record_alone(tmp_path):
    writer = Writer()
    writer.commit()
    for name in ("u", "v"):
        await put_trial(writer.store, name, {"checkpoint_000000": ({"w": b"w"}, {})})
    experiment = await Experiment.open(URI)
    writer.commit()
    writer.store.log.clear()
    assert (await experiment.restore(tmp_path / "r", "t")).checkpoint.number == 1
    assert {key.split("/")[1] for _, key in writer.store.log} == {"t"}
    writer.store._store("t/" + TRIAL_RECORD, b"{", "broken")
    writer._delete(1)
    with pytest.raises(CheckpointIncompleteError, match=r"none of the 1 checkpoints .*not a trial record"):
        await experiment.restore(tmp_path / "s", "t")


async def test_a_checkpoint_that_appears_after_an_empty_listing_is_restored(tmp_path):
    store = MemoryStore("lab", "exp")
    await put_experiment(store, t="running")
    experiment = await Experiment.open(URI)
    with pytest.raises(NotFoundError, match="no checkpoint"):
        await experiment.restore(tmp_path / "r")
    Writer().commit()
    assert (await experiment.restore(tmp_path / "r", "t")).checkpoint.number == 0


async def test_a_damaged_checkpoint_is_downloaded_once(tmp_path):
    """This holds however often the records are read."""
    writer = Writer(keep=3)
    for _ in range(3):
        writer.commit()
    faults = inject_faults("lab")
    experiment = await Experiment.open(URI)
    for number in range(3):
        writer.store.damage(f"t/checkpoint_{number:06d}/a/small", b"step x ")
    with pytest.raises(CheckpointIncompleteError, match="none of the 3 checkpoints"):
        await experiment.restore(tmp_path / "r")
    reads = [request.key for request in faults.requests if request.key.endswith(MANIFEST)]
    assert (
        len([key for key in reads if "checkpoint_000002" in key]) <= 2
    )  # the second one looks whether it was replaced
    assert files_of(tmp_path / "r") == {}


async def test_every_reader_of_a_retired_checkpoint_raises_with_the_newest_name(tmp_path):
    writer = Writer()
    writer.commit()
    item = (await Experiment.open(URI)).latest_checkpoint()
    writer.commit()
    for call in (lambda: item.download(tmp_path), item.manifest, item.verify, lambda: item.verify(deep=False)):
        with pytest.raises(
            CheckpointRetiredError, match=r"t/checkpoint_000000 was retired.*checkpoint_000001"
        ) as caught:
            await call()
        assert caught.value.newest == f"{URI}/t/checkpoint_000001"


async def test_a_download_of_a_retired_checkpoint_leaves_no_thread(tmp_path):
    """The leak check of all tests stops the threads that nobody holds itself."""
    writer = Writer()
    writer.commit()
    item = (await Experiment.open(URI)).latest_checkpoint()
    writer.commit()
    before = set(threading.enumerate())
    with pytest.raises(CheckpointRetiredError):
        await item.download(tmp_path)
    for thread in {thread for thread in threading.enumerate() if thread.name.startswith("asyncsync-disk")} - before:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_trial_without_checkpoints_is_reported(tmp_path):
    writer = Writer()
    writer.commit()
    experiment = await Experiment.open(URI)
    writer.numbers = []
    writer._record()
    writer._delete(0)
    with pytest.raises(CheckpointRetiredError, match="no checkpoint now") as caught:
        await experiment.latest_checkpoint().download(tmp_path)
    assert caught.value.newest is None
    with pytest.raises(CheckpointIncompleteError, match=r"none of the 1 checkpoints.*was retired"):
        await experiment.restore(tmp_path)


async def test_retirement_in_the_middle_of_a_download_leaves_nothing_of_it(tmp_path):
    """At the n-th request, for every n: the complete checkpoint, or an error that names the newest one and no file."""
    seen = set()
    for at in itertools.count(1):
        assert at < MOST_CALLS
        reset_memory()
        writer, faults = Writer(), inject_faults("lab")
        writer.commit()
        item = (await Experiment.open(URI)).latest_checkpoint()
        fault, target = faults.hook(at, writer.commit), tmp_path / f"{at}"
        try:
            await item.download(target)
        except CheckpointRetiredError as error:
            seen.add(error.newest)
            assert files_of(target) == {}
        else:
            assert files_of(target) == writer.files(0)
        if fault.seen < at:
            break
    assert seen == {f"{URI}/t/checkpoint_000001"}


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_checkpoint_rewritten_under_its_name_comes_from_one_manifest(tmp_path, at):
    """The name stays, the bytes change in the midst of the download: all of it is of one of the two."""
    writer = Writer()
    writer.commit()
    item = (await Experiment.open(URI)).latest_checkpoint()

    def write_anew() -> None:
        writer._delete(0)
        writer._put(5, "checkpoint_000000")

    inject_faults("lab").hook(at, write_anew)
    await item.download(tmp_path / "r")
    assert files_of(tmp_path / "r") in (writer.files(0), writer.files(5))


async def test_a_checkpoint_that_a_store_refuses_is_not_called_retired(tmp_path):
    writer = Writer()
    writer.commit()
    item = (await Experiment.open(URI)).latest_checkpoint()
    await writer.store.delete(["t/checkpoint_000000/" + MANIFEST])  # and the record still names it
    with pytest.raises(CheckpointIncompleteError, match="has no manifest") as caught:
        await item.manifest()
    assert not isinstance(caught.value, CheckpointRetiredError)


async def test_a_pull_has_the_successor_of_a_retired_checkpoint(tmp_path):
    """At the n-th request, for every n: there is a checkpoint directory, and each of them is complete."""
    for at in itertools.count(1):
        assert at < MOST_CALLS
        reset_memory()
        writer, faults = Writer(), inject_faults("lab")
        await put_experiment(writer.store, t="running")
        writer.commit()
        fault, target = faults.hook(at, writer.commit), tmp_path / f"{at}"
        report = await pull(URI, target)
        found = {int(path.name.rpartition("_")[2]): files_of(path) for path in (target / "t").iterdir()}
        assert found in ({0: writer.files(0)}, {1: writer.files(1)}, {0: writer.files(0), 1: writer.files(1)})
        assert [line.split(":")[0] for line in report.warnings] in ([], ["t/checkpoint_000000"])
        if fault.seen < at:
            return


async def test_a_pull_of_a_checkpoint_deleted_meanwhile_leaves_nothing(tmp_path):
    """At the n-th request, for every n: the complete checkpoint, or an error and no file."""
    errors = 0
    for at in itertools.count(1):
        assert at < MOST_CALLS
        reset_memory()
        writer, faults, target = Writer(), inject_faults("lab"), tmp_path / f"{at}"
        writer.commit()
        fault = faults.hook(at, writer.commit)
        try:
            await pull(f"{URI}/t/checkpoint_000000", target)
        except CheckpointIncompleteError:
            errors += 1
            assert files_of(target) == {}
        else:
            assert files_of(target) == writer.files(0)
        if fault.seen < at:
            assert errors > 3
            return


async def test_an_older_complete_checkpoint_is_taken_if_none_was_retired(tmp_path):
    store = MemoryStore("lab", "exp")
    await put_trial(store, "t", {f"checkpoint_00000{at}": ({"w": b"%d" % at}, {}) for at in range(2)})
    experiment = await Experiment.open(URI)
    store.damage("t/checkpoint_000001/w", b"x")
    report = await experiment.restore(tmp_path / "r")
    assert (report.checkpoint.number, [name for name, _ in report.passed_over]) == (0, ["t/checkpoint_000001"])
