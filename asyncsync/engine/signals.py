"""Signals that announce the end of a process: a preemption, a scheduler's notice, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from asyncsync.errors import ConfigError

ALLOWED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name))


def as_signals(wanted: object) -> frozenset[signal.Signals]:
    """The signals that ``handle_signals`` names. Raises ConfigError for anything else."""
    if isinstance(wanted, bool):
        return frozenset({signal.SIGTERM} if wanted else ())
    names = ", ".join(number.name for number in ALLOWED)
    refusal = f"invalid SyncEngine(handle_signals={wanted!r}): must be True, False or a set of {names}"
    if not isinstance(wanted, Iterable) or isinstance(wanted, str | bytes):
        raise ConfigError(refusal)
    numbers = list(wanted)
    if not all(isinstance(number, int) and number in ALLOWED for number in numbers):
        raise ConfigError(refusal)
    return frozenset(signal.Signals(number) for number in numbers)


def check_thread(numbers: frozenset[signal.Signals]) -> None:
    """Raise ConfigError where Python cannot handle signals."""
    if numbers and threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "invalid SyncEngine(handle_signals=...): Python handles signals only in the main thread, and this is "
            f"thread {threading.current_thread().name!r}. Enter the engine in the main thread, or omit the option"
        )


class Signals:
    """Calls ``react`` on the first signal. Repeats within ``grace`` seconds are ignored.

    ``react`` receives the signal, and a function that calls the program's own handler. :meth:`restore` puts that
    handler back. Use it in the main thread.
    """

    def __init__(
        self,
        numbers: frozenset[signal.Signals],
        react: Callable[[signal.Signals, Callable[[], None]], None],
        grace: float,
    ) -> None:
        self._react, self._grace = react, grace
        self._quiet_until = float("-inf")
        self._over = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        for number in sorted(numbers):
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def begin_grace(self) -> None:
        """The engine is being left already: ignore signals during the grace."""
        self._quiet_until = time.monotonic() + self._grace

    def restore(self) -> None:
        """Put the program's handlers back, unless the program replaced ours meanwhile. Outside the main thread, where
        Python does not allow that, our handlers remove themselves at the next signal."""
        self._over = True
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._before:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, self._previous(number))

    def _previous(self, number: int) -> Any:
        """The program's handler, not the handler of an engine that has already ended."""
        previous = self._before[number]
        owner = getattr(previous, "__self__", None)
        if isinstance(owner, Signals) and owner._over:  # noqa: SLF001  another one of us
            return owner._previous(number)  # noqa: SLF001
        return signal.SIG_DFL if previous is None else previous  # None: not installed from Python

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if (
            self._over or os.getpid() != self._process
        ):  # left in another thread, or the engine belongs to the parent process
            signal.signal(number, self._previous(number))
            signal.raise_signal(number)
        elif time.monotonic() >= self._quiet_until:
            self.begin_grace()
            self._react(signal.Signals(number), lambda: self._chain(number, frame))

    def _chain(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous(number)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)


def cancelling(task: asyncio.Task[Any]) -> Callable[[signal.Signals, Callable[[], None]], None]:
    """A reaction that cancels ``task``, unless the program's own handler does. A second cancel would interrupt the
    clean-up that the first one started."""
    loop = asyncio.get_running_loop()

    def react(number: signal.Signals, chain: Callable[[], None]) -> None:
        before = task.cancelling()
        try:
            chain()
        finally:
            if task.cancelling() == before:
                task.cancel(number.name)
                loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for the network

    return react
