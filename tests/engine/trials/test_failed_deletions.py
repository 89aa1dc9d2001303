"""A deletion that fails is reported to listeners, not only to the log."""

from pathlib import Path

from machines import Machine
from onebench import Bench
from test_debts import NEVER, ONE

from asyncsync.errors import AccessDeniedError
from asyncsync.events import SyncWarning
from asyncsync.testing import run_virtual


def test_a_deletion_that_fails_is_an_event(bench: Bench, tmp_path: Path) -> None:
    async def main() -> list[str]:
        one = Machine(bench, "one")
        one.network.fail(operation="delete", error=AccessDeniedError("not you"), times=None)
        async with one.engine(NEVER, ONE) as engine:
            events = engine.events()
            for step in range(2):
                await engine.trial("t").report({"step": step}, bench.checkpoint(f"c{step}"))
        return [event.message async for event in events if isinstance(event, SyncWarning)]

    warnings = run_virtual(main())
    assert any("not you" in message and "remains due" in message for message in warnings)
