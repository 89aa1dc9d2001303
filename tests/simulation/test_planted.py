"""With what keeps the promises taken out, the simulation notices: it can fail."""

from pathlib import Path

import pytest

from asyncsync.stores.fenced import FencedView
from asyncsync.testing.simulation import simulate
from asyncsync.transfer.writes import Creating, Replacing

WITHOUT = {"wipes", "ranks"}
SEEDS = (55, 64, 156, 218)


async def _always(view: FencedView) -> None:
    view._confirmed = view._now()


def test_it_notices_that_nobody_is_kept_from_writing_over_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a lease nor create-only writes."""
    for name in ("put", "copy", "complete"):
        monkeypatch.setattr(Creating, name, getattr(Replacing, name))
    monkeypatch.setattr(FencedView, "_permit", _always)
    monkeypatch.setattr(FencedView, "_permitted", lambda view: True)
    monkeypatch.setattr(FencedView, "check", lambda view: None)
    found = [simulate(seed, without=WITHOUT, root=str(tmp_path / "machines")) for seed in SEEDS]
    assert "acknowledged, not whole" in {item.kind for outcome in found for item in outcome.violations}


def test_with_both_the_same_schedules_are_clean(tmp_path: Path) -> None:
    assert all(simulate(seed, without=WITHOUT, root=str(tmp_path / "machines")).ok for seed in SEEDS)
