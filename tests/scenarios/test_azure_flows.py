"""Whatever works with s3:// works with az://: trees, checkpoints, ranks, verify, repair, prune, delta; and uploads
survive SIGKILL. On the strict fake and on Azurite."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from stored import same_files, sample_tree

from asyncsync import (
    CheckpointConfig,
    Experiment,
    RunConfig,
    SyncConfig,
    SyncEngine,
    Syncer,
    TransferConfig,
    pull,
    push,
    verify,
)
from asyncsync.errors import ConcurrentWriterError, StoreError, SyncFailedError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.prune import prune
from asyncsync.remote.repair import repair
from asyncsync.stores import open_store

azure_fake = pytest.importorskip("azure_fake")
Fault = azure_fake.Fault

MIB = 1 << 20
PARTS = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)
numbers = itertools.count()


@pytest.fixture(params=["azure_strict", pytest.param("azurite", marks=pytest.mark.server)])
def server(request, monkeypatch):
    """az:// means this server: its account is in the environment."""
    return in_environment(request.getfixturevalue(request.param), monkeypatch)


def in_environment(running, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", running.storage_options["account"])
    monkeypatch.setenv("AZURE_STORAGE_KEY", running.storage_options["account_key"])
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", running.storage_options["endpoint_url"])
    return running


@pytest.fixture
def base(server):
    """A prefix of its own for each test."""
    return f"az://conformance/flow-{next(numbers)}"


@pytest.fixture
def strict(azure_strict, monkeypatch):
    """The strict fake alone: for tests that look at its requests or change its blobs."""
    return in_environment(azure_strict, monkeypatch)


@pytest.fixture
def place():
    """A prefix on it."""
    return f"az://conformance/flow-{next(numbers)}"


@pytest.fixture
def tree(tmp_path):
    return sample_tree(tmp_path / "tree")


async def keys(uri):
    async with open_store(uri) as store:
        return {info.key for info in (await store.list()).objects}


async def test_a_tree_goes_up_and_comes_back(base, tree, tmp_path):
    report = await push(tree, base, transfer=PARTS)
    assert (report.files_sent, report.warnings) == (43, ())
    assert (await push(tree, base, transfer=PARTS)).files_sent == 0
    await pull(base, tmp_path / "copy")
    assert same_files(tree, tmp_path / "copy")
    assert (await verify(base, deep=True)).damaged == {}


async def test_an_unchanged_tree_costs_no_request(strict, place, tree):
    async with Syncer(tree, place, SyncConfig(sync_artifacts=True), transfer=PARTS) as syncer:
        await syncer.sync_up()
        strict.seen.clear()
        report = await syncer.sync_up()
    assert (report.files_sent, strict.seen) == (0, [])


async def test_a_change_in_the_middle_sends_its_part_and_copies_nothing(strict, place, tree):
    await push(tree, place, transfer=PARTS)
    with (tree / "big").open("r+b") as file:
        file.seek(11 * MIB)
        file.write(os.urandom(MIB))
    strict.seen.clear()
    report = await push(tree, place, transfer=PARTS)
    assert report.bytes_sent == 5 * MIB
    assert not any("x-ms-copy-source" in seen.headers for seen in strict.seen)
    async with open_store(place) as store:
        assert (await store.get("big"))[0] == (tree / "big").read_bytes()


async def test_only_the_tail_of_a_file_that_grew_is_sent(strict, place, tree):
    await push(tree, place, transfer=PARTS)
    strict.seen.clear()
    for _ in range(2):
        with (tree / "big").open("ab") as file:
            file.write(os.urandom(MIB))
        report = await push(tree, place, transfer=PARTS)
        assert report.bytes_sent <= MIB
    assert not any("x-ms-copy-source" in seen.headers for seen in strict.seen)
    assert (await verify(place, deep=True)).damaged == {}


async def test_a_file_under_another_name_is_copied_and_its_changes_sent(base, tree):
    await push(tree, base, transfer=PARTS)
    moved = bytearray((tree / "big").read_bytes())
    moved[7 * MIB] ^= 1
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere/big").write_bytes(moved)
    report = await push(tree, base, transfer=PARTS)
    assert report.bytes_sent <= 5 * MIB
    async with open_store(base) as store:
        assert (await store.get("elsewhere/big"))[0] == moved


async def test_a_file_that_cannot_be_replaced_in_blocks_goes_in_one_request(strict, place, tree):
    """It was written through the Data Lake protocol, or another program has unfinished blocks of it."""
    container, name = strict.containers["conformance"], place.removeprefix("az://conformance/") + "/big"
    container.blobs[name] = azure_fake.Blob(b"old")
    container.through_dfs.add(name)
    await push(tree, place, transfer=PARTS)
    assert container.blobs[name].data == (tree / "big").read_bytes()
    assert container.blobs[name].blocks == []


async def test_two_writers_of_one_prefix_notice_each_other(strict, place, tree, tmp_path, monkeypatch):
    await push(tree, place)
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "another machine"))
    (tree / "more").write_bytes(b"1")
    container = strict.containers["conformance"]
    write = container.write

    def faster(name, made, headers):
        if name.endswith(MANIFEST) and "if-match" in headers:
            write(name, azure_fake.Blob(container.blobs[name].data), {})
        return write(name, made, headers)

    monkeypatch.setattr(container, "write", faster)
    with pytest.raises(ConcurrentWriterError):
        await push(tree, place)


