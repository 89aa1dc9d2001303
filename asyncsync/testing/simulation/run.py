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
    """What became of one schedule. ``digest`` is that of its trace: equal for equal seeds."""

    seed: int
    violations: tuple[Violation, ...]
    digest: str
    events: int
    seconds: float
    """Of virtual time."""
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
    """Run one schedule; the same seed gives the same one, event by event.

    ``conditional_writes=False``: on a store that cannot do them. ``trace`` keeps every line of it in the outcome.
    ``without``: troubles (of :data:`TROUBLES`) that are left out, to see which of them a failure needs. ``root``: a
    directory of its own for the simulated machines, which is removed afterwards; default: in ``/dev/shm`` where there
    is one.
    """
    options = Options(conditional_writes, trace, frozenset(without))
    place = root or _place()
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    loop = SimulationLoop(random.Random(f"{seed} loop"))  # noqa: S311
    world = World(seed, place, loop, options)
    ledger = world.ledger
    connect(world.network)
    before = _descriptors()
    try:
        with _quiet(), asyncio.Runner(loop_factory=lambda: loop) as runner:
            loop.set_exception_handler(lambda _, context: _unhandled(world, context))
            try:
                runner.run(world.run())
            except EndlessError as error:
                ledger.broken("endless", str(error))
        if (after := _descriptors()) > before and not ledger.violations:
            ledger.broken("descriptor left", f"{before} -> {after}")
    finally:
        disconnect(world.network)
        forget_buckets()
        shutil.rmtree(place, ignore_errors=True)
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


def _unhandled(world: World, context: dict[str, object]) -> None:
    if not world._over:  # noqa: SLF001
        world.ledger.broken("unhandled", f"{context.get('message')}: {context.get('exception')!r}")


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd")) - 2  # the loop that is made before, and closed after
    except FileNotFoundError:
        return 0


def _place() -> str:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else os.environ.get("TMPDIR", "/tmp")  # noqa: S108
    return f"{base}/asyncsync-simulation-{os.getpid()}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's log, and without a collector that comes at moments of its own."""
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
