"""Integrations with checkpoints on Azure's protocol; the trainings use S3."""

from pathlib import Path
from typing import Any

import pytest
from trainings import needs

from asyncsync import RunConfig
from asyncsync.blocking import SyncEngine, verify

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@needs("torch")
def test_dcp_saves_and_loads(azure_strict: Any, tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    from asyncsync.integrations.torch_checkpoint import AsyncsyncWriter, asyncsync_reader

    options, place = dict(azure_strict.storage_options), "az://conformance/frameworks"
    state, found = {"weights": torch.randn(3000), "step": 7}, {"weights": torch.zeros(3000), "step": 0}
    run = RunConfig(name="exp", storage_path=place, storage_options=options)
    with SyncEngine(run, local_dir=tmp_path) as engine:
        dcp.save(state, checkpoint_id="step-7", storage_writer=AsyncsyncWriter(engine.trial("run")), no_dist=True)
    reader = asyncsync_reader(f"{place}/exp/run", storage_options=options)
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert found["step"] == 7
    assert torch.equal(found["weights"], state["weights"])


@needs("lightning")
def test_lightnings_mirror_is_followed_and_fetched(azure_strict: Any, tmp_path: Path) -> None:
    from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

    options, place = {"storage_options": dict(azure_strict.storage_options)}, "az://conformance/lightning"
    io = AsyncsyncCheckpointIO(tmp_path / "first", place, **options)
    for step in (1, 2):
        io.save_checkpoint({"step": step}, tmp_path / f"first/step={step}.ckpt")
    io.remove_checkpoint(tmp_path / "first/step=1.ckpt")
    io.teardown()
    later = AsyncsyncCheckpointIO(tmp_path / "later", place, **options)
    assert later.load_checkpoint(later.fetch("step=2.ckpt"))["step"] == 2
    assert later._candidates("step=2.ckpt") == ["step=2.ckpt"]
    assert verify(place, deep=True, **options).ok
