"""Files that belong to an accepted checkpoint, and which of them are deleted afterwards. No store is needed."""

import os
from pathlib import Path

import pytest

from asyncsync.disk.accepted_files import accept
from asyncsync.disk.digests import Loaded, load, stat_file
from asyncsync.disk.files import FileRange
from asyncsync.errors import CheckpointIncompleteError, SourceChangedError

LONG_AGO = 10**18


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two files that have not been touched for long."""
    (tmp_path / "c/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "c" / name).write_bytes(name.encode() * 100)
        os.utime(tmp_path / "c" / name, ns=(LONG_AGO, LONG_AGO))
    return tmp_path / "c"


def test_a_pipe_in_the_place_of_a_file_does_not_block_a_thread(root: Path) -> None:
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


def test_a_checkpoint_takes_present_files_and_follows_links_out_of_it(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "else")
    (root.parent / "else").mkdir()
    (root.parent / "else/c").write_bytes(b"c")
    assert [file.path for file in accept(str(root)).files] == ["a", "out/c", "sub/b"]


@pytest.mark.parametrize("target", ["link", "other", ".", "sub/..", "..", "/", "nothing"])
def test_a_link_to_nothing_or_back_is_refused_by_name(root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    (root / "other").symlink_to("link")
    with pytest.raises(CheckpointIncompleteError, match="link"):
        accept(str(root))


def test_a_pipe_or_a_socket_is_left_out_with_a_warning(root: Path) -> None:
    os.mkfifo(root / "pipe")
    found = accept(str(root))
    assert [file.path for file in found.files] == ["a", "sub/b"]
    assert [warning.partition(":")[0] for warning in found.warnings] == ["'pipe'"]
    found.check()


@pytest.mark.parametrize("name", [b".asyncsync", b"x.asyncsync-tmp", b"sub/.asyncsync", b"caf\xe9"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_name_that_cannot_be_stored_is_refused_by_name(root: Path, name: bytes, *, alone: bool) -> None:
    path = os.path.join(os.fsencode(root), name)
    with open(path, "wb"):
        pass
    with pytest.raises(CheckpointIncompleteError, match=r"\.asyncsync|caf"):
        accept(os.fsdecode(path) if alone else str(root))


@pytest.mark.parametrize("kind", ["empty", "only directories", "missing", "broken link", "looping link", "a pipe"])
def test_a_checkpoint_without_files_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c"
    match kind:
        case "empty":
            path.mkdir()
        case "only directories":
            (path / "sub").mkdir(parents=True)
        case "broken link":
            path.symlink_to(tmp_path / "nothing")
        case "looping link":
            path.symlink_to(path)
        case "a pipe":
            os.mkfifo(path)
    with pytest.raises(CheckpointIncompleteError, match="/c"):
        accept(str(path))


def test_dots_after_a_link_are_followed_as_the_system_follows_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``here/link/../c`` is not ``here/c``."""
    here = root.parent / "here"
    (here / "c").mkdir(parents=True)
    (here / "c/wrong").write_bytes(b"wrong")
    (here / "link").symlink_to(root)
    monkeypatch.chdir(here)
    for path in ("link/../c", "link/../c/", "link/../c/sub/..", f"{here}/link/../c"):
        found = accept(path)
        assert [file.path for file in found.files] == ["a", "sub/b"]
        assert found.path == str(root)
    assert accept("link/.").path == str(here / "link")


def test_a_file_that_vanished_or_a_link_that_broke_is_named(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "else")
    (root.parent / "else").write_bytes(b"else")
    found = accept(str(root))
    (root.parent / "else").unlink()
    with pytest.raises(CheckpointIncompleteError, match="link"):
        found.check()


def test_a_file_written_in_the_same_clock_tick_is_read_again(root: Path) -> None:
    """The time is put back, as two writes within one tick leave it."""
    (root / "a").write_bytes(b"new")
    found, info = accept(str(root)), (root / "a").stat()
    crcs = {file.path: FileRange(str(root / file.path), 0, file.size) for file in found.files}
    sent = {path: _crc(body) for path, body in crcs.items()}
    found.check(sent)
    (root / "a").write_bytes(b"odd")
    os.utime(root / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(SourceChangedError, match=r"\ba changed"):
        found.check(sent)


def _crc(body: FileRange) -> int:
    loaded = load(str(Path(body.path).parent), [stat_file(str(Path(body.path).parent), Path(body.path).name)])[0]
    assert isinstance(loaded, Loaded)
    return loaded.digest.crc32c


def test_only_unchanged_files_are_removed(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    for name in ("x", "y", "z"):
        (outside / name).write_bytes(name.encode())
    (root / "file").symlink_to(outside / "x")
    (root / "moved").symlink_to(outside / "y")
    (root / "dir").symlink_to(outside)
    found = accept(str(root))
    (root / "moved").unlink()
    (root / "moved").symlink_to(outside / "z")
    (root / "sub/b").write_bytes(b"other")
    (root / "added").write_bytes(b"added")
    assert found.remove() == ["added", "moved", "sub/b"]
    assert sorted(path.name for path in root.rglob("*")) == ["added", "b", "moved", "sub"]
    assert sorted(path.name for path in outside.iterdir()) == ["x", "y", "z"]


def test_a_file_that_became_a_link_is_not_removed(root: Path) -> None:
    found = accept(str(root))
    (root / "a").unlink()
    (root / "a").symlink_to(root / "sub/b")
    assert found.remove() == ["a"]
    assert (root / "a").is_symlink()


def test_a_linked_directory_is_removed_with_its_target(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert accept(str(link)).remove() == []
    assert not link.is_symlink()
    assert not root.exists()


def test_nothing_is_removed_where_the_link_leads_elsewhere_by_now(root: Path) -> None:
    """Not even empty directories that were never reported."""
    link, other = root.parent / "link", root.parent / "other"
    (other / "empty").mkdir(parents=True)
    link.symlink_to(root)
    found = accept(str(link))
    link.unlink()
    link.symlink_to(other)
    assert found.remove() == [str(link)]
    assert (other / "empty").is_dir()
    assert (root / "a").exists()


def test_one_file_is_a_checkpoint_and_its_neighbours_stay(root: Path) -> None:
    (root / "sub/other").write_bytes(b"other")
    found = accept(str(root / "sub/b"))
    assert [file.path for file in found.files] == ["b"]
    (root / "sub/new").write_bytes(b"new")
    found.check()
    assert found.remove() == []
    assert sorted(path.name for path in (root / "sub").iterdir()) == ["new", "other"]


def test_one_file_that_changed_is_named(root: Path) -> None:
    found = accept(str(root / "a"))
    (root / "a").write_bytes(b"other")
    with pytest.raises(SourceChangedError, match=r"\ba changed"):
        found.check()
    assert found.remove() == ["a"]
    (root / "a").unlink()
    with pytest.raises(CheckpointIncompleteError, match=r"\ba vanished"):
        found.check()
