"""Lightning's trainer with AsyncsyncCheckpointIO, for both twins."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from trainings import KILLED, Trainings, needs

from asyncsync.blocking import Syncer, pull, verify

pytestmark = [needs("lightning"), needs("pytorch_lightning"), pytest.mark.timeout(600)]
SCRIPT = "train_lightning.py"


def stored(trainings: Trainings, tmp_path: Path) -> list[str]:
    with Syncer(tmp_path / "nothing", trainings.uri, storage_options=trainings.options) as syncer:
        return sorted(syncer.manifest().files)


@pytest.mark.parametrize("twin", ["lightning", "pytorch_lightning"])
def test_killed_and_resumed_elsewhere_the_weights_are_bit_equal(
    trainings: Trainings, tmp_path: Path, twin: str
) -> None:
    whole = trainings.run(SCRIPT, twin, "whole", 16, uri=f"{trainings.uri}-whole")
    trainings.run(SCRIPT, twin, "ckpts", 16, 10, code=KILLED)
    assert "last.ckpt" in stored(trainings, tmp_path)
    shutil.rmtree(tmp_path / "ckpts")
    resumed = trainings.run(SCRIPT, twin, "ckpts", 16)
    assert os.path.basename(resumed["from"]) == "last.ckpt"
    assert resumed["weights"] == whole["weights"]
    assert set(resumed["kept"]) <= set(stored(trainings, tmp_path))
    assert verify(trainings.uri, deep=True, storage_options=trainings.options).ok


def test_the_mirror_follows_what_lightning_keeps(trainings: Trainings, tmp_path: Path) -> None:
    kept = trainings.run(SCRIPT, "lightning", "ckpts", 16)["kept"]
    assert len(kept) == 3  # two best and the last
    assert stored(trainings, tmp_path) == kept
    pull(trainings.uri, tmp_path / "copy", storage_options=trainings.options)
    assert (tmp_path / "copy/last.ckpt").read_bytes() == (tmp_path / "ckpts/last.ckpt").read_bytes()


def test_an_exception_in_training_still_stores_what_was_saved(trainings: Trainings, tmp_path: Path) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 16, 6, "raise", code=1)
    assert "training failed" in trainings.last_error
    assert "last.ckpt" in stored(trainings, tmp_path)


def test_a_directory_outside_the_mirror_is_refused(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 16, -1, "elsewhere", code=1)
    assert "must be below" in trainings.last_error


def test_a_store_that_is_missing_at_the_start_is_an_error(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 16, uri="s3://no-such-bucket/run", code=1)
    assert "NoSuchBucketError" in trainings.last_error


def test_the_newest_version_of_a_name_is_fetched(trainings: Trainings, tmp_path: Path) -> None:
    """Lightning writes last-v1.ckpt if last.ckpt is not its own."""
    from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

    root, store = tmp_path / "ckpts", tmp_path / "store"
    io = AsyncsyncCheckpointIO(root, store)
    assert io.fetch("last.ckpt") is None
    for name in ("last.ckpt", "step=1.ckpt", "last-v1.ckpt", "step=[2].ckpt"):
        io.save_checkpoint({"name": name}, root / name)
    io.remove_checkpoint(root / "step=1.ckpt")
    io.teardown()
    shutil.rmtree(root)
    fetched = io.fetch("last.ckpt")
    assert (fetched, os.listdir(root)) == (str(root / "last-v1.ckpt"), ["last-v1.ckpt"])
    assert io.load_checkpoint(fetched)["name"] == "last-v1.ckpt"
    (store / "last-v1.ckpt").write_bytes(b"damaged")
    shutil.rmtree(root)
    assert io.fetch("last.ckpt") == str(root / "last.ckpt")
    (store / "last.ckpt").write_bytes(b"damaged")
    shutil.rmtree(root)
    assert io.fetch("last.ckpt") == str(root / "step=[2].ckpt")


def make(tmp_path: Path, **options):
    from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

    return AsyncsyncCheckpointIO(tmp_path / "ckpts", tmp_path / "store", **options)


def write_shards(directory: Path) -> None:
    """As FSDPStrategy does: past the plugin, its marker last."""
    directory.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "meta.pt"):
        (directory / name).write_bytes(name.encode())


def test_sharded_checkpoints_are_stored_removed_and_fetched(tmp_path: Path) -> None:
    io = make(tmp_path)
    for name in ("step=1.ckpt", "step=2.ckpt"):
        write_shards(tmp_path / "ckpts" / name)
    io.remove_checkpoint(tmp_path / "ckpts/step=1.ckpt")
    write_shards(tmp_path / "ckpts/last.ckpt")
    io.teardown()
    shutil.rmtree(tmp_path / "ckpts")
    later = make(tmp_path)
    assert later.fetch("last.ckpt") == str(tmp_path / "ckpts/last.ckpt")
    assert sorted(os.listdir(tmp_path / "ckpts/last.ckpt")) == [".metadata", "__0_0.distcp", "meta.pt"]
    assert sorted(path.name for path in (tmp_path / "store").glob("*.ckpt")) == ["last.ckpt", "step=2.ckpt"]


def test_sharded_checkpoints_alone_are_stored_by_teardown(tmp_path: Path) -> None:
    io = make(tmp_path)
    write_shards(tmp_path / "ckpts/last.ckpt")
    io.teardown()
    assert (tmp_path / "store/last.ckpt/meta.pt").read_bytes() == b"meta.pt"


def test_a_sharded_checkpoint_that_a_kill_left_half_written_is_fetched(tmp_path: Path) -> None:
    io = make(tmp_path)
    write_shards(tmp_path / "ckpts/last.ckpt")
    io.teardown()
    for name in (".metadata", "meta.pt"):
        (tmp_path / "ckpts/last.ckpt" / name).unlink()
    (tmp_path / "ckpts/last.ckpt/__0_0.distcp").write_bytes(b"half")
    fetched = Path(make(tmp_path).fetch("last.ckpt"))
    assert (fetched / "meta.pt").read_bytes() == b"meta.pt"
    assert (fetched / "__0_0.distcp").read_bytes() == b"__0_0.distcp"


def test_a_process_that_only_reads_writes_nothing(tmp_path: Path) -> None:
    """An evaluation beside a training must not take its place as the writer."""
    writer = make(tmp_path)
    writer.save_checkpoint({"step": 1}, tmp_path / "ckpts/last.ckpt")
    writer.teardown()
    shutil.rmtree(tmp_path / "ckpts")
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    reader = make(tmp_path)
    assert reader.load_checkpoint(reader.fetch("last.ckpt"))["step"] == 1
    reader.teardown()
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [".temp.ckpt", ".lr_find_1.ckpt", ".scale_batch_size_1.ckpt", "hpc_ckpt_1.ckpt"])
def test_what_lightning_puts_elsewhere_for_itself_stays_local(tmp_path: Path, name: str) -> None:
    io, path = make(tmp_path), tmp_path / "elsewhere" / name
    io.save_checkpoint({"step": 1}, path)
    assert io.load_checkpoint(path)["step"] == 1
    io.remove_checkpoint(path)
    assert not path.exists()
    io.teardown()
    assert not list((tmp_path / "store").rglob("*.ckpt"))


def test_lightnings_async_plugin_may_wrap_it(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import AsyncCheckpointIO

    io = make(tmp_path)
    wrapped = AsyncCheckpointIO(io)
    wrapped.save_checkpoint({"step": 1}, tmp_path / "ckpts/last.ckpt")
    wrapped.teardown()
    io.teardown()
    assert (tmp_path / "store/last.ckpt").read_bytes() == (tmp_path / "ckpts/last.ckpt").read_bytes()


def test_a_save_and_a_removal_at_the_same_time_share_one_syncer(tmp_path: Path, monkeypatch) -> None:
    """AsyncCheckpointIO saves in its thread and removes in the trainer's."""
    io, started, meet = make(tmp_path), [], threading.Barrier(2)
    start = Syncer.start

    def counted(syncer: Syncer) -> None:
        started.append(syncer)
        start(syncer)

    def remove() -> None:
        meet.wait(20)
        io.remove_checkpoint(tmp_path / "ckpts/step=1.ckpt")

    monkeypatch.setattr(Syncer, "start", counted)
    thread = threading.Thread(target=remove)
    thread.start()
    meet.wait(20)
    io.save_checkpoint({"step": 2}, tmp_path / "ckpts/step=2.ckpt")
    thread.join()
    io.teardown()
    assert len(started) == 1
    assert (tmp_path / "store/step=2.ckpt").exists()


