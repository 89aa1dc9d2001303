"""A deterministic simulation of whole clusters: drivers, workers, ranks, readers and ``prune`` on one store, in virtual
time. Faults of network, clocks and processes strike at random, and a checker verifies the promises after every
schedule.

      result = simulate(seed=7)
      assert result.ok, result.violations

The same seed gives the same schedule, event by event. ``python -m asyncsync.testing.simulation --seeds 1000 --from 0``
runs many seeds. A reader begins with ``world.py``.
"""

from asyncsync.testing.simulation.ledger import Violation
from asyncsync.testing.simulation.plan import SchedulePlan
from asyncsync.testing.simulation.run import SimulationResult, simulate

__all__ = ["SchedulePlan", "SimulationResult", "Violation", "simulate"]
