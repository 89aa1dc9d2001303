"""A deterministic simulation of whole clusters: drivers, workers, ranks, readers and ``prune`` on one store, in virtual
time, with a world that is against them, and a checker after every schedule.

    outcome = simulate(seed=7)
    assert outcome.ok, outcome.violations

The same seed gives the same schedule, event by event. ``python -m asyncsync.testing.simulation --seeds 1000 --from 0``
runs many.
"""

from asyncsync.testing.simulation.ledger import Violation
from asyncsync.testing.simulation.plan import SchedulePlan
from asyncsync.testing.simulation.run import SimulationResult, simulate

__all__ = ["SchedulePlan", "SimulationResult", "Violation", "simulate"]