def test_the_inner_plugins_failure_at_the_end_does_not_cost_a_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import TorchCheckpointIO

    class Failing(TorchCheckpointIO):
        def teardown(self) -> None:
            raise RuntimeError("the inner plugin failed")

    io = make(tmp_path, checkpoint_io=Failing())
    io.save_checkpoint({"step": 1}, tmp_path / "ckpts/last.ckpt")
    with pytest.raises(RuntimeError, match="inner plugin"):
        io.teardown()
    assert (tmp_path / "store/last.ckpt").exists()


def test_an_inner_plugin_that_writes_later_is_refused(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import TorchCheckpointIO

    from asyncsync import ConfigError

    class Later(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            pass

    with pytest.raises(ConfigError, match="checkpoint_io=Later"):
        make(tmp_path, checkpoint_io=Later()).save_checkpoint({"step": 1}, tmp_path / "ckpts/last.ckpt")


def test_a_save_that_fails_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    io = make(tmp_path)
    io.save_checkpoint({"step": 1}, tmp_path / "ckpts/last.ckpt")
    with pytest.raises(AttributeError, match="pickle"):
        io.save_checkpoint({"step": lambda: 2}, tmp_path / "ckpts/last.ckpt")
    io.teardown()
    assert os.listdir(tmp_path / "ckpts") == ["last.ckpt"]
    assert io.load_checkpoint(tmp_path / "ckpts/last.ckpt")["step"] == 1
