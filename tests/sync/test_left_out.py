"""Files that cannot be read, or whose names no store can hold, are reported and left out of artifacts; the rest is
sent. A checkpoint leaves nothing out.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsync import CheckpointIncompleteError, SyncConfig, SyncEngine, SyncFailedError, pull, push
from asyncsync.config import RunConfig
from asyncsync.disk.accepted_files import accept
from asyncsync.disk.copying import copy_tree
from asyncsync.disk.descent import remove_tree
from asyncsync.disk.scan import scan
from asyncsync.events import SyncWarning
from asyncsync.planning.patterns import Rules
from asyncsync.sync.download.exact_target import ExactTarget, remove_empty
from asyncsync.testing import MemoryStore, run_virtual

URI = "memory://b/tree"


def stored(path: str = "tree") -> set[str]:
    """The keys of a store's data."""
    keys = run_virtual(_keys(path))
    return {key for key in keys if ".asyncsync" not in key}


async def _keys(path: str) -> list[str]:
    return [item.key for item in (await MemoryStore("b", path).list("")).objects]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """``broken(name, number, times)``: opening a file of this name fails with this errno, so many times."""
    left: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    really = os.open

    def opening(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = os.path.basename(path)
        if left[name] > 0:
            left[name] -= 1
            raise OSError(numbers[name], os.strerror(numbers[name]), path)
        return really(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opening)

    def make(name: str, number: int, times: int) -> None:
        left[name], numbers[name] = times, number

    return make


def test_a_directory_that_cannot_be_read_once_is_looked_at_again(
    tree: Path, broken: Callable[[str, int, int], None]
) -> None:
    (tree / "far").mkdir()
    (tree / "far/f").write_bytes(b"1")
    broken("far", errno.ESTALE, 1)
    assert [file.path for file in scan(str(tree)).files] == ["far/f"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_an_unreadable_directory_is_named_and_the_rest_is_sent(
    tree: Path, broken: Callable[[str, int, int], None], number: int
) -> None:
    """Nothing is deleted."""
    for name in ("far/f", "near/f"):
        (tree / name).parent.mkdir()
        (tree / name).write_bytes(b"1")
    run_virtual(push(tree, URI))
    (tree / "near/new").write_bytes(b"2")
    broken("far", number, 2)
    with pytest.raises(SyncFailedError, match="far") as caught:
        run_virtual(push(tree, URI, sync_config=SyncConfig(delete=True)))
    assert list(caught.value.failures) == ["far"]
    assert stored() == {"far/f", "near/f", "near/new"}
    assert run_virtual(push(tree, URI)).files_sent == 0


def test_a_checkpoint_with_a_directory_that_cannot_be_read_is_refused(
    tree: Path, broken: Callable[[str, int, int], None]
) -> None:
    (tree / "far").mkdir()
    (tree / "weights").write_bytes(b"1")
    broken("far", errno.EACCES, 2)
    with pytest.raises(CheckpointIncompleteError, match="far: it cannot be read"):
        accept(str(tree))


def test_a_directory_may_vanish_after_it_was_listed(tree: Path, broken: Callable[[str, int, int], None]) -> None:
    (tree / "far").mkdir()
    broken("far", errno.ENOENT, 2)
    found = scan(str(tree))
    assert (found.files, found.unread) == ([], {})


def deepen(root: Path, levels: int) -> None:
    """A file under so many directories."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("a", dir_fd=at)
        above, at = at, os.open("a", os.O_RDONLY, dir_fd=at)
        os.close(above)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


@pytest.mark.parametrize("levels", [1_100, 3_000])
def test_a_tree_deeper_than_the_stack_of_python_is_walked(tree: Path, levels: int) -> None:
    (tree / "near").write_bytes(b"1")
    deepen(tree, levels)
    try:
        found = scan(str(tree))
        report = run_virtual(push(tree, URI))
        if levels == 3_000:
            with pytest.raises(CheckpointIncompleteError, match="File name too long"):
                accept(str(tree))
    finally:
        remove_tree(str(tree / "a"))
    assert report.files_left_out == 1
    assert stored() == {"near"}
    assert len(found.files) + len(found.refused) == 2


def test_an_odd_name_is_left_out_and_counted_and_the_rest_is_sent(tmp_path: Path) -> None:
    warnings: list[str] = []

    async def main() -> None:
        run = RunConfig(name="e", storage_path="memory://b/x", sync_config=SyncConfig(sync_artifacts=True))
        async with SyncEngine(run, local_dir=tmp_path) as engine:
            stream = engine.events()
            trial = engine.trial("t")
            with open(os.fsencode(trial.dir) + b"/caf\xe9.txt", "wb"):
                pass
            (trial.dir / "other.txt").write_text("1")
            await trial.report({"x": 1})
            assert (await trial.sync()).files_left_out == 1
            await trial.finish()
        warnings.extend([event.message async for event in stream if isinstance(event, SyncWarning)])

    run_virtual(main())
    assert {"e/t/result.json", "e/t/other.txt"} <= stored("x")
    assert any("caf" in warning for warning in warnings)


def test_many_odd_names_make_few_warnings(tree: Path) -> None:
    for number in range(50):
        with open(os.fsencode(tree) + b"/\xff%d" % number, "wb"):
            pass
    report = run_virtual(push(tree, URI))
    assert (report.files_left_out, len(report.warnings)) == (50, 21)


def test_one_file_with_an_odd_name_is_refused(tree: Path) -> None:
    name = os.fsencode(tree) + b"/caf\xe9.txt"
    with open(name, "wb"):
        pass
    with pytest.raises(SyncFailedError, match="names"):
        run_virtual(push(os.fsdecode(name), URI))


def test_a_link_that_leads_back_is_left_out_once(tree: Path) -> None:
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/back").symlink_to(tree / "a")
    found = scan(str(tree), Rules())
    assert len(found.warnings) == 1


@pytest.mark.parametrize("levels", [1_100, 3_000])
def test_an_exact_target_is_cleared_however_deep_it_is(tree: Path, levels: int) -> None:
    (tree / "named").write_bytes(b"1")
    deepen(tree, levels)
    room = ExactTarget(tree)
    room.check()
    assert room.clear({"named"}) == 1
    assert os.listdir(tree) == ["named"]


def test_directories_without_files_go_however_deep_they_are(tree: Path) -> None:
    (tree / "kept").mkdir()
    (tree / "kept/file").write_bytes(b"1")
    deepen(tree, 1_100)
    os.unlink("/".join([str(tree), *["a"] * 1_100, "f"]))
    remove_empty(str(tree))
    assert os.listdir(tree) == ["kept"]


def test_deep_checkpoints_are_copied_and_removed_without_recursion(tree: Path) -> None:
    deepen(tree, 1_100)
    copy = copy_tree(tree, link=False)
    remove_tree(str(tree))
    assert accept(str(copy)).remove() == []
    assert not copy.exists()


def test_nothing_behind_a_link_is_removed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"1")
    (tree / "link").symlink_to(tmp_path / "outside")
    remove_tree(str(tree))
    assert (tmp_path / "outside/file").exists()
    assert not tree.exists()


def test_a_deep_tree_is_kept_by_a_store_of_files_and_comes_back(tree: Path, tmp_path: Path) -> None:
    deepen(tree, 1_100)
    store, target = tmp_path / "store", tmp_path / "target"
    run_virtual(push(tree, store))
    run_virtual(pull(store, target))
    assert os.path.exists("/".join([str(target), *["a"] * 1_100, "f"]))
    for place in (tree, store, target):
        remove_tree(str(place))  # by recursion, as pytest does it, it could not be
