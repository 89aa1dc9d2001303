"""An unforeseen error ends the trial that it occurred in; the engine and its other trials continue.

A bug of the engine itself ends the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onebench import Bench

from asyncsync import SyncFailedError, UploadMode
from asyncsync.events import CheckpointFailed, SyncFailed
from asyncsync.sync.tree import Tree
from asyncsync.testing import run_virtual

ERRORS = [
    ValueError("odd"),
    RecursionError("deep"),
    KeyError("gone"),
    AssertionError(),
    ExceptionGroup("g", [TypeError()]),
]
Break = Callable[[str, Exception], None]


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Break:
    """``breaks(prefix, error)``: from now on a sync of trees whose prefix begins so raises this."""
    broken: dict[str, Exception] = {}
    really = Tree.sync_once

    async def sync_once(self: Tree, *args: Any) -> Any:
        for prefix, error in broken.items():
            if self.prefix.startswith(prefix):
                raise error
        return await really(self, *args)

    monkeypatch.setattr(Tree, "sync_once", sync_once)
    return broken.__setitem__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_unforeseen_error_ends_one_sync_and_is_reported(bench: Bench, breaks: Break, error: Exception) -> None:
    breaks("bad/", error)

    async def main() -> None:
        async with bench.engine() as engine:
            stream = engine.events()
            bad, good = engine.trial("bad"), engine.trial("good")
            for trial in (bad, good):
                await trial.report({"x": 1})
            await good.sync()
            with pytest.raises(SyncFailedError, match=f"failed with an unexpected {type(error).__name__}: ") as caught:
                await bad.sync()
            assert caught.value.__cause__ is error
            await good.report({"x": 2}, bench.checkpoint())
            await good.finish()
            failed = await anext(event async for event in stream if isinstance(event, SyncFailed))
            assert (failed.tree, "failed with an unexpected" in failed.error) == ("bad", True)

    with pytest.raises(SyncFailedError, match="bad failed with an unexpected"):
        run_virtual(main())
    assert "good/result.json" in bench.keys("")
    assert bench.keys("good/checkpoint_000000/weights")


@pytest.mark.parametrize("mode", [UploadMode.SYNC, UploadMode.ASYNC])
def test_an_unforeseen_error_ends_one_checkpoint_and_is_reported(bench: Bench, breaks: Break, mode: UploadMode) -> None:
    breaks("bad/checkpoint_000000/", KeyError("gone"))

    async def main() -> None:
        async with bench.engine() as engine:
            stream = engine.events()
            bad, good = engine.trial("bad"), engine.trial("good")
            with pytest.raises(SyncFailedError, match="failed with an unexpected KeyError: "):
                await bad.report({"x": 1}, bench.checkpoint(), upload=mode)
                await bad._state.wait_durable()
                await bad.report({"x": 2})
            await good.report({"x": 1}, bench.checkpoint())
            await bad.report({"x": 3}, bench.checkpoint())
            failed = await anext(event async for event in stream if isinstance(event, CheckpointFailed))
            assert failed.checkpoint == "checkpoint_000000"

    run_virtual(main())
    assert {key for key in bench.keys("weights") if "checkpoint" in key} == {
        "bad/checkpoint_000001/weights",
        "good/checkpoint_000000/weights",
    }


def test_a_bug_of_the_engine_itself_is_a_crash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            trial = engine.trial("t")
            await trial.sync()
            monkeypatch.setattr(engine._context.scheduler, "_ended", lambda *_, **__: 1 / 0)
            await trial.sync()

    with pytest.raises(BaseExceptionGroup) as caught:
        run_virtual(main())
    assert caught.group_contains(ZeroDivisionError)
