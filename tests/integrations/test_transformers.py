"""transformers.Trainer with AsyncsyncCallback."""

import shutil
from importlib.metadata import PackageNotFoundError, version

import pytest
from trainings import KILLED, Trainings, needs

pytestmark = [needs("transformers"), pytest.mark.timeout(600)]
SCRIPT = "train_transformers.py"


def has_just_in_time() -> bool:
    """From transformers 5 on."""
    try:
        return int(version("transformers").partition(".")[0]) >= 5
    except PackageNotFoundError:
        return False


def steps(trainings: Trainings) -> list[int | None]:
    return [item.step for item in trainings.experiment().trial("run").checkpoints]


def test_killed_and_resumed_elsewhere_the_weights_are_bit_equal(trainings: Trainings) -> None:
    whole = trainings.run(SCRIPT, "whole", 14, uri=f"{trainings.uri}-whole")
    trainings.run(SCRIPT, "first", 14, 10, code=KILLED)
    assert steps(trainings)[-1] == 8
    resumed = trainings.run(SCRIPT, "fresh", 14)
    assert resumed["from"] == "fresh/checkpoint-8"
    assert resumed["weights"] == whole["weights"]
    assert steps(trainings) == [14]  # save_total_limit=1 holds in the store, too


def test_an_exception_in_training_still_stores_what_was_saved(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "out", 14, 6, "raise", code=1)
    assert "training failed" in trainings.last_error
    assert steps(trainings) == [4]


@pytest.mark.skipif(not has_just_in_time(), reason="this release of transformers has no just-in-time checkpoints")
def test_a_just_in_time_checkpoint_is_found_at_the_end(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "out", 14, 6, "jit")
    found = steps(trainings)
    assert len(found) == 1
    assert 6 <= found[0] < 14


@needs("peft")
@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in ("peft", "trl")])
def test_adapters_of_peft_and_trl_are_stored_and_resumed(trainings: Trainings, tmp_path, framework: str) -> None:
    trainings.run(SCRIPT, "out", 8, 0, framework)
    files = trainings.experiment().trial("run").checkpoints[-1].manifest().files
    assert "adapter_model.safetensors" in files
    shutil.rmtree(tmp_path / "out")
    assert trainings.run(SCRIPT, "out", 12, 0, framework)["from"] == "out/checkpoint-8"


def test_two_ranks_store_one_checkpoint_and_resume(trainings: Trainings, tmp_path) -> None:
    trainings.run(SCRIPT, "out", 8, ranks=2)
    checkpoint = trainings.experiment().trial("run").checkpoints[-1]
    assert checkpoint.step == 8
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= checkpoint.manifest().files.keys()
    shutil.rmtree(tmp_path / "out")
    assert trainings.run(SCRIPT, "out", 12, ranks=2)["from"] == "out/checkpoint-8"
    assert steps(trainings)[-1] == 12


def test_a_store_that_is_missing_at_the_start_is_an_error(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "out", 8, uri="s3://no-such-bucket/exp/run", code=1)
    assert "NoSuchBucketError" in trainings.last_error
