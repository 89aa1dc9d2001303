"""A manifest in segments is the same manifest, and a change touches only the segments in which it lies."""

import json
from collections.abc import Callable, Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest as xxh3

from asyncsync.planning import segments
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import FileEntry, Manifest, ManifestSegment
from asyncsync.planning.segments import Draft, divide, encode_head, is_segmented, join, parse_head, parse_segment

DIGEST = "0123456789abcdef" * 2
PATHS = st.text("ab/é", min_size=1, max_size=6).filter(lambda path: not {""} & set(path.split("/")))


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Segments of four files."""
    before = {name: getattr(segments, name) for name in ("SEGMENT_FILES", "MOST_SEGMENT_FILES", "SEGMENTED_FROM")}
    segments.SEGMENT_FILES, segments.MOST_SEGMENT_FILES, segments.SEGMENTED_FROM = 64, 128, 256
    yield
    for name, value in before.items():
        setattr(segments, name, value)


def plain(path: str, size: int = 1) -> FileEntry:
    return FileEntry(path, size, 1, 1, 1, 0, (DIGEST,), (1,), "v")


def names() -> Callable[[], str]:
    numbers = count()
    return lambda: f"{next(numbers):08x}"


class Stored:
    """A store of documents, and the manifest that is in it."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.manifest = Manifest({}, {"step": 1}, {"tomorrow": True})
        self.head = b""
        self._names = names()

    def write(self, files: dict[str, FileEntry], changed: Iterable[str]) -> set[str]:
        """Write a manifest; returns the names of the segments that had to be written."""
        parts = divide(files, self.manifest.segments, changed, self._names)
        drafts = {part.name: part.encode(files, xxh3) for part in parts if isinstance(part, Draft)}
        self.documents |= {name: data for name, (_, data) in drafts.items()}
        written = tuple(drafts[part.name][0] if isinstance(part, Draft) else part for part in parts)
        self.manifest = Manifest(files, self.manifest.info, self.manifest.extra, segments=written)
        self.head = encode_head(self.manifest)
        return set(drafts)

    def read(self) -> Manifest:
        head = parse_head(self.head)
        assert head is not None
        return join(
            head,
            [parse_segment(self.documents[item.name], item, xxh3).files for item in head.segments],
        )


def many(number: int) -> dict[str, FileEntry]:
    return {path: plain(path) for path in (f"d{at % 7}/f{at:05d}" for at in range(number))}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(PATHS, max_size=300), st.sets(PATHS, max_size=20)), min_size=1, max_size=4))
def test_what_was_written_is_read_whatever_came_and_went(steps: list[tuple[set[str], set[str]]]) -> None:
    stored, files = Stored(), {f"start{at}": plain(f"start{at}") for at in range(200)}
    stored.write(files, files)
    for come, go in steps:
        files = {path: entry for path, entry in files.items() if path not in go} | {
            path: plain(path, 2) for path in come
        }
        if files:
            stored.write(files, come | go)
            assert stored.read() == stored.manifest
            assert dict(sorted(stored.read().files.items())) == dict(sorted(files.items()))


def test_a_change_of_one_file_writes_one_segment() -> None:
    stored, files = Stored(), many(2000)
    assert len(stored.write(files, files)) == len(stored.manifest.segments) > 2000 / segments.MOST_SEGMENT_FILES
    before = {item.name for item in stored.manifest.segments}
    written = stored.write({**files, "d3/f00003": plain("d3/f00003", 7)}, ["d3/f00003"])
    assert len(written) == 1
    assert len(before & {item.name for item in stored.manifest.segments}) == len(before) - 1
    assert stored.read().files["d3/f00003"].size == 7


def test_segments_have_neighbours_and_no_more_files_than_they_may() -> None:
    stored, files = Stored(), many(2000)
    stored.write(files, files)
    files |= {path: plain(path) for path in (f"d3/new{at:05d}" for at in range(500))}
    stored.write(files, [path for path in files if "new" in path])
    assert max(item.files for item in stored.manifest.segments) <= segments.MOST_SEGMENT_FILES
    firsts = [item.first for item in stored.manifest.segments]
    assert firsts == sorted(firsts)


def test_a_small_manifest_stays_one_document() -> None:
    one = ManifestSegment("0" * 8, "a", 1, 1, DIGEST)
    assert [is_segmented(size, ()) for size in (256, 257)] == [False, True]
    assert [is_segmented(size, (one,)) for size in (128, 129)] == [False, True]
    assert parse_head(Manifest(many(10)).to_bytes()) is None
    assert parse_head(json.dumps(json.loads(Manifest(many(10)).to_bytes()), indent=1).encode()) is None
    assert parse_head(Manifest({'"segments"': plain('"segments"')}).to_bytes()) is None


def test_a_head_refuses_to_be_read_as_one_document() -> None:
    """So an asyncsync that knows no segments never takes it for an empty tree."""
    stored = Stored()
    stored.write(many(300), many(300))
    with pytest.raises(DocumentError, match=r"format 2, written by a newer asyncsync .* upgrade"):
        Manifest.from_bytes(stored.head)


def damaged(**changes: object) -> bytes:
    stored = Stored()
    stored.write(many(300), many(300))
    raw = json.loads(stored.head)
    raw["segments"][1] |= changes
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../manifest"},
        {"first": "/etc"},
        {"first": ""},
        {"first": "zzz"},
        {"files": -1},
        {"bytes": "1"},
        {"xxh3": None},
    ],
)
def test_a_head_with_a_damaged_line_is_refused_in_words(changes: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="not a manifest"):
        parse_head(damaged(**changes))


def test_a_name_is_used_once() -> None:
    with pytest.raises(DocumentError, match="one name"):
        parse_head(damaged(name=json.loads(damaged())["segments"][0]["name"]))


@pytest.mark.parametrize(
    "data",
    [
        b'{"format":2,"segments":{}}',
        b'{"format":2,"segments":[]}',
        b'{"format":2,"segments":[1]}',
        b'{"format":3,"by":"asyncsync 9","segments":[]}',
        b'{"segments":[',
    ],
)
def test_a_damaged_head_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"not a manifest|format 3"):
        parse_head(data)


def test_a_segment_of_another_content_is_refused() -> None:
    stored = Stored()
    stored.write(many(300), many(300))
    first, second = stored.manifest.segments[:2]
    with pytest.raises(DocumentError, match="not the document"):
        parse_segment(stored.documents[second.name], first, xxh3)
    head = parse_head(stored.head)
    assert head is not None
    parts = [parse_segment(stored.documents[item.name], item, xxh3).files for item in head.segments]
    with pytest.raises(DocumentError, match="other files than the head lists"):
        join(head, [parts[1], *parts[1:]])
    with pytest.raises(DocumentError, match="damaged"):
        join(head, parts[:-1])
    stolen = {**dict(list(parts[1].items())[:-1]), max(parts[0]): plain("x")}
    with pytest.raises(DocumentError, match=r"one file|other files"):
        join(head, [parts[0], stolen, *parts[2:]])
