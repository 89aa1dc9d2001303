"""``verify`` and ``prune``: compare a store with its manifests, and remove abandoned data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asyncsync import prune as remove_abandoned
from asyncsync import repair as repair_tree
from asyncsync import verify as verify_tree
from asyncsync.cli.app import DAMAGED, DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, jsonable
from asyncsync.errors import ConfigError
from asyncsync.report import VerifyReport
from asyncsync.units import counted, duration_text, size_text

VERIFY = """Check that a store holds every file that its manifests name.

Why: it finds a checkpoint that cannot be restored before you need it. Without --deep it compares existence, size,
version (ETag, generation) and the checksums that the store keeps, and reads only objects with another version and no
checksum. With --deep it reads every byte. A damaged object that was written again after its manifest is reported as
replaced; the same bytes under another version are not damage.

\b
Examples:
  asyncsync verify s3://bucket/experiments/sweep
  asyncsync verify s3://bucket/experiments/sweep/trial_00003/checkpoint_000004 --deep
  asyncsync verify s3://bucket/experiments/sweep --deep --repair results/sweep

With --repair, damaged and missing files are sent again from DIR if a file there matches the manifest byte for byte.
Then every byte is read back.

Exit codes: 0 everything is there, 1 the check failed, 2 usage, 3 damaged, replaced or missing files, 130 interrupted.
"""

PRUNE = """Remove abandoned data: incomplete uploads, retired checkpoints.

Why: a run that was killed leaves parts behind that cost money and that no reader can see: uploads and checkpoints that
were never completed, and data of retired checkpoints. Without --yes it only shows what it would remove. Data that is
younger than --older-than by the store's own clock stays, because a process may still be writing it.

\b
Examples:
  asyncsync prune s3://bucket/experiments/sweep
  asyncsync prune s3://bucket/experiments/sweep --yes --older-than 3600

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""


@command(help=VERIFY)
@click.argument("url")
@click.option("--deep", is_flag=True, help="Read every byte.")
@click.option(
    "--repair",
    "local",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Send damaged and missing files again from DIR.",
)
async def verify(output: Output, settings: Settings, *, url: str, deep: bool, local: Path | None) -> int:
    """See VERIFY."""
    uri = resolve_url(url)
    if local is not None and not local.is_dir():
        raise ConfigError(f"invalid --repair {local}: must be a directory that exists")
    with output.meter("checking") as meter:
        where: dict[str, Any] = {"transfer": settings.transfer, "storage_options": settings.storage_options}
        if local is None:
            output.at_interrupt = lambda: (
                f"the check of {uri} is incomplete: checked {meter.text()}; nothing was changed"
            )
            report = await verify_tree(uri, deep=deep, on_progress=meter.update, **where)
            repaired = None
        else:
            output.at_interrupt = lambda: f"the repair of {uri} is incomplete; run the same command again"
            repaired = await repair_tree(uri, local, deep=deep, on_progress=meter.update, **where)
            report = repaired.left
    _print_findings(output, report, deep=deep)
    if repaired is not None:
        output.lines([f"repaired: {path}" for path in repaired.repaired], before="")
        output.lines([f"not repaired: {path}: {why}" for path, why in sorted(repaired.failed.items())], before="")
    replaced = f" ({len(report.replaced)} replaced)" if report.replaced else ""
    output.line(
        "everything is there"
        if report.ok
        else f"{len(report.damaged)} damaged{replaced}, {len(report.missing)} missing"
    )
    more = {} if repaired is None else {"repaired": repaired.repaired, "not_repaired": repaired.failed}
    output.document({"ok": report.ok, "uri": uri, **jsonable(report), **more})
    return DONE if report.ok else DAMAGED


def _print_findings(output: Output, report: VerifyReport, *, deep: bool) -> None:
    how = "every byte read" if deep else "sizes, versions, and checksums where the store keeps them"
    output.line(
        f"checked {counted(report.files, 'file')} ({size_text(report.bytes)}) of {counted(report.trees, 'manifest')} "
        f"in {duration_text(report.seconds)}: {how}"
    )
    output.lines([f"damaged: {path}: {problem}" for path, problem in sorted(report.damaged.items())], before="")
    output.lines([f"replaced after its manifest was written: {path}" for path in report.replaced], before="")
    output.lines([f"missing: {path}" for path in report.missing], before="")
    output.lines([f"not named by any manifest (harmless): {path}" for path in report.stray], before="")


@command(help=PRUNE)
@click.argument("url")
@click.option("-y", "--yes", "--no-dry-run", "yes", is_flag=True, help="Remove the data.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed (default); wins over --yes.")
@click.option(
    "--older-than",
    type=float,
    default=86400.0,
    show_default=True,
    metavar="SECONDS",
    help="Keep data younger than this.",
)
async def prune(output: Output, settings: Settings, *, url: str, yes: bool, dry_run: bool, older_than: float) -> int:
    """See PRUNE."""
    if older_than < 0:
        raise ConfigError(f"invalid --older-than {older_than:g}: must be at least 0 seconds")
    uri, yes = resolve_url(url), yes and not dry_run
    output.at_interrupt = lambda: f"the pruning of {uri} is incomplete; run the same command again"
    report = await remove_abandoned(
        uri,
        dry_run=not yes,
        older_than=older_than,
        transfer=settings.transfer,
        storage_options=settings.storage_options,
    )
    verb = "removed" if yes else "would remove"
    output.lines([f"{verb} upload {key}" for key in report.uploads], before="")
    output.lines([f"{verb} checkpoint {path}" for path in report.checkpoints], before="")
    output.lines([f"{verb} segment of a manifest {path}" for path in report.segments], before="")
    output.line(
        f"{verb} {counted(len(report.uploads), 'open upload')} and {counted(len(report.checkpoints), 'checkpoint')} "
        f"({counted(report.objects, 'object')}, {size_text(report.bytes)})"
    )
    output.lines([f"kept, because it cannot be read: {why}" for why in report.unreadable.values()], before="")
    if not yes and (report.uploads or report.checkpoints or report.segments):
        output.line("dry run: nothing was removed; run it with --yes to remove this")
    output.document({"ok": True, "uri": uri, **jsonable(report)})
    return DONE
