"""What a run says of itself: seconds and CPU seconds of the work alone, without the start of the interpreter and its
imports, and how late an event loop was meanwhile. Used on both sides, so it imports nothing of either."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator

TICK = 0.001
IDLE = 0.5  # seconds that the loop is watched before the work, to know what this machine does by itself


class Report:
    """Goes to the file that $BENCH_REPORT names."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self) -> None:
        with open(os.environ["BENCH_REPORT"], "w", encoding="utf-8") as file:
            json.dump(self.values, file)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """What is measured."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.values["inside_s"] = time.perf_counter() - wall
        self.values["inside_cpu_s"] = time.process_time() - cpu

    @contextlib.asynccontextmanager
    async def lag(self) -> AsyncIterator[None]:
        """How late a coroutine wakes up that sleeps a millisecond at a time, beside the block."""
        late: list[float] = []
        ran: list[float] = []
        ticking = asyncio.create_task(_tick(late, ran))
        await asyncio.sleep(IDLE)
        idle = late.copy()
        late.clear()
        ran.clear()
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
        for values in (late, ran, idle):
            values.sort()
        self.values |= {
            "lag_p50_s": _at(late, 0.5),
            "lag_p99_s": _at(late, 0.99),
            "lag_max_s": late[-1],
            "lag_idle_p99_s": _at(idle, 0.99),
            "ran_p99_s": _at(ran, 0.99),
            "ran_max_s": ran[-1],
            "ticks": len(late),
        }


async def _tick(late: list[float], ran: list[float]) -> None:
    """`ran` is how long this thread had a core meanwhile: what other processes take from it is not in it."""
    while True:
        started, had = time.perf_counter(), time.thread_time()
        await asyncio.sleep(TICK)
        late.append(time.perf_counter() - started - TICK)
        ran.append(time.thread_time() - had)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def forget_requests() -> None:
    """What was sent so far does not count: the sink starts from zero."""
    secure = ssl.create_default_context(cafile=os.environ.get("BENCH_CA"))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=secure))
    direct.open(f"{os.environ['BENCH_ENDPOINT']}/_stats", timeout=5).read()
