"""Which files have to be sent."""

import pytest

from asyncsync.planning.changes import RACY_NS, SCANNED, Changes, Comparison
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat

NOW = 10**18


def stat(path: str, size: int = 3, mtime: int = 5, inode: int = 1) -> FileStat:
    return FileStat(path, size, mtime, inode, 0o644)


def entry(path: str, size: int = 3, mtime: int = 5) -> FileEntry:
    return FileEntry(path, size, mtime, 0o644, 7, 0, ("x",), (7,), "v", 1)


def manifest(*entries: FileEntry) -> Manifest:
    return Manifest({item.path: item for item in entries}, {SCANNED: NOW})


def compare(files: list[FileStat], known: Manifest | None, *, checksum: bool = False) -> Changes:
    comparison = Comparison(known, checksum=checksum)
    send = [file for file in files if not comparison.same(*file[:4])]
    return Changes(send, len(files) - len(send), comparison.missing())


def test_everything_is_new_without_a_manifest() -> None:
    assert [file.path for file in compare([stat("a"), stat("b")], None).send] == ["a", "b"]


def test_a_file_of_equal_size_mtime_and_inode_is_skipped() -> None:
    changes = compare([stat("a")], manifest(entry("a")))
    assert (changes.send, changes.skip) == ([], 1)


@pytest.mark.parametrize("now", [stat("a", size=4), stat("a", mtime=6), stat("a", mtime=4), stat("a", inode=2)])
def test_any_difference_sends_it_on_to_hashing(now: FileStat) -> None:
    assert compare([now], manifest(entry("a"))).send == [now]


def test_a_file_written_within_the_clocks_tick_of_the_scan_is_doubted() -> None:
    racy = NOW - RACY_NS + 1
    assert compare([stat("a", mtime=racy)], manifest(entry("a", mtime=racy))).send


def test_checksum_doubts_everything() -> None:
    assert compare([stat("a")], manifest(entry("a")), checksum=True).send


def test_a_vanished_file_is_missing() -> None:
    assert compare([stat("a")], manifest(entry("a"), entry("b"))).missing == ["b"]
