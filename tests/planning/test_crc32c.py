"""CRC32C of concatenated parts, with and without the table."""

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.crc32c import LEAST_PARTS_FOR_TABLE, crc32c_if_known, crc32c_of_parts, crc32c_of_pieces


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
