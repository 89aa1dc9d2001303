"""Runs one schedule in virtual time, and returns its result."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from asyncsync.testing.memory import forget_buckets
from asyncsync.testing.simulation.ledger import Violation
from asyncsync.testing.simulation.loop import EndlessError, SimulationLoop
from asyncsync.testing.simulation.network import connect, disconnect
from asyncsync.testing.simulation.plan import Options, SchedulePlan
from asyncsync.testing.simulation.world import World


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The result of one schedule. ``digest`` is the hash of its trace, equal for equal seeds."""

    seed: int
    violations: tuple[Violation, ...]
    digest: str
    events: int
    seconds: float
    """Virtual seconds."""
    counts: dict[str, int] = field(default_factory=dict)
    trace: tuple[str, ...] = ()
    plan: SchedulePlan | None = None

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations


def simulate(
    seed: int,
    *,
    conditional_writes: bool = True,
    trace: bool = False,
    without: Iterable[str] = (),
    root: str | None = None,
) -> SimulationResult:
    """Run one schedule. The same seed gives the same schedule, event by event.

    ``conditional_writes=False``: on a store without them. ``trace``: keep every line of the trace in the result.
    ``without``: troubles (of :data:`TROUBLES`) to leave out, which shows which of them a failure needs. ``root``: a
    directory for the simulated machines, which is removed afterwards; default: in ``/dev/shm`` if it exists.
    """
    options = Options(conditional_writes, trace, frozenset(without))
    machines_root = root or _default_root()
    shutil.rmtree(machines_root, ignore_errors=True)
    os.makedirs(machines_root)
    loop = SimulationLoop(random.Random(f"{seed} loop"))  # noqa: S311
    world = World(seed, machines_root, loop, options)
    ledger = world.ledger
    connect(world.network)
    before = _descriptors()
    try:
        with _without_log_and_gc(), asyncio.Runner(loop_factory=lambda: loop) as runner:
            loop.set_exception_handler(lambda _, context: _note_unhandled(world, context))
            try:
                runner.run(world.run())
            except EndlessError as error:
                ledger.violate("endless", str(error))
        if (after := _descriptors()) > before and not ledger.violations:
            ledger.violate("descriptor leaked", f"{before} -> {after}")
    finally:
        disconnect(world.network)
        forget_buckets()
        shutil.rmtree(machines_root, ignore_errors=True)
    return SimulationResult(
        seed,
        tuple(ledger.violations),
        ledger.digest(),
        ledger.events,
        loop.time(),
        ledger.counts,
        tuple(ledger.lines or ()),
        world.plan,
    )


def _note_unhandled(world: World, context: dict[str, object]) -> None:
    if not world._over:  # noqa: SLF001
        world.ledger.violate("unhandled", f"{context.get('message')}: {context.get('exception')!r}")


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd")) - 2  # the descriptors of the loop, which is closed later
    except FileNotFoundError:
        return 0


def _default_root() -> str:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else os.environ.get("TMPDIR", "/tmp")  # noqa: S108
    return f"{base}/asyncsync-simulation-{os.getpid()}"


@contextmanager
def _without_log_and_gc() -> Iterator[None]:
    """Disable the library's log, and the garbage collector, which would run at arbitrary moments."""
    log, level = logging.getLogger("asyncsync"), logging.getLogger("asyncsync").level
    log.setLevel(logging.CRITICAL + 1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        log.setLevel(level)
        if collecting:
            gc.enable()
