"""A process that is killed or stopped at any moment loses and changes nothing; ``nox -s crash`` does this 200 times."""

import os
from pathlib import Path

import crashing
import pytest
import servers
import stopping

KILLS = int(os.environ.get("CRASH_TEST_KILLS", "4"))
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


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
def test_a_stopped_process_changes_nothing_when_it_wakes_up(seaweedfs: servers.S3Server, tmp_path: Path) -> None:
    figures = stopping.sweep(seaweedfs, tmp_path / "stop", KILLS, SEED)
    print(figures.text())
    assert figures.stops == KILLS
    assert figures.acknowledged >= KILLS * stopping.STEPS
