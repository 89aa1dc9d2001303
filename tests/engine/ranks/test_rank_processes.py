"""Ranks as real processes that communicate only through the store."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers

from asyncsync import Experiment, verify

RANKS, STEPS, SIZE = 4, 2, 1_500_000
PROGRAM = """
import asyncio, json, random, sys
from pathlib import Path
from asyncsync import Checkpoint, CheckpointConfig, RunConfig, SyncEngine, TransferConfig, UploadMode

uri, options, rank, world_size, place, first, last, size = json.loads(sys.argv[1])
place = Path(place)
run = RunConfig(name="exp", storage_path=uri, storage_options=options,
                checkpoint_config=CheckpointConfig(commit_timeout=60),
                transfer=TransferConfig(part_size=5 << 20, multipart_threshold=1 << 20))

async def main():
    async with SyncEngine(run, local_dir=place, role="worker", rank=rank, world_size=world_size, resume=True) as engine:
        trial = engine.trial("t")
        for step in range(first, last):
            directory = place / f"step{step}"
            directory.mkdir(parents=True)
            name = f"model-{rank + 1:05d}-of-{world_size:05d}.bin"
            (directory / name).write_bytes(random.Random(f"{step}/{rank}").randbytes(size))
            (directory / "config.json").write_text("{}")
            taken = Checkpoint.take(directory)
            report = await trial.report({"step": step}, taken, step=step, upload=UploadMode.ASYNC)
            await report.checkpoint.durable()
            print(report.checkpoint.name, flush=True)

asyncio.run(main())
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    """One rank. The program goes along as text: a file that is written for each of them may be read half written."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def all_ranks(tmp_path: Path, uri: str, options: dict[str, object], first: int, last: int) -> list[list[str]]:
    """Start every rank, wait for all; the checkpoints that each of them saw become durable."""
    started = [
        start(uri, options, rank, RANKS, str(tmp_path / f"{first}-{rank}"), first, last, SIZE) for rank in range(RANKS)
    ]
    names = []
    for process in started:
        with process:
            output, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
            names.append(output.split())
    return names


async def check(uri: str, options: dict[str, object], target: Path) -> None:
    experiment = await Experiment.open(f"{uri}/exp", storage_options=options)
    for step, checkpoint in enumerate(experiment.trial("t").checkpoints):
        assert checkpoint.files == RANKS + 1
        await checkpoint.download(target / checkpoint.name)
        for rank in range(RANKS):
            data = (target / checkpoint.name / f"model-{rank + 1:05d}-of-{RANKS:05d}.bin").read_bytes()
            assert data == random.Random(f"{step}/{rank}").randbytes(SIZE)
    assert (await verify(f"{uri}/exp", deep=True, storage_options=options)).ok


@pytest.fixture(params=["directory", "seaweedfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    if request.param == "directory":
        yield str(tmp_path / "store"), {}
    else:
        server: servers.S3Server = request.getfixturevalue("seaweedfs")
        yield f"s3://{server.create_bucket('ranks')}", dict(server.storage_options)


def test_four_processes_write_checkpoints_together_across_a_restart(
    tmp_path: Path, place: tuple[str, dict[str, object]]
) -> None:
    uri, options = place
    for first in range(STEPS):
        names = all_ranks(tmp_path, uri, options, first, first + 1)
        assert len(names[0]) == 1
        assert names == [names[0]] * RANKS
    asyncio.run(check(uri, options, tmp_path / "copy"))
