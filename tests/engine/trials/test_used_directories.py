"""Which directories a new checkpoint may not use is known without a look at each trial."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncsync.engine.trials.context import DirectoryInUse, UsedDirectories


@pytest.fixture
def used(tmp_path: Path) -> UsedDirectories:
    used = UsedDirectories()
    used.add_trial(str(tmp_path / "runs" / "a"))
    return used


def test_a_directory_above_a_trial_holds_the_trial(used: UsedDirectories, tmp_path: Path) -> None:
    trial = os.path.realpath(tmp_path / "runs" / "a")
    assert used.trial_within(trial) == used.trial_within(os.path.dirname(trial)) == used.trial_within("/") == trial


def test_directories_beside_or_below_a_trial_hold_none(used: UsedDirectories, tmp_path: Path) -> None:
    trial = os.path.realpath(tmp_path / "runs" / "a")
    assert used.trial_within(f"{trial}/model") is None
    assert used.trial_within(f"{trial}b") is None
    assert used.is_trial(trial) and not used.is_trial(f"{trial}/model")


def test_a_trial_behind_a_link_is_known_by_where_it_is(used: UsedDirectories, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    used.add_trial(str(tmp_path / "runs" / "linked"))
    assert used.is_trial(os.path.realpath(tmp_path / "disk"))


def test_a_pending_checkpoint_counts_until_it_ends_and_not_for_itself(used: UsedDirectories) -> None:
    mine, other = DirectoryInUse("/data/1", "t/1", True), DirectoryInUse("/data/2", "t/2", False)
    used.add_pending("mine", mine)
    used.add_pending("other", other)
    assert used.pending(but="mine") == [other]
    used.drop_pending("other")
    used.drop_pending("other")
    assert used.pending(but="mine") == []
