"""With a safeguard removed the simulation reports a violation: it can fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

import asyncsync.engine.trials.rank_commit
import asyncsync.planning.rank_agreement
from asyncsync.engine.trials.record_keeper import RecordKeeper
from asyncsync.runtime import lease_time
from asyncsync.stores.base import Store
from asyncsync.stores.guard.fenced import FencedView
from asyncsync.stores.guard.guarded import Admission, GuardedView
from asyncsync.stores.wrapped import Operation
from asyncsync.sync.janitor import GivenUp
from asyncsync.sync.upload.create_only import Creating, Replacing
from asyncsync.testing.simulation import simulate

Plant = Callable[[pytest.MonkeyPatch], None]


def no_lease(patch: pytest.MonkeyPatch) -> None:
    """A process that was stopped does not see that it was replaced."""

    async def always(view: FencedView, operation: Operation, asked: float) -> Admission:
        if operation.writes:
            view._confirmed = view._now()
        return await GuardedView.admit(view, operation, asked)

    patch.setattr(FencedView, "admit", always)
    patch.setattr(FencedView, "check", lambda view: None)


def written_over(patch: pytest.MonkeyPatch) -> None:
    """The files of a checkpoint overwrite existing ones."""
    for name in ("put", "copy", "complete"):
        patch.setattr(Creating, name, getattr(Replacing, name))


def neither(patch: pytest.MonkeyPatch) -> None:
    """Neither a lease nor create-only writes."""
    no_lease(patch)
    written_over(patch)


def any_debt(patch: pytest.MonkeyPatch) -> None:
    """Every owed deletion is executed, whatever the record contains."""

    async def confirm(given_up: GivenUp, store: Store, since: float) -> float:
        return lease_time()

    patch.setattr(GivenUp, "confirm", confirm)


def retired_first(patch: pytest.MonkeyPatch) -> None:
    """Retired data are deleted before the record that retires them is stored."""
    any_debt(patch)
    save = RecordKeeper.save

    async def early(keeper: RecordKeeper) -> bool:
        if keeper.retiring:
            keeper._note_stored(keeper.recorded_names())
            await keeper._context.janitor.clean_up()
        return await save(keeper)

    patch.setattr(RecordKeeper, "save", early)


def steps_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Ranks are matched by the number of their reports."""
    patch.setattr(asyncsync.engine.trials.rank_commit, "disagreement", lambda steps: None)
    patch.setattr(asyncsync.planning.rank_agreement, "_equal", lambda values: True)


NOTICED = [
    (neither, "acknowledged, incomplete", (4, 276, 332), {"wipes", "ranks"}),
    (retired_first, "acknowledged, not listed", (20017,), set()),
    (steps_not_compared, "acknowledged, incomplete", (19, 123), set()),
]
"""The removed safeguard, the violation that follows, its schedules, and the troubles that these exclude."""
CASES = pytest.mark.parametrize(
    ("plant", "kind", "seeds", "without"), NOTICED, ids=[plant.__name__ for plant, *_ in NOTICED]
)


@CASES
def test_it_notices_a_removed_safeguard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, kind: str, seeds: tuple[int, ...], without: set[str]
) -> None:
    plant(monkeypatch)
    found = [simulate(seed, without=without, root=str(tmp_path / "machines")) for seed in seeds]
    assert kind in {item.kind for outcome in found for item in outcome.violations}


@CASES
def test_with_all_of_it_the_same_schedules_are_clean(
    tmp_path: Path, plant: Plant, kind: str, seeds: tuple[int, ...], without: set[str]
) -> None:
    del plant, kind
    assert all(simulate(seed, without=without, root=str(tmp_path / "machines")).ok for seed in seeds)
