"""One manifest from the parts of all ranks."""

import pytest
from stored import entry_of

from asyncsync.planning.manifest import Manifest
from asyncsync.planning.ranks import RETURNED, SameFileError, merge, part_name, rank_of


def part(rank: int, **files: bytes) -> Manifest:
    info = {"rank": rank, "metrics": {"from": rank}, RETURNED: True}
    return Manifest({path: entry_of(path, data) for path, data in files.items()}, info)


def test_whoever_merges_makes_the_same_manifest() -> None:
    parts = {rank: part(rank, **{f"shard{rank}": b"x" * rank, "config": b"{}"}) for rank in range(3)}
    backwards = dict(reversed(parts.items()))
    assert merge(parts).to_bytes() == merge(backwards).to_bytes()


def test_it_has_the_files_of_all_and_what_rank_0_says() -> None:
    whole = merge({0: part(0, a=b"a"), 1: part(1, b=b"b")})
    assert sorted(whole.files) == ["a", "b"]
    assert whole.info == {"metrics": {"from": 0}}


def test_what_a_later_rank_0_has_written_is_in_the_manifest_whoever_merges() -> None:
    first = part(0, a=b"a")
    first.by, first.extra = "asyncsync 9.0", {"weather": "fair"}
    data = merge({0: first, 1: part(1, b=b"b")}).to_bytes()
    assert data == merge({1: part(1, b=b"b"), 0: Manifest.from_bytes(first.to_bytes())}).to_bytes()
    whole = Manifest.from_bytes(data)
    assert (whole.by, whole.extra) == ("asyncsync 9.0", {"weather": "fair"})


def test_two_contents_of_one_name_are_refused_by_name() -> None:
    with pytest.raises(SameFileError, match="ranks 1 and 2 both wrote 'model'"):
        merge({0: part(0), 1: part(1, model=b"1"), 2: part(2, model=b"2")})


def test_a_record_belongs_to_one_size_of_the_world() -> None:
    name = part_name(3, 8).rpartition("/")[2]
    assert name == "rank-00003-of-00008.json"
    assert rank_of(name, 8) == 3
    assert rank_of(name, 4) is None
    assert rank_of("manifest.json", 8) is None
