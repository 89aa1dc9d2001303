"""Parts of a file: few enough, small enough, without gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.parts import cut, part_size_for


@given(st.integers(1, 48 * 2**40), st.one_of(st.none(), st.integers(5 << 20, 1 << 30)))
def test_parts_are_few_and_small_enough(size: int, wanted: int | None) -> None:
    part = part_size_for(size, wanted, least=5 << 20, most=5 << 30, max_parts=10_000)
    assert 5 << 20 <= part <= 5 << 30
    assert -(-size // part) <= 10_000


def test_a_file_larger_than_all_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        part_size_for(10**15, None, least=1, most=2, max_parts=2)


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_parts_cover_the_file_without_gap(size: int, part: int) -> None:
    if size // part > 10_000:
        return
    end = 0
    for offset, length in cut(size, part):
        assert offset == end
        end += length
    assert end == size
