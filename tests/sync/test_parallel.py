"""Independent requests run concurrently: a distant store costs round trips, not files."""

import asyncio
from pathlib import Path

import pytest

from asyncsync import Syncer
from asyncsync.testing import run_virtual


@pytest.mark.parametrize("files", [2, 60])
def test_small_files_are_sent_concurrently_although_read_in_one_batch(tmp_path: Path, files: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(files):
        (tree / f"{number:03d}.txt").write_bytes(b"%d" % number)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with Syncer(tree, "memory://b/tree", storage_options={"latency": 1.0}) as syncer:
            started = loop.time()
            await syncer.sync_up()
            return loop.time() - started

    assert run_virtual(main()) == 3.0  # a HEAD of the manifest, the files, the manifest
