"""With what keeps the promises taken out, the simulation notices: it can fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

import asyncsync.planning.ranks
import asyncsync.resume
import asyncsync.shared
from asyncsync.disk.accepted import Accepted
from asyncsync.injected import lease_time
from asyncsync.recordfile import RecordFile
from asyncsync.stores.base import Store
from asyncsync.stores.fenced import FencedView
from asyncsync.testing.simulation import simulate
from asyncsync.transfer.session import GivenUp
from asyncsync.transfer.writes import Creating, Replacing
from asyncsync.trial import Trial

Plant = Callable[[pytest.MonkeyPatch], None]


def no_lease(patch: pytest.MonkeyPatch) -> None:
    """A process that was stopped does not see that it was replaced."""

    async def always(view: FencedView) -> None:
        view._confirmed = view._now()

    patch.setattr(FencedView, "_permit", always)
    patch.setattr(FencedView, "_permitted", lambda view: True)
    patch.setattr(FencedView, "check", lambda view: None)


def written_over(patch: pytest.MonkeyPatch) -> None:
    """The files of a checkpoint are written over what is there."""
    for name in ("put", "copy", "complete"):
        patch.setattr(Creating, name, getattr(Replacing, name))


def neither(patch: pytest.MonkeyPatch) -> None:
    """Neither a lease nor create-only writes."""
    no_lease(patch)
    written_over(patch)


def no_second_scan(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks again at the directory before the manifest."""
    patch.setattr(Accepted, "check", lambda accepted, crcs=None: None)


def any_debt(patch: pytest.MonkeyPatch) -> None:
    """What is owed is deleted, whatever the record says, and of which trial."""

    async def confirm(given_up: GivenUp, store: Store, since: float) -> float:
        return lease_time()

    patch.setattr(GivenUp, "confirm", confirm)


def retired_first(patch: pytest.MonkeyPatch) -> None:
    """What is retired goes before the record that retires it is stored."""
    any_debt(patch)
    save = Trial.save

    async def early(trial: Trial) -> bool:
        if trial.leaving:
            trial._stored(trial._named())
        return await save(trial)

    patch.setattr(Trial, "save", early)


def steps_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Ranks are matched by the number of their reports."""
    patch.setattr(asyncsync.shared, "disagreement", lambda steps: None)
    patch.setattr(asyncsync.planning.ranks, "_equal", lambda values: True)


def taken_in_unseen(patch: pytest.MonkeyPatch) -> None:
    """Who resumes trusts every manifest."""

    async def whole(*_: object) -> str:
        return ""

    patch.setattr(asyncsync.resume, "not_whole", whole)


def any_record_is_ours(patch: pytest.MonkeyPatch) -> None:
    """Who does not know whether its write has landed takes what is there for its own."""
    patch.setattr(RecordFile, "_is_ours", lambda record, data: True)
