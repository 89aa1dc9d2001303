"""Files written by real PyTorch, on a real server. `nox -s torch` runs these; `run.py test` does not collect them.

Sizes are above the floor for parts (5 MiB) with the default part size of 16 MiB: each limit allows the changed bytes
and two parts.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from safetensors.torch import load_file, save_file

from asyncsync import CheckpointConfig, RunConfig, SyncEngine, push
from asyncsync.events import CheckpointDurable

MIB = 1 << 20
TWO_PARTS = 32 * MIB
Weights = dict[str, torch.Tensor]


def noise(mib: float, seed: int) -> torch.Tensor:
    """A matrix of so many MiB."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(mib * 256), 1024, generator=generator)


def frozen() -> Weights:
    """The 60 MiB of a model that training leaves alone, as layers of different sizes."""
    sizes = (24, 3, 20, 0.25, 12.75)
    return {f"base.layers.{number}.weight": noise(mib, number) for number, mib in enumerate(sizes)}


def adapter(step: int, mib: float = 6) -> Weights:
    """The trained weights: two matrices, as in LoRA."""
    return {"lora.a": noise(mib / 2, 1000 + step), "lora.b": noise(mib / 2, 2000 + step)}


def by_torch(tensors: Mapping[str, Any], path: Path) -> None:
    torch.save(tensors, path)


def by_safetensors(tensors: Weights, path: Path) -> None:
    save_file(tensors, path)


