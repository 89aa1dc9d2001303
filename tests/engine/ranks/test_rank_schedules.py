"""Ranks that skip, add and give up steps in every pattern: no schedule mixes steps or leaves the ranks out of step."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from onebench import Bench
from rankbench import rank, shard_of_step

from asyncsync import CheckpointConfig, SyncEngine, UploadMode
from asyncsync.errors import AsyncsyncError, CheckpointIncompleteError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.testing import run_virtual
from asyncsync.testing.faulty import Fault

LAST = 1000
"""A step that all ranks report: from it on they are in step again."""


@dataclass(frozen=True)
class Plan:
    """The actions of each rank, in its order: a step, and whether it reports it or gives it up."""

    ranks: Sequence[Sequence[tuple[int, bool]]]
    commit_timeout: float
    longest_step: float = 20.0

    @classmethod
    def random(cls, dice: random.Random, commit_timeout: float) -> "Plan":
        common = range(0, 60, 10)
        ranks = []
        for _ in range(dice.randint(2, 4)):
            steps = {step for step in common if dice.random() < 0.75}
            steps |= {step + dice.randint(1, 9) for step in common if dice.random() < 0.15}
            ranks.append([*((step, dice.random() < 0.85) for step in sorted(steps)), (LAST, True), (LAST + 1, True)])
        return cls(ranks, commit_timeout)

    def reported(self) -> dict[int, list[int]]:
        """By step, the ranks that report it."""
        found = defaultdict(list)
        for number, steps in enumerate(self.ranks):
            for step, report in steps:
                if report:
                    found[step].append(number)
        return found


@dataclass
class Verdicts:
    """The result of each rank, by step: None for durable, else the error."""

    by_step: dict[int, dict[int, BaseException | None]] = field(default_factory=lambda: defaultdict(dict))

    async def hear(self, number: int, step: int, wait: Awaitable[None]) -> None:
        try:
            await wait
        except AsyncsyncError as error:
            self.by_step[step][number] = error
        else:
            self.by_step[step][number] = None


def slow_store(bench: Bench, dice: random.Random) -> None:
    """Every request takes its time, before it takes effect and after."""

    async def some_time() -> None:
        await asyncio.sleep(dice.choice((0.0, dice.uniform(0, 0.05), dice.uniform(0, 2.0))))

    bench.faults.planned += [Fault(1, some_time, times=None), Fault(1, some_time, times=None, after=True)]


def source(bench: Bench, number: int, step: int) -> Path:
    """The shard of one rank, and a file that all ranks share."""
    return shard_of_step(bench, number, step, config=b"%d" % step)


async def train(
    bench: Bench, engine: SyncEngine, number: int, plan: Plan, dice: random.Random, heard: Verdicts
) -> None:
    trial = engine.trial("t")
    async with asyncio.TaskGroup() as group:
        for step, reports in plan.ranks[number]:
            await asyncio.sleep(dice.uniform(0, plan.longest_step))
            if not reports:
                await trial.skip(step, reason="no memory")
                continue
            mode = dice.choice((UploadMode.ASYNC, UploadMode.SYNC))

            async def report(step: int = step, mode: UploadMode = mode) -> None:
                made = await trial.report({}, source(bench, number, step), step=step, upload=UploadMode.ASYNC)
                await made.checkpoint.durable()

            if mode is UploadMode.SYNC:
                await heard.hear(number, step, report())
            else:
                group.create_task(heard.hear(number, step, report()))
                await asyncio.sleep(0.001)  # its report comes before the next


async def run(bench: Bench, plan: Plan, dice: random.Random) -> tuple[Verdicts, float]:
    heard = Verdicts()
    keep = CheckpointConfig(commit_timeout=plan.commit_timeout, max_pending_checkpoints=3)
    async with AsyncExitStack() as stack:
        of = len(plan.ranks)
        engines = [await stack.enter_async_context(rank(bench, n, of=of, keep=keep)) for n in range(of)]
        slow_store(bench, dice)
        async with asyncio.TaskGroup() as group:
            for number, engine in enumerate(engines):
                group.create_task(train(bench, engine, number, plan, dice, heard))
        bench.faults.clear()
    return heard, asyncio.get_running_loop().time()


def committed(bench: Bench, of: int) -> dict[int, str]:
    """Every checkpoint in the store by its step, after a look at its bytes: those of one step, from all ranks."""
    found: dict[int, str] = {}
    contents = bench.store.contents
    for key in bench.keys(f"/{MANIFEST}"):
        name = key.split("/")[1]
        if not name.startswith("checkpoint_"):
            continue
        manifest = Manifest.from_bytes(contents[key])
        step = manifest.info["step"]
        assert sorted(manifest.files) == ["config", *(f"shard_{n}" for n in range(of))]
        for number in range(of):
            assert contents[f"t/{name}/shard_{number}"] == b"%d %d" % (number, step)
        assert contents[f"t/{name}/config"] == b"%d" % step
        assert step not in found
        found[step] = name
    return found


def check_agreement(bench: Bench, plan: Plan, heard: Verdicts) -> None:
    """A step is in the store and durable for all ranks that reported it, or for none."""
    stored = committed(bench, len(plan.ranks))
    for step, who in plan.reported().items():
        assert sorted(heard.by_step[step]) == who
        durable = {error is None for error in heard.by_step[step].values()}
        assert len(durable) == 1, (step, heard.by_step[step])
        assert durable == {step in stored}, step
    numbers = [stored[step] for step in sorted(stored)]
    assert numbers == sorted(numbers)


# ranks that die


class Job:
    """Ranks that all report the same steps. Some die: each comes back and resumes from the newest checkpoint that is
    complete then. Steps are multiples of 10, so a restored run repeats the same steps.
    """

    def __init__(self, bench: Bench, dice: random.Random, of: int, *, last: int = 200) -> None:
        self.bench, self.dice, self.of, self.last = bench, dice, of, last
        self.heard = Verdicts()
        self.keep = CheckpointConfig(commit_timeout=60)

    async def run(self, *deaths: tuple[float, tuple[int, ...]]) -> None:
        """Run until every rank has reported the last step. ``deaths``: times and ranks."""
        slow_store(self.bench, self.dice)
        alive = {number: self._start(number, resume=False) for number in range(self.of)}
        for after, who in deaths:
            await asyncio.sleep(after)
            for number in who:
                alive[number].cancel()
            await asyncio.gather(*(alive[number] for number in who), return_exceptions=True)
            for number in sorted(who, key=lambda _: self.dice.random()):
                await asyncio.sleep(self.dice.choice((0, self.dice.uniform(0, 30))))
                alive[number] = self._start(number, resume=True)
        await asyncio.gather(*alive.values())

    def _start(self, number: int, *, resume: bool) -> asyncio.Task[None]:
        return asyncio.create_task(self._life(number, resume=resume), name=f"rank {number}")

    async def _life(self, number: int, *, resume: bool) -> None:
        restored = max(committed(self.bench, self.of), default=-10)
        engine = rank(self.bench, number, of=self.of, keep=self.keep, resume=resume, exit_grace=0.001)
        async with engine:
            for step in range(restored + 10, self.last + 1, 10):
                await asyncio.sleep(self.dice.uniform(5, 10))
                work = engine.trial("t").report({}, source(self.bench, number, step), step=step)
                await self.heard.hear(number, step, work)


@pytest.mark.parametrize("seed", range(25))
def test_a_step_that_all_ranks_report_is_durable_and_others_raise(bench: Bench, seed: int) -> None:
    """At once: no time-out has to pass for it."""
    dice = random.Random(seed)
    plan = Plan.random(dice, commit_timeout=1_000_000)
    heard, seconds = run_virtual(run(bench, plan, dice))
    assert seconds < 2000
    check_agreement(bench, plan, heard)
    for step, who in plan.reported().items():
        errors = heard.by_step[step].values()
        if len(who) == len(plan.ranks):
            assert list(errors) == [None] * len(who)
        for error in filter(None, errors):
            assert isinstance(error, CheckpointIncompleteError)
            assert f"gave up step {step}: no memory" in str(error) or f" step {step}" in str(error), error


@pytest.mark.parametrize("seed", range(25))
def test_ranks_agree_on_the_lost_steps_however_their_timeouts_fall(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    plan = Plan.random(dice, commit_timeout=dice.choice((1, 3, 10)))
    heard, _ = run_virtual(run(bench, plan, dice))
    check_agreement(bench, plan, heard)


@pytest.mark.parametrize("seed", range(25))
def test_a_rank_that_dies_and_comes_back_is_in_step_again(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    of = dice.randint(2, 4)
    lost = dice.randrange(1, of)
    job = Job(bench, dice, of)
    run_virtual(job.run(*((dice.uniform(5, 60), (lost,)) for _ in range(dice.randint(1, 3)))))
    stored = committed(bench, of)
    assert max(stored) == job.last
    for step, verdicts in job.heard.by_step.items():
        durable = {error is None for number, error in verdicts.items() if number != lost}
        assert durable <= {step in stored}, (step, verdicts)
        assert verdicts.get(lost, 1) is not None or step in stored


@pytest.mark.parametrize("seed", range(25))
def test_ranks_that_all_die_begin_again_behind_the_newest_complete_one(bench: Bench, seed: int) -> None:
    """Their steps go back then, and they are in step at once."""
    dice = random.Random(seed)
    of = dice.randint(2, 4)
    job = Job(bench, dice, of, last=100)
    run_virtual(job.run(*((dice.uniform(5, 60), tuple(range(of))) for _ in range(dice.randint(1, 3)))))
    assert max(committed(bench, of)) == job.last
