"""Files that are written through memory are found, by the quick way and by the one for every kernel."""

import mmap
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from asyncsync.disk import mappings


def mapped(stack: ExitStack, path: Path, flags: int, prot: int) -> None:
    path.write_bytes(b"x" * 100)
    file = stack.enter_context(path.open("r+b"))
    stack.enter_context(mmap.mmap(file.fileno(), 100, flags, prot))


@pytest.fixture(params=["asked", "parsed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "parsed":
        monkeypatch.setattr(mappings, "_asked", lambda _: None)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_only_shared_writable_mappings_count(tmp_path: Path) -> None:
    read_write = mmap.PROT_READ | mmap.PROT_WRITE
    with ExitStack() as stack:
        mapped(stack, tmp_path / "written", mmap.MAP_SHARED, read_write)
        mapped(stack, tmp_path / "read", mmap.MAP_SHARED, mmap.PROT_READ)
        mapped(stack, tmp_path / "private", mmap.MAP_PRIVATE, read_write)
        stack.enter_context(mmap.mmap(-1, 100))
        assert mappings.mapped_below(str(tmp_path), fresh=True) == {"written"}
    assert mappings.mapped_below(str(tmp_path), fresh=True) == frozenset()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["with space", "line\nend", "x" * 255, "ünïcode", os.fsdecode(b"not\xffutf8")])
def test_a_file_of_any_name_is_found(tmp_path: Path, name: str) -> None:
    with ExitStack() as stack:
        mapped(stack, tmp_path / name, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        assert mappings.mapped_below(str(tmp_path), fresh=True) == {name}


@pytest.mark.usefixtures("way")
def test_all_of_many_mappings_are_found(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(50):
            mapped(stack, tmp_path / str(number), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        assert mappings.mapped_below(str(tmp_path), fresh=True) == {str(number) for number in range(50)}


def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(tmp_path: Path) -> None:
    """The thread looks at the mappings at the moment of the fork; the child does not have it."""
    with mappings._mapped_files._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            mappings.mapped_below(str(tmp_path))
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
