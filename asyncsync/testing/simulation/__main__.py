"""Command line: ``python -m asyncsync.testing.simulation --seeds N --from S``."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from asyncsync.testing.simulation import SimulationResult, simulate
from asyncsync.testing.simulation.plan import TROUBLES

SHOWN = 20
COLLECT = 50
"""A worker collects garbage after so many schedules."""


def main(arguments: list[str] | None = None) -> int:
    """Run schedules. Returns 1 if one of them broke a promise."""
    parser = _parser()
    options = parser.parse_args(arguments)
    seeds = _corpus(options.corpus) if options.corpus else range(options.first, options.first + options.seeds)
    started = time.monotonic()
    without = frozenset(filter(None, options.without.split(",")))
    if unknown := without - set(TROUBLES):
        parser.error(f"unknown --without={','.join(sorted(unknown))}: choose from {', '.join(TROUBLES)}")
    plain = partial(simulate, conditional_writes=not options.no_conditional_writes)
    summary = Summary()
    for result in _run(partial(plain, trace=options.trace, without=without), seeds, options.jobs):
        summary.add(result)
        if not result.ok and len(summary.failed) <= SHOWN:
            print(f"seed {result.seed} ({result.digest}): {result.violations[0]}", flush=True)
            if options.explain:
                print(f"  it needs {', '.join(needed(plain, result, without)) or 'nothing'}", flush=True)
    summary.print(seeds, time.monotonic() - started)
    return 1 if summary.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asyncsync.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="number of schedules")
    parser.add_argument(
        "--from", dest="first", type=_seed, default=0, metavar="S", help='first seed; "new": a random one'
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--corpus", metavar="FILE", help="run the seeds in this file instead, one per line")
    parser.add_argument("--no-conditional-writes", action="store_true", help="on a store without them")
    parser.add_argument(
        "--without", default="", help=f"troubles to leave out, comma-separated, of {', '.join(TROUBLES)}"
    )
    parser.add_argument("--explain", action="store_true", help="for each failure, list the troubles that it needs")
    parser.add_argument("--trace", action="store_true", help="print every event")
    return parser


class Summary:
    """The results of many schedules."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """Schedules per kind of violation."""
        self.counts: Counter[str] = Counter()
        """Events of all schedules."""
        self.failed: list[int] = []
        """Seeds of schedules that broke a promise."""
        self.done = 0

    def add(self, result: SimulationResult) -> None:
        """Count one result, and print its trace."""
        self.done += 1
        self.counts.update(result.counts)
        for line in result.trace:
            print(line)
        if not result.ok:
            self.failed.append(result.seed)
            self.kinds.update({item.kind for item in result.violations})

    def print(self, seeds: Sequence[int], seconds: float) -> None:
        """Print figures, kinds of violations, and failed seeds."""
        where = f"{min(seeds)}-{max(seeds)}" if self.done else ""
        print(
            f"{self.done} schedules (seeds {where}) in {seconds:.0f} s, "
            f"{seconds / max(self.done, 1) * 1000:.0f} ms each: {len(self.failed)} failed"
        )
        print("  " + ", ".join(f"{count} {event}" for event, count in sorted(self.counts.items())))
        for kind, count in self.kinds.most_common():
            print(f"  {kind}: {count}")
        if self.failed:
            print("failed: " + " ".join(map(str, self.failed[:1000])))


def _seed(text: str) -> int:
    """The seed; "new" draws one, which is printed at the end."""
    return secrets.randbelow(1 << 40) if text == "new" else int(text)


def needed(one: partial[SimulationResult], result: SimulationResult, without: Iterable[str] = ()) -> list[str]:
    """The troubles that the violation needs: without the others the same promise is still broken."""
    left_out = set(without)
    kind = result.violations[0].kind
    for trouble in TROUBLES:
        tried = one(result.seed, without=left_out | {trouble})
        if any(item.kind == kind for item in tried.violations):
            left_out.add(trouble)
    return [trouble for trouble in TROUBLES if trouble not in left_out]


def _corpus(path: str) -> list[int]:
    with open(path, encoding="utf-8") as file:
        return [int(line.split("#")[0]) for line in file if line.split("#")[0].strip()]


def _run(one: partial[SimulationResult], seeds: Iterable[int], jobs: int) -> Iterator[SimulationResult]:
    if jobs == 1:
        yield from map(partial(_one, one), seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs, _begin, maxtasksperchild=2000) as pool:
        yield from pool.imap(partial(_one, one), seeds, chunksize=10)


def _begin() -> None:
    gc.freeze()


def _one(one: partial[SimulationResult], seed: int) -> SimulationResult:
    result = one(seed)
    if seed % COLLECT == 0:
        gc.collect()
    return result


if __name__ == "__main__":
    sys.exit(main())
