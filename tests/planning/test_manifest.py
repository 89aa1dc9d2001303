"""The manifest's document: it can be read back, and an inconsistent one is refused."""

import json
import re

import google_crc32c
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from asyncsync import __version__
from asyncsync.planning.document import MOST_LEVELS, DocumentError
from asyncsync.planning.manifest import FileEntry, Manifest

DIGEST = "0123456789abcdef" * 2
TEXT = st.text(st.characters(codec="utf-8"))


def entry_of(path: str, data: bytes, part_size: int = 0, **more: object) -> FileEntry:
    """As the uploader makes it: one part if it went in one request, else parts of one size and the rest."""
    step = part_size or max(1, len(data))
    parts = [data[start : start + step] for start in range(0, len(data), step)] or [b""]
    fields = {"mtime_ns": 1, "mode": 0o644, "version": "v", **more}
    return FileEntry(
        path,
        len(data),
        crc32c=google_crc32c.value(data),
        part_size=part_size,
        parts=tuple(xxhash.xxh3_128_hexdigest(part) for part in parts),
        part_crcs=tuple(google_crc32c.value(part) for part in parts),
        **fields,
    )


def plain(path: str, size: int = 1) -> FileEntry:
    return FileEntry(path, size, 1, 1, 1, 0, (DIGEST,), (1,), "v")


def is_path(path: str) -> bool:
    return "\0" not in path and {"", ".", "..", ".asyncsync"}.isdisjoint(path.split("/"))


ENTRIES = st.builds(
    entry_of,
    path=TEXT.filter(is_path),
    data=st.binary(max_size=300),
    part_size=st.integers(0, 400),
    mtime_ns=st.integers(-(2**63), 2**64),
    mode=st.integers(0, 0o7777),
    version=TEXT.filter(str.isprintable),
    inode=st.integers(0, 2**64 - 1),
    samples=st.sampled_from(("", "0123abcd")),
    extra=st.none() | st.dictionaries(st.sampled_from(("owner", "tier")), st.integers() | TEXT, min_size=1),
)


@given(st.lists(ENTRIES, max_size=5, unique_by=lambda item: item.path))
def test_a_written_document_is_read_back(entries: list[FileEntry]) -> None:
    manifest = Manifest({item.path: item for item in entries}, {"metrics": {"loss": 1.5}}, {"compression": "none"})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.lists(ENTRIES, max_size=5))
def test_each_line_is_the_json_of_its_file(entries: list[FileEntry]) -> None:
    lines = Manifest({item.path: item for item in entries}).to_bytes().decode().splitlines()[1:-1]
    for line in lines:
        entry = json.loads(line.rstrip(","))
        assert json.dumps(entry, separators=(",", ":")) == line.rstrip(",")


@pytest.mark.parametrize("indent", [None, 1])
def test_any_layout_is_read(indent: int | None) -> None:
    files = {f"f{index}": plain(f"f{index}") for index in range(600)}
    document = json.dumps(json.loads(Manifest(files).to_bytes()), indent=indent).encode()
    assert Manifest.from_bytes(document) == Manifest(files)
    assert Manifest.from_bytes(document.replace(b'"files": [', b'"files":[')) == Manifest(files)


def test_one_file_a_line() -> None:
    files = {f"f{index}": plain(f"f{index}") for index in range(2500)}
    assert Manifest(files).to_bytes().count(b"\n") == 2502


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format":1,"files":[{"path":"a"}]}', b"\xff"])
def test_an_invalid_manifest_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.from_bytes(data)


def test_the_ranges_of_the_parts_cover_the_file() -> None:
    entry = FileEntry("a", 25, 1, 1, 1, 10, ("a", "b", "c"), (1, 2, 3), "v")
    assert list(entry.ranges()) == [(0, 10, 1), (10, 10, 2), (20, 5, 3)]


# -- documents of tomorrow


def document(**changes: object) -> bytes:
    """A manifest of one file, with other fields in its head."""
    raw = json.loads(Manifest({"a": plain("a")}, {"metrics": {"loss": 1}}).to_bytes())
    return json.dumps({**raw, **changes}).encode()


def with_entry(*removed: str, **changes: object) -> bytes:
    """The same, with other fields in its file."""
    raw = json.loads(Manifest({"a": plain("a")}).to_bytes())
    entry = {**raw["files"][0], **changes}
    return json.dumps({**raw, "files": [{key: entry[key] for key in entry if key not in removed}]}).encode()


def test_unknown_fields_are_kept_on_every_level() -> None:
    data = with_entry(owner={"id": 7}, tier="cold")
    data = json.dumps({**json.loads(data), "compression": [1], "info": {"metrics": {}, "weather": "fair"}}).encode()
    again = json.loads(Manifest.from_bytes(data).to_bytes())
    assert again["compression"] == [1]
    assert again["info"]["weather"] == "fair"
    assert again["files"][0]["owner"] == {"id": 7}
    assert again["files"][0]["tier"] == "cold"


def test_a_manifest_names_its_writer() -> None:
    assert json.loads(Manifest().to_bytes())["by"] == f"asyncsync {__version__}"
    assert Manifest.from_bytes(b'{"format":1,"files":[]}').files == {}


