"""Content that the experiment already has in the store is copied there, across checkpoints and trials."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onebench import Bench
from safetensors.numpy import save_file

from asyncsync import CheckpointConfig, Experiment, TransferConfig
from asyncsync.testing import run_virtual

MIB = 1 << 20
SMALL_PARTS = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)


@pytest.fixture
def bench(bench: Bench) -> Bench:
    bench.transfer = SMALL_PARTS
    return bench


def tensor(seed: int, mib: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (mib, MIB), dtype=np.uint8)


async def bytes_of(engine, trial, metrics, checkpoint) -> tuple[int, int]:
    """Bytes that a checkpoint cost: sent and copied."""
    reports = []
    make_durable = engine._runner._make_durable

    async def watch(*arguments):
        reports.append(await make_durable(*arguments))
        return reports[-1]

    engine._runner._make_durable = watch
    try:
        await trial.report(metrics, checkpoint)
    finally:
        engine._runner._make_durable = make_durable
    return reports[-1].bytes_sent, reports[-1].bytes_copied


def safetensors(head: int) -> bytes:
    """A frozen body of 20 MiB and a head of 2 MiB that was trained."""
    return {"a.embedding": tensor(0, 10), "b.layers": tensor(1, 10), "z.head": tensor(head, 2)}


def model(bench: Bench, name: str, head: int) -> Path:
    directory = bench.checkpoint(name, **{"tokenizer.json": b"{}" * 20_000})
    save_file(safetensors(head), directory / "model.safetensors")
    return directory


def whole(bench: Bench, prefix: str, directory: Path) -> bool:
    contents = bench.store.contents
    return all(contents[f"{prefix}/{path.name}"] == path.read_bytes() for path in directory.iterdir())


def test_frozen_layers_are_copied_from_the_checkpoint_before(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            first, second = model(bench, "one", 2), model(bench, "two", 3)
            size = sum(path.stat().st_size for path in first.iterdir())
            assert await bytes_of(engine, trial, {}, first) == (size, 0)
            sent, copied = await bytes_of(engine, trial, {}, second)
            assert sent < 7 * MIB  # the head, and the part that it begins in
            assert sent + copied == size
            assert whole(bench, "t/checkpoint_000001", second)

    run_virtual(main())


def test_a_copy_outlives_its_source(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench.engine(keep=CheckpointConfig(num_to_keep=1)) as engine:
            trial = engine.trial("t")
            for number in range(4):
                last = model(bench, f"m{number}", number)
                await trial.report({}, last)
        assert {key.split("/")[1] for key in bench.keys() if "checkpoint_" in key} == {"checkpoint_000003"}
        assert whole(bench, "t/checkpoint_000003", last)
        experiment = await Experiment.open("memory://b/exp")
        await experiment.latest_checkpoint().download(tmp_path / "back")
        assert (tmp_path / "back/model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()

    run_virtual(main())


@pytest.mark.parametrize("at", range(1, 5))
def test_a_source_that_is_retired_while_it_is_copied_is_sent_instead(bench: Bench, at: int) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({}, model(bench, "one", 2))

            def retire() -> None:
                for key in [key for key in bench.store.bucket.objects if "checkpoint_000000/" in key]:
                    del bench.store.bucket.objects[key]

            bench.faults.hook(at, retire, key="checkpoint_000001")
            second = model(bench, "two", 3)
            await trial.report({}, second)
            assert whole(bench, "t/checkpoint_000001", second)

    run_virtual(main())


def test_a_trial_forked_from_another_sends_only_its_changes(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("origin").report({}, model(bench, "one", 2))
            fork = model(bench, "two", 3)
            sent, _ = await bytes_of(engine, engine.trial("fork"), {}, fork)
            assert sent < 7 * MIB
            assert whole(bench, "fork/checkpoint_000000", fork)

    run_virtual(main())


@pytest.mark.parametrize("trial", ["t", "fork"])
def test_the_next_process_copies_from_objects_of_the_last_one(bench: Bench, trial: str) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, model(bench, "one", 2))
        async with bench.engine(resume=True) as engine:
            second = model(bench, "two", 3)
            sent, _ = await bytes_of(engine, engine.trial(trial), {}, second)
            assert sent < 7 * MIB
            assert (
                bench.store.contents[f"{trial}/checkpoint_00000{int(trial == 't')}/model.safetensors"]
                == (second / "model.safetensors").read_bytes()
            )

    run_virtual(main())


def torch_like(arrays: dict[str, np.ndarray]) -> bytes:
    """As ``torch.save`` lays a file out: a zip without compression, tensors at multiples of 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), repr(list(arrays)))  # torch writes no times either
        for number, array in enumerate(arrays.values()):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            at = buffer.tell() + 30 + len(info.filename) + 4
            padding = -at % 64
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, array.tobytes())
    return buffer.getvalue()


def test_files_laid_out_as_by_torch_share_their_frozen_layers_too(bench: Bench) -> None:
    """Those that torch wrote itself are tried by `nox -s torch`."""

    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint("one", **{"model.pt": torch_like(safetensors(2))}))
            second = bench.checkpoint("two", **{"model.pt": torch_like(safetensors(3))})
            sent, _ = await bytes_of(engine, trial, {}, second)
            assert sent < 7 * MIB
            assert whole(bench, "t/checkpoint_000001", second)

    run_virtual(main())
