"""Parts of equal size, for stores that need them: each is copied or sent as a unit."""

import random

import pytest

from asyncsync.planning.copied_ranges import Limits, Origin, PlannedPart, Segment, pieces_of

LIMITS = Limits(floor=5, part=8, copied=64, equal=True, least_source=5)


def origin(start, key="old", total=100):
    return Origin(key, "v", start, total)


def test_a_part_is_copied_where_the_store_has_all_of_it():
    segments = [
        Segment(0, 8, 1, origin(0)),
        Segment(8, 8, 2),
        Segment(16, 8, 3, origin(16)),
        Segment(24, 3, 4, origin(24)),
    ]
    assert pieces_of(segments, LIMITS) == (
        [
            PlannedPart(0, 8, origin(0)),
            PlannedPart(8, 8),
            PlannedPart(16, 8, origin(16)),
            PlannedPart(24, 3, origin(24)),
        ],
        [],
    )


def test_a_part_of_which_the_store_has_the_beginning_is_sent():
    segments = [Segment(0, 3, 1, origin(0)), Segment(3, 5, 2), Segment(8, 1, 3)]
    assert pieces_of(segments, LIMITS, final=False) == ([PlannedPart(0, 8), PlannedPart(8, 1)], [])


@pytest.mark.parametrize("seed", range(50))
def test_all_but_the_last_are_of_one_size_whatever_the_store_has(seed):
    dice, segments, at = random.Random(seed), [], 0
    for _ in range(dice.randrange(2, 20)):
        cut = dice.choice([0, 0, dice.randrange(1, 8)])
        for size in filter(None, (cut, 8 - cut)):
            found = (
                origin(dice.choice([at, 0]), dice.choice("ab"), dice.choice([3, 100])) if dice.random() < 0.6 else None
            )
            segments.append(Segment(at, size, dice.randrange(9), found))
            at += size
    pieces, rest = pieces_of(segments, LIMITS)
    assert rest == []
    assert [(piece.offset, piece.size) for piece in pieces] == [(start, 8) for start in range(0, at, 8)]
    assert all(piece.origin is None or piece.origin.total > LIMITS.least_source for piece in pieces)
