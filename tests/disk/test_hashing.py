"""CRC32C of files and of concatenated pieces."""

from pathlib import Path

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.disk.hashing import crc32c_combine, file_crc32c


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_combined_crc_is_that_of_the_bytes_together(first: bytes, second: bytes) -> None:
    together = crc32c_combine(google_crc32c.value(first), google_crc32c.value(second), len(second))
    assert together == google_crc32c.value(first + second)


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


def test_crc_of_a_file_covers_every_piece(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000 + b"tail"
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_crc32c(path) == google_crc32c.value(data)


def test_crc_of_an_empty_file_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert file_crc32c(path) == 0
