"""A bucket on SeaweedFS for each test of an integration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import trainings as support
from trainings import Trainings


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[servers.S3Server]:
    with servers.running("seaweedfs") as server:
        yield server


@pytest.fixture
def trainings(seaweedfs: servers.S3Server, tmp_path: Path) -> Trainings:
    bucket = seaweedfs.create_bucket(f"b{os.urandom(4).hex()}")
    return Trainings(tmp_path, f"s3://{bucket}/exp/run", dict(seaweedfs.storage_options))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return support.environment(tmp_path)
