"""``push`` and ``pull``: a directory to the store, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click

from asyncsync.cli.app import DONE, command
from asyncsync.cli.options import (
    Settings,
    delete_option,
    filter_options,
    resolve_url,
    sync_config,
    timeout_option,
)
from asyncsync.cli.output import Output, count, human_bytes, jsonable, summary
from asyncsync.config import SyncConfig
from asyncsync.errors import ConfigError, SyncTimeoutError
from asyncsync.events import Event, Progress
from asyncsync.remote.pull import pull as fetch
from asyncsync.sync.syncer import Syncer

PUSH = """Send a directory, or one file, to the store: what is new or changed, and nothing else.

Why: large files go up in parts, several at once, and each part's checksum is checked by the store. A manifest is
written last, so the prefix is complete or says that it is not. If the command is interrupted, or --timeout ends it, the
same command later goes on where it stopped, inside the file.

\b
Examples:
  asyncsync push results s3://bucket/results
  asyncsync push model.pt s3://bucket/models --dry-run
  asyncsync push results ./backup --exclude '*.tmp' --exclude cache/

Exit codes: 0 done, 1 something failed, 2 usage, 4 --timeout, 130 interrupted.
"""

PULL = """Fetch what a URL holds into a directory: verified, resumable, never half a file.

Why: every byte is checked against the manifest before a file takes its name, and files that are there and right
already are left alone. Files of the directory that the store does not have are not touched, unless --exact: then they
are removed when everything else is in place. It refuses a home directory, and whatever asyncsync keeps in step.

\b
Examples:
  asyncsync pull s3://bucket/results results
  asyncsync pull s3://bucket/sweep/trial_00003/checkpoint_000004 model --exact

Exit codes: 0 done, 1 something failed, 2 usage, 4 --timeout, 130 interrupted.
"""


@command(help=PUSH)
@click.argument("local", type=click.Path(exists=True))
@click.argument("url")
@filter_options
@delete_option
@click.option("--checksum", is_flag=True, help="Read every file instead of trusting size and time.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@timeout_option(None)
async def push(
    output: Output, settings: Settings, *, local: str, url: str, include: tuple[str, ...], exclude: tuple[str, ...],
    delete: bool, checksum: bool, dry_run: bool, timeout: float | None,
) -> int:  # fmt: skip
    """See PUSH."""
    uri = resolve_url(url)
    config = sync_config(timeout=timeout, include=include, exclude=exclude, delete=delete)
    if dry_run:
        return await _plan(output, _syncer(settings, local, uri, config, checksum=checksum))
    with output.meter("sending") as meter:
        syncer = _syncer(settings, local, uri, config, checksum=checksum, on_progress=meter.update)
        output.at_interrupt = lambda: (
            f"{uri} is not complete: {meter.text()} were sent. Run the same command again to go on from there"
        )
        async with syncer:
            report = await syncer.sync_up()
    output.warnings(report)
    output.line(summary(report, verb="sent", where=f"to {uri}"))
    output.document({"ok": True, "uri": uri, **jsonable(report)})
    return DONE


def _syncer(
    settings: Settings, local: str, uri: str, config: SyncConfig, *, checksum: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Syncer:  # fmt: skip
    def tell(event: Event) -> None:
        if on_progress is not None and isinstance(event, Progress):
            on_progress(event)

    return Syncer(
        local, uri, config, transfer=settings.transfer, storage_options=settings.storage_options, checksum=checksum,
        on_event=tell,
    )  # fmt: skip


async def _plan(output: Output, syncer: Syncer) -> int:
    async with syncer:
        plan = await syncer.plan()
    output.table(
        ("action", "size", "path", "sent", "copied", "requests"),
        [
            *((item.action, human_bytes(item.size), item.path, human_bytes(item.bytes_sent),
               human_bytes(item.bytes_copied), f"{item.requests:,}") for item in plan.todo),
            *(("delete", "-", path, "-", "-", "-") for path in plan.gone),
        ],
    )  # fmt: skip
    for warning in plan.warnings:
        output.note(f"warning: {warning}")
    skipped = plan.files_skipped + len(plan.files) - len(plan.todo)
    output.line(
        f"dry run: {human_bytes(plan.bytes_sent)} of {human_bytes(plan.bytes_total)} would be sent to {syncer.uri} and "
        f"{human_bytes(plan.bytes_copied)} copied inside the store, in {count(plan.requests, 'request')}; "
        f"{count(len(plan.todo), 'file')} changed, {len(plan.gone):,} deleted, {skipped:,} unchanged"
    )
    output.document(
        {
            "ok": True, "dry_run": True, "uri": syncer.uri, "bytes_total": plan.bytes_total,
            "bytes_sent": plan.bytes_sent, "bytes_copied": plan.bytes_copied, "requests": plan.requests,
            "files_skipped": skipped, "send": plan.todo, "delete": plan.gone, "warnings": plan.warnings,
        }
    )  # fmt: skip
    return DONE


@command(help=PULL)
@click.argument("url")
@click.argument("local", type=click.Path(path_type=Path))
@click.option("--exact", is_flag=True, help="Remove what else is in LOCAL: files, links, empty directories.")
@timeout_option(None)
async def pull(output: Output, settings: Settings, *, url: str, local: Path, exact: bool, timeout: float | None) -> int:
    """See PULL."""
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"--timeout {timeout:g} is not usable: it must be more than 0 seconds")
    uri = resolve_url(url)
    with output.meter("fetching") as meter:
        output.at_interrupt = lambda: (
            f"{local} is not complete: {meter.text()} were fetched. Run the same command again to go on from there"
        )
        try:
            async with asyncio.timeout(timeout) as limit:
                report = await fetch(
                    uri, local, transfer=settings.transfer, storage_options=settings.storage_options,
                    on_progress=meter.update, exact=exact,
                )  # fmt: skip
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SyncTimeoutError(f"{uri} -> {local}: not done after {timeout:g} s; {meter.text()}") from error
    output.warnings(report)
    output.line(summary(report, verb="fetched", where=f"from {uri} to {local}"))
    output.document({"ok": True, "uri": uri, "local": str(local), **jsonable(report)})
    return DONE
