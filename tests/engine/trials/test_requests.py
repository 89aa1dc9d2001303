"""The requests that a checkpoint costs, one by one."""

import asyncio

import pytest
from machines import Machine
from onebench import Bench

from asyncsync import CheckpointConfig, SyncConfig
from asyncsync.testing import run_virtual
from asyncsync.testing.memory import Request

SYNC = SyncConfig(sync_period=100_000, heartbeat=None)
ARTIFACTS = ("t/result.json", "t/progress.csv", "t/.asyncsync/manifest.json")
"""The first background sync is under way at the same time."""


def of_the_checkpoint(requests: list[Request]) -> list[str]:
    return [f"{request.operation} {request.key}" for request in requests if request.key not in ARTIFACTS]


QUESTIONS = ["head .asyncsync/experiment.json", "head t/.asyncsync/trial.json"]


def checkpoint(number: int) -> list[str]:
    """The second pair of questions is asked beside the files, in any order with them."""
    return [
        *QUESTIONS,
        *sorted([*QUESTIONS, f"put t/checkpoint_{number:06d}/weights"]),
        f"put t/checkpoint_{number:06d}/.asyncsync/manifest.json",
        "put t/.asyncsync/trial.json",
    ]


def retired(number: int) -> list[str]:
    prefix = f"t/checkpoint_{number:06d}/"
    return [
        f"list {prefix}",
        f"delete {prefix}.asyncsync/manifest.json",
        f"delete {prefix}weights",
    ]


@pytest.mark.parametrize("keep", [None, 1])
def test_a_checkpoint_costs_just_these_requests(bench: Bench, keep: int | None) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(SYNC, CheckpointConfig(num_to_keep=keep), resume=False) as engine:
            await asyncio.sleep(20)
            requests = one.network.requests
            requests.clear()
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint("c0"))
            asked = of_the_checkpoint(requests)
            assert asked[:2] == ["head .asyncsync/experiment.json", "put t/.asyncsync/trial.json"]
            assert set(asked) == set(checkpoint(0))
            assert asked.count("put t/.asyncsync/trial.json") <= 3  # one of the background sync, if it is that quick
            await trial.sync()
            for number in range(1, 4):
                await asyncio.sleep(20)
                requests.clear()
                await trial.report({}, bench.checkpoint(f"c{number}"))
                await asyncio.sleep(20)
                asked = of_the_checkpoint(requests)
                asked[2:5] = sorted(asked[2:5])
                assert asked == checkpoint(number) + (retired(number - 1) if keep else [])

    run_virtual(main())
