"""``push`` and ``pull``: send a directory to a store, and fetch it back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from asyncsync import Syncer, plan_pull
from asyncsync import pull as fetch
from asyncsync.cli.app import DONE, FAILED, command
from asyncsync.cli.options import (
    Settings,
    delete_option,
    filter_options,
    resolve_url,
    sync_config,
    timeout_option,
)
from asyncsync.cli.output import Output, jsonable, summary
from asyncsync.config import SyncConfig
from asyncsync.errors import ConfigError, SyncTimeoutError
from asyncsync.events import Event, Progress
from asyncsync.units import counted, size_text

PUSH = """Send the new and changed files of a directory, or one file.

Why: large files are sent in parts, several in parallel, and the store verifies the checksum of each part. The manifest
is written last, so a prefix with a current manifest is complete. After an interrupt or --timeout, the same command
resumes where it stopped, also inside a file.

\b
Examples:
  asyncsync push results s3://bucket/results
  asyncsync push model.pt s3://bucket/models/model.pt
  asyncsync push results s3://bucket/results --dry-run
  asyncsync push results s3://bucket/results --check-store
  asyncsync push results ./backup --exclude '*.tmp' --exclude cache/

Exit codes: 0 done, 1 failed, 2 usage, 4 --timeout, 130 interrupted.
"""

PULL = """Fetch a URL into a directory: verified, never half a file.

Why: every byte is verified against the manifest before a file gets its name, and files that are already correct are not
transferred again. URL may also be a directory or one file of what was pushed. Other files in the directory stay. With
--exact they are removed once everything is in place; --exact refuses a home directory and any directory that asyncsync
syncs.

\b
Examples:
  asyncsync pull s3://bucket/results results
  asyncsync pull s3://bucket/sweep/trial_00003/checkpoint_000004 model --exact
  asyncsync pull s3://bucket/sweep/trial_00003/checkpoint_000004/model.bin .
  asyncsync pull s3://bucket/sweep best --include 'checkpoint_*/model*'
  asyncsync pull s3://bucket/results results --exact --dry-run

