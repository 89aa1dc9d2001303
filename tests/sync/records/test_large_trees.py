"""A large tree: its manifest is stored in segments, and a change costs one of them."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from asyncsync import SyncConfig, Syncer, copy, prune, pull, verify
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError, DamagedError
from asyncsync.planning import segments
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.segments import SEGMENTS, encode_head, parse_head
from asyncsync.remote import prune as remote_prune
from asyncsync.stores import base
from asyncsync.stores.base import Lane, Traits
from asyncsync.sync.records.manifests import find_manifest
from asyncsync.testing import Faults, MemoryStore, memory

URI = "memory://b/x"
FILES = 400
OLD = 10**9
"""Mtime (s) of files that nobody doubts."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 files."""
    monkeypatch.setattr(segments, "SEGMENT_FILES", 64)
    monkeypatch.setattr(segments, "MOST_SEGMENT_FILES", 128)
    monkeypatch.setattr(segments, "SEGMENTED_FROM", 256)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for number in range(FILES):
        write(root / f"d{number // 100}" / f"f{number:04d}", b"%d" % number)
    return root


@pytest.fixture
def store(faults: Faults) -> MemoryStore:
    return MemoryStore("b", "x")


def write(path: Path, data: bytes, seconds: int = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


async def push_tree(tree: Path, change: Callable[[], object] | None = None) -> None:
    """A process that syncs the tree, and once more after ``change``."""
    async with Syncer(tree, URI) as syncer:
        await syncer.sync_up()
        if change is not None:
            change()
            await syncer.sync_up()


def new_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> None:
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / name))


def named(store: MemoryStore) -> set[str]:
    """The keys of the segments that the head names."""
    head = parse_head(store.contents[MANIFEST])
    return set() if head is None else {segments.segment_key(item.name) for item in head.segments}


def stored(store: MemoryStore) -> set[str]:
    return {key for key in store.contents if key.startswith(SEGMENTS)}


async def check(store: MemoryStore, tree: Path) -> None:
    """The manifest names exactly the local files, with their bytes; its segments are there, and no others."""
    assert stored(store) == named(store)
    manifest = await find_manifest(store, "")
    assert manifest is not None
    local = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert {path: store.contents[path] for path in manifest.files} == local
    assert (await verify(URI, deep=True)).ok


async def test_one_changed_file_costs_one_segment_and_the_head(tree: Path, store: MemoryStore, faults: Faults) -> None:
    async with Syncer(tree, URI) as syncer:
        await syncer.sync_up()
        assert len(named(store)) > FILES / 128
        faults.requests.clear()
        write(tree / "d1" / "f0150", b"changed", OLD + 1)
        before = named(store)
        await syncer.sync_up()
        assert len(named(store) - before) == 1
        asked = [(request.operation, request.key.startswith(SEGMENTS)) for request in faults.requests]
        assert asked == [("put", False), ("put", True), ("put", False), ("delete", True)]
        faults.requests.clear()
        await syncer.sync_up()
        assert faults.requests == []
    await check(store, tree)


async def test_the_journal_has_the_segments_too(tree: Path, store: MemoryStore, faults: Faults) -> None:
    await push_tree(tree, lambda: write(tree / "d1" / "f0150", b"changed", OLD + 1))
    faults.requests.clear()
    await push_tree(tree)
    assert [(request.operation, request.key) for request in faults.requests] == [("head", MANIFEST)]
    await push_tree(tree, lambda: write(tree / "d3" / "new", b"new"))
    await check(store, tree)


