"""The event loop of a simulation: many processes on one loop, in virtual time, without threads.

Every callback belongs to the simulated process in whose context it was made. Callbacks of a stopped process wait until
it continues; those of a killed process never run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import random
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from asyncsync.testing.virtual import VirtualTimeLoop

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("asyncsync_simulated_process", default=None)
"""The process whose code is running; None: the world's own."""
EPOCH = 1_000_000_000.0
"""Unix time at which every simulation begins. It is in the past, so that a file whose time was not set is newer than
any look at it, and results do not depend on the machine's clock."""
MAX_TURNS = 400_000
"""Turns of the loop after which a schedule counts as endless. Ordinary ones need some thousands."""
MAX_JOB_SECONDS = 0.05
"""Longest duration (s) of a thread job; most take no time."""


class EndlessError(RuntimeError):
    """The loop turns without end and without waiting."""


class Machine:
    """A simulated machine: its clock, its state directory, and the holders of its locks."""

    def __init__(self, name: str, root: str) -> None:
        self.name, self.root = name, root
        self.clock_offset = 0.0
        """How far (s) its wall clock is ahead of the true time."""
        self.state_directory = f"{root}/state"
        self.locks: dict[str, list[Process]] = {}


class SimulatedTreeLocks:
    """Replaces the lock files of :mod:`asyncsync.disk.locks`. A process may take a lock several times."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def take(self, tree: str, *, alone: bool) -> str:
        """Take a lock. Raises ConcurrentWriterError if another process of the machine holds it; with ``alone`` also if
        this one does."""
        from asyncsync.errors import ConcurrentWriterError

        holders = self._process.machine.locks.setdefault(tree, [])
        others = [holder for holder in holders if holder is not self._process]
        if others or (alone and holders):
            raise ConcurrentWriterError(f"{tree} is already being synced by process {holders[0].pid}")
        holders.append(self._process)
        return tree

    def release(self, trees: Collection[str]) -> None:
        """Release each of these locks once."""
        for tree in trees:
            holders = self._process.machine.locks.get(tree, [])
            if self._process in holders:  # a killed process has lost them all
                holders.remove(self._process)


class Process:
    """A simulated process. ``main`` is the task of its program."""

    def __init__(self, name: str, pid: int, machine: Machine, seed: str) -> None:
        self.name, self.pid, self.machine = name, pid, machine
        self.dice, self.network_dice = random.Random(seed), random.Random(f"{seed} network")  # noqa: S311
        self.tree_locks = SimulatedTreeLocks(self)
        self.main: asyncio.Task[None] | None = None
        self.killed = self.stopped = self.ended = False
        self.ghost = False
        """Killed, and running again only to be cleaned up after the schedule."""
        self.partitioned = False
        self.requests = 0
        """Requests sent so far."""
        self.under_way = 0
        """Requests that it waits for."""
        self.trouble, self.trouble_at = "none", 0
        """The trouble that strikes it, and at which of its requests."""
        self.error = ""
        """The error with which it ended."""
        self.sessions: list[Any] = []
        self.place_free: asyncio.Future[None]
        """Done when a successor may start: the process ended, or looks as if it had."""
        self.held: deque[ProcessCallback] = deque()

    @property
    def runs(self) -> bool:
        """Whether its code is executed."""
        return self.ghost or not (self.killed or self.stopped)

    @property
    def alive(self) -> bool:
        """Whether it exists, running or stopped."""
        return not (self.killed or self.ended)

    def spawn(self, loop: SimulationLoop, program: Coroutine[Any, Any, None]) -> None:
        """Start the program."""
        context = contextvars.Context()
        context.run(PROCESS.set, self)
        self.main = loop.create_task(program, name=self.name, context=context)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def resume(self, loop: SimulationLoop) -> None:
        """SIGCONT."""
        self.stopped = False
        if self.runs:
            self._release(loop)

    def kill(self) -> None:
        """SIGKILL: none of its code runs any more, and its locks are free."""
        self.killed = True
        for holders in self.machine.locks.values():
            while self in holders:
                holders.remove(self)

    def run_as_ghost(self, loop: SimulationLoop) -> None:
        """After the schedule: let a killed process run to its end, so that nothing leaks."""
        self.ghost = True
        self._release(loop)

    def _release(self, loop: SimulationLoop) -> None:
        while self.held:
            loop.requeue(self.held.popleft())


class ProcessCallback:
    """A callback of a process. It waits while the process is stopped."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.process, self.callback, self.args, self.context = process, callback, args, context
        self.handle: asyncio.Handle | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled meanwhile."""
        return self.handle is not None and self.handle.cancelled()

    def __call__(self) -> None:
        if self.cancelled:
            return  # cancelled while it waited, or later
        if self.process.runs:
            self.callback(*self.args)
        else:
            self.process.held.append(self)


class _Task(asyncio.Task[Any]):
    """A task whose hash is a serial number: sets of tasks then have the same order in every run."""

    _numbers = itertools.count()

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = next(self._numbers)
        context = options.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class SimulationLoop(VirtualTimeLoop):
    """Virtual time, thread jobs inline, and callbacks by process. ``dice``: for draws outside any process."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._turns = 0
        super().__init__()
        _Task._numbers = itertools.count()  # noqa: SLF001
        self.set_task_factory(lambda loop, coro, **options: _Task(coro, loop=loop, **options))

    # used by asyncsync.runtime

    def wall_time(self) -> float:
        """Unix time by the clock of the machine whose code is running."""
        process = PROCESS.get()
        return self.true_time() + (0.0 if process is None else process.machine.clock_offset)

    def true_time(self) -> float:
        """Unix time by the store's clock."""
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
        """Ids of the processes of a machine. The world replaces this method."""
        del machine
        return set()

    def process_identity(self) -> str | None:
        """Identity of the process whose code is running, see :class:`asyncsync.runtime.Presence`."""
        process = PROCESS.get()
        return None if process is None else f"{process.machine.name} {process.pid}"

    def process_ended(self, identity: str) -> bool:
        """Whether such a process ran on this machine and has ended."""
        process, (machine, _, pid) = PROCESS.get(), identity.partition(" ")
        return process is not None and machine == process.machine.name and not self.process_alive(int(pid))

    def state_directory(self) -> str:
        """State directory of the machine whose code is running."""
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
        if self._turns > MAX_TURNS:
            raise EndlessError(f"no end after {MAX_TURNS} turns of the loop, {self.time():.0f} s of virtual time")

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

    def requeue(self, gate: ProcessCallback) -> None:
        """Run a kept callback. Its owner may still cancel it by the handle that it has."""
        super().call_soon(gate, context=gate.context)

    def in_world(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Call at this time, also if the process that asked for it has ended."""
        self.call_at(when, callback, *args, context=contextvars.Context())

    def run_in_executor(  # type: ignore[override]  # as the loop above
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run the job a little later, like a thread. The jobs of a stopped process wait with it."""
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
            self.call_later(dice.uniform(0, MAX_JOB_SECONDS), job)
        else:
            self.call_soon(job)
        return result
