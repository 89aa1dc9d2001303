"""``verify`` and ``prune``: is everything there, and what can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asyncsync.cli.app import DAMAGED, DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, count, human_bytes, human_seconds, jsonable
from asyncsync.errors import ConfigError
from asyncsync.remote.prune import prune as remove
from asyncsync.remote.repair import repair as mend
from asyncsync.remote.verify import verify as check
from asyncsync.report import VerifyReport

VERIFY = """Check that the store holds what the manifests below a URL name.

Why: a checkpoint that cannot be restored is worth nothing, and this finds out before it is needed. Without --deep it
compares existence, size, version (ETag, generation) and the checksums that the store itself keeps, and reads only what
has another version and no checksum; with --deep it reads every byte. Of what is damaged it
says what was written anew since its manifest: the same bytes under another version are no damage.

\b
Examples:
  asyncsync verify s3://bucket/experiments/sweep
  asyncsync verify s3://bucket/experiments/sweep/trial_00003/checkpoint_000004 --deep
  asyncsync verify s3://bucket/experiments/sweep --deep --repair results/sweep

With --repair what is damaged or missing is sent again from DIR, where a file there is still what the manifest says; it
is then read back, every byte.

Exit codes: 0 all there (again), 1 it could not be checked, 2 usage, 3 something is damaged, replaced or missing,
130 interrupted.
"""

PRUNE = """Remove what no reader can see: uploads and checkpoints never completed, data of retired checkpoints.

Why: a run that was killed leaves parts behind which cost money. Without --yes nothing is removed: it shows what would
be. What is younger than --older-than, by the store's own clock, is left alone, because somebody may be writing it.

\b
Examples:
  asyncsync prune s3://bucket/experiments/sweep
  asyncsync prune s3://bucket/experiments/sweep --yes --older-than 3600

Exit codes: 0 done, 1 something failed, 2 usage, 130 interrupted.
"""


@command(help=VERIFY)
@click.argument("url")
@click.option("--deep", is_flag=True, help="Read every byte.")
@click.option(
    "--repair", "local", type=click.Path(path_type=Path), metavar="DIR",
    help="Send again what DIR still has.",
)  # fmt: skip
async def verify(output: Output, settings: Settings, *, url: str, deep: bool, local: Path | None) -> int:
    """See VERIFY."""
    uri = resolve_url(url)
    if local is not None and not local.is_dir():
        raise ConfigError(f"--repair {local} is not usable: there is no such directory")
    with output.meter("checking") as meter:
        where: dict[str, Any] = {"transfer": settings.transfer, "storage_options": settings.storage_options}
        if local is None:
            output.at_interrupt = lambda: f"{uri} was not checked to the end: {meter.text()}; nothing was changed"
            report = await check(uri, deep=deep, on_progress=meter.update, **where)
            fixed = None
        else:
            output.at_interrupt = lambda: f"{uri} was not repaired to the end; run the same command again"
            fixed = await mend(uri, local, deep=deep, on_progress=meter.update, **where)
            report = fixed.left
    _tell(output, report, deep=deep)
    if fixed is not None:
        output.lines([f"repaired: {path}" for path in fixed.repaired], before="")
        output.lines([f"not repaired: {path}: {why}" for path, why in sorted(fixed.failed.items())], before="")
    replaced = f" ({len(report.replaced)} replaced)" if report.replaced else ""
    output.line("all there" if report.ok else f"{len(report.damaged)} damaged{replaced}, {len(report.missing)} missing")
    more = {} if fixed is None else {"repaired": fixed.repaired, "not_repaired": fixed.failed}
    output.document({"ok": report.ok, "uri": uri, **jsonable(report), **more})
    return DONE if report.ok else DAMAGED


def _tell(output: Output, report: VerifyReport, *, deep: bool) -> None:
    how = "every byte read" if deep else "sizes, versions, and checksums where the store tells them"
    output.line(
        f"checked {count(report.files, 'file')} ({human_bytes(report.bytes)}) of {count(report.trees, 'manifest')} "
        f"in {human_seconds(report.seconds)}: {how}"
    )
    output.lines([f"damaged: {path}: {problem}" for path, problem in sorted(report.damaged.items())], before="")
    output.lines([f"replaced since its manifest was written: {path}" for path in report.replaced], before="")
    output.lines([f"missing: {path}" for path in report.missing], before="")
    output.lines([f"not named by any manifest (harmless): {path}" for path in report.stray], before="")


@command(help=PRUNE)
@click.argument("url")
@click.option("-y", "--yes", "--no-dry-run", "yes", is_flag=True, help="Remove it.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed: the default; wins over --yes.")
@click.option(
    "--older-than", type=float, default=86400.0, show_default=True, metavar="SECONDS",
    help="Leave younger things alone.",
)  # fmt: skip
async def prune(output: Output, settings: Settings, *, url: str, yes: bool, dry_run: bool, older_than: float) -> int:
    """See PRUNE."""
    if older_than < 0:
        raise ConfigError(f"--older-than {older_than:g} is not usable: it must be at least 0 seconds")
    uri, yes = resolve_url(url), yes and not dry_run
    output.at_interrupt = lambda: f"{uri} was not pruned to the end; run the same command again"
    report = await remove(
        uri, dry_run=not yes, older_than=older_than, transfer=settings.transfer,
        storage_options=settings.storage_options,
    )  # fmt: skip
    verb = "removed" if yes else "would remove"
    output.lines([f"{verb} upload {key}" for key in report.uploads], before="")
    output.lines([f"{verb} checkpoint {path}" for path in report.checkpoints], before="")
    output.line(
        f"{verb} {count(len(report.uploads), 'open upload')} and {count(len(report.checkpoints), 'checkpoint')} "
        f"({count(report.objects, 'object')}, {human_bytes(report.bytes)})"
    )
    output.lines([f"left alone: {why}" for why in report.unreadable.values()], before="")
    if not yes and (report.uploads or report.checkpoints):
        output.line("dry run: nothing was removed; --yes removes it")
    output.document({"ok": True, "uri": uri, **jsonable(report)})
    return DONE
