"""Which ranges of a file are sent and which the store copies."""

from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.copied_ranges import Limits, Origin, PlannedPart, Segment, cost, pieces_of, whole_copy

FLOOR, PART = 5, 16
LIMITS = Limits(FLOOR, PART, copied=64, request_cost=1)


def segments(*parts: tuple[int, Origin | None]) -> list[Segment]:
    result, offset = [], 0
    for size, origin in parts:
        result.append(Segment(offset, size, 0, origin))
        offset += size
    return result


def old(start: int, total: int = 1000, key: str = "old") -> Origin:
    return Origin(key, "v", start, total)


def plan(*parts: tuple[int, Origin | None], limits: Limits = LIMITS) -> list[tuple[int, int, int | None]]:
    pieces, rest = pieces_of(segments(*parts), limits)
    assert not rest
    return [(piece.offset, piece.size, piece.origin.start if piece.origin else None) for piece in pieces]


def test_neighbouring_parts_are_copied_in_one_request() -> None:
    assert plan((16, old(0)), (16, old(16)), (16, old(32)), (9, None)) == [(0, 48, 0), (48, 9, None)]


def test_separate_ranges_of_the_source_are_copied_separately() -> None:
    assert plan((16, old(16)), (16, old(0))) == [(0, 16, 16), (16, 16, 0)]


def test_a_large_copy_is_cut_into_ranges_of_equal_size() -> None:
    assert plan(*((16, old(16 * n)) for n in range(6))) == [(0, 48, 0), (48, 48, 48)]


def test_changed_parts_are_sent_part_by_part() -> None:
    assert plan((16, None), (16, None), (3, None)) == [(0, 16, None), (16, 19, None)]


def test_a_changed_island_grows_to_the_floor_into_the_copy_behind_it() -> None:
    assert plan((16, old(0)), (2, None), (16, old(18))) == [(0, 16, 0), (16, 5, None), (21, 13, 21)]


def test_a_part_grows_backwards_if_the_copy_behind_is_too_short() -> None:
    parts = ((16, old(0)), (2, None), (6, old(18)), (16, None))
    assert plan(*parts) == [(0, 13, 0), (13, 5, None), (18, 6, 18), (24, 16, None)]


def test_a_copy_below_the_floor_is_sent_with_its_neighbours() -> None:
    assert plan((8, None), (3, old(8)), (8, None), (6, old(90))) == [(0, 11, None), (11, 8, None), (19, 6, 90)]


def test_the_last_piece_may_be_short() -> None:
    assert plan((16, old(0)), (1, None)) == [(0, 16, 0), (16, 1, None)]


def test_a_copy_that_costs_more_than_its_bytes_is_sent() -> None:
    dear = Limits(1, 1 << 20, request_cost=10)
    assert plan((100, None), (15, old(100)), (100, None), limits=dear) == [(0, 215, None)]
    assert plan((100, None), (15, old(100)), limits=dear) == [(0, 100, None), (100, 15, 100)]


def test_objects_below_the_minimum_size_are_not_copy_sources() -> None:
    assert plan((16, old(0, total=16)), (9, None), limits=Limits(5, 32, least_source=16)) == [(0, 25, None)]


def test_where_only_whole_objects_can_be_copied_parts_of_one_are_sent() -> None:
    whole = Limits(1, 16, ranges=False)
    assert plan((16, old(0, 32)), (16, old(16, 32)), (4, None), limits=whole) == [(0, 32, 0), (32, 4, None)]
    assert plan((16, old(0, 48)), (16, old(16, 48)), (4, None), limits=whole)[0] == (0, 16, None)


def test_a_file_that_is_the_source_is_a_whole_copy() -> None:
    assert whole_copy(segments((16, old(0, 20)), (4, old(16, 20)))) == old(0, 20)
    assert whole_copy(segments((16, old(0, 21)), (4, old(16, 21)))) is None
    assert whole_copy(segments((4, None))) is None


def test_nothing_is_decided_that_later_segments_may_change() -> None:
    first = segments((16, None), (16, old(16)))
    pieces, rest = pieces_of(first, LIMITS, final=False)
    assert (pieces, rest) == ([PlannedPart(0, 16)], first[1:])


origins = st.none() | st.builds(Origin, st.sampled_from("ab"), st.just("v"), st.integers(0, 90), st.just(200))
files = st.lists(st.tuples(st.integers(1, 30), origins), min_size=1, max_size=14)
limits = st.builds(
    Limits,
    floor=st.integers(1, 12),
    part=st.integers(12, 40),
    copied=st.integers(24, 100),
    ranges=st.booleans(),
    least_source=st.sampled_from([0, 250]),
    request_cost=st.integers(0, 20),
)


@given(files, limits, st.integers(1, 8))
def test_the_pieces_are_the_file_and_keep_the_rules(parts, limits, window) -> None:
    """Executing any plan reproduces the file, also if it is planned a few segments at a time."""
    sources = {"a": bytes(range(200)), "b": bytes(range(199, -1, -1))}
    content = b"".join(
        bytes([255]) * size if origin is None else sources[origin.key][origin.start : origin.start + size]
        for size, origin in parts
    )
    todo, pieces, waiting = segments(*parts), [], []
    for at in range(0, len(todo), window):
        made, waiting = pieces_of([*waiting, *todo[at : at + window]], limits, final=at + window >= len(todo))
        pieces += made
    assert not waiting

    built = b""
    for piece in pieces:
        assert piece.offset == len(built)
        data = content[piece.offset : piece.end]
        if piece.origin is not None:
            start = piece.origin.start
            data = sources[piece.origin.key][start : start + piece.size]
            assert piece.origin.total > limits.least_source or not limits.ranges
            assert piece.size <= limits.copied or not limits.ranges
            assert limits.ranges or (start, piece.origin.total) == (0, piece.size)
        else:
            assert piece.size < limits.part + max(limits.floor, 1)
        built += data
    assert built == content
    assert all(piece.size >= limits.floor for piece in pieces[:-1])


@given(files, limits)
def test_a_plan_never_costs_more_than_sending_the_whole_file(parts, limits) -> None:
    size = sum(size for size, _ in parts)
    pieces, _ = pieces_of(segments(*parts), limits)
    plain, _ = pieces_of(segments(*((size, None) for size, _ in parts)), limits)
    assert sum(piece.size for piece in pieces if piece.origin is None) <= size
    assert cost(pieces, limits.request_cost) <= cost(plain, limits.request_cost)
