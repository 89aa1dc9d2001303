"""CRC32C of concatenated pieces."""

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.crc32c import crc32c_combine


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