def test_a_newer_format_is_refused_with_both_versions() -> None:
    """This holds for any other content of the document."""
    wanted = re.escape(
        f"is of format 2, written by a newer asyncsync (asyncsync 9.1); this one (asyncsync {__version__}, format 1) "
        "cannot read it: upgrade asyncsync"
    )
    with pytest.raises(DocumentError, match=wanted):
        Manifest.from_bytes(b'{"format":2,"by":"asyncsync 9.1","tree":{}}')


# -- damaged ones


@pytest.mark.parametrize(
    "field", ["path", "size", "mtime_ns", "mode", "crc32c", "part_size", "xxh3", "part_crc32c", "version"]
)
def test_a_file_that_lacks_a_field_is_refused(field: str) -> None:
    with pytest.raises(DocumentError, match=rf"not a manifest: '{field}' is missing"):
        Manifest.from_bytes(with_entry(field))


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", "", [], {}, [[]], 10**30, [None], "\ud800"], ids=ascii)
@pytest.mark.parametrize(
    "field",
    ["path", "size", "mtime_ns", "mode", "crc32c", "part_size", "xxh3", "part_crc32c", "version", "inode", "samples"],
)
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    allowed = {"path": ["x"], "mtime_ns": [-1], "version": ["", "x"], "samples": ["", "x"]}
    if any(type(value) is type(item) and value == item for item in allowed.get(field, ())):
        return
    with pytest.raises(DocumentError, match="not a manifest"):
        Manifest.from_bytes(with_entry(**{field: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"xxh3": [], "part_crc32c": []},
        {"xxh3": [DIGEST] * 2, "part_crc32c": ["00000001"] * 2},
        {"part_crc32c": ["00000001", "00000002"]},
        {"crc32c": "00000002"},
        {"xxh3": [DIGEST[:-1]]},
        {"size": 0, "xxh3": [], "part_crc32c": []},
        {"size": 10, "part_size": 5},
        {"size": 10, "part_size": 5, "xxh3": [DIGEST] * 2, "part_crc32c": ["00000001"] * 2},
        {"version": "v\r\nX-Evil: 1"},
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="not a manifest: 'a'"):
        Manifest.from_bytes(with_entry(**changes))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "../out", "a/../../x", "a//b", "a/", "./a", "a/.", "..", "a\0b", ".asyncsync/x", "a/.asyncsync"],
)
def test_a_path_that_is_none_below_the_prefix_is_refused(path: str) -> None:
    with pytest.raises(DocumentError, match="is not a path below a prefix"):
        Manifest.from_bytes(with_entry(path=path))


@pytest.mark.parametrize("path", ["a\\b", "..a", "a..", ".hidden", "a/.b/c", "new\nline", "näme", ".asyncsyncer/x"])
def test_odd_names_that_a_file_may_have_are_read(path: str) -> None:
    assert list(Manifest.from_bytes(with_entry(path=path)).files) == [path]


def test_a_file_that_is_there_twice_is_refused() -> None:
    raw = json.loads(document())
    with pytest.raises(DocumentError, match="'a' is listed twice"):
        Manifest.from_bytes(json.dumps({**raw, "files": raw["files"] * 2}).encode())


@pytest.mark.parametrize(
    "changes",
    [{"format": value} for value in (None, True, 0, -1, 1.0, "1", [], {})]
    + [{"files": value} for value in (None, 1, "a", "", {}, {"a": 1}, [1], [None], [[]])]
    + [{"info": value} for value in (None, [], "x", 1)]
    + [{"by": value} for value in (None, 1, [])]
    + [{"info": {name: "x"}} for name in ("time", "metrics", "metadata", "scanned_ns", "generation")]
    + [{"info": {"time": value}} for value in (float("nan"), float("inf"), -1, 1e300, True)]
    + [{"info": {"id": 1}}],
    ids=repr,
)
def test_a_head_of_another_shape_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="not a manifest"):
        Manifest.from_bytes(document(**changes))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"format":1,"files":[', b'{"format":1,"files":[\n['])
@pytest.mark.parametrize("depth", [500, 100_000])
def test_depth_is_refused_and_not_recursed_into(opening: bytes, depth: int) -> None:
    closing = b"]" if opening.endswith(b"[") else b"}"
    for data in (opening * depth, opening + b"[" * depth, opening * depth + b"1" + closing * depth):
        with pytest.raises(DocumentError, match="not a manifest"):
            Manifest.from_bytes(data)


def test_every_readable_record_can_be_written_again() -> None:
    deep: object = 1
    for _ in range(MOST_LEVELS - 3):
        deep = [deep]
    for data in (document(later=deep), with_entry(later=deep)):
        manifest = Manifest.from_bytes(data)
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.data())
def test_damage_of_any_byte_raises_a_document_error_only(data: st.DataObject) -> None:
    good = bytearray(
        Manifest({"a": entry_of("a", b"x" * 25, 10), "b/c": entry_of("b/c", b"")}, {"metrics": {"loss": 1}}).to_bytes()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    try:
        manifest = Manifest.from_bytes(damaged)
    except DocumentError:
        return
    for entry in manifest.files.values():
        assert sum(size for _, size, _ in entry.ranges()) == entry.size
        assert is_path(entry.path)
