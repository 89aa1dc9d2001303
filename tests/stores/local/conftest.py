"""A local store below a temporary directory."""

from pathlib import Path

import pytest

from asyncsync.stores.local.store import LocalStore


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root):
    return LocalStore(root)
