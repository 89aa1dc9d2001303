"""``pin``, ``unpin`` and ``tag``: keep a checkpoint, and give it a name."""

from __future__ import annotations

from typing import Any

import click

from asyncsync import CheckpointView
from asyncsync import pin as pin_checkpoint
from asyncsync import tag as tag_checkpoint
from asyncsync import unpin as unpin_checkpoint
from asyncsync.cli.app import DONE, command
from asyncsync.cli.ls import shown_marks
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output, jsonable

PIN = """Keep a checkpoint whatever retention says, also while its trial runs.

Why: num_to_keep would delete a checkpoint that you still need. A running engine, on any machine, takes the pin over
with its next write, and retires nothing that was pinned before.

\b
Examples:
  asyncsync pin s3://bucket/experiments/sweep/trial_00003/checkpoint_000004

Exit codes: 0 done, 1 there is no such checkpoint or it cannot be changed, 2 usage.
"""

UNPIN = """Leave a pinned checkpoint to retention again.

Why: it is retired with the next checkpoint of its trial at the earliest, if num_to_keep and its score say so. A tagged
checkpoint is kept until its tags are removed, too.

\b
Examples:
  asyncsync unpin s3://bucket/experiments/sweep/trial_00003/checkpoint_000004

Exit codes: 0 done, 1 there is no such checkpoint or it cannot be changed, 2 usage.
"""

TAG = """Give a checkpoint a name; a tagged checkpoint is kept.

Why: a name says what a checkpoint is for, such as production. It belongs to one checkpoint of a trial: given to
another one it moves. ls shows it, and ls --checkpoints --where tags~production finds it.

\b
Examples:
  asyncsync tag s3://bucket/experiments/sweep/trial_00003/checkpoint_000004 production
  asyncsync tag s3://bucket/experiments/sweep/trial_00003/checkpoint_000004 production --remove

Exit codes: 0 done, 1 there is no such checkpoint or it cannot be changed, 2 usage.
"""


@command(help=PIN)
@click.argument("url")
async def pin(output: Output, settings: Settings, *, url: str) -> int:
    """See PIN."""
    uri = resolve_url(url)
    found = await pin_checkpoint(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    return _shown(output, found)


@command(help=UNPIN)
@click.argument("url")
async def unpin(output: Output, settings: Settings, *, url: str) -> int:
    """See UNPIN."""
    uri = resolve_url(url)
    found = await unpin_checkpoint(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    return _shown(output, found)


@command(help=TAG)
@click.argument("url")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--remove", is_flag=True, help="Take the names away.")
async def tag(output: Output, settings: Settings, *, url: str, names: tuple[str, ...], remove: bool) -> int:
    """See TAG."""
    where: dict[str, Any] = {"storage_options": settings.storage_options, "transfer": settings.transfer}
    return _shown(output, await tag_checkpoint(resolve_url(url), *names, remove=remove, **where))


def _shown(output: Output, found: CheckpointView) -> int:
    kept = "is kept" if found.pinned or found.tags else "is left to retention"
    output.line(f"{found.uri} {kept}; marks: {shown_marks(found)}")
    output.document({"ok": True, "uri": found.uri, "pinned": found.pinned, "tags": jsonable(found.tags)})
    return DONE
