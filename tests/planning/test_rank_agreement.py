"""Merging the parts of all ranks into one manifest."""

import pytest
from stored import entry_of

from asyncsync.planning.manifest import Manifest
from asyncsync.planning.rank_agreement import (
    GENERATION,
    RETURNED,
    STEP,
    Disagreement,
    MixedPartsError,
    SameFileError,
    disagreement,
    merge,
    part_name,
    rank_of,
)


def part(rank: int, **files: bytes) -> Manifest:
    info = {"rank": rank, "metrics": {"from": rank}, RETURNED: True}
    return Manifest({path: entry_of(path, data) for path, data in files.items()}, info)


def test_every_rank_that_merges_makes_the_same_manifest() -> None:
    parts = {rank: part(rank, **{f"shard{rank}": b"x" * rank, "config": b"{}"}) for rank in range(3)}
    backwards = dict(reversed(parts.items()))
    assert merge(parts).to_bytes() == merge(backwards).to_bytes()


def test_a_merged_manifest_has_all_files_and_the_info_of_rank_0() -> None:
    whole = merge({0: part(0, a=b"a"), 1: part(1, b=b"b")})
    assert sorted(whole.files) == ["a", "b"]
    assert whole.info == {"metrics": {"from": 0}}


def test_the_manifest_has_a_later_rank_0s_data_whichever_rank_merges() -> None:
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


@pytest.mark.parametrize("key", [STEP, GENERATION])
def test_parts_of_two_steps_or_generations_are_never_merged(key: str) -> None:
    parts = {rank: part(rank) for rank in range(2)}
    for other in (1, None):
        parts[0].info[key], parts[1].info[key] = 2, other
        with pytest.raises(MixedPartsError, match=key):
            merge(parts)
    parts[1].info[key] = 2
    assert merge(parts).info[key] == 2


@pytest.mark.parametrize(
    ("steps", "reason", "step"),
    [
        ({0: 100, 1: 110}, "rank 0 reported step 100, rank 1 step 110", 100),
        ({1: 110, 0: 100, 2: 100}, "ranks 0, 2 reported step 100, rank 1 step 110", 100),
        ({0: 120, 1: 110, 2: 100}, "rank 0 reported step 120, rank 1 step 110, rank 2 step 100", 110),
        ({0: None, 1: 5}, "rank 0 reported no step, rank 1 step 5", -1),
        (
            {**dict.fromkeys(range(20), 1), 20: 2},
            "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more reported step 1, rank 20 step 2",
            1,
        ),
    ],
)
def test_ranks_that_disagree_are_named_and_all_but_the_latest_step_is_lost(
    steps: dict[int, int | None], reason: str, step: int
) -> None:
    assert disagreement(steps) == Disagreement(reason, step)


def test_equal_steps_are_not_a_disagreement() -> None:
    assert disagreement({0: 3, 1: 3}) is None
    assert disagreement({}) is None
