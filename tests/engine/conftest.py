"""A run on a store in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync.testing import reset_memory


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    reset_memory()
    yield Bench(tmp_path)
    reset_memory()
