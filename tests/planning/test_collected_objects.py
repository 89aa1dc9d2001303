"""A large tree leaves the garbage collector nothing to look at: a collection stops the event loop."""

from __future__ import annotations

import gc

from msgspec import structs

from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.snapshot import FileStat


def test_the_collector_visits_no_file_of_a_manifest() -> None:
    entry = FileEntry("path", 1, 2, 0o644, 3, 0, ("0" * 32,), (3,), "etag", 4)
    (parsed,) = Manifest.from_bytes(Manifest({"path": entry}).to_bytes()).files.values()
    assert parsed == entry
    assert not gc.is_tracked(parsed)
    assert len({entry, parsed, structs.replace(entry, extra={"tomorrow": []})}) == 2


def test_the_collector_visits_no_file_of_a_scan() -> None:
    assert not gc.is_tracked(FileStat("path", 1, 2, 3, 0o644))


def test_the_fields_of_a_file_have_the_order_of_a_tuple() -> None:
    file = FileStat("path", 1, 2, 3, 0o644)
    assert (file[:4], file[1:4]) == (("path", 1, 2, 3), (1, 2, 3))
    assert sorted([FileStat("b", 0, 0, 0, 0), FileStat("a", 9, 9, 9, 9)])[0].path == "a"
