"""What spans and listeners cost: CPU of a checkpoint of 2,000 small files, with and without them, in turn,
forwards and then backwards.

    python benchmarks/scale/tracing.py              # 15 rounds, a minute
    python benchmarks/scale/tracing.py --rounds 5

The store is in memory, so that nothing hides the cost. Each way is compared with "nothing" of the same round; the
median of these ratios is printed. Needs opentelemetry-sdk. "check" is what remains in the engine when nobody listens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from asyncsync import RunConfig, SyncConfig, SyncEngine, UploadMode
from asyncsync.integrations.opentelemetry import trace_engine
from asyncsync.stores.guard.metered import RequestMeter
from asyncsync.testing import reset_memory

FILES = 2_000
LIMIT = 1.02
"""The most that tracing may cost without a tracer provider, times."""

Way = Callable[[SyncEngine], contextlib.AbstractContextManager[object] | contextlib.AbstractAsyncContextManager[object]]
WAYS: dict[str, Way] = {
    "nothing": lambda _: contextlib.nullcontext(),
    "nothing, again": lambda _: contextlib.nullcontext(),
    "trace_engine without a provider": trace_engine,
    "a listener that does nothing": lambda engine: engine.on_request(lambda _: None),
    "trace_engine with the SDK": lambda engine: trace_engine(engine, TracerProvider()),
}


async def put_all(way: Way, place: Path) -> float:
    """CPU seconds of a checkpoint of small files."""
    reset_memory()
    run = RunConfig("exp", "memory://b", SyncConfig(sync_period=100_000, heartbeat=None))
    async with SyncEngine(run, local_dir=place / "local") as engine, contextlib.AsyncExitStack() as stack:
        held = way(engine)
        if isinstance(held, contextlib.AbstractAsyncContextManager):
            await stack.enter_async_context(held)
        else:
            stack.enter_context(held)
        trial = engine.trial("t")
        gc.collect()
        gc.disable()
        began = time.process_time()
        try:
            await trial.report({"loss": 1.0}, place / "files", upload=UploadMode.SYNC)
            return time.process_time() - began
        finally:
            gc.enable()


def check() -> float:
    """Seconds for the question whether anybody listens."""
    return min(timeit.repeat("if meter.listeners: pass", globals={"meter": RequestMeter()}, number=1_000_000)) / 1e6


def main() -> int:
    """Print all figures. Returns 1 if the limit is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="asyncsync-tracing-") as name:
        place = Path(name)
        os.environ["ASYNCSYNC_STATE_DIR"] = f"{place}/state"
        (place / "files").mkdir()
        for number in range(FILES):
            (place / "files" / f"{number:05d}").write_bytes(b"%d" % number * 100)
        asyncio.run(put_all(WAYS["nothing"], place))
        orders = [list(WAYS)[:: 1 if number % 2 else -1] for number in range(rounds)]
        found = [{way: asyncio.run(put_all(WAYS[way], place)) for way in order} for order in orders]
    ratios = {way: statistics.median(item[way] / item["nothing"] for item in found) for way in WAYS}
    for way, ratio in ratios.items():
        each = statistics.median(item[way] for item in found) / FILES
        print(f"{way:<34} {1e6 * each:8.1f} µs of CPU a file   {ratio:6.3f} x")
    print(f"{'check':<34} {1e6 * check():8.3f} µs a request")
    return int(ratios["trace_engine without a provider"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
