"""A context that is held on another thread's loop, when the wait for it ends early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncsync.aio import held_context
from asyncsync.aio.held_context import HeldContext


class LateThread:
    """What is scheduled runs before the coroutine begins, as in a thread that the system starts late."""

    def __init__(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = main

    def soon(self, func: Callable[..., object], *args: Any) -> None:
        func(*args)

    def join(self) -> None:
        asyncio.run(asyncio.wait_for(self._main(), 1))


class Interrupted(Future[Any]):
    def result(self, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt


def test_an_interrupt_before_the_loop_begins_enters_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_context, "LoopThread", LateThread)
    monkeypatch.setattr(held_context, "Future", Interrupted)
    entered = []

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        entered.append(True)
        yield

    with pytest.raises(KeyboardInterrupt):
        HeldContext("test", context)
    assert not entered


def test_the_failure_of_a_call_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("unheard")

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        yield

    held = HeldContext("test", context)
    held.start(fail)
    held.call(asyncio.sleep, 0)  # after the failure
    held.leave()
    assert "unheard" in caplog.text