async def test_another_machine_reads_the_segments_once(
    tree: Path, store: MemoryStore, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await push_tree(tree)
    new_machine(monkeypatch, tmp_path)
    faults.requests.clear()
    await push_tree(tree, lambda: write(tree / "d2" / "f0250", b"changed", OLD + 1))
    assert sum(request.key.startswith(SEGMENTS) and request.operation == "put" for request in faults.requests) == 1
    faults.requests.clear()
    await push_tree(tree)
    assert [request.operation for request in faults.requests] == ["head"]
    await check(store, tree)


async def test_only_times_have_changed_and_nothing_is_written(tree: Path, store: MemoryStore, faults: Faults) -> None:
    await push_tree(tree)
    os.utime(tree / "d1" / "f0150", (OLD + 5, OLD + 5))
    before = store.contents
    await push_tree(tree, lambda: os.utime(tree / "d2" / "f0250", (OLD + 5, OLD + 5)))
    assert store.contents == before
    faults.requests.clear()
    await push_tree(tree, lambda: write(tree / "d2" / "f0251", b"changed", OLD + 1))
    assert sum(request.operation == "put" for request in faults.requests) == 3
    await check(store, tree)


async def test_a_store_that_lost_conditional_writes_keeps_its_segments(
    tree: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have new times only: the stored manifest stays as it is. A change then makes one document of it."""
    await push_tree(tree)
    before = dict(store.contents)
    monkeypatch.setattr(memory, "Traits", partial(Traits, conditional_writes=False))
    store = MemoryStore("b", "x")
    await push_tree(tree, lambda: os.utime(tree / "d2" / "f0250", (OLD + 5, OLD + 5)))
    assert store.contents == before
    await push_tree(tree, lambda: write(tree / "d2" / "f0251", b"changed", OLD + 1))
    assert stored(store) == set()
    await check(store, tree)


async def test_a_tree_grows_into_segments_and_shrinks_out_of_them(tree: Path, store: MemoryStore) -> None:
    spare = sorted(tree.rglob("f*"))[:300]
    contents = {path: path.read_bytes() for path in spare}
    for path in spare:
        path.unlink()
    async with Syncer(tree, URI, SyncConfig(delete=True)) as syncer:
        await syncer.sync_up()
        assert stored(store) == set()
        for path, data in contents.items():
            write(path, data)
        await syncer.sync_up()
        await check(store, tree)
        assert stored(store)
        for path in spare:
            path.unlink()
        await syncer.sync_up()
        assert stored(store) == set()
        await check(store, tree)
    await push_tree(tree)


async def test_a_manifest_of_an_earlier_version_is_divided_at_the_next_change(tree: Path, store: MemoryStore) -> None:
    await push_tree(tree)
    manifest = await find_manifest(store, "")
    assert manifest is not None
    for key in stored(store):
        await store.delete([key])
    await store.put(MANIFEST, Manifest(manifest.files, manifest.info).to_bytes())
    await push_tree(tree)
    assert stored(store) == set()
    await push_tree(tree, lambda: write(tree / "d1" / "f0150", b"changed", OLD + 1))
    assert stored(store)
    await check(store, tree)


async def test_pull_restores_the_tree(tree: Path, store: MemoryStore, tmp_path: Path) -> None:
    await push_tree(tree)
    await pull(URI, tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").rglob("f*")} == {
        path.name: path.read_bytes() for path in tree.rglob("f*")
    }


async def test_a_reader_meets_a_manifest_that_is_being_replaced(tree: Path, store: MemoryStore, faults: Faults) -> None:
    """It has the old head; the segment that it names next has been deleted."""
    async with Syncer(tree, URI) as syncer:
        await syncer.sync_up()
        reader = syncer._open().view(Lane.ARTIFACT, "reader")
        hang = faults.hang(operation="read", key=SEGMENTS)
        reading = asyncio.create_task(find_manifest(reader, ""))
        await hang.reached.wait()
        for path in tree.rglob("f*"):
            write(path, b"changed", OLD + 1)
        await syncer.sync_up()
        hang.release.set()
        manifest = await reading
    assert manifest is not None
    assert {entry.size for entry in manifest.files.values()} == {len(b"changed")}


async def test_a_manifest_of_more_segments_than_one_delete_takes_is_replaced(
    tree: Path, store: MemoryStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (base, memory):
        monkeypatch.setattr(module, "KEYS_PER_DELETE", 3)

    def change() -> None:
        for path in tree.rglob("f*"):
            write(path, b"changed", OLD + 1)

    await push_tree(tree, change)
    assert sum(request.operation == "delete" for request in faults.requests) > 1
    await check(store, tree)


async def test_a_missing_or_damaged_segment_is_named(tree: Path, store: MemoryStore) -> None:
    await push_tree(tree)
    key = min(named(store))
    data = store.contents[key]
    await store.put(key, data[:-9] + b"x" + data[-8:])
    with pytest.raises(DamagedError, match="not the document"):
        await find_manifest(store, "")
    await store.delete([key])
    with pytest.raises(DamagedError, match=f"segment {key} is missing"):
        await find_manifest(store, "")


async def test_a_conflicting_head_keeps_the_segments_of_the_other(tree: Path, store: MemoryStore) -> None:
    async with Syncer(tree, URI) as syncer:
        await syncer.sync_up()
        head = parse_head(store.contents[MANIFEST])
        assert head is not None
        head.info["tomorrow"] = "written by another process"
        await store.put(MANIFEST, encode_head(head))
        theirs = named(store)
        write(tree / "d1" / "f0150", b"changed", OLD + 1)
        with pytest.raises(ConcurrentWriterError):
            await syncer.sync_up()
        assert theirs <= stored(store)
        await syncer.sync_up()
    await check(store, tree)


@pytest.mark.parametrize("after", [False, True])
async def test_a_failure_at_any_request_is_repaired_by_the_next_sync(
    tree: Path, store: MemoryStore, faults: Faults, *, after: bool
) -> None:
    """And whatever is stored in between can be read."""
    async with Syncer(tree, URI) as syncer:
        await syncer.sync_up()
        for number in range(1, 5):
            for step in range(2):
                write(tree / "d1" / "f0150", b"changed %d %d" % (number, step), OLD + 10 * number + step)
                if not step:
                    faults.fail(number, after=after, times=8)
                try:
                    await syncer.sync_up()
                except AsyncsyncError:
                    faults.clear()
                    manifest = await find_manifest(store, "")
                    assert manifest is not None
                    assert len(manifest.files) == FILES
                faults.clear()
        await syncer.sync_up()
    await check(store, tree)


async def test_a_killed_process_leaves_segments_that_prune_removes(
    tree: Path, store: MemoryStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_tree(tree)
    write(tree / "d1" / "f0150", b"changed", OLD + 1)
    hang = faults.hang(operation="put", key=MANIFEST)
    task = asyncio.create_task(push_tree(tree))
    await hang.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    faults.clear()
    await push_tree(tree)
    stray = stored(store) - named(store)
    assert stray
    assert (await prune(URI, dry_run=False, older_than=0)).segments == []  # they are young
    monkeypatch.setattr(remote_prune, "LEAST_SEGMENT_AGE", 0.0)
    assert set((await prune(URI, older_than=0)).segments) == stray
    await prune(URI, dry_run=False, older_than=0)
    await check(store, tree)


@pytest.mark.parametrize("manifest", [b"{", b"", b"\0" * 100, b'{"segments":1}', None])
async def test_prune_leaves_all_segments_where_no_manifest_can_be_read(
    tree: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, manifest: bytes | None
) -> None:
    """It may follow, or be repaired."""
    await push_tree(tree)
    await (store.delete([MANIFEST]) if manifest is None else store.put(MANIFEST, manifest))
    monkeypatch.setattr(remote_prune, "LEAST_SEGMENT_AGE", 0.0)
    report = await prune(URI, dry_run=False, older_than=0)
    assert (report.segments, list(report.unreadable)) == ([], [] if manifest is None else [MANIFEST])
    assert stored(store)


async def test_a_copy_has_one_document_and_no_segments(tree: Path, store: MemoryStore) -> None:
    await push_tree(tree)
    await copy(URI, "memory://b/y")
    target = MemoryStore("b", "y")
    assert stored(target) == set()
    assert Manifest.from_bytes(target.contents[MANIFEST]).files.keys() == (await find_manifest(store, "")).files.keys()


@pytest.mark.parametrize("key", ["x", "a/x", "checkpoint_000000/x"])
def test_only_segments_are_recognised_by_their_key(key: str) -> None:
    assert remote_prune._segmented(key) is None
    assert remote_prune._segmented(SEGMENTS + "0" * 24 + ".json") == ""
    assert remote_prune._segmented("a/b/" + SEGMENTS + "0" * 24 + ".json") == "a/b/"
