"""Fixtures for tests of transfers."""

from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty directory to send."""
    root = tmp_path / "tree"
    root.mkdir()
    return root
