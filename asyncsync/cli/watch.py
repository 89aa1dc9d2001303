"""``watch``: sync a directory to a store periodically, until a signal stops it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from asyncsync import Syncer
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

LONGEST_PAUSE = 60.0
"""Maximum pause between two attempts while the store is away, seconds (or --period, if that is longer)."""

WATCH = """Sync a directory to a URL periodically until Ctrl-C.

Why: it sends the files that a training writes while the training runs, whatever program writes them. A sync that finds
no change costs no request. A failed sync is reported and retried with growing pauses; it never ends the watch. SIGINT
and SIGTERM start one last sync of at most --grace seconds; a second Ctrl-C stops at once.

\b
Examples:
  asyncsync watch results s3://bucket/results
  asyncsync watch results s3://bucket/results --period 60 --exclude '*.tmp' --delete

With --json it prints one JSON document per line, for each sync that sent something or failed.

Exit codes: 0 stopped and everything is durable, 2 usage, 130 the last sync failed or was interrupted.
"""


@command(help=WATCH)
@click.argument("local", type=click.Path(exists=True, file_okay=False))
@click.argument("url")
@filter_options("Send")
@delete_option
@click.option(
    "--period",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two syncs, start to start.",
)
@click.option(
    "--grace", type=float, default=30.0, show_default=True, metavar="SECONDS", help="Maximum duration of the last sync."
)
@timeout_option(1800.0)
async def watch(
    output: Output,
    settings: Settings,
    *,
    local: str,
    url: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    delete: bool,
    max_delete: int | None,
    period: float,
    grace: float,
    timeout: float | None,
) -> int:
    """See WATCH."""
    if period <= 0 or grace <= 0:
        raise ConfigError("invalid --period or --grace: both must be more than 0 seconds")
    uri = resolve_url(url)
    config = sync_config(
        timeout=timeout, include=include, exclude=exclude, delete=delete, max_delete=max_delete, period=period
    )
    syncer = Syncer(local, uri, config, transfer=settings.transfer, storage_options=settings.storage_options)
    output.at_interrupt = lambda: f"the last sync was interrupted; {syncer.progress()}"
    stop = asyncio.Event()
    try:
        with _first_interrupt(stop):
            async with syncer:
                output.note(f"watching {local}: syncing to {uri} every {period:g} s; Ctrl-C syncs once more and stops")
                await _Watcher(output, syncer, period).run(stop)
                await _last_sync(output, syncer, grace)
    except _LastSyncError as error:
        output.error(error, INTERRUPTED)
        return INTERRUPTED
    return DONE


class _LastSyncError(SyncError):
    """The last sync failed, so not everything is durable."""


class _Watcher:
    """The sync loop with its pauses after failures."""

    def __init__(self, output: Output, syncer: Syncer, period: float) -> None:
        self._output, self._syncer, self._period = output, syncer, period
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sync and pause in turn, until ``stop``. A sync that is running then continues; the last sync waits for it."""
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
        except Exception as error:  # noqa: BLE001 (a watch survives; the error is reported)
            self._failures += 1
            self._output.failure(error, f"the sync failed, retrying in {human_seconds(self._retry_in())}")
        else:
            self._failures = 0
            _print_report(self._output, report)

    def _retry_in(self) -> float:
        longest = max(LONGEST_PAUSE, self._period)
        return random.uniform(0.5, 1.0) * min(2.0 ** min(self._failures, 16), longest)  # noqa: S311 (jitter)


async def _last_sync(output: Output, syncer: Syncer, grace: float) -> None:
    output.note(f"stopping after one last sync of at most {grace:g} s; press Ctrl-C again to stop at once")
    try:
        async with asyncio.timeout(grace):
            report = await syncer.sync_up()
    except TimeoutError as error:
        raise _LastSyncError(f"the last sync took longer than --grace {grace:g} s: {syncer.progress()}") from error
    except Exception as error:
        raise _LastSyncError(f"the last sync failed: {describe(error)}") from error
    _print_report(output, report)
    output.line(f"stopped; everything is durable in {syncer.uri}")


def _print_report(output: Output, report: SyncReport) -> None:
    """Print one line for a sync that changed something."""
    output.warnings(report)
    if not (report.files_sent or report.files_copied or report.files_deleted):
        return
    output.line(f"{time.strftime('%H:%M:%S')} {summary(report, verb='sent', where='to the store')}")
    output.document({"ok": True, "time": time.time(), **jsonable(report)})


@contextmanager
def _first_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Make the first Ctrl-C set ``stop``, and the next one interrupt as usual. The command turns SIGTERM into
    Ctrl-C."""
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
