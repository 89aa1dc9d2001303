"""``delete=True`` does not empty a store because a directory became empty or vanished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from asyncsync import ConfigError, SyncConfig, SyncFailedError, push
from asyncsync.config import state_dir
from asyncsync.sync.syncer import Syncer
from asyncsync.testing import MemoryStore, reset_memory, run_virtual

URI = "memory://b/tree"
DELETE = SyncConfig(delete=True)


@pytest.fixture(autouse=True)
def _stored(tree: Path) -> None:
    reset_memory()
    for number in range(5):
        (tree / f"{number}").write_bytes(b"1")
    run_virtual(push(tree, URI))


def stored() -> int:
    """How many files the store has."""
    return sum(".asyncsync" not in key for key in MemoryStore("b", "tree").contents)


def remove(tree: Path, count: int) -> None:
    """Files vanish."""
    for number in range(count):
        (tree / f"{number}").unlink()


def test_a_directory_that_became_empty_deletes_nothing(tree: Path) -> None:
    remove(tree, 5)
    with pytest.raises(SyncFailedError, match=r"5 file\(s\).*no file is left.*max_delete=5"):
        run_virtual(push(tree, URI, sync_config=DELETE))
    assert stored() == 5


def test_so_many_are_deleted_as_are_allowed_and_all_if_that_is(tree: Path) -> None:
    remove(tree, 5)
    run_virtual(push(tree, URI, sync_config=SyncConfig(delete=True, max_delete=5)))
    assert stored() == 0


def test_more_than_are_allowed_are_refused(tree: Path) -> None:
    remove(tree, 3)
    with pytest.raises(SyncFailedError, match="max_delete is 2"):
        run_virtual(push(tree, URI, sync_config=SyncConfig(delete=True, max_delete=2)))
    assert stored() == 5
    run_virtual(push(tree, URI, sync_config=DELETE))
    assert stored() == 2


def test_a_directory_that_vanished_is_named_and_deletes_nothing(tree: Path) -> None:
    async def main() -> None:
        async with Syncer(tree, URI, DELETE) as syncer:
            shutil.rmtree(tree)
            with pytest.raises(SyncFailedError, match="tree cannot be read, nothing was sent or deleted"):
                await syncer.sync_up()

    run_virtual(main())
    assert stored() == 5


@pytest.mark.parametrize("number", [-1, 1.5, True, "1"])
def test_an_invalid_number_of_files_is_refused(number: object) -> None:
    with pytest.raises(ConfigError, match="max_delete"):
        SyncConfig(max_delete=number)  # type: ignore[arg-type]


def test_without_a_home_directory_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASYNCSYNC_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="ASYNCSYNC_STATE_DIR"):
        state_dir()
