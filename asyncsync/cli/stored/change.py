"""``rm``, ``cp`` and ``promote``: remove and copy whole trees, trials and experiments."""

from __future__ import annotations

import sys
from typing import Any

import click

from asyncsync import Experiment, TrialView
from asyncsync import contents as contents_of
from asyncsync import copy as copy_all
from asyncsync import remove as remove_all
from asyncsync.cli.app import DONE, FAILED, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, jsonable, summary
from asyncsync.errors import ConfigError
from asyncsync.units import counted, size_text

RM = """Remove an experiment, a trial, a checkpoint or a pushed tree from a store.

Why: the record that names it goes first, so no reader ever sees half of it, and an interrupted rm leaves only data that
the same command, or prune, removes. It shows what it would remove and asks; --yes does not ask. A run that has not
ended is refused, and so is a prefix that asyncsync did not write.

\b
Examples:
  asyncsync rm s3://bucket/experiments/sweep/trial_00003
  asyncsync rm s3://bucket/experiments/sweep/trial_00003/checkpoint_000004 --yes
  asyncsync rm s3://bucket/experiments/old --dry-run

Exit codes: 0 done, 1 failed or not confirmed, 2 usage, 130 interrupted.
"""

CP = """Copy a tree, a trial, an experiment or any prefix from any store to any store.

Why: every byte is compared with the checksum in its manifest on the way, manifests and records are written last, and an
interrupted copy resumes, also inside a large file. Within a bucket the store copies the bytes itself. The options of
the store apply to both ends; --to sets options of DST alone.

\b
Examples:
  asyncsync cp s3://bucket/experiments/sweep gs://other/sweep
  asyncsync cp s3://bucket/results ./results
  asyncsync cp ./sweep s3://bucket/sweep --to endpoint_url=http://127.0.0.1:8333

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""

PROMOTE = """Copy one checkpoint to a URL of its own, such as the place that serving reads.

Why: a promoted checkpoint is a complete tree with its own manifest, which retention never removes. It must be complete
and undamaged, and the target must be empty or an earlier copy of the same checkpoint.

\b
Examples:
  asyncsync promote s3://bucket/sweep/trial_00003/checkpoint_000004 s3://bucket/models/v7
  asyncsync promote s3://bucket/sweep/trial_00003/checkpoint_000004 gs://other/models/v7

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""


@command(help=RM)
@click.argument("url")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed; wins over --yes.")
@click.option("--force", is_flag=True, help="Also if its run seems not to have ended.")
async def rm(output: Output, settings: Settings, *, url: str, yes: bool, dry_run: bool, force: bool) -> int:
    """See RM."""
    uri = resolve_url(url)
    where: dict[str, Any] = {"storage_options": settings.storage_options, "transfer": settings.transfer, "force": force}
    report = await remove_all(uri, dry_run=True, **where)
    what = f"{report.kind} {uri} ({counted(report.objects, 'object')}, {size_text(report.bytes)})"
    if dry_run:
        output.line(f"would remove the {what}")
    elif not yes and not _confirmed(what):
        output.note("nothing was removed; --yes removes it without a question")
        return FAILED
    else:
        output.at_interrupt = lambda: f"the removal of {uri} is incomplete; run the same command again"
        report = await remove_all(uri, dry_run=False, **where)
        output.line(f"removed the {what}")
    output.document({"ok": True, **jsonable(report)})
    return DONE


def _confirmed(what: str) -> bool:
    """Ask the user; no terminal means no."""
    return sys.stdin.isatty() and click.confirm(f"Remove the {what}?", err=True)


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise ConfigError(f"invalid --to {pair!r}: must be --to KEY=VALUE")
        found[key.strip().replace("-", "_")] = value
    return found


_TO = click.option("--to", multiple=True, metavar="KEY=VALUE", help="An option of the store of DST alone. Repeatable.")


@command(help=CP)
@click.argument("source")
@click.argument("target")
@_TO
async def cp(output: Output, settings: Settings, *, source: str, target: str, to: tuple[str, ...]) -> int:
    """See CP."""
    return await _copied(output, settings, resolve_url(source), resolve_url(target), _pairs(to))


async def _copied(output: Output, settings: Settings, here: str, there: str, to: dict[str, str]) -> int:
    with output.meter("copying") as meter:
        output.at_interrupt = lambda: (
            f"{there} is not complete: copied {meter.text()}. Run the same command again to resume"
        )
        report = await copy_all(
            here,
            there,
            storage_options=settings.storage_options,
            target_options={**settings.second_options, **to},
            transfer=settings.transfer,
            on_progress=meter.update,
        )
    output.line(summary(report, verb="copied", where=f"from {here} to {there}"))
    output.document({"ok": True, "source": here, "target": there, **jsonable(report)})
    return DONE


@command(help=PROMOTE)
@click.argument("source")
@click.argument("target")
@_TO
async def promote(output: Output, settings: Settings, *, source: str, target: str, to: tuple[str, ...]) -> int:
    """See PROMOTE."""
    here = resolve_url(source)
    found = await contents_of(here, storage_options=settings.storage_options, transfer=settings.transfer)
    if isinstance(found, Experiment | TrialView | list):
        raise ConfigError(f"invalid URL {here!r}: it is not a checkpoint; asyncsync ls {here} shows what it holds")
    return await _copied(output, settings, here, resolve_url(target), _pairs(to))
