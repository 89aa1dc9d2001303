"""Whatever works with s3:// works with gs://: trees, checkpoints, verify, prune, delta; and uploads survive SIGKILL."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

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
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.remote.prune import prune
from asyncsync.stores import open_store

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, reading

MIB = 1 << 20
PARTS = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)


@pytest.fixture
def objects(gcs_strict, monkeypatch):
    """gs:// means the strict fake."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_strict.endpoint)
    return gcs_strict.buckets["conformance"].objects


@pytest.fixture
def tree(tmp_path):
    return sample_tree(tmp_path / "tree")


async def test_a_tree_goes_up_and_comes_back(gcs_strict, objects, tree, tmp_path):
    report = await push(tree, "gs://conformance/run", transfer=PARTS)
    assert report.files_sent == 43
    assert not any("/parts/" in name for name in objects)
    manifest = Manifest.from_bytes(objects[f"run/{MANIFEST}"].data)
    assert {path: entry.version for path, entry in manifest.files.items()} == {
        path: str(objects[f"run/{path}"].generation) for path in manifest.files
    }
    before = len(gcs_strict.seen)
    assert (await push(tree, "gs://conformance/run", transfer=PARTS)).files_sent == 0
    assert len(gcs_strict.seen) - before <= 1
    await pull("gs://conformance/run", tmp_path / "copy")
    assert same_files(tree, tmp_path / "copy")
    assert (await verify("gs://conformance/run", deep=True)).damaged == {}


async def test_an_unchanged_tree_costs_no_request(gcs_strict, objects, tree):
    config = SyncConfig(sync_artifacts=True)
    async with Syncer(tree, "gs://conformance/run", config, transfer=PARTS) as syncer:
        await syncer.sync_up()
        gcs_strict.seen.clear()
        report = await syncer.sync_up()
    assert (report.files_sent, gcs_strict.seen) == (0, [])


async def test_a_server_with_one_thread_and_a_short_queue_gets_each_request_once(gcp_storage_emulator, tmp_path):
    """The server closes each connection after its response, and queues five connections; it drops further ones
    silently.
    """
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(300):
        (root / f"{number}").write_bytes(os.urandom(16 << 10))
    report = await push(root, "gs://conformance/many", storage_options=gcp_storage_emulator.storage_options)
    assert (report.files_sent, report.warnings) == (300, ())
    assert report.requests <= 300 + 3


async def test_two_writers_of_one_prefix_notice_each_other(gcs_strict, objects, tree, tmp_path, monkeypatch):
    await push(tree, "gs://conformance/run")
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "another machine"))
    (tree / "more").write_bytes(b"1")
    bucket = gcs_strict.buckets["conformance"]
    put = bucket.put

    def faster(name, data, properties, query, **more):
        if name.endswith(MANIFEST) and "ifGenerationMatch" in query:
            put(name, objects[name].data, {}, {})
        return put(name, data, properties, query, **more)

    monkeypatch.setattr(bucket, "put", faster)
    with pytest.raises(ConcurrentWriterError):
        await push(tree, "gs://conformance/run")


async def test_only_the_tail_of_a_file_that_grew_is_sent(objects, tree):
    config = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)
    await push(tree, "gs://conformance/run", transfer=config)
    with (tree / "big").open("ab") as file:
        file.write(os.urandom(2 * MIB))
    report = await push(tree, "gs://conformance/run", transfer=config)
    assert objects["run/big"].data == (tree / "big").read_bytes()
    assert report.bytes_sent <= 8 * MIB, report


async def test_checkpoints_are_kept_found_and_retired(objects, tmp_path):
    run = RunConfig(name="sweep", storage_path="gs://conformance", checkpoint_config=CheckpointConfig(num_to_keep=2))
    async with SyncEngine(run, local_dir=tmp_path / "results") as engine:
        trial = engine.trial("one")
        for step in range(4):
            checkpoint = tmp_path / f"checkpoint-{step}"
            checkpoint.mkdir()
            (checkpoint / "weights").write_bytes(bytes([step]) * MIB)
            await trial.report({"step": step}, checkpoint=checkpoint)
        await trial.finish()
    experiment = await Experiment.open("gs://conformance/sweep")
    latest = experiment.latest_checkpoint()
    await latest.download(tmp_path / "back")
    assert (tmp_path / "back/weights").read_bytes() == b"\3" * MIB
    assert sum(name.endswith("/weights") for name in objects) == 2


