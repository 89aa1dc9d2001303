"""Whole clusters in virtual time: the promises hold in every schedule, and the simulation reports a broken one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncsync.testing.simulation import SimulationResult, simulate
from asyncsync.testing.simulation.plan import TROUBLES

CORPUS = Path(__file__).parent / "seeds.txt"
SEEDS = [int(line.split("#")[0]) for line in CORPUS.read_text().splitlines() if line.split("#")[0].strip()]


def run(tmp_path: Path, seed: int, **options: object) -> SimulationResult:
    return simulate(seed, root=str(tmp_path / "machines"), **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_that_failed_once_does_not_fail_again(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, seed).violations == ()


@pytest.mark.parametrize("seed", range(900_000, 900_020))
def test_every_promise_is_kept(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, seed).violations == ()


@pytest.mark.parametrize("seed", range(900_000, 900_010))
def test_every_promise_holds_for_one_writer_without_conditional_writes(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, seed, conditional_writes=False, without={"ranks"}).violations == ()


def test_the_same_seed_gives_the_same_schedule(tmp_path: Path) -> None:
    first, second = (run(tmp_path, 3, trace=True) for _ in range(2))
    assert first.trace == second.trace
    assert (first.digest, first.events, first.seconds) == (second.digest, second.events, second.seconds)


def test_it_is_the_same_in_every_process() -> None:
    """This holds for any hash seed of Python."""
    program = "from asyncsync.testing.simulation import simulate; print([simulate(n).digest for n in range(5)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_other_seeds_are_other_schedules(tmp_path: Path) -> None:
    assert len({run(tmp_path, seed).digest for seed in range(4)}) == 4


def test_a_schedule_without_any_trouble_makes_checkpoints_and_reads_them(tmp_path: Path) -> None:
    found = [run(tmp_path, seed, without=set(TROUBLES) - {"readers"}) for seed in range(8)]
    assert all(outcome.ok for outcome in found)
    assert sum(outcome.counts["acknowledged"] for outcome in found) > 20
    assert sum(outcome.counts.get("read", 0) for outcome in found) > 5


def test_all_troubles_strike(tmp_path: Path) -> None:
    struck = {what for seed in range(25) for what in run(tmp_path, seed).counts}
    assert {"kill", "stop", "cancel", "partition", "rival", "acknowledged", "read"} <= struck
