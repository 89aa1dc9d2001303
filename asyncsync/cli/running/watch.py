"""``watch``: sync a directory to a store periodically, until a signal stops it."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from asyncsync import Syncer
from asyncsync.cli.app import DONE, INTERRUPTED, command
from asyncsync.cli.options import (
    Settings,
    delete_option,
    filter_options,
    ready_rules,
    resolve_url,
    sync_config,
    timeout_option,
)
from asyncsync.cli.output import Output, describe, jsonable, summary
from asyncsync.cli.running.health import Health, serving
from asyncsync.errors import ConfigError, SyncError
from asyncsync.events import Event, SyncFinished
from asyncsync.report import SyncReport
from asyncsync.units import duration_text

POLL_SECONDS = 0.5
"""Between two looks for a directory or a file."""
LONGEST_PAUSE = 60.0
"""Maximum pause between two attempts while the store is away, seconds (or --period, if that is longer)."""

WATCH = """Sync a directory to a URL periodically until Ctrl-C.

Why: it sends the files that a training writes while the training runs, whatever program writes them. A sync that finds
no change costs no request. A failed sync is reported and retried with growing pauses; it never ends the watch. SIGINT
and SIGTERM start one last sync of at most --grace seconds, and so does --until-file; a second Ctrl-C stops at once.

With --ready, a directory is sent as one unit once its marker exists: PRESET is transformers, lightning, torch or
accelerate; otherwise PATTERN=MARKER. /healthz on --health-port fails once nothing was stored for --max-lag seconds.

\b
Examples:
  asyncsync watch results s3://bucket/results
  asyncsync watch results s3://bucket/results --period 60 --exclude '*.tmp' --delete
  asyncsync watch /ckpts s3://bucket/run --wait-for-directory --ready transformers --health-port 8080 --max-lag 600
  asyncsync watch ckpts s3://bucket/run --ready 'step-*=.metadata' --on-durable 'curl -s http://127.0.0.1/stored'

With --json it prints one JSON document per line, for each sync that sent something or failed.

