"""A path may be a file at one sync, a directory at the next, and a file again."""

import shutil

import pytest
from stored import files_of

from asyncsync import SyncConfig, pull, push, verify
from asyncsync.planning.changes import in_the_way


def test_paths_in_the_way_lie_above_or_below_a_new_path():
    assert in_the_way(["a", "b/c/d", "e", "f/g"], ["a/x/y", "b", "ee/x", "f/h"]) == ["a", "b/c/d"]


def make(root, files):
    shutil.rmtree(root, ignore_errors=True)
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


STATES = [
    {"x": b"1", "same": b"s"},
    {"x/n": b"22", "x/m/deep": b"333", "same": b"s"},
    {"x/n/below": b"4", "same": b"s"},
    {"x": b"55", "same": b"s"},
]


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("kind", ["directory", "memory"])
async def test_a_path_that_turns_from_file_to_directory_and_back_can_be_pulled(tmp_path, kind, delete):
    """It can be pulled after each turn."""
    store, source = (
        str(tmp_path / "store") if kind == "directory" else f"memory://turning-{delete}/p",
        tmp_path / "source",
    )
    for number, files in enumerate(STATES):
        make(source, files)
        await push(source, store, sync_config=SyncConfig(delete=delete))
        target = tmp_path / f"target{number}"
        await pull(store, target)
        assert files.items() <= files_of(target).items()
        assert (await verify(store)).ok