async def test_checkpoints_are_kept_found_and_retired(base, tmp_path):
    run = RunConfig(name="sweep", storage_path=base, checkpoint_config=CheckpointConfig(num_to_keep=2))
    async with SyncEngine(run, local_dir=tmp_path / "results") as engine:
        trial = engine.trial("one")
        for step in range(4):
            checkpoint = tmp_path / f"checkpoint-{step}"
            checkpoint.mkdir()
            (checkpoint / "weights").write_bytes(bytes([step]) * MIB)
            await trial.report({"step": step}, checkpoint=checkpoint)
        await trial.finish()
    experiment = await Experiment.open(f"{base}/sweep")
    await experiment.latest_checkpoint().download(tmp_path / "back")
    assert (tmp_path / "back/weights").read_bytes() == b"\3" * MIB
    assert sum(key.endswith("/weights") for key in await keys(f"{base}/sweep")) == 2


async def test_ranks_write_one_checkpoint_together(base, tmp_path, monkeypatch):
    run = RunConfig(name="sweep", storage_path=base)

    async def train(rank):
        role = "driver" if rank == 0 else "worker"
        local = tmp_path / f"machine-{rank}"
        async with SyncEngine(run, local_dir=local, role=role, rank=rank, world_size=2) as engine:
            checkpoint = tmp_path / f"checkpoint-{rank}"
            checkpoint.mkdir()
            (checkpoint / f"shard-{rank}").write_bytes(bytes([rank]) * MIB)
            report = await engine.trial("one").report({"loss": 1.0}, checkpoint=checkpoint, step=1)
            await report.checkpoint.durable()

    await asyncio.gather(train(0), train(1))
    checkpoint = (await Experiment.open(f"{base}/sweep")).latest_checkpoint()
    await checkpoint.download(tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"shard-0", "shard-1"}


async def test_damage_is_found_and_repaired(base, tree):
    await push(tree, base, transfer=PARTS)
    async with open_store(base) as store:
        await store.put("big", b"damaged")
        await store.delete(["small/3"])
    found = await verify(base, deep=True)
    assert {*found.damaged, *found.missing} == {"big", "small/3"}
    await repair(base, tree)
    assert (await verify(base, deep=True)).damaged == {}