Exit codes: 0 done, 1 failed, 2 usage, 4 --timeout, 130 interrupted.
"""


@command(help=PUSH)
@click.argument("local", type=click.Path(exists=True))
@click.argument("url")
@filter_options("Send")
@delete_option
@click.option("--checksum", is_flag=True, help="Read every file instead of comparing size and time.")
@click.option("--check-store", is_flag=True, help="Look whether the store still has every file; send what it lost.")
@click.option("--skip-bad-names", is_flag=True, help="Succeed without files whose names no store can hold.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be sent, but send nothing.")
@timeout_option(None)
async def push(
    output: Output,
    settings: Settings,
    *,
    local: str,
    url: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    delete: bool,
    max_delete: int | None,
    checksum: bool,
    check_store: bool,
    skip_bad_names: bool,
    dry_run: bool,
    timeout: float | None,
) -> int:
    """See PUSH."""
    uri = _prefix_for(local, resolve_url(url))
    config = sync_config(timeout=timeout, include=include, exclude=exclude, delete=delete, max_delete=max_delete)
    if dry_run:
        return await _plan(output, _syncer(settings, local, uri, config, checksum=checksum))
    with output.meter("sending") as meter:
        checks = {"checksum": checksum, "check_store": check_store}
        syncer = _syncer(settings, local, uri, config, **checks, on_progress=meter.update)
        output.at_interrupt = lambda: (
            f"{uri} is not complete: sent {meter.text()}. Run the same command again to resume"
        )
        async with syncer:
            report = await syncer.sync_up()
    output.warnings(report)
    output.line(summary(report, verb="sent", where=f"to {uri}"))
    ok = skip_bad_names or not report.files_left_out
    if not ok:
        output.note(
            f"error: {counted(report.files_left_out, 'file')} of {local} cannot be stored because of the name. Rename "
            "what the warnings name, or accept it with --skip-bad-names; the other files are stored"
        )
    output.document({"ok": ok, "uri": uri, **jsonable(report)})
    return DONE if ok else FAILED


def _prefix_for(local: str, uri: str) -> str:
    """The prefix to sync to. A file may be given with its whole address: then the prefix is the part above its name."""
    above, _, name = uri.rstrip("/").rpartition("/")
    whole = os.path.isfile(local) and name == os.path.basename(local) and bool(above) and not above.endswith("/")
    return above if whole else uri


def _syncer(
    settings: Settings,
    local: str,
    uri: str,
    config: SyncConfig,
    *,
    checksum: bool = False,
    check_store: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Syncer:
    def forward(event: Event) -> None:
        if on_progress is not None and isinstance(event, Progress):
            on_progress(event)

    return Syncer(
        local,
        uri,
        config,
        transfer=settings.transfer,
        storage_options=settings.storage_options,
        checksum=checksum,
        check_store=check_store,
        on_event=forward,
    )


async def _plan(output: Output, syncer: Syncer) -> int:
    async with syncer:
        plan = await syncer.plan()
    rows: list[tuple[str, ...]] = []
    for item in plan.todo:
        sent, copied = size_text(item.bytes_sent), size_text(item.bytes_copied)
        rows.append((item.action, size_text(item.size), item.path, sent, copied, f"{item.requests:,}"))
    rows += [("delete", "-", path, "-", "-", "-") for path in plan.delete]
    if rows:
        output.table(("action", "size", "path", "sent", "copied", "requests"), rows)
    for warning in plan.warnings:
        output.note(f"warning: {warning}")
    skipped = plan.files_skipped + len(plan.files) - len(plan.todo)
    output.line(
        f"dry run: {size_text(plan.bytes_sent)} of {size_text(plan.bytes_total)} would be sent to {syncer.uri} and "
        f"{size_text(plan.bytes_copied)} copied inside the store, in {counted(plan.requests, 'request')}; "
        f"{counted(len(plan.todo), 'file')} changed, {len(plan.delete):,} deleted, {skipped:,} unchanged"
    )
    document = {
        "ok": True,
        "dry_run": True,
        "uri": syncer.uri,
        "bytes_total": plan.bytes_total,
        "bytes_sent": plan.bytes_sent,
        "bytes_copied": plan.bytes_copied,
        "requests": plan.requests,
        "files_skipped": skipped,
        "send": plan.todo,
        "delete": plan.delete,
        "warnings": plan.warnings,
    }
    output.document(document)
    return DONE


@command(help=PULL)
@click.argument("url")
@click.argument("local", type=click.Path(path_type=Path))
@filter_options("Fetch")
@click.option("--exact", is_flag=True, help="Remove everything else from LOCAL: files, links, empty directories.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be fetched and removed, but change nothing.")
@timeout_option(None)
async def pull(
    output: Output,
    settings: Settings,
    *,
    url: str,
    local: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    exact: bool,
    dry_run: bool,
    timeout: float | None,
) -> int:
    """See PULL."""
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"invalid --timeout {timeout:g}: must be more than 0 seconds")
    uri = resolve_url(url)
    where = {"transfer": settings.transfer, "storage_options": settings.storage_options}
    chosen: dict[str, Any] = {"exact": exact, "include": include or None, "exclude": exclude or None, **where}
    if dry_run:
        return await _plan_pull(output, uri, local, chosen)
    with output.meter("fetching") as meter:
        output.at_interrupt = lambda: (
            f"{local} is not complete: fetched {meter.text()}. Run the same command again to resume"
        )
        try:
            async with asyncio.timeout(timeout) as limit:
                report = await fetch(uri, local, on_progress=meter.update, **chosen)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SyncTimeoutError(
                f"fetching {uri} into {local} took longer than --timeout {timeout:g} s: fetched {meter.text()}. "
                "Run the same command again to resume"
            ) from error
    output.warnings(report)
    output.line(summary(report, verb="fetched", where=f"from {uri} to {local}"))
    output.document({"ok": True, "uri": uri, "local": str(local), **jsonable(report)})
    return DONE


async def _plan_pull(output: Output, uri: str, local: Path, chosen: Mapping[str, Any]) -> int:
    """``chosen``: the options of the pull."""
    plan = await plan_pull(uri, local, **chosen)
    rows = [("fetch", size_text(size), path) for path, size in plan.fetch.items()]
    output.table(("action", "size", "path"), [*rows, *(("remove", "-", path) for path in plan.remove)])
    output.line(
        f"dry run: {counted(len(plan.fetch), 'file')} ({size_text(plan.bytes_sent)}) would be fetched from {uri} to "
        f"{local}, {len(plan.remove):,} removed; {plan.files_skipped:,} unchanged"
    )
    output.document(
        {"ok": True, "dry_run": True, "uri": uri, "local": str(local), "bytes": plan.bytes_sent, **jsonable(plan)}
    )
    return DONE
