"""``python -m asyncsync.testing.simulation --seeds N --from S``."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from asyncsync.testing.simulation import SimulationResult, simulate
from asyncsync.testing.simulation.plan import TROUBLES

SHOWN = 20
COLLECT = 50
"""Schedules after which a worker collects its garbage."""


def main(arguments: list[str] | None = None) -> int:
    """Run schedules; 1 if a promise was broken in one."""
    parser = argparse.ArgumentParser(prog="python -m asyncsync.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many schedules")
    parser.add_argument("--from", dest="first", type=_seed, default=0, metavar="S", help='the first seed; "new": any')
    parser.add_argument("--jobs", type=int, default=1, help="processes that run them")
    parser.add_argument("--corpus", metavar="FILE", help="run the seeds in this file, one a line, instead")
    parser.add_argument("--no-conditional-writes", action="store_true", help="on a store that cannot do them")
    parser.add_argument("--without", default="", help=f"troubles that are left out, of {', '.join(TROUBLES)}")
    parser.add_argument("--explain", action="store_true", help="say of each failure which troubles it needs")
    parser.add_argument("--trace", action="store_true", help="print every event")
    options = parser.parse_args(arguments)
    seeds = _corpus(options.corpus) if options.corpus else range(options.first, options.first + options.seeds)
    started = time.monotonic()
    without = frozenset(filter(None, options.without.split(",")))
    if unknown := without - set(TROUBLES):
        parser.error(f"--without: there is no {', '.join(sorted(unknown))}")
    plain = partial(simulate, conditional_writes=not options.no_conditional_writes)
    one = partial(plain, trace=options.trace, without=without)
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    failed: list[int] = []
    done = 0
    for outcome in _run(one, seeds, options.jobs):
        done += 1
        counts.update(outcome.counts)
        for line in outcome.trace:
            print(line)
        if not outcome.ok:
            failed.append(outcome.seed)
            kinds.update({item.kind for item in outcome.violations})
            if len(failed) <= SHOWN:
                print(f"seed {outcome.seed} ({outcome.digest}): {outcome.violations[0]}", flush=True)
                if options.explain:
                    print(f"  it needs {', '.join(needed(plain, outcome, without)) or 'nothing'}", flush=True)
    seconds = time.monotonic() - started
    where = f"{min(seeds)}-{max(seeds)}" if done else ""
    print(
        f"{done} schedules (seeds {where}) in {seconds:.0f} s, {seconds / max(done, 1) * 1000:.0f} ms each: "
        f"{len(failed)} failed"
    )
    print("  " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    for kind, count in kinds.most_common():
        print(f"  {kind}: {count}")
    if failed:
        print("failed: " + " ".join(map(str, failed[:1000])))
    return 1 if failed else 0


def _seed(text: str) -> int:
    """Whatever is drawn is printed at the end."""
    return secrets.randbelow(1 << 40) if text == "new" else int(text)


def needed(one: partial[SimulationResult], outcome: SimulationResult, without: Iterable[str] = ()) -> list[str]:
    """Troubles without which the same promise is not broken."""
    left_out = set(without)
    kind = outcome.violations[0].kind
    for trouble in TROUBLES:
        tried = one(outcome.seed, without=left_out | {trouble})
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
    outcome = one(seed)
    if seed % COLLECT == 0:
        gc.collect()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
