"""An async context manager that is held open on an event loop in its own thread, for callers that are not async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from asyncsync.aio.loop_thread import LoopThread

T = TypeVar("T")


class HeldContext(Generic[T]):
    """Enters the context that ``make`` returns, and leaves it with :meth:`leave`: both in one task, as task groups
    require. ``value`` is what entering returned; its error is raised here."""

    def __init__(self, name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._entered: Future[T] = Future()
        self._left: Future[bool] = Future()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        """Whether nobody waits for it any more; perhaps before it has begun."""
        self._loop = LoopThread(name, self._live)
        try:
            self.value = self._entered.result()
        except BaseException:
            self._loop.soon(self._cancel)
            self._loop.join()
            raise

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call ``func`` on the loop; see :meth:`LoopThread.call`."""
        return self._loop.call(func, *args)

    def start(self, func: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start ``func`` on the loop and do not wait for it; see :meth:`LoopThread.start`."""
        self._loop.start(func)

    def check(self) -> None:
        """EngineClosedError if the loop does not run in this process; ConfigError on the loop's own thread."""
        self._loop.check()

    def leave(self, error: BaseException | None = None, seconds: float | None = None) -> bool:
        """Leave the context because of ``error``; returns whether the context suppresses it. Raises the error of
        leaving; TimeoutError if it takes longer than ``seconds``, and then it is cancelled. An interrupt of the wait
        cancels it too, and gets the notes of its error."""
        self.begin_to_leave(error)
        try:
            wait([self._left], seconds)
            if not self._left.done():
                raise TimeoutError(f"not left within {seconds:g} s")
        except BaseException as interruption:
            self._loop.soon(self._cancel)
            if (left := self.left(seconds)) is not None:
                for note in getattr(left.exception(), "__notes__", ()):
                    interruption.add_note(note)
            raise
        self._loop.join()
        try:
            return self._left.result()
        except BaseException as raised:
            if raised is error:
                return False
            raise

    def begin_to_leave(self, error: BaseException | None = None) -> None:
        """Start to leave, and return at once."""
        self._loop.soon(self._request, error)

    def left(self, seconds: float | None = None) -> Future[bool] | None:
        """How the context was left, after at most ``seconds``; None if it was not left by then."""
        wait([self._left], seconds)
        return self._left if self._left.done() else None

    async def _live(self) -> None:
        """Hold the context. Never raises: an exception such as SystemExit would end the loop."""
        if self._cancelled:
            return
        self._task = asyncio.current_task()
        self._reason: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        try:
            context = self._make()
            value = await context.__aenter__()
        except BaseException as error:  # noqa: BLE001  __init__ raises it
            self._entered.set_exception(error)
            return
        self._entered.set_result(value)
        reason: BaseException | None
        try:
            reason = await self._reason
        except asyncio.CancelledError as cancelled:  # the context's own tasks failed, or leaving took too long
            reason = cancelled
        trace = None if reason is None else reason.__traceback__
        try:
            suppressed = await context.__aexit__(None if reason is None else type(reason), reason, trace)
        except BaseException as raised:  # noqa: BLE001  leave() raises it
            self._left.set_exception(raised)
        else:
            self._left.set_result(bool(suppressed))

    def _request(self, error: BaseException | None) -> None:
        if not self._reason.done():
            self._reason.set_result(error)

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()
