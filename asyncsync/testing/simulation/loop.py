"""The event loop of a simulation: many processes on one loop, in virtual time, without a thread.

Every callback belongs to the simulated process in whose context it was made. Those of a process that is stopped are
kept until it is continued; those of a killed one are kept for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asyncsync.sync.session import Session
from asyncsync.testing.virtual import VirtualTimeLoop

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("asyncsync_simulated_process", default=None)
"""Whose code is running; None: the world's own."""
EPOCH = 1_000_000_000.0
"""Unix seconds at which every simulation begins. In the past, so that a file whose time was not set is never older than
a look at it, and what is concluded from its time does not depend on the machine's clock."""
TURNS = 400_000
"""Turns of the loop after which a schedule counts as endless; ordinary ones need some thousands."""
SLOW_JOB = 0.05
"""Seconds that a thread job takes at most; most take none."""


class EndlessError(RuntimeError):
    """Something turns for ever without waiting."""


class Machine:
    """A simulated machine: its clock, its state directory, and which process holds which lock."""

    def __init__(self, name: str, root: str) -> None:
        self.name, self.root = name, root
        self.clock_offset = 0.0
        """Seconds that its wall clock is ahead of the true time."""
        self.state_directory = f"{root}/state"
        self.locks: dict[str, list[Process]] = {}


class SimulatedTreeLocks:
    """What :mod:`asyncsync.disk.locks` keeps in a file: a process may take a lock several times."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def take(self, tree: str, *, alone: bool) -> str:
        """ConcurrentWriterError if another process of the machine has it; with ``alone`` also if this one has."""
        from asyncsync.errors import ConcurrentWriterError

        holders = self._process.machine.locks.setdefault(tree, [])
        others = [holder for holder in holders if holder is not self._process]
        if others or (alone and holders):
            raise ConcurrentWriterError(f"{tree} is being synced already, by process {holders[0].pid}")
        holders.append(self._process)
        return tree

    def release(self, tree: str) -> None:
        """Once for every time that it was taken."""
        holders = self._process.machine.locks.get(tree, [])
        if self._process in holders:  # a killed process has lost them all
            holders.remove(self._process)


class Process:
    """A simulated process. ``main`` is its program's task."""

    def __init__(self, name: str, pid: int, machine: Machine, seed: str) -> None:
        self.name, self.pid, self.machine = name, pid, machine
        self.dice, self.network_dice = random.Random(seed), random.Random(f"{seed} network")  # noqa: S311
        self.tree_locks = SimulatedTreeLocks(self)
        self.main: asyncio.Task[None] | None = None
        self.killed = self.stopped = self.ended = False
        self.ghost = False
        """Killed, and only cleaned up after: the schedule is over."""
        self.partitioned = False
        self.requests = 0
        """Sent so far."""
        self.under_way = 0
        """Requests that it waits for."""
        self.trouble, self.trouble_at = "none", 0
        """What strikes it, at which of its requests."""
        self.error = ""
        """Why it ended, if not well."""
        self.sessions: list[Session] = []
        self.gone: asyncio.Future[None]
        """Done when its place may be taken: it ended, or looks as if it had."""
        self.held: deque[ProcessCallback] = deque()

    @property
    def runs(self) -> bool:
        """Whether its code is executed."""
        return self.ghost or not (self.killed or self.stopped)

    @property
    def alive(self) -> bool:
        """Whether it is there, running or stopped."""
        return not (self.killed or self.ended)

    def spawn(self, loop: SimulationLoop, program: Coroutine[Any, Any, None]) -> None:
        """Start the program."""
        context = contextvars.Context()
        context.run(PROCESS.set, self)
        self.main = loop.create_task(program, name=self.name, context=context)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def go_on(self, loop: SimulationLoop) -> None:
        """SIGCONT."""
        self.stopped = False
        if self.runs:
            self._release(loop)

    def kill(self) -> None:
        """SIGKILL: no line of it is executed any more, its locks are free."""
        self.killed = True
        for holders in self.machine.locks.values():
            while self in holders:
                holders.remove(self)

    def haunt(self, loop: SimulationLoop) -> None:
        """After the schedule: let what is left of a killed process end, so that nothing of it leaks."""
        self.ghost = True
        self._release(loop)

    def _release(self, loop: SimulationLoop) -> None:
        while self.held:
            loop.again(self.held.popleft())