Exit codes: 0 stopped and everything is durable, 2 usage, 130 the last sync failed or was interrupted.
"""


@command(help=WATCH)
@click.argument("local", type=click.Path(file_okay=False))
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
@click.option("--wait-for-directory", is_flag=True, help="Wait until the directory exists, instead of failing.")
@click.option("--ready", multiple=True, metavar="PRESET|PATTERN=MARKER", help="Send a directory once complete.")
@click.option("--until-file", metavar="FILE", help="Stop after a last sync once this file exists.")
@click.option("--on-durable", metavar="COMMAND", help="Run this in a shell after each sync that stored something.")
@click.option(
    "--health-port",
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve /healthz, and /metrics for Prometheus.",
)
@click.option(
    "--health-host",
    default="0.0.0.0",  # noqa: S104  probes come from outside the pod
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve them on.",
)
@click.option(
    "--max-lag",
    type=float,
    metavar="SECONDS",
    help="/healthz fails if nothing was stored for this long.  [default: never]",
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
    wait_for_directory: bool,
    ready: tuple[str, ...],
    until_file: str | None,
    on_durable: str | None,
    health_port: int | None,
    health_host: str,
    max_lag: float | None,
) -> int:
    """See WATCH."""
    _check(period, grace, max_lag, needed=None if wait_for_directory else local)
    selected: dict[str, Any] = {"include": include, "exclude": exclude, "delete": delete, "max_delete": max_delete}
    config = replace(sync_config(timeout=timeout, period=period, **selected), ready=ready_rules(ready))
    health, stop, stored = Health(max_lag, waiting=not os.path.isdir(local)), asyncio.Event(), asyncio.Event()
    where: dict[str, Any] = {"transfer": settings.transfer, "storage_options": settings.storage_options}
    syncer = Syncer(local, resolve_url(url), config, on_event=partial(_notice, stored), **where)
    output.at_interrupt = lambda: f"the last sync was interrupted; {syncer.progress()}"
    watcher = _Watcher(output, syncer, period, health, on_durable, stored)
    with _first_interrupt(stop):
        async with serving(health, health_host, health_port):
            if not await _directory(output, local, until_file, stop):
                return DONE
            health.begin()
            return await _watch(output, syncer, watcher, stop, until_file, grace)


async def _watch(
    output: Output, syncer: Syncer, watcher: _Watcher, stop: asyncio.Event, until_file: str | None, grace: float
) -> int:
    """Sync until ``stop``, then once more; returns the exit code."""
    try:
        async with syncer:
            output.note(
                f"watching {syncer.local_dir}: syncing to {syncer.uri} every {watcher.period:g} s; Ctrl-C syncs once "
                "more, then stops"
            )
            await watcher.run(stop, until_file)
            await _last_sync(output, watcher, grace)
    except _LastSyncError as error:
        output.error(error, INTERRUPTED)
        return INTERRUPTED
    return DONE


def _check(period: float, grace: float, max_lag: float | None, *, needed: str | None) -> None:
    """ConfigError for an invalid duration, and if the directory ``needed`` is missing."""
    if not all(0 < seconds < math.inf for seconds in (period, grace, 1.0 if max_lag is None else max_lag)):
        raise ConfigError("invalid --period, --grace or --max-lag: must be more than 0 seconds")
    if needed is not None and not os.path.isdir(needed):
        raise ConfigError(f"there is no directory {needed!r} to watch; --wait-for-directory waits for it")


def _notice(stored: asyncio.Event, event: Event) -> None:
    """Notice a sync that stored something, also one whose caller has ended."""
    if isinstance(event, SyncFinished) and (event.files_sent or event.bytes_copied):
        stored.set()


async def _poll(path: Path, stop: asyncio.Event) -> None:
    while not os.path.exists(path):  # unlike Path.exists, it raises nothing
        await asyncio.sleep(POLL_SECONDS)
    stop.set()


async def _directory(output: Output, local: str, until_file: str | None, stop: asyncio.Event) -> bool:
    """Wait until the directory exists, until ``stop``, or until ``until_file`` exists; whether the directory exists."""
    if not os.path.isdir(local):
        output.note(f"waiting for the directory {local}")
    while not (os.path.isdir(local) or stop.is_set() or (until_file is not None and os.path.exists(until_file))):
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_SECONDS)
    return os.path.isdir(local)


class _LastSyncError(SyncError):
    """The last sync failed, so not everything is durable."""


class _Watcher:
    """The sync loop with its pauses after failures."""

    def __init__(
        self,
        output: Output,
        syncer: Syncer,
        period: float,
        health: Health,
        on_durable: str | None,
        stored: asyncio.Event,
    ) -> None:
        self._output, self._syncer, self.period = output, syncer, period
        self._health, self._on_durable = health, on_durable
        self._stored = stored
        """Set by a sync that stored something, for the next run of ``--on-durable``."""
        self._failures = 0

    async def run(self, stop: asyncio.Event, until_file: str | None) -> None:
        """Sync and pause in turn, until ``stop``, or until the file exists. A sync that is running then continues; the
        last sync waits for it."""
        async with asyncio.TaskGroup() as group:
            loop = group.create_task(self._loop(), name="asyncsync watch")
            commands = group.create_task(self._run_commands(), name="asyncsync on_durable")
            poll = group.create_task(_poll(Path(until_file), stop)) if until_file is not None else None
            await stop.wait()
            for task in (loop, commands, poll):
                if task is not None:
                    task.cancel()

    async def _loop(self) -> None:
        clock = asyncio.get_running_loop()
        while True:
            started = clock.time()
            await self._sync()
            pause = self._retry_in() if self._failures else started + self.period - clock.time()
            await asyncio.sleep(max(pause, 0.0))

    async def _sync(self) -> None:
        try:
            await self.sync()
        except Exception as error:  # noqa: BLE001 (a watch survives; the error is reported)
            self._failures += 1
            self._health.count("sync_failures_total")
            self._output.failure(error, f"the sync failed, retrying in {duration_text(self._retry_in())}")
        else:
            self._failures = 0

    async def sync(self) -> None:
        """Sync once, and report it."""
        started = time.monotonic()
        report = await self._syncer.sync_up()
        self._health.succeeded(started, report)
        _print_report(self._output, report)

    def progress(self) -> str:
        """How much of the running or last sync is done, for people."""
        return self._syncer.progress()

    @property
    def uri(self) -> str:
        """Where the directory is stored."""
        return self._syncer.uri

    async def _run_commands(self) -> None:
        while True:
            await self._stored.wait()
            await self.run_command()

    async def run_command(self) -> None:
        """Run ``--on-durable`` once for all syncs that stored something since its last run. A cancel ends it."""
        if not self._stored.is_set():
            return
        self._stored.clear()
        if self._on_durable is None:
            return
        env = {**os.environ, "ASYNCSYNC_URL": self._syncer.uri, "ASYNCSYNC_LOCAL": str(self._syncer.local_dir)}
        process = await asyncio.create_subprocess_shell(
            self._on_durable, stdin=asyncio.subprocess.DEVNULL, env=env, process_group=0
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            self._stored.set()  # it did not run to its end
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the shell, and the programs that it started
            await process.wait()
            raise
        if code:
            self._health.count("on_durable_failures_total")
            self._output.failure(SyncError(f"it ended with code {code}"), f"--on-durable {self._on_durable!r} failed")

    def _retry_in(self) -> float:
        longest = max(LONGEST_PAUSE, self.period)
        return random.uniform(0.5, 1.0) * min(2.0 ** min(self._failures, 16), longest)  # noqa: S311 (jitter)


async def _last_sync(output: Output, watcher: _Watcher, grace: float) -> None:
    output.note(f"stopping after one last sync of at most {grace:g} s; press Ctrl-C again to stop at once")
    try:
        async with asyncio.timeout(grace):
            await watcher.sync()
            await watcher.run_command()
    except TimeoutError as error:
        raise _LastSyncError(f"the last sync took longer than --grace {grace:g} s: {watcher.progress()}") from error
    except Exception as error:
        raise _LastSyncError(f"the last sync failed: {describe(error)}") from error
    output.line(f"stopped; everything is durable in {watcher.uri}")


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
