"""Which files count as appended to, and which of their bytes are checked."""

from hypothesis import given
from hypothesis import strategies as st

from asyncsync.planning.appended import SAMPLE_BYTES, SAMPLE_COUNT, TRUSTED_FROM, is_sampled, sample_offsets
from asyncsync.planning.snapshot import FileStat

SIZES = st.integers(TRUSTED_FROM, 1 << 50)


@given(SIZES)
def test_samples_are_few_and_lie_in_the_file(size: int) -> None:
    starts = sample_offsets(size)
    assert len(starts) <= SAMPLE_COUNT
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, size - SAMPLE_BYTES)


@given(SIZES, st.integers(0, 1 << 50))
def test_a_run_of_two_gaps_holds_a_sample(size: int, at: int) -> None:
    run = 2 * (size // (SAMPLE_COUNT - 1)) + SAMPLE_BYTES
    at %= size - run
    assert any(at <= start and start + SAMPLE_BYTES <= at + run for start in sample_offsets(size))


def test_only_large_files_of_these_names_are_sampled() -> None:
    def sampled(path: str, size: int) -> bool:
        return is_sampled(FileStat(path, size, 1, 1, 0o644), ("*.log",))

    assert sampled("sub/train.log", TRUSTED_FROM)
    assert not sampled("sub/train.log", TRUSTED_FROM - 1)
    assert not sampled("train.log/data", TRUSTED_FROM)
