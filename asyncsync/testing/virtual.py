"""An event loop with a virtual clock: an hour of timers passes in a millisecond, in the same order every time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

DEADLOCK_SECONDS = 10.0
"""Real seconds that a loop without timers and jobs waits for foreign threads before it raises DeadlockError."""


class DeadlockError(RuntimeError):
    """All tasks wait and nothing can wake one: no timer, no thread job, no socket."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop whose :meth:`time` is virtual and starts at 0.

    When nothing is ready it jumps to the next timer at once. While jobs of ``run_in_executor`` are outstanding (also
    those whose caller was cancelled) it waits for them in real time and the virtual time stands still: disk work costs
    no virtual time, and tests are deterministic.

    With pytest-asyncio (1.4 and later), tests select it by a marker, in ``conftest.py``::

        def pytest_asyncio_loop_factories(config, item):
            virtual = item.get_closest_marker("virtual_time") is not None
            return {"virtual": VirtualTimeLoop} if virtual else {"real": asyncio.new_event_loop}

    The loop does not wait for real sockets, nor for threads that were not started through ``run_in_executor``: time may
    jump while a response is in flight. Use an ordinary loop for tests with a server.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._jobs = 0
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        super().__init__(_JumpingSelector(self))
        # asyncio runs a timer that is due within this resolution. A float loses the default of 1 ns after half a
        # year: the loop would then spin for ever before a due timer.
        self._clock_resolution = 2.0**-20

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def lease_time(self) -> float:
        """The same clock: a lease expires in virtual time, too."""
        return self._now

    @property
    def outstanding(self) -> int:
        """Thread jobs that the loop has not seen end."""
        return self._jobs

    def advance(self, seconds: float) -> None:
        """Let time pass without running anything, as a training step does that blocks the loop."""
        if seconds < 0:
            raise ValueError(f"time cannot go back: {seconds}")
        self._now += seconds

    def turned(self) -> None:
        """Called once per turn of the loop. For subclasses; an exception from it ends :func:`run_virtual`."""

    def run_in_executor(  # type: ignore[override]  # as in the stubs, apart from the generics
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        job = (executor or self._default_pool()).submit(func, *args)
        self._jobs += 1
        result = asyncio.wrap_future(job, loop=self)
        job.add_done_callback(self._ended)  # after wrap_future's own: callbacks run in the order they were added
        return result

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Without the time limit, which Python 3.12 added: nothing else is left then, so it would pass at once."""
        del timeout
        await super().shutdown_default_executor()

    def _default_pool(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="virtual-time")
            self.set_default_executor(self._pool)
        return self._pool

    def _ended(self, _: concurrent.futures.Future[Any]) -> None:
        # Runs in the worker thread, or in the loop's thread for a job that was cancelled before it started. The result
        # was handed to the loop before this; the second hop below lets the tasks that wait for it run first.
        try:
            self.call_soon_threadsafe(self.call_soon, self._uncount)
        except RuntimeError:
            if not self.is_closed():
                raise

    def _uncount(self) -> None:
        self._jobs -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.turned()
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._loop.outstanding:
            return super().select(None)  # the end of a job wakes the loop through its self-pipe
        if timeout is None:
            return self._wait_for_strangers()
        ready = super().select(0)
        if not ready:
            self._loop.advance(timeout)
        return ready

    def _wait_for_strangers(self) -> list[tuple[selectors.SelectorKey, int]]:
        """No timer and no job: only a socket, a signal or a foreign thread can wake a task."""
        only_self_pipe = len(self.get_map()) <= 1
        ready = super().select(DEADLOCK_SECONDS if only_self_pipe else None)
        if not ready and only_self_pipe:
            names = sorted(task.get_name() for task in asyncio.all_tasks(self._loop))
            raise DeadlockError(f"no timer, thread job or socket is left to wake {', '.join(names) or 'the loop'}")
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on a :class:`VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
