"""CRC32C of concatenated bytes and parts, with and without the table."""

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.crc32c import (
    LEAST_PARTS_FOR_TABLE,
    crc32c_combine,
    crc32c_if_known,
    crc32c_of_parts,
    crc32c_of_pieces,
)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_combined_crc_is_that_of_the_bytes_together(first: bytes, second: bytes) -> None:
    combined = crc32c_combine(google_crc32c.value(first), google_crc32c.value(second), len(second))
    assert combined == google_crc32c.value(first + second)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_number_of_pieces_can_be_combined_in_order(pieces: list[bytes]) -> None:
    crc = 0
    for piece in pieces:
        crc = crc32c_combine(crc, google_crc32c.value(piece), len(piece))
    assert crc == google_crc32c.value(b"".join(pieces))


def test_long_second_halves_are_combined_without_reading_them() -> None:
    zeros = 0
    for _ in range(20):
        zeros = google_crc32c.extend(zeros, bytes(1 << 20))
    first = google_crc32c.value(b"head")
    whole = first
    for _ in range(20):
        whole = google_crc32c.extend(whole, bytes(1 << 20))
    assert crc32c_combine(first, zeros, 20 << 20) == whole


@given(st.binary(min_size=1, max_size=1000), st.integers(1, 1000))
def test_the_parts_of_a_file_have_its_crc(data: bytes, part_size: int) -> None:
    crcs = [google_crc32c.value(data[start : start + part_size]) for start in range(0, len(data), part_size)]
    assert crc32c_of_parts(crcs, len(data), part_size) == google_crc32c.value(data)


@pytest.mark.parametrize("count", [LEAST_PARTS_FOR_TABLE, LEAST_PARTS_FOR_TABLE + 1, LEAST_PARTS_FOR_TABLE + 2, 5000])
@pytest.mark.parametrize("rest", [1, 6, 7])
def test_many_parts_have_it_too(count: int, rest: int) -> None:
    data = bytes(index * 31 % 251 for index in range(7 * (count - 1) + rest))
    crcs = [google_crc32c.value(data[start : start + 7]) for start in range(0, len(data), 7)]
    assert len(crcs) == count
    assert crc32c_of_parts(crcs, len(data), 7) == google_crc32c.value(data)


@given(st.lists(st.binary(max_size=50)), st.data())
def test_pieces_have_it_unless_one_is_unknown(pieces: list[bytes], data: st.DataObject) -> None:
    known = [(google_crc32c.value(piece), len(piece)) for piece in pieces]
    whole = google_crc32c.value(b"".join(pieces))
    assert crc32c_of_pieces(known) == crc32c_if_known(known) == whole
    place = data.draw(st.integers(0, len(pieces)))
    assert crc32c_if_known([*known[:place], (None, 1), *known[place:]]) is None
