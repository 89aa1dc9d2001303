"""asyncsync as a library: `python drive_asyncsync.py VERB DIRECTORY PREFIX [NUMBER]`. Defaults throughout."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from pathlib import Path

import cases
from inside import Report, forget_requests

from asyncsync import RunConfig, SyncConfig, SyncEngine, Syncer, pull

BUCKET = "bench"
SCHEME = os.environ["BENCH_SCHEME"]
PACKAGES = {"s3": "s3", "gs": "gcs"}
importlib.import_module(f"asyncsync.stores.{PACKAGES[SCHEME]}.store")  # start-up, not work
CONFIG = SyncConfig(sync_artifacts=True, sync_timeout=None)


def _options() -> dict[str, object]:
    options: dict[str, object] = {"endpoint_url": os.environ["BENCH_ENDPOINT"]}
    return options | ({"verify": os.environ["BENCH_CA"]} if os.environ.get("BENCH_CA") else {})


def _syncer(source: Path, prefix: str) -> Syncer:
    return Syncer(source, f"{SCHEME}://{BUCKET}/{prefix}", CONFIG, storage_options=_options())


async def up(report: Report, source: Path, prefix: str) -> None:
    """One tree, by a Syncer that is opened for it."""
    with report.work():
        async with _syncer(source, prefix) as syncer:
            await syncer.sync_up()


async def engine(report: Report, source: Path, prefix: str) -> None:
    """An experiment: every directory is a trial with its own manifest and record."""
    with report.work():
        await _experiment(source, prefix)


async def _experiment(source: Path, prefix: str) -> None:
    run = RunConfig(
        name=source.name, storage_path=f"{SCHEME}://{BUCKET}/{prefix}", sync_config=CONFIG, storage_options=_options()
    )
    async with SyncEngine(run, local_dir=source.parent) as running:
        for trial in sorted(os.listdir(source)):
            running.trial(trial)
        await running.sync()


async def down(report: Report, target: Path, prefix: str) -> None:
    with report.work():
        await pull(f"{SCHEME}://{BUCKET}/{prefix}", target, storage_options=_options())


async def running(report: Report, source: Path, prefix: str, changed: str) -> None:
    """A sync in a process that has synced this tree before; `changed` of its files differ since then."""
    async with _syncer(source, prefix) as syncer:
        await syncer.sync_up()
        cases.change(source, int(changed))
        forget_requests()
        with report.work():
            await syncer.sync_up()


async def lag(report: Report, source: Path, prefix: str) -> None:
    """An experiment, as above, in the loop of a training loop that wants to be woken every millisecond."""
    async with report.lag():
        with report.work():
            await _experiment(source, prefix)


VERBS = {"up": up, "engine": engine, "down": down, "running": running, "lag": lag}

if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    said = Report()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(VERBS[verb](said, Path(where), *rest))
        said.write()
