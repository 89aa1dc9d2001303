"""The plan of one schedule: drawn from its seed, and the troubles that may strike in it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

HOUR = 3600.0
CURATED_SHARE = 0.3
"""Share of schedules in which programs pin and retire checkpoints."""
TROUBLES = (
    "late",
    "storms",
    "kill",
    "stop",
    "cancel",
    "partition",
    "rival",
    "wipes",
    "clock_steps",
    "meddling",
    "prunes",
    "readers",
    "timeouts",
    "ranks",
    "skips",
    "curation",
)
"""Values of ``without``. Leaving some out shows which of them a failure needs."""


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """The settings of one schedule."""

    kind: str
    keep: int | None
    sync_period: float
    sync_timeout: float
    sync_artifacts: bool
    commit_timeout: float
    concurrency: int
    think: float
    prune_age: float
    machines: int
    trials: int
    lives: int
    ranks: int
    readers: int
    prunes: bool
    storms: bool
    wipes: bool
    clock_steps: bool
    conditional: bool
    without: frozenset[str] = frozenset()

    @classmethod
    def draw(cls, dice: random.Random, *, conditional: bool, without: frozenset[str]) -> SchedulePlan:
        """Draw a plan from the seed's dice. A store without conditional writes cannot exclude a second writer: then one
        process writes at a time, and no request lands late."""
        kind = dice.choices(("solo", "rivals", "workers", "ranks"), (45, 20, 15, 20))[0]
        plan = cls(
            kind=kind,
            keep=dice.choice((None, 1, 1, 2, 3)),
            sync_period=dice.choice((3.0, 30.0, 300.0)),
            sync_timeout=dice.choice((20.0, 120.0, 1800.0)),
            sync_artifacts=dice.random() < 0.5,
            commit_timeout=dice.choice((20.0, 120.0)),
            concurrency=dice.choice((2, 16)),
            think=dice.choice((0.5, 10.0, 40.0)),
            prune_age=dice.choice((2 * HOUR, 24 * HOUR)),
            machines=dice.choice((1, 2, 3)),
            trials=dice.choice((1, 1, 2)) if kind != "ranks" else 1,
            lives=dice.choice((1, 2, 2, 3)),
            ranks=dice.choice((2, 2, 3, 4)),
            readers=dice.choice((0, 1, 1, 2)),
            prunes=dice.random() < 0.2,
            storms=dice.random() < 0.8,
            wipes=dice.random() < 0.1,
            clock_steps=dice.random() < 0.15,
            conditional=conditional,
            without=without,
        )
        if "readers" in without:
            plan = replace(plan, readers=0)
        if (not conditional and kind == "rivals") or (kind == "ranks" and "ranks" in without):
            plan = replace(plan, kind="solo")
        return replace(
            plan,
            storms=plan.storms and "storms" not in without,
            wipes=plan.wipes and "wipes" not in without,
            clock_steps=plan.clock_steps and "clock_steps" not in without,
            prunes=plan.prunes and "prunes" not in without,
        )

    @property
    def curates(self) -> bool:
        """Whether programs pin and retire checkpoints. Drawn from the other settings, so that earlier seeds draw what
        they drew before."""
        return self.has("curation") and random.Random(repr(self)).random() < CURATED_SHARE  # noqa: S311

    def has(self, trouble: str) -> bool:
        """Whether this trouble may strike in this schedule."""
        return trouble not in self.without


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a schedule, besides the seed."""

    conditional_writes: bool = True
    trace: bool = False
    without: frozenset[str] = frozenset()
