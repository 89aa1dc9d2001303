"""A process that is killed at any moment loses nothing that was accepted; ``nox -s crash`` does this 200 times."""

import os
from pathlib import Path

import crashing
import pytest
import servers

KILLS = int(os.environ.get("ASYNCSYNC_KILLS", "4"))
SEED = int(os.environ.get("ASYNCSYNC_SEED", "1"))


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_killed_process_loses_nothing(seaweedfs: servers.S3Server, tmp_path: Path) -> None:
    figures = crashing.sweep(seaweedfs, tmp_path / "crash", KILLS, SEED)
    print(figures.text())
    assert figures.kills == KILLS
    assert figures.restored == KILLS * len(crashing.SIZES) * crashing.STEPS
    assert figures.most_again <= 1
