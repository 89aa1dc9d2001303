"""A snapshot keeps the directory as it was, whatever training does to it afterwards."""

import fcntl
import os
import shutil
from contextlib import contextmanager

import pytest

from asyncsync import Checkpoint
from asyncsync.disk import copying
from asyncsync.errors import SourceChangedError


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "live"
    (directory / "deep").mkdir(parents=True)
    (directory / "weights").write_bytes(b"before")
    (directory / "deep/state").write_bytes(b"deep")
    os.utime(directory / "weights", ns=(5, 5))
    return directory


@pytest.mark.parametrize("link", [False, True])
def test_files_that_are_replaced_stay_as_they_were(source, link):
    taken = Checkpoint.snapshot(source, link=link)
    (source / "new").write_bytes(b"after!")
    os.replace(source / "new", source / "weights")
    assert taken.owned
    assert (taken.path / "weights").read_bytes() == b"before"
    assert (taken.path / "deep/state").read_bytes() == b"deep"
    assert (taken.path / "weights").stat().st_mtime_ns == 5


def test_without_links_files_may_be_rewritten_too(source):
    taken = Checkpoint.snapshot(source)
    with (source / "weights").open("r+b") as file:
        file.write(b"AFTER")
    assert (taken.path / "weights").read_bytes() == b"before"


def test_links_share_the_file_where_the_file_system_can(source):
    taken = Checkpoint.snapshot(source, link=True)
    assert (taken.path / "weights").samefile(source / "weights")


def test_a_file_that_cannot_be_linked_is_copied(source, monkeypatch):
    def refuse(*_):
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    taken = Checkpoint.snapshot(source, link=True)
    assert (taken.path / "weights").read_bytes() == b"before"


@pytest.mark.parametrize("link", [False, True])
def test_links_are_followed_and_pipes_left_out(source, link, caplog):
    os.mkfifo(source / "pipe")
    (source / "alias").symlink_to("weights")
    taken = Checkpoint.snapshot(source, link=link)
    assert sorted(os.listdir(taken.path)) == ["alias", "deep", "weights"]
    assert f"{source}/pipe is a socket, pipe or device" in caplog.text
    (source / "weights").unlink()
    assert (taken.path / "alias").read_bytes() == b"before"


def test_a_file_that_changes_while_it_is_copied_is_copied_again(source, monkeypatch):
    copy, left = shutil.copyfileobj, [1]

    def change(reader, writer, size):
        copy(reader, writer, size)
        if left:
            left.pop()
            (source / "weights").write_bytes(b"during")

    monkeypatch.setattr(copying, "share_blocks", lambda *_: False)
    monkeypatch.setattr(shutil, "copyfileobj", change)
    (source / "deep/state").unlink()
    assert (Checkpoint.snapshot(source).path / "weights").read_bytes() == b"during"


def test_a_file_that_never_stops_changing_is_reported_and_nothing_stays(source, monkeypatch):
    copy, times = shutil.copyfileobj, []

    def change(reader, writer, size):
        copy(reader, writer, size)
        times.append(1)
        os.utime(reader.name, ns=(len(times), len(times)))

    monkeypatch.setattr(copying, "share_blocks", lambda *_: False)
    monkeypatch.setattr(shutil, "copyfileobj", change)
    with pytest.raises(SourceChangedError, match="3 times"):
        Checkpoint.snapshot(source)
    assert os.listdir(source.parent) == ["live"]


def test_the_next_snapshot_removes_the_unfinished_copy_of_a_killed_process(source):
    unfinished, other = (source.parent / f".{name}.0123.part.asyncsync-tmp" for name in ("live", "another"))
    finished = Checkpoint.snapshot(source).path
    for path in (unfinished, other):
        path.mkdir()
    being_made = source.parent / ".live.4567.part.asyncsync-tmp"
    being_made.mkdir()
    with tree_open(being_made):
        Checkpoint.snapshot(source)
    assert not unfinished.exists()
    assert finished.exists()
    assert being_made.exists()
    assert other.exists()


@contextmanager
def tree_open(path):
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)
