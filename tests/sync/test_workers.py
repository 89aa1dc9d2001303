"""The workers of one tree: their memory, their end, and the cost of an unreachable store."""

import asyncio

import pytest

from asyncsync import Syncer, TransferConfig
from asyncsync.disk.digests import Loaded
from asyncsync.errors import SyncFailedError, UnavailableError
from asyncsync.planning.snapshot import FileStat
from asyncsync.sync.session import SYNC_PATIENCE
from asyncsync.sync.upload.tree_upload import BATCH_BYTES, TreeUpload
from asyncsync.testing import run_virtual

MIB = 1 << 20


@pytest.mark.parametrize("size", [MIB, 600_000, 100_000])
def test_at_most_two_batches_of_small_files_are_in_memory_at_once(faults, tree, monkeypatch, size) -> None:
    for number in range(300 if size < MIB else 40):
        (tree / str(number)).write_bytes(bytes(size))
    held = []

    class Watched(TreeUpload):
        async def _load(self, batch: list[FileStat]) -> list[Loaded | OSError]:
            held.append(sum(file.size for file in batch) + sum(len(loaded.data) for loaded in self._ready))
            return await super()._load(batch)

    monkeypatch.setattr("asyncsync.sync.tree.TreeUpload", Watched)

    async def main() -> None:
        async with Syncer(tree, "memory://b/p") as syncer:
            await syncer.sync_up()

    run_virtual(main())
    assert BATCH_BYTES < max(held) <= 2 * BATCH_BYTES


def test_an_outage_costs_a_large_tree_as_little_as_a_small_one(faults, tree) -> None:
    """Files that have not begun when the first ones have waited for it long enough do not wait as well."""
    for number in range(200):
        (tree / str(number)).write_bytes(b"x")

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with Syncer(tree, "memory://b/p", transfer=TransferConfig(max_concurrency=4)) as syncer:
            (tree / "0").write_bytes(b"first")
            await syncer.sync_up()
            for number in range(200):
                (tree / str(number)).write_bytes(b"changed")
            faults.fail(error=UnavailableError("away"), times=None)
            began = loop.time()
            with pytest.raises(SyncFailedError) as caught:
                await syncer.sync_up()
            assert len(caught.value.failures) == 200
            return loop.time() - began

    assert run_virtual(main()) < 4 * SYNC_PATIENCE
