"""``watch``: keep a directory in step with the store until it is told to stop."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from asyncsync.cli.app import DONE, INTERRUPTED, command
from asyncsync.cli.options import (
    Settings,
    delete_option,
    filter_options,
    resolve_url,
    sync_config,
    timeout_option,
)
from asyncsync.cli.output import Output, describe, human_seconds, jsonable, summary
from asyncsync.errors import ConfigError, SyncError
from asyncsync.report import SyncReport
from asyncsync.sync.syncer import Syncer

LONGEST_PAUSE = 60.0
"""Seconds between two tries while the store is gone, at most (or --period, if that is longer)."""

WATCH = """Keep a directory in step with a URL until Ctrl-C, then sync once more.

Why: training writes files, this sends them while it runs, whatever wrote them. A sync that finds nothing changed costs
no request. A failure is printed and tried again with growing pauses; it never ends the watch. SIGINT and SIGTERM both
sync once more, for at most --grace seconds; a second Ctrl-C stops at once.

\b
Examples:
  asyncsync watch results s3://bucket/results
  asyncsync watch results s3://bucket/results --period 60 --exclude '*.tmp' --delete

With --json there is one JSON document a line, one for each sync that sent something or failed.

Exit codes: 0 stopped and everything is durable, 2 usage, 130 the last sync failed or was interrupted.
"""


@command(help=WATCH)
@click.argument("local", type=click.Path(exists=True, file_okay=False))
@click.argument("url")
@filter_options
@delete_option
@click.option("--period", type=float, default=10.0, show_default=True, metavar="SECONDS", help="From sync to sync.")
@click.option("--grace", type=float, default=30.0, show_default=True, metavar="SECONDS", help="For the last sync.")
@timeout_option(1800.0)
async def watch(
    output: Output, settings: Settings, *, local: str, url: str, include: tuple[str, ...], exclude: tuple[str, ...],
    delete: bool, period: float, grace: float, timeout: float | None,
) -> int:  # fmt: skip
    """See WATCH."""
    if period <= 0 or grace <= 0:
        raise ConfigError("--period and --grace must be more than 0 seconds")
    uri = resolve_url(url)
    config = sync_config(timeout=timeout, include=include, exclude=exclude, delete=delete, period=period)
    syncer = Syncer(local, uri, config, transfer=settings.transfer, storage_options=settings.storage_options)
    output.at_interrupt = lambda: f"the last sync was cut short; {syncer.progress()}"
    stop = asyncio.Event()
    try:
        with _first_interrupt(stop):
            async with syncer:
                output.note(f"watching {local}: to {uri} every {period:g} s; Ctrl-C syncs once more and stops")
                await _Watcher(output, syncer, period).run(stop)
                await _last_sync(output, syncer, grace)
    except _LastSyncError as error:
        output.error(error, INTERRUPTED)
        return INTERRUPTED
    return DONE


class _LastSyncError(SyncError):
    """Not everything is durable at the end."""


class _Watcher:
    """The loop, and the pause after failures."""

    def __init__(self, output: Output, syncer: Syncer, period: float) -> None:
        self._output, self._syncer, self._period = output, syncer, period
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sync, pause, and again, until ``stop``. A sync that runs then goes on; the last one waits for it."""
        async with asyncio.TaskGroup() as group:
            loop = group.create_task(self._loop(), name="asyncsync watch")
            await stop.wait()
            loop.cancel()

    async def _loop(self) -> None:
        clock = asyncio.get_running_loop()
        while True:
            started = clock.time()
            await self._sync()
            pause = self._retry_in() if self._failures else started + self._period - clock.time()
            await asyncio.sleep(max(pause, 0.0))

    async def _sync(self) -> None:
        try:
            report = await self._syncer.sync_up()
        except Exception as error:  # noqa: BLE001 (a watch survives; the error is told)
            self._failures += 1
            self._output.failure(error, f"failed, trying again in {human_seconds(self._retry_in())}")
        else:
            self._failures = 0
            _tell(self._output, report)

    def _retry_in(self) -> float:
        longest = max(LONGEST_PAUSE, self._period)
        return random.uniform(0.5, 1.0) * min(2.0 ** min(self._failures, 16), longest)  # noqa: S311 (jitter)


async def _last_sync(output: Output, syncer: Syncer, grace: float) -> None:
    output.note(f"stopping: one last sync, for at most {grace:g} s; Ctrl-C again stops at once")
    try:
        async with asyncio.timeout(grace):
            report = await syncer.sync_up()
    except TimeoutError as error:
        raise _LastSyncError(f"the last sync was not done after {grace:g} s: {syncer.progress()}") from error
    except Exception as error:
        raise _LastSyncError(f"the last sync failed: {describe(error)}") from error
    _tell(output, report)
    output.line(f"stopped; {syncer.uri} holds everything")


def _tell(output: Output, report: SyncReport) -> None:
    """One line for a sync that did something."""
    output.warnings(report)
    if not (report.files_sent or report.files_copied or report.files_deleted):
        return
    output.line(f"{time.strftime('%H:%M:%S')} {summary(report, verb='sent', where='to the store')}")
    output.document({"ok": True, "time": time.time(), **jsonable(report)})


@contextmanager
def _first_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, which the command turns into one) sets ``stop``; the next interrupts as usual."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
