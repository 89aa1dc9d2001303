"""One directory and one prefix."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsync import ConfigError, EngineClosedError, SyncConfig, Syncer, TransferConfig, push
from asyncsync.disk.scan import scan
from asyncsync.errors import (
    AccessDeniedError,
    CheckpointIncompleteError,
    ConcurrentWriterError,
    SourceChangedError,
    SyncFailedError,
    SyncTimeoutError,
    UnavailableError,
)
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.snapshot import Snapshot
from asyncsync.testing import Faults, MemoryStore, run_virtual

MANIFEST = ".asyncsync/manifest.json"
MIB = 1 << 20
LARGE = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub/deep").mkdir(parents=True)
    (root / "a").write_bytes(b"1")
    (root / "sub/empty").write_bytes(b"")
    (root / "sub/deep/ü b").write_bytes(os.urandom(3 * MIB))
    return root


def stored() -> dict[str, bytes]:
    return {key: data for key, data in MemoryStore("b", "p").contents.items() if not key.startswith(".asyncsync")}


def local(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_push_brings_every_file_and_a_manifest(faults: Faults, tree: Path) -> None:
    report = run_virtual(push(tree, "memory://b/p"))
    assert stored() == local(tree)
    assert (report.files_sent, report.bytes_sent) == (3, 3 * MIB + 1)
    manifest = Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST])
    assert set(manifest.files) == set(local(tree))


def test_syncing_again_sends_nothing_and_asks_nothing(faults: Faults, tree: Path) -> None:
    async def main() -> None:
        async with Syncer(tree, "memory://b/p") as syncer:
            await syncer.sync_up()
            before = faults.calls
            report = await syncer.sync_up()
            assert (report.files_sent, report.requests, faults.calls) == (0, 0, before)

    run_virtual(main())


def test_another_process_asks_once_whether_its_journal_is_right(faults: Faults, tree: Path) -> None:
    run_virtual(push(tree, "memory://b/p"))
    faults.requests.clear()
    report = run_virtual(push(tree, "memory://b/p"))
    assert (report.files_sent, faults.requests) == (0, [("head", MANIFEST)])


def test_a_store_that_was_emptied_is_filled_again(faults: Faults, tree: Path) -> None:
    run_virtual(push(tree, "memory://b/p"))
    MemoryStore("b").bucket.objects.clear()
    run_virtual(push(tree, "memory://b/p"))
    assert stored() == local(tree)


def test_only_changed_files_are_sent(faults: Faults, tree: Path) -> None:
    run_virtual(push(tree, "memory://b/p"))
    (tree / "a").write_bytes(b"22")
    assert run_virtual(push(tree, "memory://b/p")).files_sent == 1
    assert stored()["a"] == b"22"


def test_a_file_that_was_only_touched_is_not_sent(faults: Faults, tree: Path) -> None:
    run_virtual(push(tree, "memory://b/p"))
    os.utime(tree / "a", (5, 5))
    assert run_virtual(push(tree, "memory://b/p")).files_sent == 0


def test_a_locally_vanished_file_stays_unless_delete(faults: Faults, tree: Path) -> None:
    run_virtual(push(tree, "memory://b/p"))
    (tree / "a").unlink()
    run_virtual(push(tree, "memory://b/p"))
    assert "a" in stored()
    run_virtual(push(tree, "memory://b/p", sync_config=SyncConfig(delete=True)))
    assert "a" not in stored()
    assert "a" not in Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files


def test_a_large_file_goes_in_parts_and_arrives_complete(faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(23 * MIB + 7))
    run_virtual(push(tmp_path / "big", "memory://b/p", transfer=LARGE))
    assert stored() == {"big": (tmp_path / "big").read_bytes()}
    assert faults.count("put_part") == 5
    entry = Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files["big"]
    assert (entry.part_size, len(entry.parts)) == (5 * MIB, 5)


def test_after_a_timeout_the_next_sync_continues_inside_the_file(faults: Faults, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "big").write_bytes(os.urandom(40 * MIB))

    async def main() -> None:
        config = SyncConfig(sync_timeout=60)
        async with Syncer(root, "memory://b/p", config, transfer=LARGE) as syncer:
            faults.hang(at=6, operation="put_part", times=None)
            with pytest.raises(SyncTimeoutError, match="big"):
                await syncer.sync_up()
            assert faults.active == 0
            faults.clear()
            before = faults.count("put_part")
            await syncer.sync_up()
            assert faults.count("put_part") - before == 3

    run_virtual(main())
    assert stored() == local(root)
    assert MemoryStore("b", "p").bucket.uploads == {}


def test_an_upload_that_failed_for_good_is_aborted(faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(20 * MIB))
    faults.fail(at=2, error=AccessDeniedError("not you"), operation="put_part")
    with pytest.raises(SyncFailedError):
        run_virtual(push(tmp_path / "big", "memory://b/p", transfer=LARGE))
    run_virtual(push(tmp_path / "big", "memory://b/p", transfer=LARGE))
    assert MemoryStore("b", "p").bucket.uploads == {}


def test_a_file_that_changes_while_it_is_sent_is_sent_again(faults: Faults, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(20 * MIB))
    faults.hook(2, lambda: big.write_bytes(os.urandom(21 * MIB)), operation="put_part")
    run_virtual(push(big, "memory://b/p", transfer=LARGE))
    assert stored()["big"] == big.read_bytes()


def test_a_constantly_changing_file_is_refused_and_not_in_the_manifest(faults: Faults, tree: Path) -> None:
    big = tree / "big"
    big.write_bytes(os.urandom(MIB) * 20)
    faults.hook(1, lambda: big.write_bytes(os.urandom(MIB) * 20), operation="put_part", times=None)
    with pytest.raises(SyncFailedError, match="big") as caught:
        run_virtual(push(tree, "memory://b/p", transfer=LARGE))
    assert isinstance(caught.value.failures["big"], SourceChangedError)
    assert set(Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files) == {
        "a",
        "sub/empty",
        "sub/deep/ü b",
    }


def test_a_file_that_vanishes_is_left_out_and_counted(
    faults: Faults, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the scan that saw it and the first byte that is read of anything."""

    def look_and_remove(*how: Any) -> Snapshot:
        found = scan(*how)
        (tree / "a").unlink()
        big.unlink()
        return found

    big = tree / "big"
    big.write_bytes(os.urandom(20 * MIB))
    monkeypatch.setattr("asyncsync.sync.tree.scan", look_and_remove)
    report = run_virtual(push(tree, "memory://b/p", transfer=LARGE))
    assert (report.files_vanished, report.files_sent) == (2, 2)
    assert set(stored()) == {"sub/empty", "sub/deep/ü b"}
    assert set(Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files) == set(stored())
    assert MemoryStore("b").bucket.uploads == {}


