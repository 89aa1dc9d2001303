"""asyncsync on uvloop behaves as on asyncio's own loop."""

import os

import pytest

from asyncsync import RunConfig, SyncConfig, SyncEngine, pull, push, verify

pytestmark = pytest.mark.server


def test_a_tree_goes_up_and_comes_back_and_an_engine_runs(seaweedfs, tmp_path, on_uvloop):
    bucket, options = seaweedfs.create_bucket("uvloop"), seaweedfs.storage_options
    files = {"small": 10, "body": 100_000, "parts": 40 << 20}
    source = tmp_path / "source"
    source.mkdir()
    for name, size in files.items():
        (source / name).write_bytes(os.urandom(size))
    run = RunConfig(
        name="exp", storage_path=f"s3://{bucket}", sync_config=SyncConfig(sync_artifacts=True), storage_options=options
    )

    async def main():
        await push(source, f"s3://{bucket}/tree", storage_options=options)
        await pull(f"s3://{bucket}/tree", tmp_path / "back", storage_options=options)
        async with SyncEngine(run, local_dir=tmp_path / "runs") as engine:
            report = await engine.trial("t").report({"loss": 1.0}, checkpoint=source)
        assert report.checkpoint.is_durable
        assert (await verify(report.checkpoint.uri, deep=True, storage_options=options)).ok

    on_uvloop(main())
    for name in files:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
