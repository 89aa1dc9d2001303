"""What counts as a checkpoint's files, and what is deleted of them. No store is needed."""

import os
from pathlib import Path

import pytest

from asyncsync.disk.files import FileRange
from asyncsync.disk.reading import load, stat_file

LONG_AGO = 10**18


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two files that have not been touched for long."""
    (tmp_path / "c/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "c" / name).write_bytes(name.encode() * 100)
        os.utime(tmp_path / "c" / name, ns=(LONG_AGO, LONG_AGO))
    return tmp_path / "c"


def test_a_pipe_that_came_in_a_files_place_holds_no_thread(root: Path) -> None:
    """Opening one waits for its other end."""
    file = stat_file(str(root), "a")
    (root / "a").unlink()
    os.mkfifo(root / "a")
    for fixed in (True, False):
        [result] = load(str(root), [file], fixed=fixed)
        assert isinstance(result, FileNotFoundError)
    with pytest.raises(OSError, match="Illegal seek"):
        list(FileRange(str(root / "a"), 0, file.size).pieces())
    with pytest.raises(FileNotFoundError):
        stat_file(str(root), "a")
