"""Lightning's trainer with AsyncsyncCheckpointIO, for both twins."""

import os
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
    whole = trainings.run(SCRIPT, twin, "whole", 15, uri=f"{trainings.uri}-whole")
    trainings.run(SCRIPT, twin, "first", 15, 10, code=KILLED)
    before = stored(trainings, tmp_path)
    assert "last.ckpt" in before
    resumed = trainings.run(SCRIPT, twin, "fresh", 15)
    assert os.path.basename(resumed["from"]) == "last.ckpt"
    assert resumed["weights"] == whole["weights"]
    assert set(resumed["kept"]) <= set(stored(trainings, tmp_path))
    assert verify(trainings.uri, deep=True, storage_options=trainings.options).ok


def test_the_mirror_follows_what_lightning_keeps(trainings: Trainings, tmp_path: Path) -> None:
    kept = trainings.run(SCRIPT, "lightning", "ckpts", 15)["kept"]
    assert len(kept) == 3  # two best and the last
    assert stored(trainings, tmp_path) == kept
    pull(trainings.uri, tmp_path / "copy", storage_options=trainings.options)
    assert (tmp_path / "copy/last.ckpt").read_bytes() == (tmp_path / "ckpts/last.ckpt").read_bytes()


def test_an_exception_in_training_still_stores_what_was_saved(trainings: Trainings, tmp_path: Path) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 15, 6, "raise", code=1)
    assert "training failed" in trainings.last_error
    assert "last.ckpt" in stored(trainings, tmp_path)


def test_a_directory_outside_the_mirror_is_refused(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 15, -1, "elsewhere", code=1)
    assert "must be below" in trainings.last_error


def test_a_store_that_is_missing_at_the_start_is_an_error(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "lightning", "ckpts", 15, uri="s3://no-such-bucket/run", code=1)
    assert "NoSuchBucketError" in trainings.last_error