def restored(path: Path) -> Any:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def equal(left: Any, right: Any) -> bool:
    """Tensor by tensor, through dictionaries and lists."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


class World:
    """One bucket of the server, an experiment in it, and a plain client to read it."""

    def __init__(self, server: servers.S3Server, bucket: str, room: Path) -> None:
        self.server, self.bucket, self.room = server, bucket, room
        self.costs: dict[str, CheckpointDurable] = {}

    @asynccontextmanager
    async def engine(self, keep: int | None = None) -> AsyncIterator[SyncEngine]:
        run = RunConfig(
            name="exp",
            storage_path=f"s3://{self.bucket}",
            storage_options=self.server.storage_options,
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
        )
        async with SyncEngine(run, local_dir=self.room / "local") as engine:
            events = engine.events()
            yield engine
        async for event in events:
            if isinstance(event, CheckpointDurable):
                self.costs[f"{event.trial}/{event.checkpoint}"] = event

    async def push(self, tree: Path):
        return await push(tree, f"s3://{self.bucket}/tree", storage_options=self.server.storage_options)

    def fetch(self, key: str) -> Path:
        """Read one object as any other program would."""
        path = self.room / f"fetched-{key.replace('/', '-')}"
        with self.server.client() as client, path.open("wb") as file:
            for piece in client.get_object(Bucket=self.bucket, Key=key)["Body"].iter_chunks(MIB):
                file.write(piece)
        return path

    def directory(self, name: str) -> Path:
        made = self.room / name
        made.mkdir()
        return made


@pytest.fixture
def world(seaweedfs: servers.S3Server, tmp_path: Path) -> World:
    return World(seaweedfs, seaweedfs.create_bucket(f"torch-{uuid.uuid4()}"), tmp_path)


FORMATS = [("model.pt", by_torch), ("model.safetensors", by_safetensors)]


@pytest.mark.parametrize(("name", "save"), FORMATS, ids=["torch", "safetensors"])
async def test_a_new_checkpoint_sends_the_adapter_and_at_most_two_parts(world: World, name, save) -> None:
    """Also after retention has deleted the checkpoint that the rest was copied from."""
    changed = [{**frozen(), **adapter(step)} for step in range(2)]
    async with world.engine(keep=1) as engine:
        for step, tensors in enumerate(changed):
            directory = world.directory(f"step{step}")
            save(tensors, directory / name)
            await engine.trial("t").report({}, checkpoint=directory)
    cost = world.costs["t/checkpoint_000001"]
    assert cost.bytes_sent <= 6 * MIB + TWO_PARTS
    assert cost.bytes_sent + cost.bytes_copied == cost.bytes_total > 66 * MIB
    assert equal(restored(world.fetch(f"exp/t/checkpoint_000001/{name}")), changed[1])


async def test_an_adapter_of_its_own_beside_a_base_that_stays(world: World) -> None:
    """LoRA as its libraries save it: the base is one file, the adapter another; the base is copied whole."""
    base = frozen()
    async with world.engine() as engine:
        for step in range(2):
            directory = world.directory(f"step{step}")
            save_file(base, directory / "base.safetensors")
            save_file(adapter(step), directory / "adapter_model.safetensors")
            await engine.trial("t").report({}, checkpoint=directory)
    cost = world.costs["t/checkpoint_000001"]
    assert 6 * MIB <= cost.bytes_sent < 6.1 * MIB
    assert cost.bytes_copied > 60 * MIB
    where = "exp/t/checkpoint_000001"
    assert equal(restored(world.fetch(f"{where}/base.safetensors")), base)
    assert equal(restored(world.fetch(f"{where}/adapter_model.safetensors")), adapter(1))


@pytest.mark.parametrize(("name", "save"), FORMATS, ids=["torch", "safetensors"])
async def test_a_forked_trial_copies_the_base_weights(world: World, name, save) -> None:
    base = frozen()
    async with world.engine() as engine:
        for trial, step in (("origin", 0), ("fork", 1)):
            directory = world.directory(trial)
            save(base, directory / name)
            save(adapter(step), directory / f"adapter-{name}")
            await engine.trial(trial).report({}, checkpoint=directory)
    cost = world.costs["fork/checkpoint_000000"]
    assert 6 * MIB <= cost.bytes_sent < 6.1 * MIB
    assert cost.bytes_copied > 60 * MIB
    assert equal(restored(world.fetch(f"exp/fork/checkpoint_000000/{name}")), base)
    assert equal(restored(world.fetch(f"exp/fork/checkpoint_000000/adapter-{name}")), adapter(1))


async def test_an_optimizer_whose_state_changed_wholly_overwrites_its_file(world: World) -> None:
    """Model and optimizer in one file under one path, as most training scripts save them: the frozen weights stay."""
    layers = torch.nn.ModuleDict({"frozen": torch.nn.Linear(4096, 4096), "head": torch.nn.Linear(1024, 1024)})
    layers["frozen"].requires_grad_(False)
    optimizer = torch.optim.Adam(layers["head"].parameters())
    path = world.directory("tree") / "last.pt"
    reports = []
    for step in range(2):
        loss = layers["head"](torch.randn(8, 1024)).square().mean()
        loss.backward()
        optimizer.step()
        state = {"model": layers.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, path)
        reports.append(await world.push(path.parent))
    changed = 3 * 4 * MIB  # the head and Adam's two moments of it
    assert reports[1].bytes_sent <= changed + TWO_PARTS < reports[1].bytes_total
    assert equal(restored(world.fetch("tree/last.pt")), state)


async def test_a_file_with_other_tensors_everywhere_is_sent_once(world: World) -> None:
    path = world.directory("tree") / "last.pt"
    for seed in (1, 2):
        tensors = {"moments": noise(64, seed)}
        torch.save(tensors, path)
        report = await world.push(path.parent)
    # bytes before and after the tensor may stay equal, the tensor does not
    assert 64 * MIB <= report.bytes_sent <= report.bytes_total == path.stat().st_size
    assert equal(restored(world.fetch("tree/last.pt")), tensors)


def shifted(step: int) -> Weights:
    """An adapter of another length each time, which is saved first: everything behind it moves."""
    return {**adapter(step, 6 + 2 * step), **frozen()}


def renamed(step: int) -> Weights:
    """Layers under longer names: torch writes names first, but aligns the tensors after them."""
    return {**adapter(step), **{f"{'re' * step}named.{name}": tensor for name, tensor in frozen().items()}}


@pytest.mark.parametrize(("tensors", "most"), [(shifted, 68.1 * MIB), (renamed, 6 * MIB + TWO_PARTS)])
async def test_parts_are_compared_where_they_lie(world: World, tensors: Callable[[int], Weights], most: float) -> None:
    """Moved bytes are sent, as documented; the file is right in any case."""
    path = world.directory("tree") / "model.pt"
    for step in range(2):
        torch.save(tensors(step), path)
        report = await world.push(path.parent)
    assert report.bytes_sent <= most
    assert report.bytes_sent + report.bytes_copied == path.stat().st_size
    assert equal(restored(world.fetch("tree/model.pt")), tensors(1))
