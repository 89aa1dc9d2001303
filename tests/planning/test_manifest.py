"""The manifest's document."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.manifest import FileEntry, Manifest

ENTRIES = st.builds(
    FileEntry,
    path=st.text(st.characters(codec="utf-8"), min_size=1),
    size=st.integers(0, 2**50),
    mtime_ns=st.integers(0, 2**62),
    mode=st.integers(0, 0o7777),
    crc32c=st.integers(0, 2**32 - 1),
    part_size=st.integers(0, 2**30),
    parts=st.just(("ab", "cd")),
    part_crcs=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    version=st.text(st.characters(codec="utf-8")),
    samples=st.sampled_from(("", "0123abcd")),
)


@given(st.lists(ENTRIES, max_size=5))
def test_what_is_written_is_read_again(entries: list[FileEntry]) -> None:
    manifest = Manifest({item.path: item for item in entries}, {"metrics": {"loss": 1.5}})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.lists(ENTRIES, max_size=5))
def test_the_lines_are_what_json_makes_of_them(entries: list[FileEntry]) -> None:
    lines = Manifest({item.path: item for item in entries}).to_bytes().decode().splitlines()[1:-1]
    for line in lines:
        entry = json.loads(line.rstrip(","))
        assert json.dumps(entry, separators=(",", ":")) == line.rstrip(",")


@pytest.mark.parametrize("indent", [None, 1])
def test_any_layout_is_read(indent: int | None) -> None:
    files = {f"f{index}": FileEntry(f"f{index}", 1, 1, 1, 1, 0, ("x",), (1,), "v") for index in range(600)}
    document = json.dumps(json.loads(Manifest(files).to_bytes()), indent=indent).encode()
    assert Manifest.from_bytes(document) == Manifest(files)
    assert Manifest.from_bytes(document.replace(b'"files": [', b'"files":[')) == Manifest(files)


def test_one_file_a_line() -> None:
    files = {f"f{index}": FileEntry(f"f{index}", 1, 1, 1, 1, 0, ("x",), (1,), "v") for index in range(2500)}
    assert Manifest(files).to_bytes().count(b"\n") == 2502


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"format":99,"files":[]}', b'{"format":1,"files":[{"path":"a"}]}', b"\xff"]
)
def test_what_is_no_manifest_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.from_bytes(data)


def test_the_ranges_of_the_parts_cover_the_file() -> None:
    entry = FileEntry("a", 25, 1, 1, 1, 10, ("a", "b", "c"), (1, 2, 3), "v")
    assert list(entry.ranges()) == [(0, 10, 1), (10, 10, 2), (20, 5, 3)]