def test_sockets_and_pipes_are_left_out_with_a_warning(faults: Faults, tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "sock"))
        report = run_virtual(push(tree, "memory://b/p"))
    assert sum("not a regular file" in warning for warning in report.warnings) == 2
    assert set(stored()) == {"a", "sub/empty", "sub/deep/ü b"}


@pytest.mark.parametrize(("mode", "expected"), [("inside", {"in"}), ("follow", {"in", "out"}), ("skip", set())])
def test_links_are_followed_as_configured(faults: Faults, tree: Path, mode: str, expected: set[str]) -> None:
    (tree.parent / "outside").write_bytes(b"o")
    (tree / "in").symlink_to(tree / "a")
    (tree / "out").symlink_to(tree.parent / "outside")
    (tree / "sub/loop").symlink_to(tree)
    run_virtual(push(tree, "memory://b/p", sync_config=SyncConfig(symlinks=mode)))  # type: ignore[arg-type]
    assert set(stored()) == {"a", "sub/empty", "sub/deep/ü b"} | expected


def test_an_unstorable_name_is_left_out_and_the_rest_is_sent(faults: Faults, tree: Path) -> None:
    with open(os.fsencode(tree) + b"/\xff\xfe", "wb"):
        pass
    report = run_virtual(push(tree, "memory://b/p"))
    assert (report.files_left_out, report.files_sent) == (1, len(stored()))


