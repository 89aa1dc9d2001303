"""torch.distributed.checkpoint, with two gloo ranks."""

import pickle
from pathlib import Path

import pytest
import servers
from trainings import KILLED, Trainings, needs

from asyncsync.blocking import verify

pytestmark = [needs("torch"), pytest.mark.timeout(600)]
SCRIPT = "train_dcp.py"
PART = 32 << 20
"""Size of the parts of a file of 96 MiB, which are verified as a whole."""


def steps(trainings: Trainings) -> list[int | None]:
    return [item.step for item in trainings.experiment().trial("run").checkpoints]


def port() -> int:
    return servers._free_ports(1)[0]


@pytest.mark.parametrize("mode", ["save", "async"])
def test_what_two_ranks_save_is_loaded_by_two_and_by_one(trainings: Trainings, mode: str) -> None:
    trainings.run(SCRIPT, "local", mode, ranks=2)
    assert steps(trainings) == [1, 2, 3]
    files = trainings.experiment().trial("run").checkpoints[-1].manifest().files
    assert {".metadata", "__0_0.distcp", "__1_0.distcp"} <= files.keys()
    assert trainings.run(SCRIPT, "local", "load", ranks=2) == {"step": 3, "equal": True}
    assert trainings.run(SCRIPT, "local", "load", port()) == {"step": 3, "equal": True}
    assert verify(trainings.uri, deep=True, storage_options=trainings.options).ok


def test_ranks_killed_during_an_upload_resume_elsewhere_bit_equal(trainings: Trainings) -> None:
    whole = trainings.run(SCRIPT, "whole", "train", 0, ranks=2, uri=f"{trainings.uri}-whole")
    trainings.run(SCRIPT, "local", "train", 4, code=KILLED, ranks=2)
    assert steps(trainings)[-1] in (3, 4)
    resumed = trainings.run(SCRIPT, "fresh", "train", 0, ranks=2)
    assert resumed == {"from": resumed["from"], "weights": whole["weights"]}
    assert resumed["from"] in (3, 4)
    assert verify(trainings.uri, deep=True, storage_options=trainings.options).ok


def test_a_save_that_fails_on_one_rank_does_not_harm_the_next(trainings: Trainings) -> None:
    trainings.run(SCRIPT, "local", "failing", ranks=2)
    assert steps(trainings) == [1, 3]
    assert trainings.run(SCRIPT, "fresh", "load", ranks=2) == {"step": 3, "equal": True}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_rank_fetches_the_parts_that_hold_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    from asyncsync import NotFoundError, RunConfig
    from asyncsync.blocking import SyncEngine
    from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter, asyncsync_reader
    from asyncsync.testing import MemoryStore

    mib, fetched = 1 << 20, []
    read = MemoryStore.read

    async def counted(self, key: str, sink, **options):
        async def counting(data) -> None:
            fetched.append((key.rpartition("/")[2], len(data)))
            await sink(data)

        return await read(self, key, counting, **options)

    state = {name: torch.randn(24 * mib // 4) for name in "abcd"}  # one file of 96 MiB
    with SyncEngine(RunConfig(name="exp", storage_path="memory://ranged"), local_dir=tmp_path) as engine:
        dcp.save(state, checkpoint_id="step-1", storage_writer=AsyncsyncWriter(engine.trial("run")), no_dist=True)
    monkeypatch.setattr(MemoryStore, "read", counted)
    with pytest.raises(NotFoundError, match="run2 has no checkpoint"):
        asyncsync_reader("memory://ranged/exp/run2")
    mine = {"c": torch.zeros(24 * mib // 4)}
    dcp.load(mine, storage_reader=asyncsync_reader("memory://ranged/exp/run"), no_dist=True)
    assert torch.equal(mine["c"], state["c"])
    bytes_of_data = sum(size for name, size in fetched if name == "__0_0.distcp")
    assert bytes_of_data <= 24 * mib + 2 * PART


def test_a_writer_for_another_process_is_refused(tmp_path: Path) -> None:
    """dcp.async_save with AsyncCheckpointerType.PROCESS pickles it; torchtitan's pinned memory mode does so."""
    from asyncsync import ConfigError, RunConfig
    from asyncsync.blocking import SyncEngine
    from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter

    with SyncEngine(RunConfig(name="exp", storage_path="memory://pickled"), local_dir=tmp_path) as engine:
        writer = AsyncsyncWriter(engine.trial("run"))
        with pytest.raises(ConfigError, match=r"AsyncCheckpointerType\.THREAD"):
            pickle.dumps(writer)


@pytest.mark.parametrize(
    ("checkpoint_id", "step"), [("step-100", 100), ("/ckpts/step_7/", 7), ("12", 12), ("final", None), (None, None)]
)
def test_the_step_is_the_number_at_the_end(checkpoint_id: str | None, step: int | None) -> None:
    from asyncsync import ConfigError
    from asyncsync.integrations.torch_checkpoint import step_of

    if step is None:
        with pytest.raises(ConfigError, match="must end in the training step"):
            step_of(checkpoint_id)
    else:
        assert step_of(checkpoint_id) == step