async def test_prune_removes_uploads_that_nobody_completes(gcs_strict, objects):
    async with open_store("gs://conformance/run") as store:
        upload = await store.create_multipart("never/finished")
        await store.put_part(upload, 1, 0, b"part")
    for item in objects.values():
        item.created -= 90_000
    assert (await prune("gs://conformance/run")).uploads == ["never/finished"]
    await prune("gs://conformance/run", dry_run=False)
    assert objects == {}


async def test_a_file_in_one_piece_resumes_in_another_process(gcs_strict, objects, tmp_path):
    """Its session is in the journal, as those of parts are."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "mid").write_bytes(os.urandom(25 * MIB))
    once, chunks = TransferConfig(max_attempts=1), iter(range(9))
    real = gcs_strict._fault

    def third_breaks(seen):
        return Fault("", cut=MIB) if seen.method == "PUT" and next(chunks) == 2 else real(seen)

    gcs_strict._fault = third_breaks
    with pytest.raises(SyncFailedError):
        await push(root, "gs://conformance/run", transfer=once)
    gcs_strict.seen.clear()
    report = await push(root, "gs://conformance/run", transfer=once)
    assert report.bytes_sent <= 9 * MIB
    assert objects["run/mid"].data == (root / "mid").read_bytes()
    assert sum(seen.size for seen in gcs_strict.requests("^PUT")) <= 9 * MIB
    assert gcs_strict.requests("uploadType=resumable.*fields") == []


# composed files have one writer too


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "tree/big"
    path.parent.mkdir()
    path.write_bytes(os.urandom(11 * MIB))
    return path


def theirs_comes_first(monkeypatch):
    """Somebody else writes run/big just before each compose of it."""
    real = reading.compose

    def compose(bucket, name, *given):
        if name == "run/big":
            bucket.put(name, b"theirs", {}, {})
        return real(bucket, name, *given)

    monkeypatch.setattr(reading, "compose", compose)


def change(path):
    path.write_bytes(os.urandom(12 * MIB))


def append(path):
    with path.open("ab") as file:
        file.write(os.urandom(2 * MIB))


@pytest.mark.parametrize("then", [None, change, append])
async def test_a_file_that_somebody_else_writes_meanwhile_is_theirs(objects, large, monkeypatch, then):
    """The error names the next step; the next sync of the remaining writer repairs the tree."""
    if then is not None:
        await push(large.parent, "gs://conformance/run", transfer=PARTS)
        then(large)
    manifest = objects.get(f"run/{MANIFEST}")
    with monkeypatch.context() as patch:
        theirs_comes_first(patch)
        with pytest.raises(
            ConcurrentWriterError, match=r"run/big: another process wrote it .* stop the other one, then sync"
        ):
            await push(large.parent, "gs://conformance/run", transfer=PARTS)
        assert objects["run/big"].data == b"theirs"
        assert objects.get(f"run/{MANIFEST}") is manifest
    await push(large.parent, "gs://conformance/run", transfer=PARTS)
    assert objects["run/big"].data == large.read_bytes()
    assert not any("/parts/" in name for name in objects)


async def test_a_compose_whose_response_was_lost_is_not_repeated_by_the_sync(gcs_strict, objects, large):
    gcs_strict.faults.append(Fault("run%2Fbig/compose", lose=True))
    await push(large.parent, "gs://conformance/run", transfer=PARTS)
    assert [seen.status for seen in gcs_strict.requests("/compose")] == [200, 412]
    manifest = Manifest.from_bytes(objects[f"run/{MANIFEST}"].data)
    assert manifest.files["big"].version == str(objects["run/big"].generation)
    assert not any("/parts/" in name for name in objects)


async def test_a_dry_run_shows_the_requests_of_a_composed_file(objects, large):
    for action in (None, append):
        if action is not None:
            action(large)
        async with Syncer(large.parent, "gs://conformance/run", SyncConfig(), transfer=PARTS) as syncer:
            plan = await syncer.plan()
        report = await push(large.parent, "gs://conformance/run", transfer=PARTS)
        assert (plan.requests, plan.bytes_sent) == (report.requests, report.bytes_sent)


async def test_the_tail_of_a_file_that_grew_resumes_too(gcs_strict, objects, large):
    await push(large.parent, "gs://conformance/run", transfer=PARTS)
    with large.open("ab") as file:
        file.write(os.urandom(27 * MIB))
    gcs_strict.seen.clear()
    gcs_strict.sessions.forgetful = True
    chunks, real = iter(range(99)), gcs_strict._fault
    gcs_strict._fault = lambda seen: Fault("", cut=MIB) if seen.method == "PUT" and next(chunks) == 4 else real(seen)
    with pytest.raises(SyncFailedError):
        await push(large.parent, "gs://conformance/run", transfer=replace(PARTS, max_attempts=1))
    await push(large.parent, "gs://conformance/run", transfer=PARTS)
    assert objects["run/big"].data == large.read_bytes()
    assert sum(seen.size for seen in gcs_strict.seen) <= (27 + 8) * MIB + 65536
    assert any(seen.headers["Content-Range"].startswith("bytes */") for seen in gcs_strict.requests("^PUT"))


@pytest.mark.parametrize("then", [None, change, append])
@pytest.mark.parametrize("fault", [{"status": 503}, {"lose": True}, {"cut": 0}], ids=["refused", "lost", "cut"])
async def test_the_next_sync_succeeds_after_any_failure(gcs_strict, objects, large, fault, then):
    """This holds whichever request failed: remains of an earlier sync do not count as another writer."""
    real, once = gcs_strict._fault, replace(PARTS, max_attempts=1)
    for number in itertools.count(1):
        uri = f"gs://conformance/run{number}"
        large.write_bytes(os.urandom(11 * MIB))
        if then is not None:
            await push(large.parent, uri, transfer=PARTS)
            then(large)
        requests = iter(range(1, 1000))
        gcs_strict._fault = lambda _, requests=requests, number=number: (
            Fault("", **fault) if next(requests) == number else None
        )
        with contextlib.suppress(SyncFailedError, StoreError):
            await push(large.parent, uri, transfer=once)
        gcs_strict._fault = real
        await push(large.parent, uri, transfer=PARTS)
        assert objects[f"run{number}/big"].data == large.read_bytes()
        assert [name for name in objects if "/parts/" in name] == []
        objects.clear()
        if next(requests) <= number:  # it ended before its turn came
            break
    assert number > 8


# SIGKILL

TOTAL = 12 * 5 * MIB + 7
SEND = """
import asyncio, json, sys
from asyncsync import push
from asyncsync.stores.gcs.store import GcsStore
from test_gcs_flows import PARTS
put_part, parts = GcsStore.put_part, iter(range(6))

