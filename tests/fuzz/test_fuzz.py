"""Whatever bytes a parser is given, it returns or raises an error of ours."""

import fuzzing
import pytest

TARGETS = pytest.mark.parametrize("target", fuzzing.TARGETS, ids=[target.name for target in fuzzing.TARGETS])


@TARGETS
def test_a_damaged_document_raises_only_errors_of_ours(target: fuzzing.Target) -> None:
    assert list(fuzzing.findings(target, seed=1, count=1000)) == []


@TARGETS
def test_a_flipped_bit_raises_only_errors_of_ours(target: fuzzing.Target) -> None:
    inputs = (data for document in target.corpus for data in fuzzing.flips(document))
    assert [found for data in inputs if (found := fuzzing.foreign_error(target, data))] == []


def test_a_foreign_error_is_found() -> None:
    """With a parser that has a bug."""
    target = fuzzing.Target("buggy", lambda data: {b"A": 1}[data], (b"A",))
    assert "KeyError" in next(fuzzing.findings(target, seed=1, count=100))
