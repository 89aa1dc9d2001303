"""``copy``: whole experiments from any store to any store, interrupted and resumed at every request."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from stored import check_complete, files_of, put_experiment, put_tree, put_trial

from asyncsync import Experiment, copy, pull, verify
from asyncsync.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    SourceChangedError,
    StoreError,
    SyncError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.events import Progress
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.manage import copy_objects, spool
from asyncsync.stores import open_store
from asyncsync.testing import MemoryStore, inject_faults, reset_memory, run_virtual

FILES = {"a": b"a" * 1000, "sub/b": b"b" * 70_000}
BIG = bytes(range(256)) * (80 << 10)  # 20 MiB


async def stored() -> MemoryStore:
    store = MemoryStore("b", "exp")
    await put_experiment(store, t="finished", u="finished")
    await put_trial(store, "t", {"checkpoint_000000": (FILES, {"loss": 1.0}), "checkpoint_000001": (FILES, {})})
    await put_trial(store, "u", {"checkpoint_000000": ({"w": b"w"}, {"loss": 0.5})})
    await store.put("t/checkpoint_000002/part", b"of an incomplete checkpoint")
    return store


def test_a_copied_experiment_verifies_and_reads_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        await stored()
        report = await copy("memory://b/exp", tmp_path / "copy")
        assert (report.files_sent, report.bytes_copied) == (8, 0)
        there = await Experiment.open(tmp_path / "copy")
        assert [trial.name for trial in there.trials] == ["t", "u"]
        assert there.best_checkpoint("loss", "min").trial == "u"
        await there.best_checkpoint("loss").download(tmp_path / "best")
        found = await verify(tmp_path / "copy", deep=True)
        assert (found.ok, found.stray, found.replaced) == (True, [], [])

    reset_memory()
    run_virtual(main())
    assert files_of(tmp_path / "best") == FILES
    assert not (tmp_path / "copy/t/checkpoint_000002").exists()


def test_within_a_bucket_no_byte_passes_this_machine() -> None:
    async def main() -> None:
        await stored()
        report = await copy("memory://b/exp", "memory://b/other/place")
        assert (report.bytes_sent, report.files_copied) == (0, 8)
        assert report.bytes_copied == report.bytes_total > 140_000
        assert (await verify("memory://b/other/place", deep=True)).ok

    reset_memory()
    run_virtual(main())


def test_a_second_copy_sends_nothing() -> None:
    async def main() -> None:
        await stored()
        await copy("memory://b/exp", "memory://c/exp")
        again = await copy("memory://b/exp", "memory://c/exp")
        assert (again.files_sent, again.bytes_sent, again.files_skipped) == (0, 0, 8)
        assert (await verify("memory://c/exp")).ok

    reset_memory()
    run_virtual(main())


@pytest.mark.parametrize("target", ["memory://b/other", "memory://c/exp"])
def test_broken_off_at_any_request_it_is_whole_or_absent_and_resumes(target: str) -> None:
    """After each break, every manifest at the target names complete files only."""

    def attempt(number: int) -> bool:
        reset_memory()
        bucket, _, prefix = target.removeprefix("memory://").partition("/")

        async def main() -> bool:
            await stored()
            faults = inject_faults(bucket)
            fault = faults.fail(number, StoreError("refused"))
            try:
                await copy("memory://b/exp", target)
            except StoreError:
                check_complete(MemoryStore(bucket, prefix).contents)
                faults.clear()
                await copy("memory://b/exp", target)
            faults.clear()
            check_complete(MemoryStore(bucket, prefix).contents)
            assert (await verify(target, deep=True)).ok
            return fault.seen >= number

        return run_virtual(main())

    number = 1
    while attempt(number):
        number += 1
    assert number >= 20


def test_a_large_file_goes_in_the_parts_of_its_manifest() -> None:
    async def main() -> None:
        store = MemoryStore("b", "tree")
        await put_tree(store, "", {"big": BIG}, part_size=8 << 20)
        progress: list[Progress] = []
        report = await copy("memory://b/tree", "memory://c/tree", on_progress=progress.append)
        assert (report.files_sent, report.bytes_sent) == (1, len(BIG))
        assert progress[-1].bytes_done == progress[-1].bytes_total == len(BIG)
        assert MemoryStore("c", "tree").contents["big"] == BIG
        assert (await verify("memory://c/tree", deep=True)).ok

    reset_memory()
    run_virtual(main())


def test_a_large_file_resumes_with_its_next_part() -> None:
    async def main() -> None:
        await put_tree(MemoryStore("b", "tree"), "", {"big": BIG}, part_size=8 << 20)
        faults = inject_faults("c")
        faults.fail(1, StoreError("refused"), operation="complete_multipart")
        with pytest.raises(StoreError, match="refused"):
            await copy("memory://b/tree", "memory://c/tree")
        faults.clear()
        report = await copy("memory://b/tree", "memory://c/tree")
        assert (report.files_sent, report.bytes_sent) == (1, 0)
        assert (await verify("memory://c/tree", deep=True)).ok

    reset_memory()
    run_virtual(main())


def test_damage_at_the_source_is_named_and_never_copied() -> None:
    async def main() -> None:
        store = MemoryStore("b", "tree")
        await put_tree(store, "", FILES)
        store.damage("sub/b", b"x" * 70_000)
        with pytest.raises(IntegrityError, match=r"memory://b/tree/sub/b is damaged.*--repair"):
            await copy("memory://b/tree", "memory://c/tree")
        assert ".asyncsync/manifest.json" not in MemoryStore("c", "tree").contents

    reset_memory()
    run_virtual(main())


def test_a_file_that_changes_during_the_copy_fails_it() -> None:
    async def main() -> None:
        store = MemoryStore("b", "tree")
        await put_tree(store, "", FILES)

        tasks: list[asyncio.Task[object]] = []

        def change() -> None:
            tasks.append(asyncio.create_task(store.put("sub/b", b"new" * 1000)))

        inject_faults("b").hook(1, change, operation="read", key="manifest.json")
        with pytest.raises(SourceChangedError, match="sub/b was written again"):
            await copy("memory://b/tree", "memory://c/tree")
        await asyncio.gather(*tasks)

    reset_memory()
    run_virtual(main())


def test_a_target_with_something_else_is_refused() -> None:
    async def main() -> None:
        await stored()
        other = MemoryStore("c", "exp")
        await other.put("precious", b"x")
        with pytest.raises(SyncError, match=r"not empty.*precious"):
            await copy("memory://b/exp", "memory://c/exp")
        assert other.contents == {"precious": b"x"}

    reset_memory()
    run_virtual(main())


@pytest.mark.parametrize("target", ["memory://b/exp", "memory://b/exp/t", "memory://b"])
def test_a_copy_into_itself_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="one contains the other"):
        asyncio.run(copy("memory://b/exp", target))


def test_nothing_to_copy_is_an_error() -> None:
    reset_memory()
    with pytest.raises(NotFoundError, match="nothing to copy"):
        run_virtual(copy("memory://b/exp", "memory://c/exp"))


def test_a_plain_prefix_is_copied_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore("b", "plain")
        for path, data in {**FILES, "sub/": b"", "empty/": b""}.items():  # the console of S3 makes such directories
            await store.put(path, data)
        await copy("memory://b/plain", tmp_path / "copy")

    reset_memory()
    run_virtual(main())
    assert files_of(tmp_path / "copy") == FILES


def test_a_target_made_in_the_console_of_s3_is_empty() -> None:
    async def main() -> None:
        await MemoryStore("b", "plain").put("a", b"a")
        await MemoryStore("c", "").put("copy/sub/", b"")
        await copy("memory://b/plain", "memory://c/copy")
        assert MemoryStore("c", "copy").contents == {"a": b"a", "sub/": b""}

    reset_memory()
    run_virtual(main())


def test_a_file_that_is_synced_during_the_copy_is_not_missing() -> None:
    async def main() -> None:
        store = MemoryStore("b", "tree")
        await put_tree(store, "", FILES)
        synced = await put_tree(MemoryStore("", ""), "", {**FILES, "new": b"new"})

        def sync() -> None:
            store._store("new", b"new", "2")
            store._store(MANIFEST, synced.to_bytes(), "2")

        inject_faults("b").hook(2, sync)  # after the listing
        await copy("memory://b/tree", "memory://c/tree")
        assert MemoryStore("c", "tree").contents["new"] == b"new"
        assert (await verify("memory://c/tree", deep=True)).ok

    reset_memory()
    run_virtual(main())


def test_a_copy_of_a_trial_that_runs_names_only_complete_checkpoints() -> None:
    """At the n-th request to the source, for every n, the trial completes one more checkpoint and records it."""

    def attempt(number: int) -> bool:
        async def main() -> bool:
            store = await stored()
            before = {name: (FILES, {}) for name in ("checkpoint_000000", "checkpoint_000001")}

            def completed() -> None:
                later = MemoryStore("later", "")
                for key, data in later.contents.items():
                    if "checkpoint_000003/" in key or key == "t/.asyncsync/trial.json":
                        store._store(key, data, "later")

            await put_trial(MemoryStore("later", ""), "t", {**before, "checkpoint_000003": (FILES, {})})
            fault = inject_faults("b").hook(number, completed)
            await copy("memory://b/exp", "memory://c/exp")
            check_complete(MemoryStore("c", "exp").contents)
            assert {"checkpoint_000000", "checkpoint_000001"} <= {
                item.name for item in (await Experiment.open("memory://c/exp")).trial("t").checkpoints
            }
            return fault.seen >= number

        reset_memory()
        return run_virtual(main())

    number = 2
    while attempt(number):
        number += 1
    assert number > 10


def test_a_missing_file_of_a_manifest_is_named() -> None:
    async def main() -> None:
        store = MemoryStore("b", "tree")
        await put_tree(store, "", FILES)
        await store.delete(["a"])
        with pytest.raises(SyncError, match="memory://b/tree/a is missing"):
            await copy("memory://b/tree", "memory://c/tree")

    reset_memory()
    run_virtual(main())


def test_an_outage_is_waited_for() -> None:
    async def main() -> None:
        await stored()
        inject_faults("c").fail(3, UnavailableError("away"), times=10)
        await copy("memory://b/exp", "memory://c/exp")
        assert (await verify("memory://c/exp")).ok

    reset_memory()
    run_virtual(main())


async def test_a_large_file_reaches_a_store_without_multipart_uploads(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    reset_memory()
    await put_tree(MemoryStore("b", "tree"), "", {"big": BIG}, part_size=8 << 20)
    place = f"fsspec+memory://copies/{tmp_path.name}"
    report = await copy("memory://b/tree", place)
    assert (report.files_sent, report.bytes_sent) == (1, len(BIG))
    assert (await verify(place, deep=True)).ok


async def test_a_full_disk_on_the_way_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, piece: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pytest.importorskip("fsspec")
    reset_memory()
    await put_tree(MemoryStore("b", "tree"), "", {"big": BIG})
    monkeypatch.setattr(spool, "_write", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SyncError, match=r"20,971,520 bytes cannot be kept.*No space left"):
        await copy("memory://b/tree", f"fsspec+memory://copies/{tmp_path.name}")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_the_store_refuses_is_sent() -> None:
    async def main() -> None:
        await stored()
        inject_faults("b").fail(1, UnsupportedError("too large to copy"), operation="copy", times=100)
        report = await copy("memory://b/exp", "memory://b/other")
        assert (report.files_copied, report.files_sent) == (0, 8)
        assert (await verify("memory://b/other", deep=True)).ok

    reset_memory()
    run_virtual(main())


def test_a_copy_in_parts_inside_the_store_resumes_its_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await put_tree(MemoryStore("b", "tree"), "", {"big": BIG}, part_size=8 << 20)
        inject_faults("b").fail(1, StoreError("refused"), operation="complete_multipart")
        with pytest.raises(StoreError, match="refused"):
            await copy("memory://b/tree", "memory://b/other")
        await copy("memory://b/tree", "memory://b/other")
        async with open_store("memory://b") as store:
            assert not await store.list_multiparts()
        assert (await verify("memory://b/other", deep=True)).ok

    monkeypatch.setattr(copy_objects, "SERVER_PART", 8 << 20)
    reset_memory()
    run_virtual(main())


@pytest.mark.parametrize("target", ["tree", "other/../tree/sub", "link/sub", ""])
async def test_a_copy_of_a_directory_into_itself_is_refused_under_any_name(tmp_path: Path, target: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    for source in (str(tmp_path / "tree"), f"file://{tmp_path}/tree"):
        with pytest.raises(ConfigError, match="one contains the other"):
            await copy(source, f"{tmp_path}/{target}")
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["a"]


async def test_a_pushed_tree_travels_from_directory_to_directory(tmp_path: Path) -> None:
    from asyncsync import push

    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(BIG)
    await push(tmp_path / "in", tmp_path / "store")
    await copy(tmp_path / "store", tmp_path / "second")
    await pull(tmp_path / "second", tmp_path / "out")
    assert files_of(tmp_path / "out") == {"a": BIG}
    async with open_store(tmp_path / "second") as store:
        assert (await store.head("a")).size == len(BIG)