async def six_then_none(*arguments, **options):
    if next(parts, None) is None:
        await asyncio.Event().wait()
    return await put_part(*arguments, **options)

GcsStore.put_part = six_then_none
tree, uri, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
asyncio.run(push(tree, uri, storage_options=options, transfer=PARTS))
"""
"""However slow this process is, it meets an upload that is half done."""


async def finished_parts(options, uri) -> list[int]:
    """Their sizes: the last part of the file is a short one."""
    async with open_store(uri, options=options) as store:
        uploads = await store.list_multiparts()
        return [part.size for part in await store.list_parts(uploads[0])] if uploads else []


@pytest.mark.parametrize(
    "server",
    [
        "gcs_strict",
        pytest.param("gcp_storage_emulator", marks=pytest.mark.server),
        pytest.param("fake_gcs_server", marks=pytest.mark.server),
    ],
)
async def test_a_killed_upload_resumes_where_it_stopped(request, server, tmp_path):
    running = request.getfixturevalue(server)
    options, uri = running.storage_options, f"gs://conformance/kill-{time.time_ns()}"
    big = tmp_path / "tree/big"
    big.parent.mkdir()
    big.write_bytes(os.urandom(TOTAL))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", SEND, str(big.parent), uri, json.dumps(options)],
        env=os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + 60
        while len(await finished_parts(options, uri)) < 4:
            assert child.poll() is None
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    there = await finished_parts(options, uri)
    assert 4 <= len(there) <= 6
    report = await push(big.parent, uri, storage_options=options, transfer=PARTS)
    async with open_store(uri, options=options) as store:
        assert (await store.get("big"))[0] == big.read_bytes()
        assert await store.list_multiparts() == []
    assert report.bytes_sent <= TOTAL - sum(there)