class ProcessCallback:
    """A callback of a process; it waits while the process is stopped."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.process, self.callback, self.args, self.context = process, callback, args, context
        self.handle: asyncio.Handle | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled it meanwhile."""
        return self.handle is not None and self.handle.cancelled()

    def __call__(self) -> None:
        if self.cancelled:
            return  # while it was kept, or since
        if self.process.runs:
            self.callback(*self.args)
        else:
            self.process.held.append(self)


class _Task(asyncio.Task[Any]):
    """Sets of tasks, as in a TaskGroup, have the same order in every run: not that of addresses in memory."""

    _numbers = itertools.count()

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = next(self._numbers)
        context = options.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class SimulationLoop(VirtualTimeLoop):
    """Virtual time, thread jobs inline, and callbacks by process. ``dice``: for all that no process asks for."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._turns = 0
        super().__init__()
        _Task._numbers = itertools.count()  # noqa: SLF001
        self.set_task_factory(lambda loop, coro, **options: _Task(coro, loop=loop, **options))

    # what asyncsync.runtime asks for

    def wall_time(self) -> float:
        """By the clock of the machine whose code is running."""
        process = PROCESS.get()
        return self.true_time() + (0.0 if process is None else process.machine.clock_offset)

    def true_time(self) -> float:
        """Unix seconds by the store's clock."""
        return EPOCH + self.time()

    def dice(self) -> random.Random:
        """Of the process whose code is running."""
        process = PROCESS.get()
        return self._dice if process is None else process.dice

    def process_id(self) -> int:
        """Of the process whose code is running."""
        process = PROCESS.get()
        return 1 if process is None else process.pid

    def process_alive(self, pid: int) -> bool:
        """Whether the machine whose code is running has such a process."""
        process = PROCESS.get()
        return process is not None and pid in self.pids(process.machine)

    def pids(self, machine: Machine) -> set[int]:
        """The processes of a machine; the world replaces it."""
        del machine
        return set()

    def process_identity(self) -> str | None:
        """Of the process whose code is running, see :class:`asyncsync.runtime.Presence`."""
        process = PROCESS.get()
        return None if process is None else f"{process.machine.name} {process.pid}"

    def process_ended(self, identity: str) -> bool:
        """Whether the machine whose code is running had such a process, and has it no more."""
        process, (machine, _, pid) = PROCESS.get(), identity.partition(" ")
        return process is not None and machine == process.machine.name and not self.process_alive(int(pid))

    def state_directory(self) -> str:
        """Of the machine whose code is running."""
        process = PROCESS.get()
        assert process is not None
        return process.machine.state_directory

    def tree_locks(self) -> SimulatedTreeLocks:
        """Of the process whose code is running."""
        process = PROCESS.get()
        assert process is not None
        return process.tree_locks

    # callbacks by process

    def turned(self) -> None:
        self._turns += 1
        if self._turns > TURNS:
            raise EndlessError(f"no end after {TURNS} turns of the loop, {self.time():.0f} s of virtual time")

    def call_soon(  # type: ignore[override]  # as asyncio has it; the stubs check the arguments one by one
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        process = context.get(PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        gate = ProcessCallback(process, callback, args, context)
        gate.handle = handle = super().call_soon(gate, context=context)
        return handle

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        process = context.get(PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        gate = ProcessCallback(process, callback, args, context)
        gate.handle = handle = super().call_at(when, gate, context=context)
        return handle

    def again(self, gate: ProcessCallback) -> None:
        """What was kept is due; its owner may still cancel it by the handle that it has."""
        super().call_soon(gate, context=gate.context)

    def in_world(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """At this time, whatever became of the process that asked for it."""
        self.call_at(when, callback, *args, context=contextvars.Context())

    def run_in_executor(  # type: ignore[override]  # as the loop above
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """A little later, as a thread would begin; a stopped process' threads stand still with it."""
        del executor
        result: asyncio.Future[T] = self.create_future()

        def job() -> None:
            try:
                value = func(*args)
            except Exception as error:  # noqa: BLE001  whatever a job raises is its caller's
                if not result.cancelled():
                    result.set_exception(error)
            else:
                if not result.cancelled():
                    result.set_result(value)

        dice = self.dice()
        if dice.random() < 0.1:
            self.call_later(dice.uniform(0, SLOW_JOB), job)
        else:
            self.call_soon(job)
        return result