def test_two_writers_of_one_prefix_notice_each_other(faults: Faults, tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async def main() -> None:
        async with Syncer(tree, "memory://b/p") as one, Syncer(other, "memory://b/p") as two:
            await one.sync_up()
            await two.sync_up()
            (tree / "a").write_bytes(b"one")
            await one.sync_up()
            (other / "b").write_bytes(b"two")
            with pytest.raises(ConcurrentWriterError):
                await two.sync_up()

    run_virtual(main())
    assert Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files["a"].size == 3


def test_transient_failures_are_tried_again(faults: Faults, tree: Path) -> None:
    faults.fail(at=3, error=UnavailableError("away"), times=3)
    run_virtual(push(tree, "memory://b/p"))
    assert stored() == local(tree)


def test_sync_up_if_needed_keeps_the_period(faults: Faults, tree: Path) -> None:
    async def main() -> None:
        async with Syncer(tree, "memory://b/p", SyncConfig(sync_period=100)) as syncer:
            assert await syncer.sync_up_if_needed() is not None
            await asyncio.sleep(99)
            assert await syncer.sync_up_if_needed() is None
            await asyncio.sleep(1)
            assert await syncer.sync_up_if_needed() is not None

    run_virtual(main())


def test_sync_down_brings_it_back_bit_for_bit(faults: Faults, tree: Path, tmp_path: Path) -> None:
    async def main() -> None:
        await push(tree, "memory://b/p")
        async with Syncer(tmp_path / "copy", "memory://b/p") as syncer:
            await syncer.sync_down()
            assert (await syncer.sync_up()).files_sent == 0

    run_virtual(main())
    assert local(tmp_path / "copy") == local(tree)


def test_sync_down_of_nothing_raises(faults: Faults, tmp_path: Path) -> None:
    async def main() -> None:
        async with Syncer(tmp_path / "copy", "memory://b/p") as syncer:
            with pytest.raises(CheckpointIncompleteError, match="no manifest"):
                await syncer.sync_down()

    run_virtual(main())


def test_delete_empties_the_prefix_manifest_first(faults: Faults, tree: Path) -> None:
    async def main() -> None:
        async with Syncer(tree, "memory://b/p") as syncer:
            await syncer.sync_up()
            faults.requests.clear()
            await syncer.delete()
            assert next(request.key for request in faults.requests if request.operation == "delete") == MANIFEST

    run_virtual(main())
    assert MemoryStore("b", "p").contents == {}


def test_outside_its_block_a_syncer_refuses(faults: Faults, tree: Path) -> None:
    async def main() -> None:
        syncer = Syncer(tree, "memory://b/p")
        async with syncer:
            pass
        with pytest.raises(EngineClosedError):
            await syncer.sync_up()

    run_virtual(main())


def test_leaving_by_an_exception_stops_the_requests(faults: Faults, tree: Path) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with Syncer(tree, "memory://b/p") as syncer:
                hang = faults.hang(operation="put")
                task = asyncio.create_task(syncer.sync_up())
                await hang.reached.wait()
                raise ZeroDivisionError
        with pytest.raises(EngineClosedError):
            await task
        assert faults.active == 0

    run_virtual(main())


def test_progress_is_reported(faults: Faults, tree: Path) -> None:
    seen: list[Progress] = []
    run_virtual(push(tree, "memory://b/p", on_progress=seen.append))
    assert seen
    assert seen[-1].files_total == 3


def test_a_tree_that_cannot_be_looked_at_once_is_pushed(
    faults: Faults, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a stale handle of a network file system."""
    look, stale = os.stat, [str(tree)]

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and os.fspath(path) in stale:
            stale.clear()
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return look(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert run_virtual(push(tree, "memory://b/p")).files_sent == 3
    assert stale == []


def test_a_missing_path_cannot_be_pushed(faults: Faults, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing at"):
        run_virtual(push(tmp_path / "nowhere", "memory://b/p"))


def test_a_path_that_cannot_be_looked_at_is_not_called_missing(
    faults: Faults, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, listed = os.stat, os.scandir

    def fail(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path) == str(tree):
                raise OSError(errno.EIO, "Input/output error", path)
            return really(path, *args, **options)

        return call

    monkeypatch.setattr(os, "stat", fail(look))
    monkeypatch.setattr(os, "scandir", fail(listed))
    with pytest.raises(SyncFailedError, match="Input/output error"):
        run_virtual(push(tree, "memory://b/p"))