async def test_prune_removes_uploads_that_nobody_completes(strict):
    container = strict.containers["conformance"]
    async with open_store("az://conformance/pruned") as store:
        upload = await store.create_multipart("never/finished")
        await store.put_part(upload, 1, 0, b"part")
    for blob in container.blobs.values():
        blob.modified -= 90_000
    assert (await prune("az://conformance/pruned")).uploads == ["never/finished"]
    await prune("az://conformance/pruned", dry_run=False)
    assert container.blobs == {}


@pytest.mark.parametrize("fault", [{"status": 503}, {"lose": True}, {"cut": 0}], ids=["refused", "lost", "cut"])
@pytest.mark.parametrize("grows", [False, True])
async def test_the_next_sync_succeeds_after_any_failure(strict, tmp_path, fault, grows):
    """This holds whichever request failed: remains of an earlier sync do not count as another writer."""
    root = tmp_path / "one"
    root.mkdir()
    once = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB, max_attempts=1)
    container = strict.containers["conformance"]
    for number in itertools.count(1):
        uri = f"az://conformance/fault-{number}"
        (root / "big").write_bytes(os.urandom(11 * MIB))
        if grows:
            await push(root, uri, transfer=PARTS)
            with (root / "big").open("ab") as file:
                file.write(os.urandom(7 * MIB))
        done = len(strict.seen)
        real = strict._fault
        requests = iter(range(1, 1000))
        strict._fault = lambda _, requests=requests, number=number: (
            Fault("", **fault) if next(requests) == number else None
        )
        with contextlib.suppress(SyncFailedError, StoreError):
            await push(root, uri, transfer=once)
        strict._fault = real
        await push(root, uri, transfer=PARTS)
        assert container.blobs[f"fault-{number}/big"].data == (root / "big").read_bytes()
        assert [name for name in container.blobs if "/parts/" in name] == []
        assert len(strict.seen) > done
        container.blobs.clear()
        if next(requests) <= number:  # it ended before its turn came
            break
    assert number > 6


# SIGKILL

TOTAL = 24 * 5 * MIB + 7
SEND = """
import asyncio, json, sys
from asyncsync import push
from asyncsync.stores.azure.store import AzureStore
from asyncsync import TransferConfig
put_part, parts = AzureStore.put_part, iter(range(int(sys.argv[4])))

async def some_then_none(*arguments, **options):
    if next(parts, None) is None:
        await asyncio.Event().wait()
    return await put_part(*arguments, **options)

AzureStore.put_part = some_then_none
tree, uri, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
PARTS = TransferConfig(multipart_threshold=8 << 20, part_size=5 << 20)
asyncio.run(push(tree, uri, storage_options=options, transfer=PARTS))
"""
"""However slow this process is, it meets an upload that is partly done."""


async def finished_parts(options, uri) -> list[int]:
    """Their sizes: the last part of the file is a short one."""
    async with open_store(uri, options=options) as store:
        uploads = await store.list_multiparts()
        return [part.size for part in await store.list_parts(uploads[0])] if uploads else []


@pytest.mark.parametrize("percent", [30, 50, 70])
async def test_a_killed_upload_resumes_where_it_stopped(server, base, tmp_path, percent):
    options, count = server.storage_options, 25 * percent // 100
    big = tmp_path / "tree/big"
    big.parent.mkdir()
    big.write_bytes(os.urandom(TOTAL))
    paths = os.pathsep.join(sys.path)
    child = subprocess.Popen(
        [sys.executable, "-c", SEND, str(big.parent), base, json.dumps(options), str(count)],
        env=os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + 60
        while len(await finished_parts(options, base)) < count:
            assert child.poll() is None
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    there = await finished_parts(options, base)
    assert len(there) == count
    report = await push(big.parent, base, storage_options=options, transfer=PARTS)
    async with open_store(base, options=options) as store:
        assert (await store.get("big"))[0] == big.read_bytes()
        assert await store.list_multiparts() == []
    assert report.bytes_sent == TOTAL - sum(there)
